"""The training loop. Read this file first: it shows the whole course of a run, from resuming to the last checkpoint.

Its parts are built by ``modes/setup.py``; one step is ``Method.train_step`` in ``methods/base.py``.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import gather_from_workers, prefetch_device
from simclrv2_tf.errors import SettingError, first_line
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
    """

    config: Config
    method: Method
    data: TrainingInput
    plan: Plan
    test: Source | None


def train(
    run: Run,
    run_dir: RunDirectory,
    evaluate: Callable[[], dict[str, float]],
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> int:
    """Trains to the last step of the plan, starting from the newest checkpoint of the run directory.

    Each interval ends with an evaluation, a row of ``metrics.csv`` and then a checkpoint; after a kill in between, the
    interval is repeated. For callbacks an interval is an epoch and a call of the device a batch. Values that they add
    to the logs of ``on_epoch_end`` are written into the row, and ``stop_training`` ends the run.

    Args:
        run: the run to train.
        run_dir: its records.
        evaluate: returns metrics of the current model.
        callbacks: Keras callbacks.

    Returns:
        The last step.

    Raises:
        SettingError: if the loss is not finite, too many images are corrupt, or a checkpoint cannot be written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the step is finished and saved.
    """
    config, method, data, plan = run.config, run.method, run.data, run.plan
    strategy, last_step = method.distribute_strategy, plan.total_steps
    means = IntervalMeans(method.train_metrics)
    checkpoints = Checkpoints(config.run_dir, method, config.keep_checkpoint_max, {"interval": means.variables})

    step = _resume(run, run_dir, checkpoints)
    if step >= last_step:
        return step
    first_step, num_steps = step, last_step - step
    make_batches = lambda part: data.of(part).batches(first_step, num_steps)  # noqa: E731
    # one iterator for all steps, so that no interval builds another
    iterator = iter(distribute(strategy, data.batch_size, make_batches, prefetch_device(config)))
    memory = step_memory(method, method.trace_steps(iterator), data.resident_bytes)
    print(f"Memory: {format_memory_estimate(memory, strategy.num_replicas_in_sync, max(config.cpu_replicas, 1))}")
    progress = Progress(data.batch_size, plan, step)
    listeners = keras.callbacks.CallbackList(callbacks, model=method, steps=last_step, model_dir=str(run_dir.model_dir))
    method.stop_training = False
    listeners.on_train_begin()
    interval_start = step
    with StopRequest() as stop:
        while step < last_step and not method.stop_training:
            end = plan.interval_end(step)
            if step == interval_start:
                listeners.on_epoch_begin(plan.interval_of(step))

            # Train: several steps in one call of the device.
            listeners.on_train_batch_begin(step)
            steps, started = min(method.steps_per_execution, end - step), time.perf_counter()
            logs = {name: float(value) for name, value in method.run_steps(iterator, steps).items()}
            num_bad = _check_finite(logs, step, run)
            data.source.check_corrupt()
            step += steps
            means.add(logs, steps - num_bad, num_bad)
            progress.add(logs, steps, time.perf_counter() - started)
            listeners.on_train_batch_end(step - 1, logs)

            # At the end of an interval: evaluate, report, save.
            if step == end:
                row = {"step": step, "epoch": step / plan.epoch_steps, **means.take(), **progress.take_rates()}
                if math.isnan(row["loss"]):
                    raise SettingError(f"--on_nan=skip: every step since the last row was skipped, up to step {step}")
                row |= evaluate()
                for callback in callbacks:  # a CallbackList would pass a copy of the row
                    callback.on_epoch_end(plan.interval_of(step - 1), row)
                _save(run, run_dir, checkpoints, step, row)
                progress.show(row)
                interval_start = step

            # Stop if any worker was asked to.
            stop_requested, stop_training = _gather_stops(strategy, stop, method)
            method.stop_training = stop_training
            if (stop_requested or stop_training) and step < last_step:
                if step != end:
                    _save(run, run_dir, checkpoints, step)
                print(f"\nStopped at step {step} of {last_step}.", flush=True)
            if stop_requested and step < last_step:
                listeners.on_train_end()
                stop.obey()
    listeners.on_train_end()
    return step


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
    rate = float(run.plan.schedule(bad_step - 1))
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
        if row is not None:
            run_dir.write_row(row)
            if config.keep_best != "none" and run_dir.last_row_is_best(BEST[config.keep_best]):
                checkpoints.save_best(step)
        checkpoints.save(step)
        if config.report:
            write_report(run_dir.model_dir)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        message = f"--model_dir={run_dir.model_dir}: step {step} could not be saved ({reason})"
        if config.on_checkpoint_error == "stop":
            raise SettingError(
                f"{message}; what was saved before is intact: make room and run the same command again"
            ) from None
        log.warning("%s; continuing, as --on_checkpoint_error=continue", message)
    gather_from_workers(method.distribute_strategy, step)  # no worker goes on before the chief has saved


def _gather_stops(strategy: tf.distribute.Strategy, stop: StopRequest, method: Method) -> tuple[bool, bool]:
    """Returns whether any worker got a signal, and whether a callback on any worker requests a stop."""
    requests = gather_from_workers(strategy, bool(stop.signal) + 2 * bool(method.stop_training))
    return any(request & 1 for request in requests), any(request & 2 for request in requests)
