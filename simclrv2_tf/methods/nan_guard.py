"""NaN/Inf guard: detects bad steps on the device and rolls them back there, without asking the host."""

from collections.abc import Sequence

import keras
import tensorflow as tf


def all_finite(loss: tf.Tensor, updated: Sequence[keras.Variable]) -> tf.Tensor:
    """Checks that neither the loss nor a gradient was NaN or infinite; returns a bool scalar.

    A gradient that was not finite leaves its variable not finite, whatever the optimizer. Float16's loss scaling skips
    such an update itself, and then nothing is wrong. All replicas have the same weights, so all agree if the loss is
    the one averaged over them.

    Args:
        loss: of the step, averaged over replicas.
        updated: the trained variables, after the step.
    """
    finite = [tf.reduce_all(tf.math.is_finite(value)) for value in (loss, *(variable.value for variable in updated))]
    return tf.reduce_all(tf.stack(finite))


class Snapshot:
    """The values of variables before a step, on a replica.

    Args:
        by_optimizer: variables that an optimizer changes on all replicas at once.
        by_replica: variables that each replica assigns itself.
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
        # As Keras's optimizers do: on GPUs under XLA each replica updates its copy, and must not merge with the others.
        tf.__internal__.distribute.interim.maybe_merge_call(self._assign, strategy, *values[:count])
        for variable, value in zip(self.by_replica, values[count:], strict=True):
            variable.assign(value)

    def _assign(self, strategy: tf.distribute.Strategy, *values: tf.Tensor) -> None:
        for variable, value in zip(self.by_optimizer, values, strict=True):
            strategy.extended.update(variable.value, lambda copy, new: copy.assign(new), args=(value,))
