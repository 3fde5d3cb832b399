"""The training loop. Read this file first: it shows the whole course of a run, from resuming to the last checkpoint.

Its parts are built by ``modes/setup.py``; one step is ``Method.train_step`` in ``methods/base.py``.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import tensorflow as tf
from keras.callbacks import Callback, CallbackList

from simclrv2_tf.data.checks import warn_if_blank
from simclrv2_tf.data.input import Part, TrainingInput
from simclrv2_tf.data.service import describe_missing
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import gather_from_workers, has_accelerator, prefetch_device
from simclrv2_tf.errors import SettingError, first_line, warn_instead
from simclrv2_tf.interrupts import waiting
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.report import write_report
from simclrv2_tf.runs.checkpoints import Checkpoints
from simclrv2_tf.runs.memory import format_memory_estimate, step_memory
from simclrv2_tf.runs.progress import IntervalMeans, Progress
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.runs.signals import StopRequest
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

Evaluate = Callable[[], dict[str, float]]

# Columns of metrics.csv that decide which checkpoint is the best, and whether a greater number is better.
BEST = {"loss": (("loss",), False), "top1": (("online_top1", "eval_top1"), True)}


@dataclasses.dataclass(frozen=True)
class Run:
    """Parts of a training run.

    Attributes:
        config: its settings.
        method: the model, compiled; it knows its strategy.
        data: training batches, a function of (seed, step).
        plan: number of steps, intervals and the learning-rate schedule.
        test: labelled images to evaluate on; None without them.
        held_out: images that pretraining does not see, labelled or not; None without them.
        class_names: of the classifier; empty without one.
    """

    config: Config
    method: Method
    data: TrainingInput
    plan: Plan
    test: Source | None
    held_out: Source | None = None
    class_names: tuple[str, ...] = ()


def train(run: Run, run_dir: RunDirectory, evaluate: Evaluate, callbacks: Sequence[Callback] = ()) -> int:
    """Trains to the last step of the plan, starting from the newest checkpoint; returns the step it reached.

    Args:
        run: the run to train.
        run_dir: its records.
        evaluate: returns metrics of the current model.
        callbacks: an interval is an epoch to them, and a call of the device a batch. Values that they add to the logs
            of ``on_epoch_end`` are written into the row; ``stop_training`` ends the run.

    Raises:
        SettingError: if the loss is not finite, too many images are corrupt, or a checkpoint cannot be written.
        KeyboardInterrupt, SystemExit: after a signal, once the step is finished and saved.
    """
    method, data, plan = run.method, run.data, run.plan
    means = IntervalMeans(method.train_metrics)
    checkpoints = Checkpoints(run.config.run_dir, method, run.config.keep_checkpoint_max, {"interval": means.variables})
    step = _resume(run, run_dir, checkpoints)
    if step >= plan.total_steps:
        return step
    batches = _start_input(run, step)
    progress = Progress(data.batch_size, plan, step)
    listeners = CallbackList(callbacks, model=method, steps=plan.total_steps, model_dir=str(run_dir.model_dir))
    method.stop_training, new_interval = False, True
    listeners.on_train_begin()
    with StopRequest() as stop:
        while step < plan.total_steps:
            if new_interval:
                listeners.on_epoch_begin(plan.interval_of(step))
            end = plan.interval_end(step)
            steps = min(method.steps_per_execution, end - step)

            # Train: several steps in one call of the device.
            listeners.on_train_batch_begin(step)
            started = time.perf_counter()
            logs = _run_steps(run, batches, steps, progress)
            num_bad = _check_finite(logs, step, run)
            data.source.check_corrupt()
            step += steps
            means.add(logs, steps - num_bad, num_bad)
            progress.add(logs, steps, time.perf_counter() - started)
            listeners.on_train_batch_end(step - 1, logs)

            # At the end of an interval: evaluate and write a row of metrics.csv, then a checkpoint.
            if new_interval := step == end:
                row = _metrics_row(step, plan, means, progress) | evaluate()
                for callback in callbacks:  # a CallbackList would pass a copy of the row
                    callback.on_epoch_end(plan.interval_of(step - 1), row)
                _save(run, run_dir, checkpoints, step, row)
                progress.show(row)

            if _should_stop(method, stop) and step < plan.total_steps:
                if not new_interval:
                    _save(run, run_dir, checkpoints, step)
                print(f"\nStopped at step {step} of {plan.total_steps}.", flush=True)
                break
    listeners.on_train_end()
    if step < plan.total_steps and not method.stop_training:
        stop.obey()
    return step


def _start_input(run: Run, first_step: int) -> Iterator:
    """Returns one iterator for all remaining steps, so that no interval builds another; prints the step's memory."""
    config, method, data, num_steps = run.config, run.method, run.data, run.plan.total_steps - first_step
    strategy = method.distribute_strategy
    resident = None if data.resident is None else data.source.images

    def make_batches(part: Part) -> tf.data.Dataset:
        return warn_if_blank(data.of(part).batches(first_step, num_steps), data.source.name, resident)

    batches = iter(distribute(strategy, data.batch_size, make_batches, prefetch_device(config)))
    memory = step_memory(method, method.trace_steps(batches), data.resident_bytes)
    print(f"Memory: {format_memory_estimate(memory, strategy.num_replicas_in_sync, max(config.cpu_replicas, 1))}")
    return batches


def _run_steps(run: Run, batches: Iterator, steps: int, progress: Progress) -> dict[str, float]:
    """Runs steps in one call of the device; returns their logs."""
    # While an accelerator computes, the host may be idle without waiting for anything else.
    usual_seconds = 3 * progress.slowest_call if has_accelerator(run.config) else 0.0
    with waiting(partial(_missing_input, run.data), usual_seconds):
        return {name: float(value) for name, value in run.method.run_steps(batches, steps).items()}


def _missing_input(data: TrainingInput) -> str:
    """Describes what a step that makes no progress waits for."""
    return describe_missing(data.services) or "the images of the next step, or another worker"


def _metrics_row(step: int, plan: Plan, means: IntervalMeans, progress: Progress) -> dict[str, float]:
    """Returns an interval's row of ``metrics.csv``, without its evaluation; a new interval starts."""
    row = {"step": step, "epoch": step / plan.epoch_steps, **means.take(), **progress.take_rates()}
    if math.isnan(row["loss"]):
        raise SettingError(f"--on_nan=skip: every step since the last row was skipped, up to step {step}")
    return row


def _resume(run: Run, run_dir: RunDirectory, checkpoints: Checkpoints) -> int:
    """Restores the newest checkpoint; returns its step, 0 if there is none."""
    step, last_step = checkpoints.restore(), run.plan.total_steps
    if len(set(gather_from_workers(run.method.distribute_strategy, step))) > 1:
        raise SettingError(
            f"--model_dir={run.config.run_dir}: the workers find different checkpoints; all need the same directory"
        )
    run_dir.rewind(step)
    run.data.source.corrupt.update(run_dir.corrupt_images())
    if step >= last_step:
        print(f"Training already complete: {run_dir.model_dir} is at step {step} of {last_step}.")
    elif step:
        print(f"Resuming from step {step} of {last_step} (checkpoint in {run_dir.model_dir}).")
    if step < last_step and run.method.jit_compile:
        print("Compiling the training step with XLA: about a minute on a GPU.", flush=True)
    return step


def _check_finite(logs: dict[str, float], step: int, run: Run) -> int:
    """Removes the counts of the NaN guard from the logs of a call; returns the number of bad steps.

    Raises:
        SettingError: if there are bad steps and ``--on_nan=stop``.
    """
    num_bad, first_bad = int(logs.pop("bad_steps")), int(logs.pop("first_bad_step"))
    if not num_bad:
        return 0
    bad_step = step + first_bad + 1
    rate = run.plan.learning_rate(bad_step - 1)
    message = (
        f"--on_nan={run.config.on_nan}: the loss or a gradient is not finite at step {bad_step} of "
        f"{run.plan.total_steps}"
    )
    if run.config.on_nan == "stop":
        raise SettingError(
            f"{message} (loss {logs['loss']:g}, learning rate {rate:g}). The last checkpoint is kept. Try a lower "
            "--learning_rate, more --warmup_epochs, --mixed_precision=float32, or --on_nan=skip"
        )
    log.warning("%s (learning rate %g); skipped %d", message, rate, num_bad)
    return num_bad


def _save(
    run: Run, run_dir: RunDirectory, checkpoints: Checkpoints, step: int, row: dict[str, float] | None = None
) -> None:
    """Writes the row of a finished interval, if there is one, then the checkpoint and the report.

    Raises:
        SettingError: if that fails, unless ``--on_checkpoint_error=continue``.
    """
    config, method = run.config, run.method
    method.average_local_statistics()
    try:
        run_dir.write_corrupt_images(run.data.source.corrupt)
        run_dir.write_seconds()
        if row is not None:
            run_dir.write_row(row)
            if config.keep_best != "none" and run_dir.last_row_is_best(BEST[config.keep_best]):
                checkpoints.save_best(step)
        checkpoints.save(step)
        if config.report:
            with warn_instead():
                write_report(run_dir.model_dir)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        message = f"--model_dir={run_dir.model_dir}: step {step} could not be saved ({reason})"
        if config.on_checkpoint_error == "stop":
            raise SettingError(
                f"{message}; what was saved before is intact: make room and run the same command again"
            ) from None
        log.warning("%s; continuing, as --on_checkpoint_error=continue", message)
    gather_from_workers(method.distribute_strategy, step)  # no worker continues before the chief has saved


def _should_stop(method: Method, stop: StopRequest) -> bool:
    """Returns whether any worker was sent a signal, or a callback on any worker set ``stop_training``."""
    requests = gather_from_workers(method.distribute_strategy, bool(stop.signal) + 2 * bool(method.stop_training))
    method.stop_training = any(request & 2 for request in requests) and not any(request & 1 for request in requests)
    return any(requests)
