"""Losses: NT-Xent between two views, distillation, cross-entropy, L2 penalty.

All are computed in float32 whatever the dtype policy; float64 stays float64.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather, all_sum, replica_count, replica_index
from simclrv2_tf.methods.nt_xent_tiled import nt_xent_tiled, tile_rows
from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.settings.config import check_arguments

# Largest similarity matrix that one replica holds as a whole, 64 MiB in float32; for larger ones tiles take as long and
# need less memory (table in nt_xent_tiled.py).
MATRIX_ENTRIES = 2**24


class ContrastiveResult(NamedTuple):
    """Mean loss over this replica's images; accuracy and entropy of matching view 1 to all view-2 candidates."""

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
    """NT-Xent (SimCLR, arXiv 2002.05709, equation 1), summed over both directions, with candidates from every replica.

    For a projection z_i, the projection z_p(i) of the other view of the same image, and cosine similarity s::

        ℓ_i = −log( exp(s(z_i, z_p(i)) / τ) / Σ_{k ≠ i} exp(s(z_i, z_k) / τ) )

    where k runs over both views of the images of all replicas and over further negatives. The loss is the mean over
    images of ℓ of view 1 + ℓ of view 2, twice the paper's mean over views: its published learning rates are tuned for
    that scale. Gradients flow through gathered candidates, so the mean of the losses over replicas, and its gradient,
    equal those of one device with the whole batch.

    Args:
        view1: ``[n, d]``, this replica's projections of the first views, any float dtype.
        view2: ``[n, d]``, of the second views of the same images in the same order.
        temperature: τ, above 0.
        normalize: compare by cosine; otherwise by inner product.
        negatives: ``[m, d]``, further negatives for every row, such as MoCo's queue (SimCLRv2, section 2), detached.
            They are not gathered: each replica uses its own.
        tile: 0: computed from the whole similarity matrix up to ``MATRIX_ENTRIES``, and in tiles above it
            (``nt_xent_tiled``: the same numbers, less memory). Above 0: always in tiles of that many rows.

    Returns:
        Scalars in float32 (float64 for float64 views): the loss, and the top-1 accuracy and entropy in nats of the
        similarities from view 1 to view 2, further negatives left out.

    Raises:
        ValueError: if the temperature is not above 0, or the shapes are not those above.

    Example:
        >>> view1, view2 = np.random.normal(size=(2, 8, 16)).astype("float32")
        >>> loss, accuracy, entropy = nt_xent(view1, view2, temperature=0.1)
        >>> loss.shape, loss.dtype
        (TensorShape([]), tf.float32)
    """
    check_arguments(temperature=temperature)
    _check_tile(tile)
    per_image = nt_xent_per_image(view1, view2, temperature, normalize, negatives, tile)
    return ContrastiveResult(*map(tf.reduce_mean, per_image))


def nt_xent_per_image(
    view1: tf.Tensor,
    view2: tf.Tensor,
    temperature: float,
    normalize: bool,
    negatives: tf.Tensor | None,
    tile: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss, hit (0 or 1) and entropy of each image, ``[n]`` each; only the loss has a gradient."""
    _check_shapes(view1, view2, negatives)
    view1, view2 = _projections(view1, normalize), _projections(view2, normalize)  # [n, d]
    queue = view1[:0] if negatives is None else tf.cast(_projections(negatives, normalize), view1.dtype)  # [m, d]
    if tile or _exceeds_one_matrix(view1, queue):
        return nt_xent_tiled(view1, view2, queue, temperature, tile)

    gathered = all_gather(tf.stack([view1, view2], axis=1))  # [N, 2, d], the images of all replicas
    candidates = tf.concat([gathered[:, 0], gathered[:, 1], queue], axis=0)  # [2N + m, d]
    n, total = tf.shape(view1)[0], tf.shape(gathered)[0]
    image = replica_index() * n + tf.range(n)  # [n], this replica's images among all of them
    own_column = tf.concat([image, total + image], axis=0)  # [2n]
    positive_column = tf.concat([total + image, image], axis=0)  # [2n]

    rows = tf.concat([view1, view2], axis=0) / temperature  # [2n, d]
    logits = tf.matmul(rows, candidates, transpose_b=True)  # [2n, 2N + m]
    is_own = tf.range(tf.shape(logits)[1]) == own_column[:, None]
    logits = tf.where(is_own, logits.dtype.min, logits)
    cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(positive_column, logits)  # [2n]
    loss = cross_entropy[:n] + cross_entropy[n:]

    to_view2 = tf.stop_gradient(logits[:n, total : 2 * total])  # [n, N]
    hit = tf.cast(tf.argmax(to_view2, axis=1, output_type=image.dtype) == image, loss.dtype)
    probabilities = tf.nn.softmax(to_view2)
    entropy = -tf.reduce_sum(probabilities * tf.math.log(probabilities + 1e-8), axis=1)
    return loss, hit, entropy


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class NTXent(keras.losses.Loss):
    """NT-Xent as a Keras loss: ``y_pred`` is ``[2n, d]``, n view-1 rows, then the n view-2 rows of the same images.

    ``y_true`` is not read. ``call`` returns one loss per image, ``[n]``, which the reduction averages; under a strategy
    Keras divides that by the number of replicas, as its optimizers expect.

    Args:
        temperature: divides the similarities.
        hidden_norm: compare by cosine; otherwise by inner product.
        tile: as in ``nt_xent``.
        name: of the loss.
        **kwargs: of ``keras.losses.Loss``.

    Raises:
        ValueError: if the temperature is not above 0.

    Example:
        >>> projections = tf.eye(4)  # two images; every similarity is 0
        >>> print(f"{NTXent(temperature=0.1)(tf.zeros(4), projections):.4f} = 2 log 3")
        2.1972 = 2 log 3
    """

    def __init__(
        self,
        temperature: float = 0.1,
        hidden_norm: bool = True,
        tile: int = 0,
        name: str = "nt_xent",
        **kwargs: Any,
    ):
        check_arguments(temperature=temperature, hidden_norm=hidden_norm)
        _check_tile(tile)
        dtype = statistics_dtype(keras.config.floatx()).name
        super().__init__(**{"name": name, "dtype": dtype} | kwargs)
        self.temperature = temperature
        self.hidden_norm = hidden_norm
        self.tile = tile

    def call(self, y_true: Any, y_pred: tf.Tensor) -> tf.Tensor:
        if y_pred.shape.rank != 2 or (y_pred.shape[0] or 0) % 2:
            raise ValueError(f"y_pred must be [2n, d], the rows of two views, not {y_pred.shape}")
        view1, view2 = tf.split(y_pred, 2)
        return nt_xent_per_image(view1, view2, self.temperature, self.hidden_norm, None, self.tile)[0]

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

    Raises:
        ValueError: if the temperature is not above 0, or the classes differ.
    """
    check_arguments(temperature=temperature)
    shapes = [tf.convert_to_tensor(logits).shape for logits in (student_logits, teacher_logits)]
    if not shapes[0].is_compatible_with(shapes[1]):
        raise ValueError(f"logits of the same images and classes are needed, not {shapes[0]} and {shapes[1]}")
    soft_labels = tf.nn.softmax(_at_least_float32(teacher_logits) / temperature)
    student = _at_least_float32(student_logits) / temperature
    soft_labels = tf.cast(tf.stop_gradient(soft_labels), student.dtype)
    return tf.nn.softmax_cross_entropy_with_logits(soft_labels, student)


def supervised_loss(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Softmax cross-entropy of integer labels ``[n]`` and logits ``[n, classes]``, per image ``[n]``, nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, _at_least_float32(logits))


def hits(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns 1.0 where the largest of the logits ``[n, classes]`` is that of the label, else 0.0; ``[n]``."""
    return tf.cast(tf.argmax(logits, axis=1, output_type=labels.dtype) == labels, tf.float32)


def labelled_mean(values: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Mean over the images of the global batch that have a label; 0 if none has.

    Args:
        values: ``[n]``, of this replica's images.
        labels: int ``[n]``, −1 where unknown.

    Returns:
        A scalar: this replica's sum over the mean number of labelled images per replica, so that the mean over replicas
        is the mean over all of them.
    """
    labelled = tf.cast(labels >= 0, values.dtype)
    count = all_sum(tf.reduce_sum(labelled)) / replica_count()
    return tf.math.divide_no_nan(tf.reduce_sum(tf.where(labels >= 0, values, 0)), count)


def l2_penalty(variables: Iterable[keras.Variable | tf.Variable], weight_decay: float) -> tf.Tensor | float:
    """``weight_decay · ½ Σ ‖w‖²``, a scalar whose gradient is ``weight_decay · w``; 0.0 without variables."""
    squares = [tf.nn.l2_loss(_at_least_float32(variable)) for variable in variables]
    return weight_decay * tf.add_n(squares) if squares else 0.0


def similarity_rows(rows: int, columns: int) -> int:
    """Rows of one replica's ``[rows, columns]`` similarities, 2n and 2N + m, that ``nt_xent`` holds at a time."""
    return rows if rows * columns <= MATRIX_ENTRIES else min(tile_rows(columns), rows)


def similarity_bytes(rows: int, columns: int) -> int:
    """Estimates the peak memory of ``[rows, columns]`` similarities and their gradient, float32, on one replica.

    The number of copies, four of the whole matrix or seven of a tile, was measured on a CPU without XLA.
    """
    copies = 4 if rows * columns <= MATRIX_ENTRIES else 7
    return 4 * copies * similarity_rows(rows, columns) * columns


def _check_tile(tile: int) -> None:
    if not isinstance(tile, int) or tile < 0:
        raise ValueError(f"tile={tile!r}: must be a whole number, 0 or more")


def _check_shapes(view1: Any, view2: Any, negatives: Any) -> None:
    """Raises ValueError if the known parts of the shapes are not ``[n, d]`` for views, ``[m, d]`` for negatives."""
    view1, view2 = tf.convert_to_tensor(view1), tf.convert_to_tensor(view2)
    if view1.shape.rank not in (2, None) or not view1.shape.is_compatible_with(view2.shape):
        raise ValueError(f"two views [n, d] of the same images are needed, not {view1.shape} and {view2.shape}")
    negatives = view1[:0] if negatives is None else tf.convert_to_tensor(negatives)
    if not negatives.shape[1:].is_compatible_with(view1.shape[1:]):
        raise ValueError(f"negatives must be [m, d] with the views' d, not {negatives.shape} for {view1.shape}")


def _exceeds_one_matrix(view: tf.Tensor, queue: tf.Tensor) -> bool:
    rows = 2 * (view.shape[0] or 0)  # unknown while tracing: taken as few
    return rows * (rows * replica_count() + (queue.shape[0] or 0)) > MATRIX_ENTRIES


def _projections(values: Any, normalize: bool) -> tf.Tensor:
    values = _at_least_float32(values)
    return tf.math.l2_normalize(values, axis=1) if normalize else values


def _at_least_float32(values: Any) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)
