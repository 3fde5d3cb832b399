"""Layer-wise adaptive rate scaling (LARS), which Keras does not have."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class LARS(keras.optimizers.Optimizer):
    """LARS (You et al., arXiv 1708.03888): SGD with momentum whose step is in proportion to the norm of each weight.

    Per variable, with ``trust(u) = trust_coefficient · ‖w‖ / ‖u‖``, and 1 where either norm is 0::

        g ← g + weight_decay · w
        classic:    v ← m·v + lr·trust(g)·g     u = v   (Nesterov: m·v + lr·trust(g)·g)     w ← w − u
        otherwise:  v ← m·v + g                 u = v   (Nesterov: m·v + g)                 w ← w − lr·trust(u)·u

    Scalars and vectors (biases, batch norm's gamma and beta) take part in neither weight decay nor adaptation, nor do
    variables told by ``exclude``, such as the supervised head: they get plain SGD with momentum.

    Args:
        learning_rate: float, ``LearningRateSchedule`` or callable.
        momentum: m, in [0, 1).
        weight_decay: L2 coefficient; it enters the gradient, unlike the decoupled decay of other Keras optimizers.
        trust_coefficient: scale of the adapted rate.
        nesterov: look one step of momentum ahead.
        classic_momentum: the momentum holds learning-rate-scaled steps, as in the paper; otherwise it holds gradients.
        skip_vectors: leave variables of fewer than two dimensions out of decay and adaptation.
        **kwargs: of ``keras.optimizers.Optimizer`` (clipping, ``use_ema``, ``gradient_accumulation_steps`` …).

    Raises:
        ValueError: for a momentum or a weight decay out of bounds.

    Example:
        >>> optimizer = LARS(WarmUpCosine(peak=1.0, total_steps=100, warmup_steps=10), weight_decay=1e-4)
        >>> weight = keras.Variable(np.ones((2, 2), "float32"))
        >>> optimizer.apply([tf.ones((2, 2))], [weight])
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
        if not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(f"momentum must be in [0, 1) and weight_decay at least 0, not {momentum}, {weight_decay}")
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
        """Leave these very variables out of weight decay, of adaptation, or of both.

        The choice is of objects, not of names, so it is not part of the config: tell a reloaded optimizer again.

        Raises:
            ValueError: once the optimizer is built, when a traced step may already hold the earlier choice.
        """
        if self.built:
            raise ValueError("exclude() must be called before the optimizer is built")
        keys = {self._var_key(variable) for variable in variables}
        self._undecayed |= keys if decay else set()
        self._unadapted |= keys if adaptation else set()

    def build(self, variables: list[keras.Variable]) -> None:
        """Create one momentum of zeros per variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = [self.add_variable_from_reference(variable, name="momentum") for variable in variables]

    def update_step(self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor) -> None:
        """Update one variable and its momentum in place."""
        momentum = self.momentums[self._get_variable_index(variable)]
        weight = keras.ops.convert_to_tensor(variable)
        gradient = tf.cast(gradient, weight.dtype)
        learning_rate = tf.cast(learning_rate, weight.dtype)
        if self._takes_part(variable, self._undecayed):
            gradient += self.l2 * weight
        adapts = self._takes_part(variable, self._unadapted)

        step = gradient
        if self.classic_momentum:
            step *= learning_rate * self._trust(weight, gradient) if adapts else learning_rate
        velocity = self.momentum * keras.ops.convert_to_tensor(momentum) + step
        update = self.momentum * velocity + step if self.nesterov else velocity
        if not self.classic_momentum:
            update *= learning_rate * self._trust(weight, update) if adapts else learning_rate
        self.assign(momentum, velocity)
        self.assign_sub(variable, update)

    def _takes_part(self, variable: keras.Variable, excluded: set[Any]) -> bool:
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
