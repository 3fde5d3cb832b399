"""How long, and how fast: the number of steps and the learning rate at each."""

import dataclasses
import math
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.settings.config import Config


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 to the peak, then half a cosine to 0 (SimCLR, section 2.2), and 0 from ``total_steps`` on.

    ``peak · t / W`` for t < W, then ``peak · ½ (1 + cos(π (t − W) / (T − W)))``. A warm-up that is longer than the run
    is cut off with it. Computed in ``keras.config.floatx()``.

    Args:
        peak: the learning rate where the warm-up ends.
        total_steps: T, at least 1.
        warmup_steps: W, at least 0.

    Raises:
        ValueError: for numbers of steps out of these bounds.

    Example:
        >>> schedule = WarmUpCosine(peak=1.0, total_steps=100, warmup_steps=10)
        >>> [round(float(schedule(step)), 3) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0):
        if total_steps < 1 or warmup_steps < 0:
            raise ValueError(
                f"total_steps must be at least 1 and warmup_steps at least 0, not {total_steps} and {warmup_steps}"
            )
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Learning rate of the update that follows ``step`` updates, a scalar."""
        dtype = keras.config.floatx()
        step = tf.cast(keras.ops.convert_to_tensor(step), dtype)
        rising = self.peak * step / max(self.warmup_steps, 1)
        progress = (step - self.warmup_steps) / max(self.total_steps - self.warmup_steps, 1)
        falling = self.peak * 0.5 * (1 + tf.cos(math.pi * progress))
        rate = tf.where(step < self.warmup_steps, rising, falling)
        return tf.where(step < self.total_steps, rate, tf.zeros([], dtype))

    def get_config(self) -> dict[str, Any]:
        return {"peak": self.peak, "total_steps": self.total_steps, "warmup_steps": self.warmup_steps}


def peak_learning_rate(base: float, batch_size: int, scaling: str) -> float:
    """``base · B / 256`` ("linear") or ``base · √B`` ("sqrt"; SimCLR, appendix B.1) for the global batch size B.

    Raises:
        ValueError: for another scaling.
    """
    if scaling == "linear":
        return base * batch_size / 256
    if scaling == "sqrt":
        return base * math.sqrt(batch_size)
    raise ValueError(f'learning rate scaling must be "linear" or "sqrt", not "{scaling}"')


def training_steps(num_examples: int, batch_size: int, train_epochs: float, train_steps: int = 0) -> int:
    """Updates in a run: ``train_steps`` where it is above 0, else ``⌊examples · epochs / B⌋ + 1``.

    The official code adds that 1 even where the batches divide the examples.
    """
    return train_steps or int(num_examples * train_epochs // batch_size) + 1


def warmup_steps(num_examples: int, batch_size: int, warmup_epochs: float) -> int:
    """Updates of the warm-up: ``⌊examples · epochs / B⌋``, as in the official code."""
    return int(num_examples * warmup_epochs // batch_size)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run is and how fast it learns."""

    total_steps: int
    epoch_steps: int
    interval_steps: int
    warmup_steps: int
    peak_learning_rate: float

    @classmethod
    def of(cls, config: Config, num_examples: int) -> "Plan":
        """From the settings and the number of training images."""
        batch = config.train_batch_size
        epoch_steps = max(1, round(num_examples / batch))
        return cls(
            training_steps(num_examples, batch, config.train_epochs, config.train_steps),
            epoch_steps,
            config.checkpoint_steps or config.checkpoint_epochs * epoch_steps,
            warmup_steps(num_examples, batch, config.warmup_epochs),
            peak_learning_rate(config.learning_rate, batch, config.learning_rate_scaling),
        )

    @property
    def schedule(self) -> WarmUpCosine:
        """Its learning rate at each step."""
        return WarmUpCosine(self.peak_learning_rate, self.total_steps, self.warmup_steps)

    def interval_of(self, step: int) -> int:
        """Index of the interval that ``step`` is in."""
        return step // self.interval_steps

    def interval_end(self, step: int) -> int:
        """Where the interval ends that ``step`` is in; no stump of one is left at the end of the run."""
        end = (step // self.interval_steps + 1) * self.interval_steps
        return end if end <= self.total_steps - self.interval_steps / 2 else self.total_steps
