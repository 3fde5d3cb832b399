"""A batch in equal parts, one after another, so that the intermediate results of only one part are in memory."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Nest = Any  # tensors in dicts, lists or tuples


def split(tensors: Nest, size: int) -> Nest:
    """Tensors ``[n, ...]`` as ``[⌈n / size⌉, size, ...]``, filled up with zeros; n is known."""

    def one(tensor: tf.Tensor) -> tf.Tensor:
        parts = -(-tensor.shape[0] // size)
        if missing := parts * size - tensor.shape[0]:
            tensor = tf.pad(tensor, [[0, missing]] + [[0, 0]] * (tensor.shape.rank - 1))
        return tf.reshape(tensor, tf.concat([[parts, size], tf.shape(tensor)[1:]], axis=0))

    return tf.nest.map_structure(one, tensors)


def join(tensors: Nest, rows: int) -> Nest:
    """The first ``rows`` rows of tensors that ``split`` has split."""
    return tf.nest.map_structure(
        lambda tensor: tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], axis=0))[:rows], tensors
    )


def map_in_turn(function: Callable[[Nest], Nest], parts: Nest, dtypes: Nest) -> Nest:
    """``function`` of each part, stacked.

    Args:
        function: from a part's tensors to tensors of the structure of ``dtypes``.
        parts: tensors ``[parts, size, ...]``.
        dtypes: of the results.

    Returns:
        The results, ``[parts, ...]`` each.
    """
    return tf.map_fn(
        lambda index: function(_part(parts, index)),
        tf.range(tf.nest.flatten(parts)[0].shape[0]),
        fn_output_signature=dtypes,
        parallel_iterations=1,
    )


def _part(parts: Nest, index: int | tf.Tensor) -> Nest:
    return tf.nest.map_structure(lambda tensor: tensor[index], parts)
