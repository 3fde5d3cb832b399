"""What replicas tell each other, with two and four of them, and the gradients of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.training.distributed import all_gather


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("compiled", [True, False], ids=["graph", "eager"])
def test_all_gather_and_its_gradient(count, compiled, replicas):
    strategy = replicas(count)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, 3, 2, 5))
    weights = rng.standard_normal((count, count * 3, 2, 5))  # of the gathered rows, different on every replica

    def gather():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = tf.gather(tf.constant(rows), replica)
        with tf.GradientTape() as tape:
            tape.watch(own)
            gathered = all_gather(own)
            assert gathered.shape == (count * 3, 2, 5)  # static: XLA needs it
            loss = tf.reduce_sum(gathered * tf.gather(tf.constant(weights), replica))
        return gathered, tape.gradient(loss, own)

    step = lambda: strategy.run(gather)  # noqa: E731
    gathered, gradients = (tf.function(step, autograph=False) if compiled else step)()
    for copy in strategy.experimental_local_results(gathered):
        np.testing.assert_array_equal(copy, rows.reshape(-1, 2, 5))
    # A row receives the gradients of every replica that saw it.
    expected = weights.sum(axis=0).reshape(rows.shape)
    np.testing.assert_allclose(np.stack(strategy.experimental_local_results(gradients)), expected, rtol=1e-12)


def test_one_replica_gathers_nothing():
    rows = tf.ones([3, 2])
    assert all_gather(rows) is rows


@pytest.mark.parametrize("count", [2, 4])
def test_keras_optimizers_sum_gradients_over_replicas(count, replicas):
    """Training steps divide their loss by the number of replicas on the strength of this."""
    strategy = replicas(count)
    with strategy.scope():
        weight = keras.Variable(np.zeros([2], "float32"))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])

    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.fill([2], tf.cast(replica + 1, tf.float32))], [weight])

    tf.function(lambda: strategy.run(step), autograph=False)()
    np.testing.assert_array_equal(weight.numpy(), [-sum(range(1, count + 1))] * 2)
    assert optimizer.iterations.numpy() == 1
