"""What is minimised: NT-Xent between two views, soft targets for a student, labels, L2.

Everything is computed in float32 whatever the dtype policy; float64 stays float64.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather, all_sum, replica_count, replica_index
from simclrv2_tf.methods.chunks import map_rows

# Similarities that NT-Xent has in memory at a time unless told otherwise, 8 MiB in float32: few enough for the caches,
# enough for a loop's turn. But no fewer rows than these, or fetching the candidates would take longest.
TILE_ENTRIES, TILE_ROWS = 2**21, 128


class ContrastiveResult(NamedTuple):
    """Scalars of one replica: its mean loss, and how well its view 1 picks its view 2 out of all view-2 candidates."""

    loss: tf.Tensor
    accuracy: tf.Tensor
    entropy: tf.Tensor


def nt_xent(
    view1: tf.Tensor,
    view2: tf.Tensor,
    temperature: float,
    normalize: bool = True,
    negatives: tf.Tensor | None = None,
    tile: int = 0,
) -> ContrastiveResult:
    """NT-Xent (SimCLR, section 2.1), summed over both directions, with candidates from every replica.

    For row i of one view the positive is row i of the other view; the views of all other images, on all replicas, are
    negatives. The loss is the mean over images of (cross-entropy from view 1 + cross-entropy from view 2), which is
    twice the mean over views: the paper's learning rates are tuned for that scale. Gradients flow through gathered
    candidates, so the mean of the losses over replicas, and its gradient, are those of one device with the whole batch.

    Args:
        view1: ``[n, d]``, this replica's outputs of the projection head for the first views, any float dtype.
        view2: ``[n, d]``, the second views of the same images in the same order.
        temperature: divides the similarities; above 0.
        normalize: compare by cosine; otherwise by inner product.
        negatives: ``[m, d]`` further negatives for every row, such as MoCo's queue (SimCLRv2, section 2), already
            detached. They are not gathered: each replica uses those it is given.
        tile: rows of the similarity matrix that are in memory at a time (all of them where n is unknown while tracing);
            0: of some 2²¹ similarities. It changes no result.

    Returns:
        Scalars in float32 (float64 for float64 views): the loss, and the top-1 accuracy and entropy in nats of the
        similarities from view 1 to view 2, in which the queue has no part.
    """
    return ContrastiveResult(
        *map(tf.reduce_mean, _contrast(view1, view2, temperature, normalize, negatives, tile=tile))
    )


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class NTXent(keras.losses.Loss):
    """NT-Xent as a Keras loss: ``y_pred`` is ``[2n, d]``, n view-1 rows, then the n view-2 rows of the same images.

    ``y_true`` is not read. ``call`` returns one loss per image, ``[n]``, which the reduction averages; under a strategy
    Keras divides that by the number of replicas, as its optimizers expect.

    Args:
        temperature: divides the similarities.
        hidden_norm: compare by cosine; otherwise by inner product.
        tile: as in ``nt_xent``.

    Raises:
        ValueError: where the temperature is not above 0.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        hidden_norm: bool = True,
        tile: int = 0,
        name: str = "nt_xent",
        **kwargs: Any,
    ):
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        super().__init__(name=name, **kwargs)
        self.temperature = temperature
        self.hidden_norm = hidden_norm
        self.tile = tile

    def call(self, y_true: Any, y_pred: tf.Tensor) -> tf.Tensor:
        view1, view2 = tf.split(y_pred, 2)
        return _contrast(view1, view2, self.temperature, self.hidden_norm, tile=self.tile)[0]

    def get_config(self) -> dict[str, Any]:
        settings = {"temperature": self.temperature, "hidden_norm": self.hidden_norm, "tile": self.tile}
        return super().get_config() | settings


def distillation_loss(student_logits: tf.Tensor, teacher_logits: tf.Tensor, temperature: float) -> tf.Tensor:
    """Cross-entropy of the student against the teacher's soft labels (SimCLRv2, section 2, equation 2).

    ``−Σ_y P_teacher(y|x; τ) log P_student(y|x; τ)``; there is no factor τ², and no gradient to the teacher.

    Args:
        student_logits: ``[n, classes]``.
        teacher_logits: ``[n, classes]``.
        temperature: τ, divides the logits of both; above 0.

    Returns:
        ``[n]``, nats.
    """
    soft_labels = tf.nn.softmax(_at_least_float32(teacher_logits) / temperature)
    student = _at_least_float32(student_logits) / temperature
    soft_labels = tf.cast(tf.stop_gradient(soft_labels), student.dtype)
    return tf.nn.softmax_cross_entropy_with_logits(soft_labels, student)


def supervised_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of integer labels ``[n]`` and logits ``[n, classes]``, per image ``[n]``, nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, _at_least_float32(logits))


def labelled_mean(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean over the images of the global batch that have a label; 0 if none has.

    Args:
        values: ``[n]``, of this replica's images.
        labels: int ``[n]``, −1 where unknown.

    Returns:
        A scalar: this replica's sum over the mean number of labelled images a replica, so that the mean over replicas
        is the mean over all of them.
    """
    labelled = tf.cast(labels >= 0, values.dtype)
    count = all_sum(tf.reduce_sum(labelled)) / replica_count()
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(labels >= 0, values, 0)), count)


def l2_penalty(variables: Iterable[keras.Variable | tf.Variable], weight_decay: float) -> tf.Tensor | float:
    """``weight_decay · ½ Σ ‖w‖²``, a scalar whose gradient is ``weight_decay · w``; 0.0 without variables."""
    squares = [tf.nn.l2_loss(_at_least_float32(variable)) for variable in variables]
    return weight_decay * tf.add_n(squares) if squares else 0.0


def tile_rows(columns: int, tile: int = 0) -> int:
    """Rows of a similarity matrix of so many columns that `nt_xent` has in memory at a time."""
    return tile or max(TILE_ENTRIES // columns, TILE_ROWS)


def _contrast(
    view1: tf.Tensor,
    view2: tf.Tensor,
    temperature: float,
    normalize: bool,
    negatives: tf.Tensor | None = None,
    *,
    tile: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, hit (0 or 1) and entropy of each image, ``[n]``."""
    views = tf.stack([_rows(view1, normalize), _rows(view2, normalize)], axis=1)
    queue = views[:0, 0] if negatives is None else tf.cast(_rows(negatives, normalize), views.dtype)

    @tf.custom_gradient
    def contrast(views: tf.Tensor):
        matrix = _SimilarityMatrix(views, queue, temperature, tile)
        loss, hit, entropy, partition = matrix.compare()
        return (loss, hit, entropy), lambda upstream, *_: matrix.gradient(partition, upstream)

    return contrast(views)


class _SimilarityMatrix:
    """Similarities of this replica's rows to all candidates, computed some rows at a time, and again for the gradient.

    Automatic differentiation would keep the matrix ``[2n, 2N + m]`` several times over. This keeps one number a row and
    costs the same three matrix products: since row i is to candidate j what j is to i, one block of similarities gives
    both what its rows get as rows and what they get as candidates of other rows, once every row's partition is known.
    So the replicas exchange three numbers an image in the backward pass, and no gradients.

    Args:
        views: ``[n, 2, d]``, this replica's.
        queue: ``[m, d]``.
        temperature: divides the similarities.
        tile: rows at a time, two to an image; 0: see ``TILE_ENTRIES``.
    """

    def __init__(self, views: tf.Tensor, queue: tf.Tensor, temperature: float, tile: int):
        # Half of the temperature on either side, so that two rows have one similarity to the last bit, whoever asks.
        self.scale = temperature**-0.5
        self.views = self.scale * views
        gathered = all_gather(self.views)
        self.total = tf.shape(gathered)[0]
        self.candidates = tf.concat([gathered[:, 0], gathered[:, 1], self.scale * queue], axis=0)  # [2N + m, d]
        self.images = replica_index() * tf.shape(views)[0] + tf.range(tf.shape(views)[0])
        self.images_per_tile = max(tile_rows(self.candidates.shape[0] or 1, tile) // 2, 1)

    def compare(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Loss, hit and entropy of each image, ``[n]``, and the log-partition of each row, ``[n, 2]``."""
        dtype = self.views.dtype
        return self._map_tiles(self._compare, (self.views, self.images), (dtype,) * 4)

    def gradient(self, partition: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        """Gradient ``[n, 2, d]`` of the views from that of every replica's losses, ``upstream [n]`` here."""
        exchanged = all_gather(tf.concat([partition, upstream[:, None]], axis=1))
        per_candidate = tf.concat([exchanged[:, ::2], exchanged[:, 1:]], axis=0)  # [2N, 2]
        # No row's loss depends on the queue's: weight 0, partition infinite.
        in_queue = tf.shape(self.candidates)[0] - 2 * self.total
        queue = tf.broadcast_to(tf.constant([np.inf, 0], upstream.dtype), [in_queue, 2])
        partitions, upstreams = tf.unstack(tf.concat([per_candidate, queue], axis=0), axis=1)

        def of_tile(views: tf.Tensor, images: tf.Tensor, partition: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
            gradients = []
            for view in range(2):
                logits, is_positive = self._logits(views[:, view], images, view)
                expected = tf.cast(is_positive, logits.dtype)
                as_row = upstream[:, None] * (tf.exp(logits - partition[:, view][:, None]) - expected)
                as_candidate = upstreams * (tf.exp(logits - partitions) - expected)
                gradients.append(self.scale * tf.matmul(as_row + as_candidate, self.candidates))
            return tf.stack(gradients, axis=1)

        return self._map_tiles(of_tile, (self.views, self.images, partition, upstream), self.views.dtype)

    def _compare(self, views: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, ...]:
        losses, partitions = [], []
        for view in range(2):
            logits, is_positive = self._logits(views[:, view], images, view)
            # The positive is read from the logits, not computed anew: at a small temperature the two would round apart.
            positive = tf.reduce_sum(tf.where(is_positive, logits, 0), axis=1)
            partitions.append(tf.reduce_logsumexp(logits, axis=1))
            losses.append(partitions[-1] - positive)
            if view == 0:
                to_view2 = logits[:, self.total : 2 * self.total]
        shares = tf.nn.softmax(to_view2)
        entropy = -tf.reduce_sum(shares * tf.math.log(shares + 1e-8), axis=1)
        hit = tf.cast(tf.argmax(to_view2, axis=1, output_type=images.dtype) == images, logits.dtype)
        return tf.add_n(losses), hit, entropy, tf.stack(partitions, axis=1)

    def _logits(self, rows: tf.Tensor, images: tf.Tensor, view: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Of ``rows [t, d]``, one view of ``images [t]``; a row's own logit is the least number there is.

        Also where the positives are.
        """
        logits = tf.matmul(rows, self.candidates, transpose_b=True)
        column = tf.range(tf.shape(logits)[1])
        is_itself = column == (images + view * self.total)[:, None]
        is_positive = column == (images + (1 - view) * self.total)[:, None]
        return tf.where(is_itself, logits.dtype.min, logits), is_positive

    def _map_tiles(self, function: Callable, arguments: tuple[tf.Tensor, ...], dtypes: Any) -> Any:
        return map_rows(lambda rows: function(*rows), arguments, self.images_per_tile, dtypes)


def _rows(hidden: tf.Tensor, normalize: bool) -> tf.Tensor:
    hidden = _at_least_float32(hidden)
    return tf.math.l2_normalize(hidden, axis=1) if normalize else hidden


def _at_least_float32(values: Any) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)
