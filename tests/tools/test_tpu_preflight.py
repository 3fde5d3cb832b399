"""TPU preflight: the step is lowered here; compiling it with libtpu is slow, and skipped where libtpu is missing."""

import importlib.util
import resource

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.modes.setup import build_input
from simclrv2_tf.settings.config import Config
from tools.tpu_preflight import __main__, preflight

TOY = {"recipe": "none", "resnet_depth": 18, "width_multiplier": 0.25, "image_size": 32, "train_batch_size": 32}
CONFIG = Config(**TOY | {"mode": "pretrain", "use_tpu": True})
HAS_LIBTPU = all(importlib.util.find_spec(package) for package in ("jax", "libtpu"))


@pytest.mark.parametrize("topology", ["", "v9:2x2", "v4", "v4:", "v4:4", "v4-32", "v5e:2x2x"])
def test_invalid_topology_is_refused(topology):
    with pytest.raises(SettingError, match=rf"^--topology={topology}: must be one of v4, v5e, v5p, v6e"):
        preflight.tpu_preflight(topology, TOY)


def test_each_chip_is_a_replica_and_shares_the_batch():
    assert preflight.parse_topology("v4:2x2x4") == ("v4", 16)
    with pytest.raises(SettingError, match="--train_batch_size=32: is not divisible by the 12 replicas"):
        preflight.tpu_preflight("v4:2x2x3", TOY)


@pytest.mark.skipif(HAS_LIBTPU, reason="libtpu is installed")
def test_missing_libtpu_names_what_to_install():
    with pytest.raises(SettingError, match=r"needs (jax|libtpu): pip install -r tools/tpu_preflight/requirements.txt"):
        preflight.tpu_preflight("v4:2x2x1", TOY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v9:2x2"], "error: --topology=v9:2x2: must be one of v4"),
        ([], "error: --topology=: must be one of v4"),
        (["--topology=v4:2x2x1", "--train_batch_size=6"], "error: --train_batch_size=6: is not divisible by the 4"),
        (["--topology=v4:2x2x1", "--mode=finetune"], "error: --mode=finetune: only the pretraining step is compiled"),
        (["--topology=v4:2x2x1", "--nosuchflag=1"], "error: Unknown command line flag 'nosuchflag'"),
        (["--topology=v4:2x2x1", "--temperature=-1"], "error: --temperature=-1.0: must be above 0"),
    ],
)
def test_a_user_error_on_the_command_line_is_one_line(arguments, message, capsys):
    with pytest.raises(SystemExit) as exit:
        __main__.main(["tpu_preflight", *arguments])
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and len(error.splitlines()) == 1


def test_help_names_the_topology_flag(capsys):
    __main__.main(["tpu_preflight", "--help"])
    assert "--topology=v4:2x2x1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"memory_size": 64, "grad_cache_micro_batch": 4}, marks=pytest.mark.slow)]
)
def test_the_step_is_one_static_program_with_collectives_and_no_host_calls(changes):
    program = preflight.lower_step(CONFIG.replace(on_nan="skip", **changes), replicas=4)
    assert program.count(b"all-reduce") > 40  # each batch norm forward and backward, gradients, views, metrics
    for unsupported in (b"custom-call", b"infeed", b"outfeed", b"set-dimension-size", b"rng"):
        assert unsupported not in program, unsupported


def test_variables_without_values_take_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tf.variable_creator_scope(preflight._create_empty_variable):
        variables = [tf.Variable(lambda: tf.zeros([2**28])) for _ in range(2)]  # 1 GB each
    assert variables[0].shape == [2**28]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e5  # KB


def test_a_step_that_does_not_fit_suggests_what_to_change():
    costs = {"needed": 20e9, "limit": 15.75e9}
    lines = preflight.describe_costs(costs, preflight.CHIPS["v5e"], False, CONFIG, replicas=4)
    assert lines["memory"] == "20.00 GB of 15.75 GB per chip"
    assert lines["fits"] == (
        "no; --remat or more chips in --topology or --grad_cache_micro_batch=4 or --train_batch_size=16"
    )
    smallest = CONFIG.replace(remat=True, train_batch_size=4)
    assert preflight.list_remedies(smallest, 4) == ["more chips in --topology"]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs pip install -r tools/tpu_preflight/requirements.txt")
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5e:2x2"])
def test_libtpu_compiles_the_step(topology, capsys):
    result = preflight.tpu_preflight(topology, TOY)
    assert result["fits"] and result["replicas"] == 4 and result["operations"] > 1e9 and result["all-reduces"] > 20
    assert "fits" in capsys.readouterr().out


@pytest.mark.parametrize("image_size", [32, 40])
def test_the_batch_spec_is_that_of_the_input_and_static(image_size):
    source = ArraySource("toy", np.zeros([40, 32, 32, 3], np.uint8), np.zeros([40], np.int32), ("one",))
    if image_size > 32:
        source = FileSource("toy", tuple(map(str, range(40))), source.labels, ("one",))
    config = CONFIG.replace(image_size=image_size)
    spec = build_input(config, source, SimCLR).batches(0, 1).element_spec
    assert spec == preflight.batch_spec(config, config.train_batch_size)
    assert all(tensor.shape.is_fully_defined() for tensor in spec.values())
