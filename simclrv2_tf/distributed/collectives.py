"""Differentiable cross-replica collectives; no-ops on a single replica."""

import tensorflow as tf


def replica_count() -> int:
    """Returns the number of replicas that run this step together; 1 outside ``strategy.run``."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def replica_index() -> tf.Tensor | int:
    """Returns this replica's position in the order of ``all_gather``."""
    if replica_count() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """Concatenates the rows of all replicas in replica order, with gradients to all of them.

    Each replica writes its rows into its own slot of a zero tensor and the slots are summed: one all-reduce, which
    compiles everywhere and whose gradient is an all-reduce too.

    Args:
        tensor: ``[n, ...]``, the same static shape on every replica.

    Returns:
        ``[replicas · n, ...]``; ``tensor`` itself on a single replica.
    """
    count = replica_count()
    if count == 1:
        return tensor
    slot = tf.one_hot(replica_index(), count, dtype=tensor.dtype)
    rows = tf.tensordot(slot, tensor, axes=0)  # [replicas, n, ...]
    return tf.reshape(all_sum(rows), tf.concat([[-1], tf.shape(tensor)[1:]], axis=0))


def all_sum(tensor: tf.Tensor) -> tf.Tensor:
    """Sums a tensor over all replicas, differentiably; returns the tensor itself on a single replica."""
    if replica_count() == 1:
        return tensor
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def can_communicate_in_loops() -> bool:
    """Returns whether collectives work inside a ``tf.while_loop``.

    Replicas of the mirrored strategies meet in Python while the step is traced, so they cannot meet in a loop's graph.
    """
    mirrored = tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy
    return replica_count() == 1 or not isinstance(tf.distribute.get_strategy(), mirrored)
