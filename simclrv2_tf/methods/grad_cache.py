"""Cached gradients (GradCache, arXiv 2101.06983): a contrastive batch whose activations do not fit into memory."""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.collectives import can_communicate_in_loops
from simclrv2_tf.methods.chunks import fold_parts, join, map_parts, split

if TYPE_CHECKING:
    from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs


def cached_gradients(method: "Method", batch: "Batch", micro_batch: int) -> tuple[tf.Tensor, "Logs", list[tf.Tensor]]:
    """Computes the plain step's loss and gradients, with the activations of one micro-batch in memory at a time.

    1. ``forward`` of every micro-batch; only the outputs are kept.
    2. ``objective`` of all outputs; its gradient with respect to the outputs.
    3. ``forward`` of every micro-batch again, which passes its part of that gradient on to the variables.

    These are the gradients of the plain step if the outputs of an image do not depend on its micro-batch. Batch norm
    makes them depend: it normalises by its micro-batch, over all replicas if it is synchronized. Moving statistics
    move once per step, as without micro-batches, towards the mean of the micro-batches' statistics.

    Args:
        method: what is trained.
        batch: of this replica, tensors ``[b, ...]``.
        micro_batch: images at a time; divides b.

    Returns:
        The replica's loss, its other metrics, and the gradients of the trained variables.

    Raises:
        ValueError: if the micro-batches would not be equal.
    """
    num_images = tf.nest.flatten(batch)[0].shape[0]
    if num_images is None or num_images % micro_batch:
        raise ValueError(f"micro-batches of {micro_batch} images do not divide the {num_images} images of a replica")
    micro_batches = split(batch, micro_batch)  # [micro-batches, micro_batch, ...]
    weights = [variable.value for variable in method.trained_variables]
    state = [variable for part in method.parts().values() for variable in part.non_trainable_variables]

    moved: list[keras.Variable] = []  # the state that forward assigns, known after its first trace

    def run_once(part: "Batch") -> tuple["Outputs", list[tf.Tensor]]:
        with keras.StatelessScope() as scope:
            outputs = method.forward(part)
        moved[:] = [variable for variable in state if scope.get_current_value(variable) is not None]
        return outputs, [tf.convert_to_tensor(scope.get_current_value(variable)) for variable in moved]

    signature = _dtypes(run_once, micro_batches) if can_communicate_in_loops() else None
    outputs, states = map_parts(run_once, micro_batches, signature, communicates=True)
    for variable, values in zip(moved, states, strict=True):
        _assign_mean(variable, values)

    outputs = join(outputs, num_images)  # [b, ...]
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss, logs = method.objective(outputs, batch)
        scaled = method.scale_loss(loss)
    output_gradients, gradients = tape.gradient(scaled, (outputs, weights), unconnected_gradients="zero")

    def run_again(total: list[tf.Tensor], part: tuple["Batch", "Outputs"]) -> list[tf.Tensor]:
        images, upstream = part
        with keras.StatelessScope(), tf.GradientTape() as tape:
            outputs = method.forward(images)
        more = tape.gradient(outputs, weights, upstream, unconnected_gradients="zero")
        return [one + other for one, other in zip(total, more, strict=True)]

    return loss, logs, fold_parts(run_again, gradients, (micro_batches, split(output_gradients, micro_batch)))


def _dtypes(function: Any, parts: Any) -> Any:
    """Returns the dtypes of a function's results for the first part, from a trace that is thrown away."""
    with tf.__internal__.FuncGraph("micro_batch").as_default():
        results = function(tf.nest.map_structure(lambda tensor: tensor[0], parts))
    return tf.nest.map_structure(lambda tensor: tensor.dtype, results)


def _assign_mean(variable: keras.Variable, values: tf.Tensor) -> None:
    """Assigns the mean of ``values [micro-batches, ...]``; to a counter or a seed the last of them."""
    if values.dtype.is_floating:
        # A mean of changes, so that what has not changed keeps every bit.
        variable.assign(variable.value + tf.reduce_mean(values - variable.value, axis=0))
    else:
        variable.assign(values[-1])
