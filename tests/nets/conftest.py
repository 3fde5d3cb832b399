"""Strategies of different sizes in one process."""

import pytest
import tensorflow as tf


@pytest.fixture
def replicas(monkeypatch):
    """``replicas(2)`` is a MirroredStrategy over two logical CPU devices.

    Every strategy numbers its groups of devices from the same key on, and TensorFlow refuses a key that it has seen
    with another number of devices; so each size gets keys of its own.
    """

    def strategy(count: int) -> tf.distribute.MirroredStrategy:
        monkeypatch.setattr(tf.distribute.MirroredStrategy, "_collective_key_base", 100_000 * count)
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])

    return strategy
