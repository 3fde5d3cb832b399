"""Training in intervals: fit, evaluate, write the row, save the checkpoint; and going on where a run stopped."""

import math
import sys
import time
from collections.abc import Callable

import keras
import numpy as np

from simclrv2_tf.config import SettingError
from simclrv2_tf.data.pipeline import TrainingInput
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.training.checkpoints import Checkpoints
from simclrv2_tf.training.distributed import ReplicatedModel
from simclrv2_tf.training.journal import Journal
from simclrv2_tf.training.schedules import Plan

Evaluate = Callable[[], dict[str, float]]


def train(
    model: ReplicatedModel,
    data: TrainingInput,
    plan: Plan,
    journal: Journal,
    keep_checkpoints: int,
    evaluate: Evaluate,
    refresh: Callable[[], None] = lambda: None,
) -> None:
    """Trains to ``plan.total_steps``, from the newest checkpoint in the journal's directory on.

    After each interval come the evaluation, its row in ``metrics.csv``, then the checkpoint: a kill in between repeats
    the interval, whose row then replaces the earlier one.

    Args:
        model: compiled.
        data: its input.
        plan: how long.
        journal: where the records go.
        keep_checkpoints: newest checkpoints to keep; 0: all.
        evaluate: gives numbers of the model as it is.
        refresh: brings what people look at up to date, when an interval is saved.
    """
    checkpoints = Checkpoints(journal.model_dir, model, keep_checkpoints)
    step = checkpoints.restore()
    if step >= plan.total_steps:
        print(f"Nothing left to train: {journal.model_dir} is at step {step} of {plan.total_steps}.")
        return
    if step:
        print(f"Going on at step {step} of {plan.total_steps} (checkpoint in {journal.model_dir}).")
    if model.jit_compile:
        print("Compiling the training step with XLA: about a minute on a GPU.", flush=True)
    progress = Progress(data, plan, step)
    while step < plan.total_steps:
        end = (step // plan.interval_steps + 1) * plan.interval_steps
        if end > plan.total_steps - plan.interval_steps / 2:  # no stump of an interval at the end
            end = plan.total_steps
        _fit(model, data, step, end, progress)
        step = end
        row = {"step": step, "epoch": step / plan.epoch_steps, **progress.take_means(), **evaluate()}
        journal.write_row(row)
        checkpoints.save(step)
        progress.show(row)
        refresh()


def _fit(model: ReplicatedModel, data: TrainingInput, start: int, end: int, progress: "Progress") -> None:
    """Steps ``start … end − 1``: as many as fit at ``steps_per_execution``, the rest in one shorter call."""
    usual = model.steps_per_execution
    for steps, a_call in (((end - start) // usual * usual, usual), ((end - start) % usual, (end - start) % usual)):
        if steps:
            model.steps_per_execution = a_call
            model.fit(data.batches(start, steps), epochs=1, verbose=0, shuffle=False, callbacks=[progress])
            start += steps
    model.steps_per_execution = usual


class Progress(keras.callbacks.Callback):
    """One progress bar over the whole run, with images/s and learning rate; and the means of an interval's metrics."""

    def __init__(self, data: TrainingInput, plan: Plan, first_step: int):
        super().__init__()
        self.data = data
        self.plan = plan
        self.step = first_step
        live = sys.stdout.isatty()
        self.steps_before = first_step
        self.bar = keras.utils.Progbar(plan.total_steps - first_step, interval=0.2 if live else 20, unit_name="step")
        self._forget()

    def _forget(self) -> None:
        self.sums: dict[str, float] = {}
        self.calls = 0
        self.interval_start = self.step
        self.seconds = 0.0

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.clock = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        if isinstance(self.data.source, FileSource):
            self.data.source.check_corrupt()
        now = time.perf_counter()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        steps = self.model.steps_per_execution
        self.step += steps
        if not math.isfinite(logs["loss"]):
            rate = self._rates()["learning_rate"]
            raise SettingError(
                f"--learning_rate: the loss is {logs['loss']} at step {self.step} (rate {rate:g}): lower it"
            )
        self.calls += steps
        for name, value in logs.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value) * steps
        if self.step < self.plan.total_steps:  # the last one is shown with its evaluation
            self.show({name: float(value) for name, value in logs.items()} | self._rates())

    def _rates(self) -> dict[str, float]:
        steps = self.step - self.interval_start
        return {
            "learning_rate": float(np.asarray(self.plan.schedule(self.step - 1))),
            "images_per_second": steps * self.data.batch_size / max(self.seconds, 1e-9),
        }

    def take_means(self) -> dict[str, float]:
        """The interval's mean metrics, learning rate and speed; starts the next interval."""
        means = {name: self.sums[name] / self.calls for name in self.model.train_metrics} | self._rates()
        self._forget()
        return means

    def show(self, values: dict[str, float]) -> None:
        """Brings the bar up to date."""
        shown = {k: v for k, v in values.items() if k in SHOWN}
        self.bar.stateful_metrics = set(shown)
        self.bar.update(self.step - self.steps_before, list(shown.items()), finalize=self.step == self.plan.total_steps)


SHOWN = (
    "loss",
    "contrastive_accuracy",
    "train_top1",
    "teacher_agreement",
    "online_top1",
    "eval_top1",
    "learning_rate",
    "images_per_second",
)
