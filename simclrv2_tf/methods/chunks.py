"""Processes a batch in equal parts, one after another, so that only one part's intermediate results are in memory."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simclrv2_tf.distributed.collectives import can_communicate_in_loops

Nest = Any  # tensors in dicts, lists or tuples


def split(tensors: Nest, size: int) -> Nest:
    """Splits tensors ``[n, ...]`` into ``[⌈n / size⌉, size, ...]``, padded with zeros; n must be static."""

    def split_one(tensor: tf.Tensor) -> tf.Tensor:
        parts = -(-tensor.shape[0] // size)
        if padding := parts * size - tensor.shape[0]:
            tensor = tf.pad(tensor, [[0, padding]] + [[0, 0]] * (tensor.shape.rank - 1))
        return tf.reshape(tensor, tf.concat([[parts, size], tf.shape(tensor)[1:]], axis=0))

    return tf.nest.map_structure(split_one, tensors)


def join(tensors: Nest, rows: int) -> Nest:
    """Undoes ``split``: joins the parts and drops the padding after the first ``rows`` rows."""
    return tf.nest.map_structure(
        lambda tensor: tf.reshape(tensor, tf.concat([[-1], tf.shape(tensor)[2:]], axis=0))[:rows], tensors
    )


def map_rows(
    function: Callable[[Nest], Nest], tensors: Nest, size: int, dtypes: Nest, communicates: bool = False
) -> Nest:
    """Computes ``function(tensors)`` from at most ``size`` rows at a time; from all at once if size is 0 or n unknown.

    Args:
        function: from tensors ``[rows, ...]`` to tensors ``[rows, ...]``; each row depends on its own input alone.
        tensors: ``[n, ...]`` each.
        size: rows per part; reduced if that makes the parts more equal.
        dtypes: of the results, in their structure.
        communicates: whether the function uses collectives.

    Returns:
        The function's results for all n rows.
    """
    rows = tf.nest.flatten(tensors)[0].shape[0]
    if not size or rows is None or rows <= size:
        return function(tensors)
    parts = -(-rows // size)
    return join(map_parts(function, split(tensors, -(-rows // parts)), dtypes, communicates), rows)


def map_parts(function: Callable[[Nest], Nest], parts: Nest, dtypes: Nest, communicates: bool = False) -> Nest:
    """Applies ``function`` to each part that ``split`` returns; results ``[parts, ...]``, arguments as ``map_rows``."""
    count = tf.nest.flatten(parts)[0].shape[0]
    if not communicates or can_communicate_in_loops():
        of_part = lambda index: function(_part(parts, index))  # noqa: E731
        return tf.map_fn(of_part, tf.range(count), fn_output_signature=dtypes, parallel_iterations=1)
    results: list[Nest] = []
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(results[-1:])):
            results.append(function(_part(parts, index)))
    return tf.nest.map_structure(lambda *values: tf.stack(values), *results)


def fold_parts(function: Callable[[Nest, Nest], Nest], start: Nest, parts: Nest) -> Nest:
    """Computes ``function(… function(function(start, part 0), part 1) …)``; the function may use collectives."""
    count = tf.nest.flatten(parts)[0].shape[0]
    if can_communicate_in_loops():
        step = lambda result, index: function(result, _part(parts, index))  # noqa: E731
        return tf.foldl(step, tf.range(count), start, parallel_iterations=1)
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(start)):
            start = function(start, _part(parts, index))
    return start


def _part(parts: Nest, index: int | tf.Tensor) -> Nest:
    return tf.nest.map_structure(lambda tensor: tensor[index], parts)
