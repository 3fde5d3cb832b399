"""How far a run is: the means of an interval's metrics, which survive a stop in its middle, and the progress bar."""

import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.methods.schedules import Plan

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
SECONDS_PER_LINE = 60


class IntervalMeans:
    """Means of metrics over the steps since the last row; ``variables`` are part of a checkpoint."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.variables = {
            "sums": tf.Variable(np.zeros(len(names)), trainable=False),  # float64, as Python's own numbers
            "steps": tf.Variable(0, dtype=tf.int64, trainable=False),
            "skipped": tf.Variable(0, dtype=tf.int64, trainable=False),
        }

    def add(self, means: dict[str, float], steps: int, skipped: int) -> None:
        """Counts in the mean metrics of some steps, and those that were skipped."""
        self.variables["sums"].assign_add([means[name] * steps for name in self.names])
        self.variables["steps"].assign_add(steps)
        self.variables["skipped"].assign_add(skipped)

    def take(self) -> dict[str, float]:
        """The means, NaN if every step was skipped; the next interval starts."""
        sums, steps, skipped = (variable.numpy() for variable in self.variables.values())
        for variable in self.variables.values():
            variable.assign(tf.zeros_like(variable))
        means = dict(zip(self.names, (sums / steps if steps else sums * math.nan).tolist(), strict=True))
        return means | ({"skipped_steps": int(skipped)} if skipped else {})


class Progress:
    """How far the run is, with images/s and learning rate: one bar on a terminal, else a plain line now and then."""

    def __init__(self, batch_size: int, plan: Plan, first_step: int):
        self.batch_size = batch_size
        self.plan = plan
        self.first_step = self.step = first_step
        self.images, self.seconds = 0, 0.0
        self.bar = keras.utils.Progbar(plan.total_steps - first_step, interval=0.2, unit_name="step")
        self.last_line = time.monotonic()

    def add(self, logs: dict[str, float], steps: int, seconds: float) -> None:
        """Counts some steps that took so long."""
        self.step += steps
        self.images += steps * self.batch_size
        self.seconds += seconds
        if self.step < self.plan.total_steps:  # the last one is shown with its evaluation
            self.show(logs | self.rates())

    def rates(self) -> dict[str, float]:
        """Learning rate of the last step, and images/s since the last row."""
        return {
            "learning_rate": float(np.asarray(self.plan.schedule(self.step - 1))),
            "images_per_second": self.images / max(self.seconds, 1e-9),
        }

    def take_rates(self) -> dict[str, float]:
        """The rates; images/s are counted anew from here."""
        rates = self.rates()
        self.images, self.seconds = 0, 0.0
        return rates

    def show(self, values: dict[str, float]) -> None:
        """Brings the bar up to date. A line comes with each row of ``metrics.csv``, and after a while without."""
        shown = {name: value for name, value in values.items() if name in SHOWN}
        if not sys.stdout.isatty():
            if "epoch" in values or time.monotonic() > self.last_line + SECONDS_PER_LINE:
                told = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
                print(f"step {self.step:,} of {self.plan.total_steps:,}  {told}", flush=True)
                self.last_line = time.monotonic()
            return
        self.bar.stateful_metrics = set(shown)
        self.bar.update(self.step - self.first_step, list(shown.items()), finalize=self.step == self.plan.total_steps)
