"""Cached gradients (GradCache, arXiv 2101.06983): a contrastive batch whose activations do not fit into memory."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.methods.base import Batch
from simclrv2_tf.methods.chunks import fold_parts, join, map_parts, split

Outputs = dict[str, tf.Tensor]


def cached_gradients(
    embed: Callable[[Batch], Outputs],
    objective: Callable[[Outputs], tuple[tf.Tensor, Any]],
    batch: Batch,
    micro_batch: int,
    dtypes: dict[str, tf.DType],
    model: keras.Model,
    variables: list[keras.Variable],
) -> tuple[Any, list[tf.Tensor]]:
    """Gradients of ``objective(embed(batch))`` with the activations of one micro-batch in memory, for a second forward.

    Every micro-batch is embedded and nothing but the outputs kept; the objective, over all outputs, gives their
    gradient; then each is embedded again, and its part of that gradient goes on to the variables. Where the outputs of
    an image do not depend on its micro-batch, these are the gradients of the plain step.

    Batch norm makes them depend: it normalises by its micro-batch, over all replicas if it is synchronized. The moving
    statistics move once a step, as without micro-batches, towards the mean of the micro-batches' statistics.

    Args:
        embed: from rows of the batch to tensors ``[rows, ...]``.
        objective: from the outputs of the whole batch to the scalar to differentiate, and anything.
        batch: of this replica, tensors ``[b, ...]``.
        micro_batch: images at a time; it divides b.
        dtypes: of the outputs.
        model: what ``embed`` runs.
        variables: to differentiate by.

    Returns:
        What the objective returned beside the scalar, and the gradients.

    Raises:
        ValueError: if the micro-batches would not be equal.
    """
    rows = tf.nest.flatten(batch)[0].shape[0]
    if rows is None or rows % micro_batch:
        raise ValueError(f"{micro_batch} images a micro-batch do not divide the {rows} images of a replica")
    parts = split(batch, micro_batch)
    values = [variable.value for variable in variables]

    def embed_once(part: Batch) -> tuple[Outputs, list[tf.Tensor]]:
        with keras.StatelessScope() as scope:
            outputs = embed(part)
        return outputs, [_state(scope, variable) for variable in model.non_trainable_variables]

    state_dtypes = [variable.dtype for variable in model.non_trainable_variables]
    outputs, states = map_parts(embed_once, parts, (dtypes, state_dtypes), communicates=True)
    for variable, state in zip(model.non_trainable_variables, states, strict=True):
        _assign_mean(variable, state)

    outputs = join(outputs, rows)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        scalar, rest = objective(outputs)
    of_outputs, gradients = tape.gradient(scalar, (outputs, values), unconnected_gradients="zero")

    def embed_again(gradients: list[tf.Tensor], part: tuple[Batch, Outputs]) -> list[tf.Tensor]:
        part, of_outputs = part
        with keras.StatelessScope(), tf.GradientTape() as tape:
            outputs = embed(part)
        more = tape.gradient(outputs, values, of_outputs, unconnected_gradients="zero")
        return [gradient + other for gradient, other in zip(gradients, more, strict=True)]

    return rest, fold_parts(embed_again, gradients, (parts, split(of_outputs, micro_batch)))


def _state(scope: keras.StatelessScope, variable: keras.Variable) -> tf.Tensor:
    """What a variable would be now if the scope had not kept it from changing."""
    changed = scope.get_current_value(variable)
    return tf.convert_to_tensor(variable.value if changed is None else changed)


def _assign_mean(variable: keras.Variable, states: tf.Tensor) -> None:
    """Gives a variable the mean of its states ``[micro-batches, ...]``; a counter or seed the last of them."""
    if states.dtype.is_floating:
        # A mean of changes, so that what has not changed keeps every bit.
        variable.assign(variable.value + tf.reduce_mean(states - variable.value, axis=0))
    else:
        variable.assign(states[-1])
