"""Memory estimate of a training step from its traced graph, and its messages."""

import contextlib

import numpy as np
import pytest
import tiny

from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.runs import memory


def step_memory(strategy=None, batch=64, micro_batch=0, queue_size=0, **how):
    with strategy.scope() if strategy else contextlib.nullcontext():
        settings = {"memory_size": queue_size, "ema_decay": 0.9, "micro_batch": micro_batch}
        model = tiny.compiled(SimCLR(tiny.network(), tiny.VIEWS, **settings), **how)
    before = tiny.numbers(model.variables)
    batches = distribute(model.distribute_strategy, batch, lambda part: tiny.dataset(0, 1, size=batch))
    needed = memory.step_memory(model, memory.trace_step(model, batches.element_spec))
    for value, unchanged in zip(tiny.numbers(model.variables), before, strict=True):
        np.testing.assert_array_equal(value, unchanged)  # nothing has run
    return needed


def test_all_variables_are_counted():
    network = tiny.network()
    trained = 4 * sum(int(np.prod(variable.shape)) for variable in network.trainable_variables)
    plain, with_queue = step_memory(), step_memory(queue_size=100)
    assert plain["weights"] == 4 * network.count_params()
    assert step_memory(optimizer="adam")["optimizer"] - plain["optimizer"] == pytest.approx(trained, abs=64)
    assert with_queue["weights"] - plain["weights"] == trained + 4 * 100 * 5  # the moving average, and the queue


def test_intermediate_tensors_of_a_step():
    plain = step_memory()["activations and gradients"]
    few = step_memory(batch=16)["activations and gradients"]  # whose similarities are few, too
    assert step_memory(batch=16, micro_batch=2)["activations and gradients"] < few / 2
    assert 2 * plain < step_memory(batch=128)["activations and gradients"] < 4 * plain  # similarities grow fourfold
    assert step_memory(jit_compile=True)["activations and gradients"] == pytest.approx(plain, rel=0.05)


def test_each_replica_holds_its_share(replicas):
    one, two = step_memory(), step_memory(replicas(2))
    assert two["weights"] == one["weights"]
    assert 0.3 < two["activations and gradients"] / one["activations and gradients"] < 0.7


MEMORY = {"weights": 1_000_000, "gradients": 2_000_000_000}


class TestEstimate:
    @pytest.fixture(autouse=True)
    def device(self, monkeypatch):
        monkeypatch.setattr(memory, "device_memory", lambda: 4_000_000_000)

    def test_names_the_uses(self):
        assert memory.format_memory_estimate(MEMORY) == (
            "about 2.00 GB of 4.00 GB: weights 1.00 MB, gradients 2.00 GB; library workspace comes on top"
        )

    def test_names_the_flags_that_help_if_it_exceeds_the_device(self):
        assert "EXCEEDS" not in memory.format_memory_estimate(MEMORY, 2)
        estimate = memory.format_memory_estimate(MEMORY, 2, replicas_per_device=2)
        assert " on each replica: " in estimate and "EXCEEDS AVAILABLE MEMORY; to use less memory: --remat" in estimate

    def test_of_an_unknown_device(self, monkeypatch):
        monkeypatch.setattr(memory, "device_memory", lambda: None)
        assert memory.format_memory_estimate(MEMORY).startswith("about 2.00 GB: weights")
