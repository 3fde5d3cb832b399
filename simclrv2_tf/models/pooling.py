"""The stem's max-pool for steps that XLA compiles."""

import tensorflow as tf

from simclrv2_tf.models.batch_norm import statistics_dtype


@tf.custom_gradient
def max_pool(x: tf.Tensor):
    """3×3 max-pool of stride 2, ``SAME``, whose gradient is made of selects that XLA fuses with what is around them.

    XLA's own gradient of a max-pool scatters: on a GPU it takes five times the memory traffic of this one. Without XLA
    ``tf.nn.max_pool2d`` is the faster one. Value and gradient are the same: of equal maxima the first in row order
    takes the gradient, as in TensorFlow's kernels.

    Args:
        x: ``[n, height, width, channels]``, any float dtype.

    Returns:
        ``[n, ⌈height/2⌉, ⌈width/2⌉, channels]``, the dtype of ``x``.
    """
    height, width = (x.shape[axis] or tf.shape(x)[axis] for axis in (1, 2))
    above, left = height % 2, width % 2  # what SAME pads before an image; one more row and column come after it
    padded = tf.pad(x, [[0, 0], [above, 1], [left, 1], [0, 0]], constant_values=x.dtype.min)
    row_span, column_span = above + height - 1, left + width - 1  # from the first window's start to the last one's
    cells = [padded[:, r : row_span + r : 2, c : column_span + c : 2] for r in range(3) for c in range(3)]
    y, holder = cells[0], tf.zeros_like(cells[0], tf.int8)  # the maximum, and which cell of its window holds it
    for index, cell in enumerate(cells[1:], 1):
        holder = tf.where(cell > y, tf.constant(index, tf.int8), holder)
        y = tf.maximum(y, cell)

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(dy, statistics_dtype(dy.dtype))

        def share(row: int, column: int) -> tf.Tensor:
            """What flows to one cell of every window, on the grid of the padded image's 2×2 blocks."""
            down, right = row // 2, column // 2  # the third cells of a window belong to the next block
            held = tf.where(holder == 3 * row + column, wide, 0)
            return tf.pad(held, [[0, 0], [down, 1 - down], [right, 1 - right], [0, 0]])

        def quarter(in_rows: tuple[int, ...], in_columns: tuple[int, ...]) -> tf.Tensor:
            return tf.add_n([share(row, column) for row in in_rows for column in in_columns])

        # An even row of the padded image is the first of one window and the third of another, an odd one the second.
        even, odd = (0, 2), (1,)
        quarters = [tf.stack([quarter(rows, columns) for columns in (even, odd)], axis=3) for rows in (even, odd)]
        blocks = tf.cast(tf.stack(quarters, axis=2), x.dtype)  # [n, ·, 2, ·, 2, channels]
        full = tf.reshape(blocks, [-1, row_span + 3, column_span + 3, x.shape[3]])
        return full[:, above : above + height, left : left + width]

    return y, gradient
