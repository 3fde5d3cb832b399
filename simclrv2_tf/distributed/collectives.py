"""What the replicas of a step say to each other: sums and gathers, with gradients; nothing where there is one."""

import tensorflow as tf


def replica_count() -> int:
    """Replicas that run this step together; 1 outside ``strategy.run``."""
    context = tf.distribute.get_replica_context()
    return context.num_replicas_in_sync if context is not None else 1


def replica_index() -> tf.Tensor | int:
    """This replica's place in the order of ``all_gather``."""
    if replica_count() == 1:
        return 0
    return tf.distribute.get_replica_context().replica_id_in_sync_group


def all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """Rows of every replica in replica order, with gradients to all of them.

    Each replica writes its rows into its own slot of a zero tensor and the slots are summed: one all-reduce, which
    compiles everywhere and whose gradient is an all-reduce too.

    Args:
        tensor: ``[n, ...]``, the same static shape on every replica.

    Returns:
        ``[replicas · n, ...]``; ``tensor`` itself where there is one replica.
    """
    count = replica_count()
    if count == 1:
        return tensor
    context = tf.distribute.get_replica_context()
    index = context.replica_id_in_sync_group
    slots = tf.one_hot(index, count, dtype=tensor.dtype)
    placed = tf.tensordot(slots, tensor, axes=0)  # [replicas, n, ...]
    gathered = context.all_reduce(tf.distribute.ReduceOp.SUM, placed)
    return tf.reshape(gathered, tf.concat([[-1], tf.shape(tensor)[1:]], axis=0))


def all_sum(tensor: tf.Tensor) -> tf.Tensor:
    """Sum of the tensor over all replicas (differentiable); the tensor itself where there is one."""
    if replica_count() == 1:
        return tensor
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensor)


def can_communicate_in_loops() -> bool:
    """Whether replicas can talk from inside a ``tf.while_loop``.

    Those of the mirrored strategies meet in Python while the step is traced, and cannot meet in the graph of a loop.
    """
    mirrored = tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy
    return replica_count() == 1 or not isinstance(tf.distribute.get_strategy(), mirrored)
