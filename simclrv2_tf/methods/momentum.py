"""Moving-average network, and MoCo's queue of its outputs as further negatives (paper §2; arXiv 1911.05722)."""

import keras
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather
from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.models.network import Network
from simclrv2_tf.settings.config import check_arguments


class MovingAverage(keras.layers.Layer):
    """Exponential moving average of a network's trainable weights, ``a ← decay · a + (1 − decay) · w``.

    Args:
        network: the trained network, built; the average starts from its weights.
        decay: per step, from 0 to 1.

    Raises:
        ValueError: if the decay is out of bounds, or the network is not built.

    Example:
        >>> network = Network(ResNet(10, 0.0625, stem="cifar"))
        >>> network.build()
        >>> target = MovingAverage(network, decay=0.99)
        >>> target.update(network)  # after each training step
        >>> projections = target.project(network, np.ones((2, 32, 32, 3), "float32"))
    """

    def __init__(self, network: Network, decay: float, name: str = "average"):
        check_arguments(ema_decay=decay)
        if not network.built:
            raise ValueError("the network must be built before it is averaged: call network.build()")
        super().__init__(name=name, dtype=statistics_dtype(network.variable_dtype).name)
        self.decay = decay
        self.averages = [
            # No aggregation: every replica computes the same new values.
            self.add_weight(shape=weight.shape, name=f"average_{i}", trainable=False, aggregation="none")
            for i, weight in enumerate(network.trainable_variables)
        ]
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(weight)
        self.built = True

    def update(self, network: Network) -> None:
        """Updates the average after a step."""
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(self.decay * average.value + (1 - self.decay) * tf.cast(weight.value, average.dtype))

    def project(self, network: Network, images: tf.Tensor) -> tf.Tensor:
        """Computes the projection head's output with the averaged weights.

        Batch norms use batch statistics and do not update their moving ones.

        Args:
            network: the one passed to the constructor.
            images: ``[n, h, w, 3]`` in [0, 1].

        Returns:
            ``[n, d]``, float32 or float64.
        """
        statistics = [variable.value for variable in network.non_trainable_variables]
        weights = [average.value for average in self.averages]
        endpoints, _ = network.stateless_call(weights, statistics, images, training=True, whole_head=True)
        return tf.cast(endpoints["proj_head_output"], self.variable_dtype)


class Memory(MovingAverage):
    """A moving average with a queue of its outputs.

    Args:
        network: the trained network, built, with a projection head.
        size: rows of the queue.
        decay: per step.
    """

    def __init__(self, network: Network, size: int, decay: float):
        super().__init__(network, decay, name="memory")
        shape = (size, network.projection_dim)
        self.queue = self.add_weight(
            shape=shape, initializer="random_normal", name="queue", trainable=False, aggregation="none"
        )

    def push(self, keys: tf.Tensor) -> None:
        """Adds the outputs ``[n, d]`` of all replicas at the front of the queue and drops the oldest rows."""
        queue = tf.concat([all_gather(keys), self.queue.value], axis=0)  # [N + size, d]
        self.queue.assign(queue[: self.queue.shape[0]])
