"""ResNet (arXiv 1512.03385), plain or with selective kernels (1903.06586) or squeeze-and-excite (1709.01507).

Layers are created in the order in which the official code numbers its variables; ``official_names`` relies on it.
"""

from dataclasses import asdict
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from simclrv2_tf.models.batch_norm import BatchNorm, BatchNormSettings
from simclrv2_tf.models.layers import (
    Conv,
    ConvBatchNorm,
    Shape,
    call_with_remat,
    he_fan_out,
    image_shape,
    max_pool,
    spatial_mean,
)
from simclrv2_tf.settings.config import check_arguments
from simclrv2_tf.settings.fields import CONV_INITS

BLOCKS_PER_GROUP = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
STEMS = ("imagenet", "cifar")
GROUPS = 4


class SelectiveKernelConv(keras.layers.Layer):
    """Two 3×3 convolutions, mixed by a softmax over the two per channel and image (SK net, arXiv 1903.06586).

    One convolution of 2·filters channels computes both streams. The squeeze layer, from which the mixture is computed,
    has max(⌊filters · ratio⌋, 32) channels.
    """

    def __init__(self, filters: int, batch_norm: BatchNormSettings, strides: int, ratio: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        policy = self.dtype_policy
        self.streams = ConvBatchNorm(2 * filters, 3, batch_norm, strides, dtype=policy, name="streams")
        self.squeeze = ConvBatchNorm(max(int(filters * ratio), 32), 1, batch_norm, dtype=policy, name="squeeze")
        self.expand = Conv(2 * filters, 1, dtype=policy, name="expand")

    def build(self, input_shape: Shape) -> None:
        self.streams.build(input_shape)
        self.squeeze.build(image_shape(self.filters))
        self.expand.build(image_shape(self.squeeze.filters))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        first, second = ops.split(self.streams(inputs, training=training), 2, axis=-1)
        pooled = spatial_mean(first + second, keepdims=True)  # [n, 1, 1, filters]
        scores = self.expand(self.squeeze(pooled, training=training))  # [n, 1, 1, 2 · filters]
        mixture = ops.softmax(ops.reshape(scores, (-1, 1, 1, 2, self.filters)), axis=3)
        return first * mixture[..., 0, :] + second * mixture[..., 1, :]


class SqueezeExcite(keras.layers.Layer):
    """Scales each channel by a sigmoid gate, computed from the channel means by two dense layers (arXiv 1709.01507)."""

    def __init__(self, filters: int, ratio: float, **kwargs: Any):
        super().__init__(**kwargs)
        squeezed_filters = max(int(filters * ratio), 1)
        self.reduce = Conv(squeezed_filters, 1, use_bias=True, dtype=self.dtype_policy, name="reduce")
        self.expand = Conv(filters, 1, use_bias=True, dtype=self.dtype_policy, name="expand")

    def build(self, input_shape: Shape) -> None:
        self.reduce.build(input_shape)
        self.expand.build(image_shape(self.reduce.filters))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        squeezed = ops.relu(self.reduce(spatial_mean(inputs, keepdims=True)))
        return inputs * ops.sigmoid(self.expand(squeezed))


class Shortcut(keras.layers.Layer):
    """1×1 convolution and batch norm that bring a block's input to the shape of its output.

    With ResNet-D (arXiv 1812.01187), 2×2 average pooling replaces the convolution's stride. The released SK networks
    also pool in the first group, which has no stride.
    """

    def __init__(self, filters: int, batch_norm: BatchNormSettings, strides: int, resnet_d: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.strides = strides
        self.resnet_d = resnet_d
        conv_strides = 1 if resnet_d else strides
        self.projection = ConvBatchNorm(
            filters, 1, batch_norm, conv_strides, relu=False, dtype=self.dtype_policy, name="projection"
        )

    def build(self, input_shape: Shape) -> None:
        self.projection.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = inputs
        if self.resnet_d and self.strides > 1:
            # The released networks include a border of zeros in the average where the side is odd.
            x = ops.average_pool(ops.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]]), 2, self.strides, padding="valid")
        elif self.resnet_d:
            x = ops.average_pool(x, 2, 1, padding="same")
        return self.projection(x, training=training)


class ResidualBlock(keras.layers.Layer):
    """``relu(shortcut(x) + convolutions(x))``: two 3×3 convolutions, or a bottleneck of 1×1, 3×3 and 1×1.

    The last batch norm starts with gamma 0, so the block starts as its shortcut.
    """

    def __init__(
        self,
        filters: int,
        batch_norm: BatchNormSettings,
        strides: int,
        project: bool,
        bottleneck: bool,
        sk_ratio: float,
        se_ratio: float,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.out_channels = 4 * filters if bottleneck else filters
        shared: dict[str, Any] = {"batch_norm": batch_norm, "dtype": self.dtype_policy}
        last: dict[str, Any] = {"relu": False, "gamma_initializer": "zeros"} | shared
        self.shortcut = None
        if project:
            resnet_d = sk_ratio > 0
            self.shortcut = Shortcut(self.out_channels, strides=strides, resnet_d=resnet_d, name="shortcut", **shared)
        if not bottleneck:
            self.convs = [
                ConvBatchNorm(filters, 3, strides=strides, name="conv0", **shared),
                ConvBatchNorm(filters, 3, name="conv1", **last),
            ]
        else:
            self.convs = [
                ConvBatchNorm(filters, 1, name="conv0", **shared),
                SelectiveKernelConv(filters, strides=strides, ratio=sk_ratio, name="sk_conv", **shared)
                if sk_ratio > 0
                else ConvBatchNorm(filters, 3, strides=strides, name="conv1", **shared),
                ConvBatchNorm(self.out_channels, 1, name="conv2", **last),
            ]
        self.squeeze_excite = None
        if se_ratio > 0:
            self.squeeze_excite = SqueezeExcite(self.out_channels, se_ratio, dtype=self.dtype_policy, name="se")

    def build(self, input_shape: Shape) -> None:
        if self.shortcut is not None:
            self.shortcut.build(input_shape)
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = image_shape(conv.filters)
        if self.squeeze_excite is not None:
            self.squeeze_excite.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        shortcut = inputs if self.shortcut is None else self.shortcut(inputs, training=training)
        x = inputs
        for conv in self.convs:
            x = conv(x, training=training)
        if self.squeeze_excite is not None:
            x = self.squeeze_excite(x)
        return ops.relu(x + shortcut)


class BlockGroup(keras.layers.Layer):
    """Residual blocks of one resolution; the first one has the stride and the projection shortcut."""

    def __init__(self, filters: int, blocks: int, strides: int, block: dict, remat: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.remat = remat
        self.blocks = [
            ResidualBlock(
                filters,
                strides=strides if index == 0 else 1,
                project=index == 0,
                dtype=self.dtype_policy,
                name=f"block{index}",
                **block,
            )
            for index in range(blocks)
        ]
        self.out_channels = self.blocks[-1].out_channels

    def build(self, input_shape: Shape) -> None:
        for block in self.blocks:
            block.build(input_shape)
            input_shape = image_shape(block.out_channels)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        for block in self.blocks:
            inputs = call_with_remat(block, inputs) if self.remat and training else block(inputs, training=training)
        return inputs


class Stem(keras.layers.Layer):
    """Layers before the first group.

    "imagenet": 7×7 convolution with stride 2, batch norm, ReLU, 3×3 max-pool with stride 2; with ResNet-D three 3×3
    convolutions of 32, 32 and 64 channels replace the 7×7 one. "cifar": 3×3 with stride 1 and no pool.

    Call: images to the output of the last convolution, before its batch norm, and the input of the first group.
    """

    def __init__(self, kind: str, channels: int, batch_norm: BatchNormSettings, resnet_d: bool, **kwargs: Any):
        super().__init__(**kwargs)
        self.kind = kind
        self.fused = batch_norm.fused
        self.out_channels = channels
        policy = self.dtype_policy
        self.convs = []
        if kind == "cifar":
            self.conv = Conv(channels, 3, dtype=policy, name="conv")
        elif resnet_d:
            half = max(channels // 2, 1)
            self.convs = [
                ConvBatchNorm(half, 3, batch_norm, strides, dtype=policy, name=f"conv{index}")
                for index, strides in enumerate((2, 1))
            ]
            self.conv = Conv(channels, 3, dtype=policy, name="conv")
        else:
            self.conv = Conv(channels, 7, strides=2, dtype=policy, name="conv")
        self.batch_norm = BatchNorm(dtype=policy, name="batch_norm", **asdict(batch_norm))

    def build(self, input_shape: Shape) -> None:
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = image_shape(conv.filters)
        self.conv.build(input_shape)
        self.batch_norm.build(image_shape(self.out_channels))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        for conv in self.convs:
            inputs = conv(inputs, training=training)
        initial_conv = self.conv(inputs)
        x = ops.relu(self.batch_norm(initial_conv, training=training))
        if self.kind == "imagenet":
            x = tf.nn.max_pool2d(x, 3, 2, "SAME") if self.fused else max_pool(x)
        return initial_conv, x


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class ResNet(keras.Model):
    """ResNet that returns its intermediate outputs by name.

    ``build((None, None, None, 3))`` creates the variables without running the network.

    Args:
        depth: 10, 18 or 34 (basic blocks), 50, 101, 152 or 200 (bottlenecks, whose stride is on the 3×3 convolution).
        width_multiplier: multiplies every number of channels, rounded, at least 1.
        sk_ratio: above 0, selective kernels of this ratio (0.0625 in SimCLRv2) replace the 3×3 convolutions. As in the
            released networks, this also selects ResNet-D's stem of three convolutions and average-pooling shortcuts.
        se_ratio: above 0, squeeze-and-excite of this ratio at the end of every block.
        stem: "imagenet", or "cifar" for images of 32 px: 3×3 with stride 1 and no pool.
        batch_norm: settings of all batch norms.
        remat: keep only the inputs of residual blocks for the gradient and recompute the rest in the backward pass.
        conv_init: how convolutions start: "lecun_normal", of variance 1 / fan-in, as in the official code; or
            "he_fan_out", of variance 2 / fan-out, as in torchvision.

    Call: ``images [n, h, w, 3]`` in [0, 1] to a dict of ``initial_conv`` (before its batch norm), ``initial_max_pool``,
    ``block_group1`` to ``block_group4`` and ``final_avg_pool [n, feature_dim]``, all in the compute dtype.

    Raises:
        ValueError: for an unknown depth, stem or conv_init, a width or ratio out of range, or selective kernels below
            depth 50, where blocks have no bottleneck.

    Example:
        >>> encoder = ResNet(10, width_multiplier=0.0625, stem="cifar")
        >>> features = encoder(np.ones((2, 32, 32, 3), "float32"))["final_avg_pool"]
        >>> features.shape == (2, encoder.feature_dim)
        True
    """

    def __init__(
        self,
        depth: int = 50,
        width_multiplier: float = 1,
        sk_ratio: float = 0.0,
        se_ratio: float = 0.0,
        stem: str = "imagenet",
        batch_norm: BatchNormSettings | dict | None = None,
        remat: bool = False,
        conv_init: str = "lecun_normal",
        **kwargs: Any,
    ):
        _check_settings(depth, width_multiplier, sk_ratio, se_ratio, stem, conv_init)
        super().__init__(**kwargs)
        batch_norm = BatchNormSettings.of(batch_norm)
        self.settings = {
            "depth": depth,
            "width_multiplier": width_multiplier,
            "sk_ratio": sk_ratio,
            "se_ratio": se_ratio,
            "stem": stem,
            "batch_norm": asdict(batch_norm),
            "remat": remat,
            "conv_init": conv_init,
        }
        policy = self.dtype_policy
        widths = [max(round(base * width_multiplier), 1) for base in (64, 64, 128, 256, 512)]
        self.stem = Stem(stem, widths[0], batch_norm, resnet_d=sk_ratio > 0, dtype=policy, name="stem")
        block = {"batch_norm": batch_norm, "bottleneck": depth >= 50, "sk_ratio": sk_ratio, "se_ratio": se_ratio}
        self.groups = [
            BlockGroup(
                widths[group],
                BLOCKS_PER_GROUP[depth][group - 1],
                strides=1 if group == 1 else 2,
                block=block,
                remat=remat,
                dtype=policy,
                name=f"block_group{group}",
            )
            for group in range(1, GROUPS + 1)
        ]
        self.feature_dim = self.groups[-1].out_channels
        if conv_init == "he_fan_out":
            for layer in self._flatten_layers():
                if isinstance(layer, Conv):
                    layer.kernel_initializer = he_fan_out()

    def build(self, input_shape: Shape = (None, None, None, 3)) -> None:
        self.stem.build(input_shape)
        channels = self.stem.out_channels
        for group in self.groups:
            group.build(image_shape(channels))
            channels = group.out_channels

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        endpoints = {}
        endpoints["initial_conv"], x = self.stem(images, training=training)
        endpoints["initial_max_pool"] = x
        for group in self.groups:
            x = endpoints[group.name] = group(x, training=training)
        endpoints["final_avg_pool"] = spatial_mean(x)
        return endpoints

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """Returns the shape of the features; shown by ``summary``."""
        return (None, self.feature_dim)

    def freeze_after_block(self, block: int) -> None:
        """Freezes the lower part of the network and unfreezes the rest; frozen batch norms keep their statistics.

        Args:
            block: −1 freezes nothing, 0 the stem, k the stem and block groups 1 to k; 4 freezes everything.

        Raises:
            ValueError: for any other number.
        """
        if not -1 <= block <= GROUPS:
            raise ValueError(f"freeze_after_block takes -1 to {GROUPS}, not {block}")
        # Set on each part: Keras ignores `x.trainable = True` if x is already trainable, even if parts of x are not.
        self.trainable = True
        parts: list[keras.layers.Layer] = [self.stem, *self.groups]
        for index, part in enumerate(parts):
            part.trainable = index > block

    def get_config(self) -> dict:
        return super().get_config() | self.settings


def _check_settings(
    depth: int, width_multiplier: float, sk_ratio: float, se_ratio: float, stem: str, conv_init: str
) -> None:
    if depth not in BLOCKS_PER_GROUP:
        raise ValueError(f"resnet_depth must be one of {sorted(BLOCKS_PER_GROUP)}, not {depth}")
    check_arguments(width_multiplier=width_multiplier, sk_ratio=sk_ratio, se_ratio=se_ratio)
    if sk_ratio > 0 and depth < 50:
        raise ValueError(
            f"sk_ratio={sk_ratio} needs bottleneck blocks: resnet_depth must be 50 or more, not {depth} "
            "(or set sk_ratio=0)"
        )
    for name, value, choices in (("stem", stem, STEMS), ("conv_init", conv_init, CONV_INITS)):
        if value not in choices:
            raise ValueError(f"{name} must be one of {choices}, not {value!r}")
