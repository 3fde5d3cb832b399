"""Layer-wise adaptive rate scaling (LARS), which Keras does not have."""

import math
import numbers
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.settings.config import check_arguments


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class LARS(keras.optimizers.Optimizer):
    """LARS (You et al., arXiv 1708.03888): SGD with momentum, each step proportional to the norm of the weight.

    Per variable, with ``trust(u) = trust_coefficient · ‖w‖ / ‖u‖``, and 1 where either norm is 0::

        g ← g + weight_decay · w
        classic:    v ← m·v + lr·trust(g)·g     u = v   (Nesterov: m·v + lr·trust(g)·g)     w ← w − u
        otherwise:  v ← m·v + g                 u = v   (Nesterov: m·v + g)                 w ← w − lr·trust(u)·u

    Scalars and vectors (biases, batch norm's gamma and beta) and the variables passed to ``exclude``, such as those of
    the supervised head, have neither weight decay nor adaptation: they get plain SGD with momentum.

    Args:
        learning_rate: float, ``LearningRateSchedule`` or callable.
        momentum: m, in [0, 1).
        weight_decay: L2 coefficient; added to the gradient, unlike the decoupled decay of other Keras optimizers.
        trust_coefficient: scale of the adapted rate.
        nesterov: look one step of momentum ahead.
        classic_momentum: accumulate steps scaled by the learning rate, as in the paper; otherwise gradients.
        skip_vectors: exclude variables of fewer than two dimensions from decay and adaptation.
        name: of the optimizer.
        **kwargs: of ``keras.optimizers.Optimizer`` (clipping, ``use_ema``, ``gradient_accumulation_steps`` …).

    Raises:
        ValueError: if the learning rate, the momentum, the weight decay or the trust coefficient is out of bounds.

    Example:
        >>> weight = keras.Variable([[3.0, 4.0]])
        >>> LARS(learning_rate=2.0).apply([tf.constant([[0.0, 8.0]])], [weight])
        >>> print(weight.numpy())  # a step of 2.0 · 0.001 · ‖w‖ along the gradient
        [[3.   3.99]]
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        nesterov: bool = False,
        classic_momentum: bool = True,
        skip_vectors: bool = True,
        name: str = "lars",
        **kwargs: Any,
    ):
        check_arguments(momentum=momentum, weight_decay=weight_decay)
        if isinstance(learning_rate, numbers.Number):
            check_arguments(learning_rate=learning_rate)
        if not (0 < trust_coefficient < math.inf):
            raise ValueError(f"trust_coefficient={trust_coefficient}: must be a finite number above 0")
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        # Not self.weight_decay: from that attribute the base class would decay the weights a second time, decoupled.
        self.l2 = weight_decay
        self.momentum = momentum
        self.trust_coefficient = trust_coefficient
        self.nesterov = nesterov
        self.classic_momentum = classic_momentum
        self.skip_vectors = skip_vectors
        self._undecayed: set[Any] = set()
        self._unadapted: set[Any] = set()

    def exclude(self, variables: Iterable[keras.Variable], decay: bool = True, adaptation: bool = True) -> None:
        """Excludes variables from weight decay, from adaptation, or from both.

        Variables are identified as objects, not by name, so this is not part of the config: repeat it after reloading.

        Raises:
            ValueError: if the optimizer is already built: a traced step may not see the change.
        """
        if self.built:
            raise ValueError("exclude() must be called before the optimizer is built")
        keys = {self._var_key(variable) for variable in variables}
        self._undecayed |= keys if decay else set()
        self._unadapted |= keys if adaptation else set()

    def build(self, variables: list[keras.Variable]) -> None:
        """Creates one momentum of zeros per variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(variable, name="momentum") for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Updates one variable and its momentum in place."""
        momentum = self.momentums[self._get_variable_index(variable)]
        weight = keras.ops.convert_to_tensor(variable)
        gradient = tf.cast(gradient, weight.dtype)
        learning_rate = tf.cast(learning_rate, weight.dtype)
        if self._applies_to(variable, self._undecayed):
            gradient += self.l2 * weight
        adapts = self._applies_to(variable, self._unadapted)

        step = gradient
        if self.classic_momentum:
            step *= learning_rate * self._trust(weight, gradient) if adapts else learning_rate
        velocity = self.momentum * keras.ops.convert_to_tensor(momentum) + step
        update = self.momentum * velocity + step if self.nesterov else velocity
        if not self.classic_momentum:
            update *= learning_rate * self._trust(weight, update) if adapts else learning_rate
        self.assign(momentum, velocity)
        self.assign_sub(variable, update)

    def _applies_to(self, variable: keras.Variable, excluded: set[Any]) -> bool:
        is_vector = self.skip_vectors and len(variable.shape) < 2
        return not is_vector and self._var_key(variable) not in excluded

    def _trust(self, weight: tf.Tensor, update: tf.Tensor) -> tf.Tensor:
        weight_norm, update_norm = tf.norm(weight), tf.norm(update)
        ratio = tf.math.divide_no_nan(self.trust_coefficient * weight_norm, update_norm)
        return tf.where((weight_norm > 0) & (update_norm > 0), ratio, 1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "weight_decay": self.l2,
            "trust_coefficient": self.trust_coefficient,
            "nesterov": self.nesterov,
            "classic_momentum": self.classic_momentum,
            "skip_vectors": self.skip_vectors,
        }
