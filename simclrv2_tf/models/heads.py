"""Projection head and linear classifier."""

from dataclasses import asdict
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from simclrv2_tf.models.batch_norm import BatchNorm, BatchNormSettings, statistics_dtype
from simclrv2_tf.settings.config import check_arguments


class DenseBatchNorm(keras.layers.Layer):
    """Dense layer without bias, batch norm, and ReLU if it is a hidden layer; an output layer has no beta either."""

    def __init__(self, units: int, hidden: bool, batch_norm: BatchNormSettings, **kwargs: Any):
        super().__init__(**kwargs)
        self.hidden = hidden
        self.dense = keras.layers.Dense(
            units,
            use_bias=False,
            kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
            dtype=self.dtype_policy,
            name="dense",
        )
        self.batch_norm = BatchNorm(center=hidden, dtype=self.dtype_policy, name="batch_norm", **asdict(batch_norm))

    def build(self, input_shape: tuple[int | None, int]) -> None:
        self.dense.build(input_shape)
        self.batch_norm.build((None, self.dense.units))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.batch_norm(self.dense(inputs), training=training)
        return ops.relu(x) if self.hidden else x


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class ProjectionHead(keras.layers.Layer):
    """Projection head of SimCLRv2 (arXiv 2006.10029, section 2); the output of each layer is available as a tap.

    Args:
        mode: "nonlinear"; "linear": one layer, and ``num_layers`` is ignored; "none": no layers, an identity.
        num_layers: 3 in SimCLRv2. Hidden layers are as wide as the input.
        out_dim: width of the last layer.
        batch_norm: settings of the batch norm of every layer.

    Call: ``features [n, d]`` to the list of taps ``[features, layer 1, …, layer N]``, hidden layers ``[n, d]`` after
    their ReLU, the last ``[n, out_dim]``; ``depth`` limits the call to the first layers.

    Attributes:
        depth: number of layers under this mode.

    Raises:
        ValueError: for an unknown mode, or a number of layers or a width below 1.

    Example:
        >>> head = ProjectionHead(num_layers=3, out_dim=128)
        >>> taps = head(np.ones((2, 64), "float32"))
        >>> [tap.shape[-1] for tap in taps]
        [64, 64, 64, 128]
    """

    def __init__(
        self,
        mode: str = "nonlinear",
        num_layers: int = 3,
        out_dim: int = 128,
        batch_norm: BatchNormSettings | dict | None = None,
        **kwargs: Any,
    ):
        check_arguments(proj_head_mode=mode, num_proj_layers=num_layers, proj_out_dim=out_dim)
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "mode": mode,
            "num_layers": num_layers,
            "out_dim": out_dim,
            "batch_norm": asdict(BatchNormSettings.of(batch_norm)),
        }
        self.depth = {"none": 0, "linear": 1, "nonlinear": num_layers}[mode]
        self.layers: list[DenseBatchNorm] = []

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """Returns the shape of the last tap, once built; shown by ``summary``."""
        return (None, self.tap_dim(self.depth, self.feature_dim))

    def tap_dim(self, tap: int, feature_dim: int) -> int:
        """Returns the width of tap 0 (the input) to ``depth`` (the output) for features of width ``feature_dim``."""
        return self.settings["out_dim"] if 0 < tap == self.depth else feature_dim

    def build(self, input_shape: tuple[int | None, int]) -> None:
        self.feature_dim = feature_dim = input_shape[-1]
        for index in range(1, self.depth + 1):
            layer = DenseBatchNorm(
                self.tap_dim(index, feature_dim),
                hidden=index < self.depth,
                batch_norm=BatchNormSettings.of(self.settings["batch_norm"]),
                dtype=self.dtype_policy,
                name=f"layer{index}",
            )
            layer.build((None, feature_dim))
            self.layers.append(layer)

    def call(self, features: tf.Tensor, training: bool = False, depth: int | None = None) -> list[tf.Tensor]:
        taps = [features]
        for layer in self.layers[:depth]:
            taps.append(layer(taps[-1], training=training))
        return taps

    def get_config(self) -> dict:
        return super().get_config() | self.settings


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class Classifier(keras.layers.Layer):
    """Linear classifier with bias; its logits are float32 under every policy (float64 under float64).

    Args:
        num_classes: at least 1.
        zero_init: start from zero weights, not from normal ones of standard deviation 0.01.

    Call: ``features [n, d]`` to logits ``[n, num_classes]``.

    Raises:
        ValueError: if ``num_classes`` is below 1.

    Example:
        >>> classifier = Classifier(num_classes=10)
        >>> logits = classifier(np.ones((2, 64), "float32"))
        >>> tuple(logits.shape), logits.dtype.name
        ((2, 10), 'float32')
    """

    def __init__(self, num_classes: int, zero_init: bool = False, **kwargs: Any):
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {num_classes}")
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.zero_init = zero_init
        self.dense = keras.layers.Dense(
            num_classes,
            kernel_initializer="zeros" if zero_init else keras.initializers.RandomNormal(stddev=0.01),
            dtype=statistics_dtype(self.variable_dtype).name,
            name="dense",
        )

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """Returns the shape of the logits; shown by ``summary``."""
        return (None, self.num_classes)

    def build(self, input_shape: tuple[int | None, int]) -> None:
        self.dense.build(input_shape)

    def call(self, features: tf.Tensor) -> tf.Tensor:
        return self.dense(features)

    def get_config(self) -> dict:
        return super().get_config() | {"num_classes": self.num_classes, "zero_init": self.zero_init}
