"""Several strategies in one process."""

import itertools

import pytest
import tensorflow as tf

KEYS = itertools.count(100_000, 100_000)


@pytest.fixture
def replicas(monkeypatch):
    """``replicas(2)`` is a MirroredStrategy over two logical CPU devices.

    Every strategy numbers its collectives from the same key on, and TensorFlow refuses a key that it has seen with
    another number of devices or another shape; so each strategy gets keys of its own.
    """

    def strategy(count: int) -> tf.distribute.MirroredStrategy:
        monkeypatch.setattr(tf.distribute.MirroredStrategy, "_collective_key_base", next(KEYS))
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])

    return strategy
