"""Cross-replica collectives."""

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("compiled", [True, False], ids=["graph", "eager"])
def test_all_gather_and_its_gradient(count, compiled, replicas):
    strategy = replicas(count)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((count, 3, 2, 5))
    weights = rng.standard_normal((count, count * 3, 2, 5))  # of the gathered rows, different per replica

    def gather():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        own = tf.gather(tf.constant(rows), replica)
        with tf.GradientTape() as tape:
            tape.watch(own)
            gathered = all_gather(own)
            assert gathered.shape == (count * 3, 2, 5)  # static, as XLA needs
            loss = tf.reduce_sum(gathered * tf.gather(tf.constant(weights), replica))
        return gathered, tape.gradient(loss, own)

    step = lambda: strategy.run(gather)  # noqa: E731
    gathered, gradients = (tf.function(step, autograph=False) if compiled else step)()
    for copy in strategy.experimental_local_results(gathered):
        np.testing.assert_array_equal(copy, rows.reshape(-1, 2, 5))
    # A row receives the gradients of every replica.
    expected = weights.sum(axis=0).reshape(rows.shape)
    np.testing.assert_allclose(np.stack(strategy.experimental_local_results(gradients)), expected, rtol=1e-12)


def test_all_gather_is_a_no_op_on_one_replica():
    rows = tf.ones([3, 2])
    assert all_gather(rows) is rows
