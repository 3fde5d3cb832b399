"""Batch normalisation with statistics of the global batch (SimCLR, arXiv 2002.05709, section 2.2)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_sum, replica_count
from simclrv2_tf.settings.config import check_arguments


@dataclass(frozen=True)
class BatchNormSettings:
    """Settings of all batch norms of a network.

    Attributes:
        momentum: of the moving statistics, in [0, 1).
        synchronized: compute the statistics over the batches of all replicas; False: over each replica's own batch.
        fused: use TensorFlow's fused kernels where possible. They are the fastest without XLA. Set False for a step
            compiled by XLA, where the one-pass form (and ``layers.max_pool`` in the stem) is faster.

    Raises:
        ValueError: if the momentum is out of bounds.

    Example:
        >>> settings = BatchNormSettings(fused=False)  # for a step compiled by XLA
        >>> encoder = ResNet(10, 0.0625, stem="cifar", batch_norm=settings)
    """

    momentum: float = 0.9
    synchronized: bool = True
    fused: bool = True

    def __post_init__(self) -> None:
        check_arguments(batch_norm_decay=self.momentum)

    @classmethod
    def of(cls, settings: "BatchNormSettings | dict | None") -> "BatchNormSettings":
        """Returns the settings of an instance or of a dict of its attributes; the defaults for None."""
        return settings if isinstance(settings, BatchNormSettings) else cls(**(settings or {}))


def statistics_dtype(dtype: str | tf.DType) -> tf.DType:
    """Returns the dtype in which to sum values of ``dtype``: float64 for float64, else float32."""
    return tf.float64 if tf.as_dtype(dtype) == tf.float64 else tf.float32


def one_pass_batch_norm(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    sum_over_replicas: Callable[[tf.Tensor], tf.Tensor] = tf.identity,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Batch norm that computes E[x] and E[x²] in one pass over x, with a hand-written gradient.

    For the gradient it keeps x in its own dtype and two vectors, and recomputes the rest; automatic differentiation
    would keep float32 copies of x. There is one all-reduce in each direction.

    Args:
        x: ``[..., channels]``, any float dtype.
        gamma: ``[channels]``, float32 (float64 for a float64 layer); the statistics have the same dtype.
        beta: as ``gamma``.
        epsilon: added to the variance.
        sum_over_replicas: sums a vector over the replicas that share their statistics.

    Returns:
        The normalised x in its dtype, then the mean and the biased variance ``[channels]``, which pass no gradient.
    """
    axes = list(range(x.shape.rank - 1))

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple:
        wide = tf.cast(x, gamma.dtype)
        sums = tf.reduce_sum(wide, axes), tf.reduce_sum(tf.square(wide), axes)
        mean, variance, count = _global_moments(*sums, _count(x, gamma.dtype), sum_over_replicas)
        rstd = tf.math.rsqrt(variance + epsilon)
        scale = gamma * rstd
        y = tf.cast(wide * scale + (beta - mean * scale), x.dtype)

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dy = tf.cast(dy, gamma.dtype)
            x_hat = (tf.cast(x, gamma.dtype) - mean) * rstd
            dbeta, dgamma = tf.reduce_sum(dy, axes), tf.reduce_sum(dy * x_hat, axes)
            all_dbeta, all_dgamma = tf.split(sum_over_replicas(tf.concat([dbeta, dgamma], 0)), 2)
            dx = scale * (dy - all_dbeta / count - x_hat * (all_dgamma / count))
            # The gradients of gamma and beta are this replica's share: the optimizer sums them over replicas.
            return tf.cast(dx, x.dtype), dgamma, dbeta

        return (y, mean, variance), gradient

    return normalize(x, gamma, beta)


def fused_batch_norm(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """``one_pass_batch_norm`` over this replica's batch by TensorFlow's fused kernel; not for float64."""
    empty = tf.zeros([0], gamma.dtype)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=_as_images(x), scale=gamma, offset=beta, mean=empty, variance=empty, epsilon=epsilon, is_training=True
    )
    # The kernel returns the sample variance Σ(x − x̄)² / (n − 1); the biased one of n = 1 is 0, not NaN.
    count = _count(x, variance.dtype)
    variance = tf.math.multiply_no_nan(variance, (count - 1) / count)
    return tf.reshape(y, tf.shape(x)), tf.stop_gradient(mean), tf.stop_gradient(variance)


def fused_synchronized_batch_norm(
    x: tf.Tensor,
    gamma: tf.Tensor,
    beta: tf.Tensor,
    epsilon: float,
    sum_over_replicas: Callable[[tf.Tensor], tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """``one_pass_batch_norm`` from fused kernels, for several replicas without XLA; not for float64.

    Without XLA the one-pass formula takes a dozen passes over float32 copies of x. Here the training kernel computes
    this replica's statistics and the inference kernel normalises with the global ones. The inference kernel's gradient,
    ``dx = scale · dy``, treats the statistics as constants; their part, ``−scale · (Σdβ + x̂ · Σdγ) / N``, is itself a
    batch norm of x.
    """

    @tf.custom_gradient
    def normalize(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple:
        _, mean, variance = fused_batch_norm(x, gamma, beta, epsilon)
        count = _count(x, gamma.dtype)
        sums = count * mean, count * (variance + tf.square(mean))
        mean, variance, count = _global_moments(*sums, count, sum_over_replicas)

        def affine(gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
            normalized = tf.raw_ops.FusedBatchNormV3(
                x=_as_images(x),
                scale=gamma,
                offset=beta,
                mean=mean,
                variance=variance,
                epsilon=epsilon,
                is_training=False,
            )
            return tf.reshape(normalized.y, tf.shape(x))

        def gradient(dy: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            dx, dgamma, dbeta, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=_as_images(dy),
                x=_as_images(x),
                scale=gamma,
                reserve_space_1=mean,
                reserve_space_2=variance,
                reserve_space_3=tf.zeros([0], gamma.dtype),
                epsilon=epsilon,
                is_training=False,
            )
            all_dbeta, all_dgamma = tf.split(sum_over_replicas(tf.concat([dbeta, dgamma], 0)), 2)
            scale = gamma * tf.math.rsqrt(variance + epsilon)
            dx = tf.reshape(dx, tf.shape(x)) + affine(-scale * all_dgamma / count, -scale * all_dbeta / count)
            return dx, dgamma, dbeta

        return (affine(gamma, beta), mean, variance), gradient

    return normalize(x, gamma, beta)


def _count(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the number of values per channel of x, a scalar."""
    return tf.cast(tf.size(x, out_type=tf.int64) // x.shape[-1], dtype)


def _as_images(x: tf.Tensor) -> tf.Tensor:
    """Returns ``[n, h, w, channels]``, the only rank that the fused kernels take."""
    return x if x.shape.rank == 4 else x[:, None, None, :]


def _global_moments(
    total: tf.Tensor, total_squares: tf.Tensor, count: tf.Tensor, sum_over_replicas: Callable[[tf.Tensor], tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Computes mean, biased variance and count over all replicas from this replica's sums, by one all-reduce."""
    channels = total.shape[0]
    sums = sum_over_replicas(tf.concat([total, total_squares, count[None]], 0))
    total, total_squares, count = tf.split(sums, [channels, channels, 1])
    mean = total / count
    # Rounding may make the difference negative where the variance is small.
    return mean, tf.maximum(total_squares / count - tf.square(mean), 0), count


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class BatchNorm(keras.layers.Layer):
    """Batch normalisation over all axes but the last (arXiv 1502.03167), optionally across replicas.

    As in Keras's own layer, ``training=False`` or ``layer.trainable = False`` normalises with the moving statistics and
    does not update them. Variables and statistics are float32 under every policy (float64 if the policy's variables
    are); the output has the compute dtype. The moving variance is the biased one.

    Args:
        momentum: of the moving statistics: ``moving ← momentum · moving + (1 − momentum) · batch``.
        epsilon: added to the variance.
        center: add beta.
        gamma_initializer: ``"zeros"`` for the last batch norm of a residual block.
        synchronized: compute the statistics over the batches of all replicas, which may differ in size.
        fused: see ``BatchNormSettings``.

    Call: ``[batch, channels]`` or ``[batch, height, width, channels]`` to the same shape.

    Raises:
        ValueError: when built for another rank or an unknown number of channels.

    Example:
        >>> layer = BatchNorm(momentum=0.9)
        >>> y = layer(np.random.normal(3, 2, (8, 4)).astype("float32"), training=True)
        >>> np.allclose(np.mean(y, axis=0), 0, atol=1e-6)
        True
    """

    def __init__(
        self,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        center: bool = True,
        gamma_initializer: str | keras.initializers.Initializer = "ones",
        synchronized: bool = True,
        fused: bool = True,
        **kwargs: Any,
    ):
        check_arguments(batch_norm_decay=momentum)
        if not epsilon > 0:
            raise ValueError(f"epsilon={epsilon}: must be above 0")
        super().__init__(**kwargs)
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.gamma_initializer = keras.initializers.get(gamma_initializer)
        self.synchronized = synchronized
        self.fused = fused

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        if len(input_shape) not in (2, 4) or input_shape[-1] is None:
            raise ValueError(f"BatchNorm takes [n, channels] or [n, height, width, channels], not {input_shape}")
        dtype = statistics_dtype(self.variable_dtype).name
        shape = (input_shape[-1],)
        weight = {"shape": shape, "dtype": dtype, "autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer=self.gamma_initializer, **weight)
        self.beta = self.add_weight(name="beta", initializer="zeros", **weight) if self.center else None
        # Each replica has its own copy of the moving statistics, so updating and reading them needs no communication.
        # `add_weight` does not take `synchronization`.
        weight |= {"trainable": False, "synchronization": "on_read", "aggregation": "only_first_replica"}
        self.moving_mean = keras.Variable(keras.initializers.Zeros(), name="moving_mean", **weight)
        self.moving_variance = keras.Variable(keras.initializers.Ones(), name="moving_variance", **weight)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        # `tf.custom_gradient` refuses functions that read variables, and a Keras variable converts to its tf.Variable.
        gamma = tf.identity(self.gamma.value)
        beta = tf.identity(self.beta.value) if self.beta is not None else tf.zeros_like(gamma)
        if not (training and self.trainable):
            return self._normalize_by_moving_statistics(inputs, gamma, beta)
        local = not self.synchronized or replica_count() == 1
        fused = self.fused and inputs.dtype != tf.float64
        if fused and local:
            y, mean, variance = fused_batch_norm(inputs, gamma, beta, self.epsilon)
        else:
            normalize = fused_synchronized_batch_norm if fused else one_pass_batch_norm
            sum_over_replicas = tf.identity if local else all_sum
            y, mean, variance = normalize(inputs, gamma, beta, self.epsilon, sum_over_replicas)
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + batch * (1 - self.momentum))
        return y

    def _normalize_by_moving_statistics(self, x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        scale = gamma * tf.math.rsqrt(self.moving_variance.value + self.epsilon)
        shift = beta - self.moving_mean.value * scale
        return tf.cast(tf.cast(x, gamma.dtype) * scale + shift, x.dtype)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict:
        return super().get_config() | {
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "center": self.center,
            "gamma_initializer": keras.initializers.serialize(self.gamma_initializer),
            "synchronized": self.synchronized,
            "fused": self.fused,
        }
