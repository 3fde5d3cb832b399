"""NT-Xent in tiles: the same numbers as the plain form in ``losses``, less memory.

Loss and gradient of n images, 128 features, float32, one replica, without XLA: ``python benchmarks/nt_xent.py``, the
better of two runs; 2 cores of a shared AMD EPYC, TensorFlow 2.21.0, 2026-11-30.

| n | CPU ms, plain | tiled | peak MiB, plain | tiled |
|---|---|---|---|---|
| 64 | 0.8 | 0.6 | 5 | 6 |
| 256 | 5.7 | 4.9 | 11 | 13 |
| 512 | 17 | 13 | 35 | 34 |
| 1,024 | 61 | 62 | 93 | 54 |
| 2,048 | 249 | 269 | 266 | 54 |
| 4,096 | 985 | 1,187 | 824 | 54 |

The times are about equal, so memory decides: ``losses.nt_xent`` tiles matrices of more than 2²⁴ similarities, that is
more than 2,048 images on one replica. Nothing was measured on a GPU, nor with XLA.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather, replica_index
from simclrv2_tf.methods.chunks import map_rows

# Similarities per tile, 8 MiB in float32: few enough for a CPU's caches, enough to outweigh the loop's overhead. But at
# least TILE_ROWS rows, or reading the candidates would take longer than comparing them.
TILE_ENTRIES, TILE_ROWS = 2**21, 128


def nt_xent_tiled(
    view1: tf.Tensor, view2: tf.Tensor, queue: tf.Tensor, temperature: float, tile: int = 0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, hit (0 or 1) and entropy of each image, ``[n]`` each; only the loss has a gradient.

    Args:
        view1: ``[n, d]``, this replica's projections, float32 or float64, normalised if they are compared by cosine.
        view2: ``[n, d]``.
        queue: ``[m, d]``, further negatives, detached.
        temperature: divides the similarities; above 0.
        tile: rows of similarities in memory at a time; 0: ``tile_rows``. All of them if n is unknown while tracing.
    """
    views = tf.stack([view1, view2], axis=1)  # [n, 2, d]

    @tf.custom_gradient
    def compare(views: tf.Tensor) -> tuple:
        matrix = _TiledMatrix(views, queue, temperature, tile)
        loss, hit, entropy, log_partition = matrix.compare()
        return (loss, hit, entropy), lambda upstream, *_: matrix.gradient(log_partition, upstream)

    return compare(views)


def tile_rows(columns: int, tile: int = 0) -> int:
    """Rows per tile of a similarity matrix with ``columns`` columns; ``tile`` itself if it is above 0."""
    return tile or max(TILE_ENTRIES // columns, TILE_ROWS)


class _TiledMatrix:
    """Similarities of this replica's rows to all candidates, computed tile by tile, and again for the gradient.

    Automatic differentiation would keep several copies of the matrix ``[2n, 2N + m]``. This keeps the logarithm of each
    row's partition function and costs the same three matrix products: the similarity of row i to candidate j is that
    of j to i, so that one tile gives its rows both their gradients as rows and those as candidates of other rows. In
    the backward pass the replicas therefore exchange three numbers per image instead of gradients.

    Args:
        views: ``[n, 2, d]``, this replica's.
        queue: ``[m, d]``.
        temperature: divides the similarities.
        tile: rows per tile, two per image; 0: ``tile_rows``.
    """

    def __init__(self, views: tf.Tensor, queue: tf.Tensor, temperature: float, tile: int):
        # Each side takes the root of the temperature, so that s(i, j) and s(j, i) are equal to the last bit.
        self.scale = temperature**-0.5
        self.views = self.scale * views
        gathered = all_gather(self.views)  # [N, 2, d]
        self.total = tf.shape(gathered)[0]
        self.candidates = tf.concat([gathered[:, 0], gathered[:, 1], self.scale * queue], axis=0)  # [2N + m, d]
        self.images = replica_index() * tf.shape(views)[0] + tf.range(tf.shape(views)[0])
        self.images_per_tile = max(tile_rows(self.candidates.shape[0] or 1, tile) // 2, 1)

    def compare(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss, hit and entropy of each image, ``[n]``, and the log-partition of each row, ``[n, 2]``."""
        return self._map_tiles(self._compare_tile, (self.views, self.images), (self.views.dtype,) * 4)

    def gradient(self, log_partition: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        """Gradient of the views, ``[n, 2, d]``, given that of this replica's losses, ``upstream [n]``.

        With p(i, j) = exp(s(i, j) − log-partition of row i) and 1 for a positive pair, else 0, the derivative by the
        similarity s(i, j) is ``upstream_i (p(i, j) − positive) + upstream_j (p(j, i) − positive)``.
        """
        exchanged = all_gather(tf.concat([log_partition, upstream[:, None]], axis=1))  # [N, 3]
        per_candidate = tf.concat([exchanged[:, ::2], exchanged[:, 1:]], axis=0)  # [2N, 2]
        # The queue's rows have no loss: upstream gradient 0, partition infinite.
        in_queue = tf.shape(self.candidates)[0] - 2 * self.total
        of_queue = tf.broadcast_to(tf.constant([np.inf, 0], upstream.dtype), [in_queue, 2])
        log_partitions, upstreams = tf.unstack(tf.concat([per_candidate, of_queue], axis=0), axis=1)  # [2N + m]

        def of_tile(views: tf.Tensor, images: tf.Tensor, log_partition: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
            gradients = []
            for view in range(2):
                logits, is_positive = self._logits(views[:, view], images, view)
                positive = tf.cast(is_positive, logits.dtype)
                as_row = upstream[:, None] * (tf.exp(logits - log_partition[:, view][:, None]) - positive)
                as_candidate = upstreams * (tf.exp(logits - log_partitions) - positive)
                gradients.append(self.scale * tf.matmul(as_row + as_candidate, self.candidates))  # [t, d]
            return tf.stack(gradients, axis=1)

        return self._map_tiles(of_tile, (self.views, self.images, log_partition, upstream), self.views.dtype)

    def _compare_tile(self, views: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        losses, log_partitions = [], []
        for view in range(2):
            logits, is_positive = self._logits(views[:, view], images, view)
            # The positive is taken from the logits: computed separately, it would round differently.
            positive = tf.reduce_sum(tf.where(is_positive, logits, 0), axis=1)
            log_partitions.append(tf.reduce_logsumexp(logits, axis=1))
            losses.append(log_partitions[-1] - positive)
            if view == 0:
                to_view2 = logits[:, self.total : 2 * self.total]  # [t, N]
        probabilities = tf.nn.softmax(to_view2)
        entropy = -tf.reduce_sum(probabilities * tf.math.log(probabilities + 1e-8), axis=1)
        hit = tf.cast(tf.argmax(to_view2, axis=1, output_type=images.dtype) == images, logits.dtype)
        return tf.add_n(losses), hit, entropy, tf.stack(log_partitions, axis=1)

    def _logits(self, rows: tf.Tensor, images: tf.Tensor, view: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Logits of ``rows [t, d]``, one view of ``images [t]``, with their own columns masked, and a positive mask."""
        logits = tf.matmul(rows, self.candidates, transpose_b=True)  # [t, 2N + m]
        column = tf.range(tf.shape(logits)[1])
        is_itself = column == (images + view * self.total)[:, None]
        is_positive = column == (images + (1 - view) * self.total)[:, None]
        return tf.where(is_itself, logits.dtype.min, logits), is_positive

    def _map_tiles(self, function: Callable, arguments: tuple[tf.Tensor, ...], dtypes: Any) -> Any:
        return map_rows(lambda rows: function(*rows), arguments, self.images_per_tile, dtypes)
