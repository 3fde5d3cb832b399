"""A batch in equal parts, one after another, so that the intermediate results of only one part are in memory."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simclrv2_tf.distributed.collectives import can_communicate_in_loops

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


def map_rows(
    function: Callable[[Nest], Nest], tensors: Nest, size: int, dtypes: Nest, communicates: bool = False
) -> Nest:
    """``function(tensors)``, computed from at most ``size`` rows at a time; 0 or unknown n: from all at once.

    Args:
        function: from tensors ``[rows, ...]`` to tensors ``[rows, ...]``, each row's from its own.
        tensors: ``[n, ...]`` each.
        size: of a part; it gets smaller if that makes the parts more equal.
        dtypes: of the results, in their structure.
        communicates: whether the function talks to other replicas.
    """
    rows = tf.nest.flatten(tensors)[0].shape[0]
    if not size or rows is None or rows <= size:
        return function(tensors)
    parts = -(-rows // size)
    return join(map_parts(function, split(tensors, -(-rows // parts)), dtypes, communicates), rows)


def map_parts(function: Callable[[Nest], Nest], parts: Nest, dtypes: Nest, communicates: bool = False) -> Nest:
    """``function`` of each part of what ``split`` returns, stacked: ``[parts, ...]``; else as ``map_rows``."""
    count = tf.nest.flatten(parts)[0].shape[0]
    if not communicates or can_communicate_in_loops():
        part = lambda index: function(_part(parts, index))  # noqa: E731
        return tf.map_fn(part, tf.range(count), fn_output_signature=dtypes, parallel_iterations=1)
    results: list[Nest] = []
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(results[-1:])):
            results.append(function(_part(parts, index)))
    return tf.nest.map_structure(lambda *values: tf.stack(values), *results)


def fold_parts(function: Callable[[Nest, Nest], Nest], start: Nest, parts: Nest) -> Nest:
    """``function(… function(function(start, part 0), part 1) …)``; it may talk to other replicas."""
    count = tf.nest.flatten(parts)[0].shape[0]
    if can_communicate_in_loops():
        step = lambda found, index: function(found, _part(parts, index))  # noqa: E731
        return tf.foldl(step, tf.range(count), start, parallel_iterations=1)
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(start)):
            start = function(start, _part(parts, index))
    return start


def _part(parts: Nest, index: int | tf.Tensor) -> Nest:
    return tf.nest.map_structure(lambda tensor: tensor[index], parts)
