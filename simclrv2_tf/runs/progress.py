"""Running metric averages, which are part of a checkpoint, and the progress bar."""

import math
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.report.tables import format_duration
from simclrv2_tf.runs.run_log import LINES

SHOWN_METRICS: tuple[str, ...] = ("loss", "contrastive_accuracy", "train_top1", "teacher_agreement", "online_top1")
SHOWN_METRICS += ("eval_top1", "rankme", "val_contrastive_accuracy", "learning_rate", "images_per_second")
SECONDS_PER_LINE = 60
SECONDS_TO_TIME = 5.0  # of steps, from which the time of the run is estimated


class IntervalMeans:
    """Means of metrics over the steps since the last row of ``metrics.csv``.

    Args:
        names: of the metrics.

    Attributes:
        variables: the sums and counts, to be saved with a checkpoint.
    """

    def __init__(self, names: tuple[str, ...]):
        self.names = names
        self.variables = {
            "sums": tf.Variable(np.zeros(len(names)), trainable=False),  # float64, like Python's floats
            "steps": tf.Variable(0, dtype=tf.int64, trainable=False),
            "skipped": tf.Variable(0, dtype=tf.int64, trainable=False),
        }

    def add(self, means: dict[str, float], steps: int, skipped: int) -> None:
        """Adds the mean metrics of ``steps`` good steps, and the number of skipped ones."""
        self.variables["sums"].assign_add([means[name] * steps for name in self.names])
        self.variables["steps"].assign_add(steps)
        self.variables["skipped"].assign_add(skipped)

    def take(self) -> dict[str, float]:
        """Returns the means, NaN if every step was skipped, and starts the next interval."""
        sums, steps, skipped = (variable.numpy() for variable in self.variables.values())
        for variable in self.variables.values():
            variable.assign(tf.zeros_like(variable))
        means = dict(zip(self.names, (sums / steps if steps else sums * math.nan).tolist(), strict=True))
        return means | ({"skipped_steps": int(skipped)} if skipped else {})


class Progress:
    """Progress of a run with its metrics, learning rate and images/s: a bar on a terminal, otherwise plain lines."""

    def __init__(self, batch_size: int, plan: Plan, first_step: int):
        self.batch_size = batch_size
        self.plan = plan
        self.first_step = self.step = first_step
        self.images, self.seconds = 0, 0.0
        self.timed_steps, self.timed_seconds = 0, 0.0  # without the first call, which compiles
        self.slowest_call = 60.0  # seconds; a guess before the first call
        self.is_time_printed = False
        self.bar = keras.utils.Progbar(plan.total_steps - first_step, interval=0.2, unit_name="step")
        self.last_line = time.monotonic()

    def add(self, logs: dict[str, float], steps: int, seconds: float) -> None:
        """Counts steps and the seconds that they took."""
        if self.step > self.first_step:
            self.slowest_call = max(self.slowest_call if self.timed_steps else 0.0, seconds)
            self.timed_steps += steps
            self.timed_seconds += seconds
        self.step += steps
        self._print_expected_time()
        self.images += steps * self.batch_size
        self.seconds += seconds
        is_last = self.step >= self.plan.total_steps  # shown with its evaluation
        if not is_last and (sys.stdout.isatty() or self._is_line_due()):
            self.show(logs | self.rates())

    def _print_expected_time(self) -> None:
        """Prints once how long the remaining steps will take, if that is more than a minute."""
        if self.is_time_printed or self.timed_seconds < SECONDS_TO_TIME:
            return
        self.is_time_printed = True
        remaining = self.plan.total_steps - self.step
        seconds = remaining * self.timed_seconds / self.timed_steps
        if seconds > 60:
            print(
                f"\nExpected: about {format_duration(seconds)} for the remaining {remaining:,} steps; evaluations "
                "come on top.",
                flush=True,
            )

    def rates(self) -> dict[str, float]:
        """Returns the learning rate of the last step and images/s since the last row."""
        return {
            "learning_rate": self.plan.learning_rate(self.step - 1),
            "images_per_second": self.images / max(self.seconds, 1e-9),
        }

    def take_rates(self) -> dict[str, float]:
        """Returns the rates and restarts the measurement of images/s."""
        rates = self.rates()
        self.images, self.seconds = 0, 0.0
        return rates

    def _is_line_due(self) -> bool:
        return time.monotonic() > self.last_line + SECONDS_PER_LINE

    def show(self, values: dict[str, float]) -> None:
        """Updates the bar; without a terminal, prints a line per row of ``metrics.csv`` and at least every minute."""
        shown = {name: value for name, value in values.items() if name in SHOWN_METRICS}
        is_terminal = sys.stdout.isatty()
        if "epoch" in values or self._is_line_due():
            metrics = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            line = f"step {self.step:,} of {self.plan.total_steps:,}  {metrics}"
            LINES.info(line) if is_terminal else print(line, flush=True)
            self.last_line = time.monotonic()
        if not is_terminal:
            return
        self.bar.stateful_metrics = set(shown)
        self.bar.update(self.step - self.first_step, list(shown.items()), finalize=self.step == self.plan.total_steps)
