"""Compiling the pretraining step for a TPU without one. What libtpu does is slow, and skipped where it is missing."""

import importlib.util
import resource

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import modes
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.modes.setup import build_input
from simclrv2_tf.settings.config import Config
from simclrv2_tf.tools.tpu_preflight import preflight

TOY = {
    "mode": "tpu_preflight", "recipe": "none", "resnet_depth": 18, "width_multiplier": 0.25, "image_size": 32,
    "train_batch_size": 32,
}  # fmt: skip
HAS_LIBTPU = all(importlib.util.find_spec(package) for package in ("jax", "libtpu"))


@pytest.mark.parametrize("topology", ["v9:2x2", "v4", "v4:", "v4:4", "v4-32", "v5e:2x2x"])
def test_what_is_no_topology_is_refused(topology):
    with pytest.raises(SettingError, match=rf"^--tpu_topology={topology}: must be one of v4, v5e, v5p, v6e"):
        modes.run(TOY | {"tpu_topology": topology})


def test_chips_are_replicas_that_share_the_batch():
    assert preflight.chips_of("v4:2x2x4") == ("v4", 16)
    with pytest.raises(SettingError, match="--train_batch_size=32: does not divide by the 12 replicas"):
        modes.run(TOY | {"tpu_topology": "v4:2x2x3"})


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_without_libtpu_one_line_says_what_to_install():
    with pytest.raises(SettingError, match=r"needs (jax|libtpu): pip install -r requirements-tpu-preflight.txt"):
        modes.run(TOY)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"augment_on": "host", "memory_size": 64, "grad_cache_micro_batch": 4}, marks=pytest.mark.slow),
    ],
)
def test_the_step_is_one_static_program_with_its_collectives_and_no_host(changes):
    config = Config(**TOY | {"mode": "pretrain", "use_tpu": True, "on_nan": "skip"} | changes)
    program = preflight.lower(config, replicas=4)
    assert program.count(b"all-reduce") > 40  # each batch norm forward and backward, gradients, views, metrics
    for refused in (b"custom-call", b"infeed", b"outfeed", b"set-dimension-size", b"rng"):
        assert refused not in program, refused


def test_variables_without_values_take_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tf.variable_creator_scope(preflight._without_value):
        variables = [tf.Variable(lambda: tf.zeros([2**28])) for _ in range(2)]  # 1 GB each
    assert variables[0].shape == [2**28]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e5  # KB


def test_a_step_that_does_not_fit_says_what_to_change():
    config = Config(**TOY | {"mode": "pretrain", "use_tpu": True})
    found = {"needed": 20e9, "limit": 15.75e9}
    told = preflight.told(found, preflight.CHIPS["v5e"], False, config, replicas=4)
    assert told["memory"] == "20.00 GB of 15.75 GB on each chip"
    assert told["fits"] == (
        "no; --remat or more chips in --tpu_topology or --grad_cache_micro_batch=4 or --train_batch_size=16"
    )
    assert preflight.remedies(config.replace(remat=True, train_batch_size=4), 4) == ["more chips in --tpu_topology"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs pip install -r requirements-tpu-preflight.txt")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2"])
def test_libtpu_compiles_the_step(topology, capsys):
    found = modes.run(TOY | {"tpu_topology": topology})
    assert found["fits"] and found["replicas"] == 4 and found["operations"] > 1e9 and found["all-reduces"] > 20
    assert "fits" in capsys.readouterr().out


@pytest.mark.parametrize("augment_on", ["device", "host"])
def test_the_batch_is_what_the_input_makes_and_static(augment_on):
    source = ArraySource("toy", np.zeros([40, 32, 32, 3], np.uint8), np.zeros([40], np.int32), ("one",))
    config = Config(**TOY | {"mode": "pretrain", "augment_on": augment_on})
    spec = build_input(config, source, SimCLR).batches(0, 1).element_spec
    assert spec == preflight.batch_spec(config, config.train_batch_size)
    assert all(tensor.shape.is_fully_defined() for tensor in spec.values())
