"""Flags and environment determine the devices of a run; what is not available is refused in one line."""

import json
import socket

import pytest
import tensorflow as tf

from simclrv2_tf.distributed.devices import (
    _build_local_strategy,
    choose_strategy,
    cpu_replicas,
    default_steps_per_execution,
    gather_from_workers,
    is_chief,
    split_tpu_name,
    use_xla,
)
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

IMPATIENT = Config(worker_timeout=1)
build_uncached = _build_local_strategy  # of another environment in each test


@pytest.fixture
def port():
    """A free port."""
    with socket.create_server(("", 0)) as free:
        return free.getsockname()[1]


def tf_config(workers, kind="worker", index=0, **jobs):
    return json.dumps({"cluster": {"worker": workers} | jobs, "task": {"type": kind, "index": index}})


def test_default_is_the_single_device():
    strategy = choose_strategy(Config())
    assert strategy is tf.distribute.get_strategy()
    assert is_chief(strategy) and gather_from_workers(strategy, 7) == [7]


def test_logical_cpu_devices(replicas):
    replicas(4)  # moves the keys of the collectives on
    strategy = choose_strategy(Config(cpu_replicas=4))
    assert strategy.num_replicas_in_sync == 4 and is_chief(strategy)
    with pytest.raises(SettingError, match="--train_batch_size=510: is not divisible by the 4 replicas"):
        choose_strategy(Config(cpu_replicas=4, train_batch_size=510))
    for mode in ("evaluate", "export"):  # of a run on other devices
        config = Config(mode=mode, checkpoint="run", cpu_replicas=4, train_batch_size=510)
        assert choose_strategy(config) is strategy
    with pytest.raises(SettingError, match="--eval_batch_size=6: is not divisible by the 4 replicas"):
        choose_strategy(Config(mode="evaluate", checkpoint="run", cpu_replicas=4, eval_batch_size=6))


def test_cpu_replicas_as_a_function(replicas):
    replicas(4)
    assert cpu_replicas(4).num_replicas_in_sync == 4
    with pytest.raises(ValueError, match="must be at least 1"):
        cpu_replicas(0)
    with pytest.raises(ValueError, match="cpu_replicas=9: TensorFlow has already started"):
        cpu_replicas(9)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"TF_CONFIG": "{"}, "TF_CONFIG={: names no workers"),
        ({"TF_CONFIG": '{"cluster": []}'}, "TF_CONFIG=.*names no workers"),
        ({"TF_CONFIG": tf_config(["a:1", "b:1"], index=2)}, "TF_CONFIG=.*names no workers"),
        ({"TF_CONFIG": tf_config(["a:1", "b:1"], ps=["c:1"])}, "TF_CONFIG: a task must be worker or chief, not ps"),
        ({"TF_CONFIG": tf_config(["a:none", "b:1"])}, "a:none: this worker cannot listen there"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NODELIST=: names no workers .*PROCID"),
    ],
)
def test_invalid_environment_is_refused(environment, message, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match=message) as error:
        choose_strategy(IMPATIENT)
    assert len(str(error.value).splitlines()) == 1


def test_missing_worker_is_named(port, monkeypatch):
    with socket.create_server(("", 0)) as other:  # its port is free again afterwards
        missing = other.getsockname()[1]
    monkeypatch.setenv("TF_CONFIG", tf_config([f"localhost:{port}", f"localhost:{missing}"]))
    with pytest.raises(
        SettingError, match=rf"--worker_timeout=1: worker 1 \(localhost:{missing}\) did not come up within 1 s"
    ):
        choose_strategy(IMPATIENT)


def test_unresolvable_worker_name_is_refused(port, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config([f"localhost:{port}", "no-such-host.invalid:1"]))
    with pytest.raises(SettingError, match=r"no-such-host.invalid:1: a worker's name does not resolve"):
        choose_strategy(IMPATIENT)


def test_port_in_use_is_refused(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("TF_CONFIG", tf_config([f"localhost:{taken.getsockname()[1]}", "localhost:1"]))
        with pytest.raises(SettingError, match=r"this worker cannot listen there.*in use"):
            choose_strategy(IMPATIENT)


@pytest.mark.parametrize("task", [0, 1])
def test_tasks_of_a_slurm_step_are_workers(task, monkeypatch):
    """Also without GPUs; TensorFlow assigns ports from 8888 on."""
    environment = {"NUM_TASKS": "2", "NODELIST": "localhost", "TASKS_PER_NODE": "2"}
    for name, value in environment.items():
        monkeypatch.setenv(f"SLURM_STEP_{name}", value)
    monkeypatch.setenv("SLURM_PROCID", str(task))
    with pytest.raises(
        SettingError, match=rf"worker {1 - task} \(localhost:{8889 - task}\) did not come up within 1 s"
    ):
        choose_strategy(IMPATIENT)


@pytest.mark.parametrize("value", ["", "x", "2x", "-3", "1.5", "0", "9" * 30, "٢", "1\n2"])
def test_a_nonsensical_number_of_slurm_tasks_is_ignored(value, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", value)
    assert build_uncached(IMPATIENT) is tf.distribute.get_strategy()
    assert ("SLURM_STEP_NUM_TASKS" in caplog.text) == (value not in ("", "0"))


@pytest.mark.parametrize("name", ["SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_PROCID"])
@pytest.mark.parametrize("value", ["", "x", "[", "n[3-1]", "n[1-", "-1", "2(x", "2(x9)", "9" * 30, "n[a-b]", ",", "é"])
def test_nonsensical_variables_of_a_slurm_step_are_refused(name, value, monkeypatch):
    settings = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_STEP_TASKS_PER_NODE": "2"}
    for other, text in (settings | {"SLURM_PROCID": "0", name: value}).items():
        monkeypatch.setenv(other, text)
    with pytest.raises(SettingError) as error:
        build_uncached(IMPATIENT)
    assert len(str(error.value).splitlines()) == 1


def test_single_task_is_not_distributed(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config(["localhost:1"]))
    assert choose_strategy(Config(worker_timeout=2)) is tf.distribute.get_strategy()


def test_cpu_replicas_with_workers_are_refused(port, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", tf_config([f"localhost:{port}", "localhost:1"]))
    with pytest.raises(SettingError, match="--cpu_replicas=2: a worker on a CPU is one replica"):
        choose_strategy(Config(cpu_replicas=2, worker_timeout=1))


def test_xla_on_cpu_replicas_is_refused(replicas):
    with pytest.raises(SettingError, match="--jit_compile=true: XLA has no collectives on CPUs"):
        use_xla(Config(jit_compile="true"), replicas(2))


def test_unreachable_tpu_is_refused():
    with pytest.raises(SettingError, match="--tpu_name=local: this TPU cannot be reached"):
        choose_strategy(Config(use_tpu=True, tpu_name="local"))


@pytest.mark.parametrize(
    ("tpu_name", "parts"),
    [
        ("local", (None, None, "local")),
        ("birds/us-central2-b/v4-32", ("birds", "us-central2-b", "v4-32")),
        ("grpc://10.0.0.1:8470", (None, None, "grpc://10.0.0.1:8470")),
    ],
)
def test_a_tpu_is_named_alone_with_its_project_and_zone_or_by_its_address(tpu_name, parts):
    assert split_tpu_name(tpu_name) == parts


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 1), ({"use_tpu": True}, 10), ({"use_tpu": True, "image_size": 32}, 100), ({"steps_per_execution": 7}, 7)],
    ids=str,
)
def test_accelerators_run_several_steps_per_call(settings, steps):
    assert default_steps_per_execution(Config(**settings)) == steps
