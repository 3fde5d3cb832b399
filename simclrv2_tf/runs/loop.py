"""The loop of a run: steps, then evaluate, write the row and save; and going on where a run stopped."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable

import tensorflow as tf

from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.distributed.devices import copying, gather_from_workers
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.methods.base import ReplicatedModel, distribute
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.runs.checkpoints import Checkpoints
from simclrv2_tf.runs.profiling import Profile
from simclrv2_tf.runs.progress import IntervalMeans, Progress
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.runs.signals import StopRequest
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

Evaluate = Callable[[], dict[str, float]]


def train(
    model: ReplicatedModel,
    data: TrainingInput,
    plan: Plan,
    run_dir: RunDirectory,
    config: Config,
    evaluate: Evaluate,
    refresh: Callable[[], None] = lambda: None,
) -> None:
    """Trains to ``plan.total_steps``, from the newest checkpoint in the journal's directory on.

    After each interval come the evaluation, its row in ``metrics.csv``, then the checkpoint: a kill in between repeats
    the interval.

    Args:
        model: compiled.
        data: its input.
        plan: how long.
        run_dir: where the records go.
        config: of it ``keep_checkpoint_max``, ``keep_best`` and ``on_checkpoint_error``.
        evaluate: gives numbers of the model as it is.
        refresh: brings what people look at up to date, when an interval is saved.

    Raises:
        SettingError: if the loss is not finite, too many images are corrupt, or a checkpoint cannot be written.
        KeyboardInterrupt: after Ctrl-C, SystemExit after SIGTERM: when the step is done and saved.
    """
    means = IntervalMeans(model.train_metrics)
    checkpoints = Checkpoints(config.run_dir, model, config.keep_checkpoint_max, {"interval": means.variables})
    step = checkpoints.restore()
    if len(set(gather_from_workers(model.distribute_strategy, step))) > 1:
        raise SettingError(f"--model_dir={config.run_dir}: the workers find different checkpoints; they must share it")
    run_dir.rewind(step)
    data.source.corrupt.update(run_dir.corrupt_images())
    if step >= plan.total_steps:
        print(f"Nothing left to train: {run_dir.model_dir} is at step {step} of {plan.total_steps}.")
        return
    if step:
        print(f"Going on at step {step} of {plan.total_steps} (checkpoint in {run_dir.model_dir}).")
    if model.jit_compile:
        print("Compiling the training step with XLA: about a minute on a GPU.", flush=True)
    _run(model, data, plan, step, means, evaluate, _Save(model, run_dir, checkpoints, data, config, refresh))


def _run(
    model: ReplicatedModel,
    data: TrainingInput,
    plan: Plan,
    step: int,
    means: IntervalMeans,
    evaluate: Evaluate,
    save: "_Save",
) -> None:
    """The steps from ``step`` on; one iterator serves them all, so that an interval builds nothing anew."""
    start, count = step, plan.total_steps - step
    make = lambda part: data.of(part).batches(start, count)  # noqa: E731
    strategy = model.distribute_strategy
    iterator = iter(distribute(strategy, data.batch_size, make, *copying(save.config)))
    progress = Progress(data.batch_size, plan, step)
    with StopRequest() as stop, Profile(save.config.profiled, save.run_dir.model_dir / "tensorboard") as profile:
        while step < plan.total_steps:
            end = plan.interval_end(step)
            steps = profile.before(step, min(model.steps_per_execution, end - step))
            started = time.perf_counter()
            logs = {name: float(value) for name, value in model.run_steps(iterator, steps).items()}
            bad = int(logs.pop("bad_steps"))
            if bad:
                _bad_step(step + int(logs["first_bad_step"]) + 1, bad, logs["loss"], plan, save.config)
            data.source.check_corrupt()
            step += steps
            profile.after(step)
            means.add(logs, steps - bad, bad)
            progress.add(logs, steps, time.perf_counter() - started)
            if step == end:
                row = {"step": step, "epoch": step / plan.epoch_steps, **means.take(), **progress.take_rates()}
                if math.isnan(row["loss"]):
                    raise SettingError(f"--on_nan=skip: every step since the last row was skipped, up to step {step}")
                row |= evaluate()
                save(step, row)
                progress.show(row)
            if any(gather_from_workers(strategy, bool(stop.signal))) and step < plan.total_steps:
                if step != end:
                    save(step)
                print(f"\nStopped at step {step} of {plan.total_steps}.", flush=True)
                stop.obey()


def _bad_step(step: int, count: int, loss: float, plan: Plan, config: Config) -> None:
    """Says that the loss or a gradient was not finite, first at ``step``; SettingError if the run is to stop."""
    rate = float(plan.schedule(step - 1))
    told = f"--on_nan={config.on_nan}: the loss or a gradient is not finite at step {step} of {plan.total_steps}"
    if config.on_nan == "stop":
        raise SettingError(
            f"{told} (loss {loss:g}, learning rate {rate:g}). The last checkpoint is kept. Try a lower "
            "--learning_rate, more --warmup_epochs, --mixed_precision=float32, or --on_nan=skip"
        )
    log.warning("%s (learning rate %g); skipped %d", told, rate, count)


@dataclasses.dataclass(frozen=True)
class _Save:
    """Writes what a run has come to."""

    model: ReplicatedModel
    run_dir: RunDirectory
    checkpoints: Checkpoints
    data: TrainingInput
    config: Config
    refresh: Callable[[], None]

    def __call__(self, step: int, row: dict[str, float] | None = None) -> None:
        """The row of an interval, if one has ended, then the checkpoint; ``--on_checkpoint_error`` says what if not.

        Raises:
            SettingError: if that fails and the run is not to go on without.
        """
        self.model.average_local_statistics()
        try:
            self.run_dir.write_corrupt_images(self.data.source.corrupt)
            if row is not None:
                self.run_dir.write_row(row)
                if self.config.histograms:
                    self.run_dir.write_histograms(self.model.network.weights, step)
                if self.config.keep_best != "none" and self.run_dir.last_row_is_best(BEST[self.config.keep_best]):
                    self.checkpoints.save_best(step)
            self.checkpoints.save(step)
            self.refresh()
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            told = f"--model_dir={self.run_dir.model_dir}: step {step} could not be saved ({reason})"
            if self.config.on_checkpoint_error == "stop":
                raise SettingError(f"{told}; what was saved before is whole: make room, then run it again") from None
            log.warning("%s; going on, as --on_checkpoint_error=continue says", told)
        gather_from_workers(
            self.model.distribute_strategy, step
        )  # none goes on to look for it before the chief is done


# Columns of ``metrics.csv`` that tell which checkpoint is the best, and whether a greater number is better.
BEST = {"loss": (("loss",), False), "top1": (("online_top1", "eval_top1"), True)}
