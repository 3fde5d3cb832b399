"""What is minimised: NT-Xent between two views, soft targets for a student, labels, L2.

Everything is computed in float32 whatever the dtype policy; float64 stays float64.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from simclrv2_tf.collectives import all_gather, all_sum, replica_count, replica_index


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

    Returns:
        Scalars in float32 (float64 for float64 views): the loss, and the top-1 accuracy and entropy in nats of the
        similarities from view 1 to view 2, in which the queue has no part.
    """
    per_image, cross_logits, targets = _contrast(view1, view2, temperature, normalize, negatives)
    probabilities = tf.nn.softmax(cross_logits)
    hits = tf.argmax(cross_logits, axis=1, output_type=targets.dtype) == targets
    return ContrastiveResult(
        loss=tf.reduce_mean(per_image),
        accuracy=tf.reduce_mean(tf.cast(hits, per_image.dtype)),
        entropy=-tf.reduce_mean(tf.reduce_sum(probabilities * tf.math.log(probabilities + 1e-8), axis=1)),
    )


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class NTXent(keras.losses.Loss):
    """NT-Xent as a Keras loss: ``y_pred`` is ``[2n, d]``, n view-1 rows, then the n view-2 rows of the same images.

    ``y_true`` is not read. ``call`` returns one loss per image, ``[n]``, which the reduction averages; under a strategy
    Keras divides that by the number of replicas, as its optimizers expect.

    Args:
        temperature: divides the similarities.
        hidden_norm: compare by cosine; otherwise by inner product.

    Raises:
        ValueError: where the temperature is not above 0.
    """

    def __init__(self, temperature: float = 0.1, hidden_norm: bool = True, name: str = "nt_xent", **kwargs: Any):
        if temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {temperature}")
        super().__init__(name=name, **kwargs)
        self.temperature = temperature
        self.hidden_norm = hidden_norm

    def call(self, y_true: Any, y_pred: tf.Tensor) -> tf.Tensor:
        view1, view2 = tf.split(y_pred, 2)
        per_image, _, _ = _contrast(view1, view2, self.temperature, self.hidden_norm)
        return per_image

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "temperature": self.temperature, "hidden_norm": self.hidden_norm}


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


def _contrast(
    view1: tf.Tensor,
    view2: tf.Tensor,
    temperature: float,
    normalize: bool,
    negatives: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Loss per image ``[n]``, logits of view 1 for all N candidates of view 2 ``[n, N]``, column of each positive."""
    view1, view2 = _rows(view1, normalize), _rows(view2, normalize)
    gathered = all_gather(tf.stack([view1, view2], axis=1))  # both views in one message
    candidates = tf.concat([gathered[:, 0], gathered[:, 1]], axis=0)
    views = tf.concat([view1, view2], axis=0)
    logits = tf.matmul(views, candidates, transpose_b=True) / temperature  # [2n, 2N]

    n, total = tf.shape(view1)[0], tf.shape(gathered)[0]
    targets = replica_index() * n + tf.range(n)
    column = tf.range(2 * total)
    is_itself = column == tf.concat([targets, targets + total], axis=0)[:, None]
    is_positive = column == tf.concat([targets + total, targets], axis=0)[:, None]

    # The positive is read from the logits, not computed anew: at a small temperature the two would round apart.
    positive = tf.reduce_sum(tf.where(is_positive, logits, 0), axis=1)
    compared = tf.where(is_itself, logits.dtype.min, logits)
    if negatives is not None:
        queue = tf.cast(_rows(negatives, normalize), views.dtype)
        compared = tf.concat([compared, tf.matmul(views, queue, transpose_b=True) / temperature], axis=1)
    per_view = tf.reduce_logsumexp(compared, axis=1) - positive
    return per_view[:n] + per_view[n:], logits[:n, total:], targets


def _rows(hidden: tf.Tensor, normalize: bool) -> tf.Tensor:
    hidden = _at_least_float32(hidden)
    return tf.math.l2_normalize(hidden, axis=1) if normalize else hidden


def _at_least_float32(values: Any) -> tf.Tensor:
    values = tf.convert_to_tensor(values)
    return values if values.dtype == tf.float64 else tf.cast(values, tf.float32)
