"""Step counts and the warm-up + cosine learning-rate schedule."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.settings.config import Config


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class WarmUpCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0 to the peak, then a cosine decay to 0 at ``total_steps`` (SimCLR, section 2.2).

    ``peak · t / W`` for t < W, then ``peak · ½ (1 + cos(π (t − W) / (T − W)))``, and 0 from t = T on, even if the
    warm-up is longer. Keras's ``CosineDecay(0.0, T − W, warmup_target=peak, warmup_steps=W)`` has the same rates for
    0 < W < T, but cannot end within the warm-up. Computed in float64 if ``keras.config.floatx()`` is that, else in
    float32.

    Args:
        peak: the learning rate at the end of the warm-up.
        total_steps: T, at least 1.
        warmup_steps: W, at least 0.

    Raises:
        ValueError: if the peak or a number of steps is out of bounds.

    Example:
        >>> schedule = WarmUpCosine(peak=0.4, total_steps=100, warmup_steps=10)
        >>> [round(float(schedule(step)), 2) for step in (0, 5, 10, 55, 100)]
        [0.0, 0.2, 0.4, 0.2, 0.0]
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0):
        if not 0 <= peak < math.inf:
            raise ValueError(f"peak={peak}: must be a finite number, 0 or more")
        if not (total_steps >= 1 and warmup_steps >= 0):
            raise ValueError(
                f"total_steps must be at least 1 and warmup_steps at least 0, not {total_steps} and {warmup_steps}"
            )
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: tf.Tensor | int) -> tf.Tensor:
        """Learning rate, a scalar, of the update after ``step`` updates."""
        dtype = statistics_dtype(keras.config.floatx())
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
        ValueError: if the scaling is neither.
    """
    if scaling == "linear":
        return base * batch_size / 256
    if scaling == "sqrt":
        return base * math.sqrt(batch_size)
    raise ValueError(f'learning rate scaling must be "linear" or "sqrt", not "{scaling}"')


def training_steps(num_examples: int, batch_size: int, train_epochs: float, train_steps: int = 0) -> int:
    """Updates of a run: ``train_steps`` if above 0, else ``⌊examples · epochs / B⌋ + 1``.

    The official code adds the 1 even if the batch size divides the number of examples.
    """
    return train_steps or int(num_examples * train_epochs // batch_size) + 1


def warmup_steps(num_examples: int, batch_size: int, warmup_epochs: float) -> int:
    """Updates of the warm-up: ``⌊examples · epochs / B⌋``, as in the official code."""
    return int(num_examples * warmup_epochs // batch_size)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Step counts and peak learning rate of a run."""

    total_steps: int
    epoch_steps: int
    interval_steps: int
    warmup_steps: int
    peak_learning_rate: float

    @classmethod
    def of(cls, config: Config, num_examples: int) -> "Plan":
        """Computes the plan from the settings and the number of training images."""
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
        """Learning-rate schedule of the run."""
        return WarmUpCosine(self.peak_learning_rate, self.total_steps, self.warmup_steps)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after ``step`` updates."""
        return float(self.schedule(np.int64(step)))  # TensorFlow caches every Python number that it converts, forever

    def interval_of(self, step: int) -> int:
        """Index of the interval that ``step`` is in."""
        return step // self.interval_steps

    def interval_end(self, step: int) -> int:
        """Last step of the checkpoint interval that ``step`` is in; the last interval takes up a short remainder."""
        end = (step // self.interval_steps + 1) * self.interval_steps
        return end if end <= self.total_steps - self.interval_steps / 2 else self.total_steps
