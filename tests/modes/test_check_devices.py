"""``check_devices`` accepts a correct step on several devices, and detects wrong communication between them."""

import children
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather, replica_count
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods import losses
from simclrv2_tf.models import batch_norm
from simclrv2_tf.modes.check_devices import check_devices, compare
from simclrv2_tf.modes.resolve import resolve_config

TOY = {
    "mode": "check_devices",
    "dataset": "digits",
    "recipe": "official",
    "encoder": "plugins:synchronized_encoder",
    "image_size": 8,
    "train_batch_size": 16,
    "eval_batch_size": 100,
    "mixed_precision": "float64",
    "cpu_replicas": 2,
}


def test_a_correct_step_matches_one_device(replicas, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    result = check_devices(resolve_config(TOY | {"memory_size": 64, "mixed_precision": "float32"}), replicas(2))
    assert result["is_equal"] and result["replicas"] == 2
    kinds = ["loss", "gradients", "batch-norm statistics", "weights"]
    assert [list(values) for values in result["differences"].values()] == [kinds, kinds]
    assert max(result["differences"]["float64"].values()) < 1e-6
    assert 0 < max(result["differences"]["float32"].values()) < 1e-2
    out = capsys.readouterr().out
    assert "2 replicas match one device" in out and "s on one device, " in out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_workers_match_one_device(tmp_path):
    settings = TOY | {"cpu_replicas": 0, "worker_timeout": 60}
    logs = [tmp_path / f"log{index}" for index in range(2)]
    workers = [
        children.start(log, children.program, settings, children.NO_FAULT, environment)
        for log, environment in zip(logs, children.workers(2), strict=True)
    ]
    for worker in workers:
        worker.join()
    chief, other = (log.read_text() for log in logs)
    assert [worker.exitcode for worker in workers] == [0, 0], (chief, other)
    assert "2 replicas match one device" in chief and "verdict" not in other


def without_gradient(tensor):
    return tensor if replica_count() == 1 else tf.stop_gradient(all_gather(tensor))


@pytest.mark.parametrize(
    ("module", "name", "broken", "wrong", "right"),
    [
        (losses, "all_gather", without_gradient, "gradients", "loss"),
        (batch_norm, "all_sum", tf.identity, "batch-norm statistics", None),
    ],
    ids=["gather without gradient", "local statistics"],
)
def test_wrong_communication_is_detected(module, name, broken, wrong, right, replicas, monkeypatch, capsys):
    monkeypatch.setattr(module, name, broken)
    with pytest.raises(SettingError, match=r"^--mode=check_devices: 2 replicas do NOT match one device"):
        check_devices(resolve_config(TOY), replicas(2))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("float64")]
    values = {kind: float(value) for kind, value in (part.rsplit(" ", 1) for part in line.split(";")[0].split(", "))}
    values = {kind.replace("float64", "").strip(): value for kind, value in values.items()}
    assert values[wrong] > 1e-3 and (right is None or values[right] < 1e-6)


def test_the_local_batch_norm_of_an_encoder_is_detected(replicas):
    with pytest.raises(SettingError, match="do NOT match one device"):
        check_devices(resolve_config(TOY | {"encoder": "plugins:small_encoder"}), replicas(2))


def test_what_cannot_be_compared_is_refused(replicas):
    with pytest.raises(SettingError, match=r"^--mode=check_devices: there is a single device; --cpu_replicas=2"):
        check_devices(resolve_config(TOY), tf.distribute.get_strategy())
    with pytest.raises(SettingError, match=r"^--global_bn=false: .* differ by design"):
        check_devices(resolve_config(TOY | {"global_bn": False}), replicas(2))


def test_differences_are_relative_to_the_largest_value_of_a_variable():
    one = {"gradients": [("kernel", np.array([1.0, -2.0])), ("unused", np.array([1e-12]))]}
    other = {"gradients": [("kernel_1", np.array([1.0, -2.2])), ("unused_1", np.array([2e-12]))]}
    (difference,) = compare(one, other)
    assert (difference.kind, difference.name) == ("gradients", "kernel") and difference.value == pytest.approx(0.1)
    (difference,) = compare(one, {"gradients": [("kernel", np.array([np.nan, 0.0])), ("unused", np.array([1e-12]))]})
    assert difference.name == "kernel" and np.isnan(difference.value)
