"""NaN/Inf guard: detects bad steps and rolls them back on the device."""

from collections.abc import Sequence

import keras
import tensorflow as tf


def all_finite(loss: tf.Tensor, updated: Sequence[keras.Variable]) -> tf.Tensor:
    """Checks that neither the loss nor a gradient was NaN or infinite; returns a bool scalar.

    With every optimizer, a gradient that is not finite leaves its variable not finite, so the variables are checked. An
    update that float16's loss scaling has skipped is not an error. All replicas return the same, as they have the same
    weights.

    Args:
        loss: of the step, averaged over replicas.
        updated: the trained variables after the step.
    """
    finite = [tf.reduce_all(tf.math.is_finite(value)) for value in (loss, *(variable.value for variable in updated))]
    return tf.reduce_all(tf.stack(finite))


class Snapshot:
    """Values of variables before a step, on one replica.

    Args:
        by_optimizer: variables that the optimizer updates on all replicas at once.
        by_replica: variables that each replica assigns by itself.
    """

    def __init__(self, by_optimizer: Sequence[keras.Variable], by_replica: Sequence[keras.Variable]):
        self.by_optimizer, self.by_replica = by_optimizer, by_replica
        self.before = [tf.identity(variable.value) for variable in (*by_optimizer, *by_replica)]

    def restore_unless(self, good: tf.Tensor) -> None:
        """Restores the variables unless ``good``, a bool scalar that is the same on all replicas."""
        variables = [*self.by_optimizer, *self.by_replica]
        values = [tf.where(good, v.value, old) for v, old in zip(variables, self.before, strict=True)]
        count = len(self.by_optimizer)
        strategy = tf.distribute.get_strategy()
        # As in Keras's optimizers: on GPUs under XLA each replica updates its own copy; merging is not possible.
        tf.__internal__.distribute.interim.maybe_merge_call(self._assign, strategy, *values[:count])
        for variable, value in zip(self.by_replica, values[count:], strict=True):
            variable.assign(value)

    def _assign(self, strategy: tf.distribute.Strategy, *values: tf.Tensor) -> None:
        for variable, value in zip(self.by_optimizer, values, strict=True):
            strategy.extended.update(variable.value, lambda copy, new: copy.assign(new), args=(value,))
