"""Building blocks of the encoders: convolutions, a max-pool for XLA, rematerialisation."""

from dataclasses import asdict
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from simclrv2_tf.models.batch_norm import BatchNorm, BatchNormSettings, statistics_dtype

Shape = tuple[int | None, ...]


def image_shape(channels: int) -> Shape:
    """Returns the shape to build a layer for; height and width do not matter."""
    return (None, None, None, channels)


def spatial_mean(x: tf.Tensor, keepdims: bool = False) -> tf.Tensor:
    """Averages ``[n, h, w, c]`` over height and width, in float32 at least; returns the dtype of ``x``."""
    return tf.cast(tf.reduce_mean(tf.cast(x, statistics_dtype(x.dtype)), [1, 2], keepdims), x.dtype)


def he_fan_out() -> keras.initializers.Initializer:
    """Returns a normal initializer of variance 2 / fan-out (arXiv 1502.01852, section 2.2), as in torchvision."""
    return keras.initializers.VarianceScaling(scale=2.0, mode="fan_out", distribution="untruncated_normal")


class Conv(keras.layers.Conv2D):
    """Convolution, without bias by default, whose padding does not depend on the image size.

    "SAME" pads the odd pixel of a strided convolution before or after the image, depending on its size. This layer
    always pads k − 1 pixels, the smaller half before. A strided 1×1 convolution is an ordinary one on every strides-th
    pixel: the same numbers, while oneDNN's gradient of the strided one writes out of bounds (TensorFlow 2.21, with
    8 channels and 48 px).
    """

    def __init__(self, filters: int, kernel_size: int, strides: int = 1, use_bias: bool = False, **kwargs: Any):
        self.skip = strides if kernel_size == 1 else 1
        strides //= self.skip
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding="valid" if strides > 1 else "same",
            use_bias=use_bias,
            data_format="channels_last",
            kernel_initializer=keras.initializers.VarianceScaling(scale=1.0, mode="fan_in"),
            **kwargs,
        )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        if self.skip > 1:
            # A 1×1 pool takes every skip-th pixel; TensorFlow's strided slice and its gradient are 10× slower on CPUs.
            inputs = tf.nn.avg_pool2d(inputs, 1, self.skip, "VALID")
        if self.padding == "valid":
            before = (self.kernel_size[0] - 1) // 2
            after = self.kernel_size[0] - 1 - before
            inputs = ops.pad(inputs, [[0, 0], [before, after], [before, after], [0, 0]])
        return super().call(inputs)


class ConvBatchNorm(keras.layers.Layer):
    """Convolution, batch norm and optional ReLU: ``[n, h, w, c]`` to ``[n, ⌈h/strides⌉, ⌈w/strides⌉, filters]``."""

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        batch_norm: BatchNormSettings,
        strides: int = 1,
        relu: bool = True,
        gamma_initializer: str = "ones",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.relu = relu
        self.conv = Conv(filters, kernel_size, strides, dtype=self.dtype_policy, name="conv")
        self.batch_norm = BatchNorm(
            gamma_initializer=gamma_initializer, dtype=self.dtype_policy, name="batch_norm", **asdict(batch_norm)
        )

    def build(self, input_shape: Shape) -> None:
        self.conv.build(input_shape)
        self.batch_norm.build(image_shape(self.filters))

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.batch_norm(self.conv(inputs), training=training)
        return ops.relu(x) if self.relu else x


@tf.custom_gradient
def max_pool(x: tf.Tensor) -> tuple:
    """3×3 max-pool with stride 2 and ``SAME`` padding, for steps compiled by XLA.

    XLA's own gradient of a max-pool is a scatter, which takes five times the memory traffic on a GPU. The gradient here
    consists of selects, which XLA fuses with the surrounding operations. Without XLA, ``tf.nn.max_pool2d`` is faster.
    Value and gradient are the same: among equal maxima the first in row order gets the gradient, as in TensorFlow.

    Args:
        x: ``[n, height, width, channels]``, any float dtype.

    Returns:
        ``[n, ⌈height/2⌉, ⌈width/2⌉, channels]``, in the dtype of ``x``.
    """
    height, width = (x.shape[axis] or tf.shape(x)[axis] for axis in (1, 2))
    above, left = height % 2, width % 2  # what SAME pads before an image; it pads one more row and column after it
    padded = tf.pad(x, [[0, 0], [above, 1], [left, 1], [0, 0]], constant_values=x.dtype.min)
    row_span, column_span = above + height - 1, left + width - 1  # from the first window's start to the last one's
    cells = [padded[:, r : row_span + r : 2, c : column_span + c : 2] for r in range(3) for c in range(3)]
    y, argmax = cells[0], tf.zeros_like(cells[0], tf.int8)  # the maximum of each window, and the cell that holds it
    for index, cell in enumerate(cells[1:], 1):
        argmax = tf.where(cell > y, tf.constant(index, tf.int8), argmax)
        y = tf.maximum(y, cell)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(dy, statistics_dtype(dy.dtype))

        def cell_gradient(row: int, column: int) -> tf.Tensor:
            """Returns the gradient of one cell of every window, on the grid of the padded image's 2×2 blocks."""
            down, right = row // 2, column // 2  # the third cell of a window belongs to the next block
            selected = tf.where(argmax == 3 * row + column, wide, 0)
            return tf.pad(selected, [[0, 0], [down, 1 - down], [right, 1 - right], [0, 0]])

        def pixel_gradient(rows: tuple[int, ...], columns: tuple[int, ...]) -> tf.Tensor:
            return tf.add_n([cell_gradient(row, column) for row in rows for column in columns])

        # An even row of the padded image is the first of one window and the third of another, an odd one the second.
        even, odd = (0, 2), (1,)
        pixels = [tf.stack([pixel_gradient(rows, columns) for columns in (even, odd)], axis=3) for rows in (even, odd)]
        blocks = tf.cast(tf.stack(pixels, axis=2), x.dtype)  # [n, ·, 2, ·, 2, channels]
        full = tf.reshape(blocks, [-1, row_span + 3, column_span + 3, x.shape[3]])
        return full[:, above : above + height, left : left + width]

    return y, gradient


def call_with_remat(layer: keras.layers.Layer, inputs: tf.Tensor) -> tf.Tensor:
    """Returns ``layer(inputs, training=True)`` and keeps only the inputs for the gradient (gradient checkpointing).

    The backward pass runs the layer again ("Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174). The
    layer is called as a function of its variables, so batch norm's moving statistics are updated once, not twice.
    """
    trainable, state = layer.trainable_variables, layer.non_trainable_variables

    @tf.recompute_grad
    def run(inputs: tf.Tensor, weights: list[tf.Tensor], state: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor]]:
        return layer.stateless_call(weights, state, inputs, training=True)

    outputs, new_state = run(inputs, [tf.identity(v.value) for v in trainable], [tf.identity(v.value) for v in state])
    for variable, value in zip(state, new_state, strict=True):
        variable.assign(value)
    return outputs
