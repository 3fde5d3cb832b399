"""GradCache (arXiv 2101.06983): gradients of a contrastive batch whose activations do not fit into memory."""

from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.collectives import can_communicate_in_loops
from simclrv2_tf.methods.chunks import fold_parts, join, map_parts, split

if TYPE_CHECKING:
    from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs


def cached_gradients(method: "Method", batch: "Batch", micro_batch: int) -> tuple[tf.Tensor, "Logs", list[tf.Tensor]]:
    """Computes the loss and gradients of a step, with the activations of one micro-batch in memory at a time.

    1. Run ``forward`` on every micro-batch; keep only the outputs.
    2. Compute ``objective`` of all outputs, and its gradient with respect to them.
    3. Run ``forward`` on every micro-batch again and propagate its part of that gradient to the variables.

    The gradients equal those of the plain step if the outputs of an image do not depend on its micro-batch. With batch
    norm they do: it normalises over its micro-batch (of all replicas, if it is synchronized). Moving statistics are
    updated once per step, as in the plain step, with the mean of the micro-batches' statistics.

    Args:
        method: the method to train.
        batch: the replica's, tensors ``[b, ...]``.
        micro_batch: images per micro-batch; divides b.

    Returns:
        The replica's loss, its other metrics, and the gradients of the trained variables.

    Raises:
        ValueError: if ``micro_batch`` does not divide b.
    """
    num_images = tf.nest.flatten(batch)[0].shape[0]
    if num_images is None or num_images % micro_batch:
        raise ValueError(f"micro-batches of {micro_batch} images do not divide the {num_images} images of a replica")
    micro_batches = split(batch, micro_batch)  # [micro-batches, micro_batch, ...]
    weights = [variable.value for variable in method.trained_variables]
    state = [variable for part in method.parts().values() for variable in part.non_trainable_variables]

    updated: list[keras.Variable] = []  # the state that forward updates; known once it is traced

    def run_once(part: "Batch") -> tuple["Outputs", list[tf.Tensor]]:
        with keras.StatelessScope() as scope:
            outputs = method.forward(part)
        updated[:] = [variable for variable in state if scope.get_current_value(variable) is not None]
        return outputs, [tf.convert_to_tensor(scope.get_current_value(variable)) for variable in updated]

    signature = _dtypes(run_once, micro_batches) if can_communicate_in_loops() else None
    outputs, states = map_parts(run_once, micro_batches, signature, communicates=True)
    for variable, values in zip(updated, states, strict=True):  # values [micro-batches, ...]
        _assign_mean(variable, values)

    outputs = join(outputs, num_images)  # [b, ...]
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss, logs = method.objective(outputs, batch)
        scaled = method.scale_loss(loss)
    method.update_compiled_metrics(outputs, batch)
    output_gradients, gradients = tape.gradient(scaled, (outputs, weights), unconnected_gradients="zero")

    def run_again(total: list[tf.Tensor], part: tuple["Batch", "Outputs"]) -> list[tf.Tensor]:
        inputs, upstream = part
        with keras.StatelessScope(), tf.GradientTape() as tape:
            outputs = method.forward(inputs)
        gradients = tape.gradient(outputs, weights, upstream, unconnected_gradients="zero")
        return [one + other for one, other in zip(total, gradients, strict=True)]

    return loss, logs, fold_parts(run_again, gradients, (micro_batches, split(output_gradients, micro_batch)))


def _dtypes(function: Any, parts: Any) -> Any:
    """Returns the dtypes of a function's results, from a trace of the first part that is discarded."""
    with tf.__internal__.FuncGraph("micro_batch").as_default():
        results = function(tf.nest.map_structure(lambda tensor: tensor[0], parts))
    return tf.nest.map_structure(lambda tensor: tensor.dtype, results)


def _assign_mean(variable: keras.Variable, values: tf.Tensor) -> None:
    """Assigns the mean of ``values [micro-batches, ...]``, or the last one to an integer, such as a seed."""
    if values.dtype.is_floating:
        # Adds the mean change, so that an unchanged value stays the same to the bit.
        variable.assign(variable.value + tf.reduce_mean(values - variable.value, axis=0))
    else:
        variable.assign(values[-1])
