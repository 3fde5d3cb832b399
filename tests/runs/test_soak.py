"""Memory, open files, threads and disk do not grow during a long run, apart from its logs."""

import json

import children
import pytest

# Short intervals: evaluations, logs and checkpoints leak more easily than steps.
LONG = {"train_batch_size": 8, "eval_batch_size": 50, "keep_checkpoint_max": 2, "deterministic": "false"}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Everything runs in child processes."""


@pytest.mark.parametrize(
    ("first", "last", "more"),
    [
        pytest.param(200, 600, {"checkpoint_steps": 20, "memory_size": 0}, marks=pytest.mark.slow),
        pytest.param(
            2000, 20000, {"mode": "supervised", "checkpoint_steps": 100, "report": "true"}, marks=pytest.mark.soak
        ),
    ],
    ids=["short", "long"],
)
def test_memory_files_threads_and_disk_stay_flat(first, last, more, tmp_path):
    settings = children.TOY | LONG | more | {"train_steps": last, "model_dir": tmp_path / "run"}
    meter = children.Meter({first, last - 1}, tmp_path / "usage", tmp_path / "run")
    assert children.run(settings, tmp_path / "log", meter) == 0, (tmp_path / "log").read_text()[-2000:]
    early, late = json.loads((tmp_path / "usage").read_text())
    print(f"{early} -> {late}")
    assert late["megabytes"] < early["megabytes"] + 15
    assert late["files"] <= early["files"] + 1 and late["threads"] <= early["threads"] + 1
    assert late["names_on_disk"] == early["names_on_disk"]
    assert late["kilobytes_on_disk"] <= early["kilobytes_on_disk"] + 1
    rows = (last - first) / settings["checkpoint_steps"]
    assert late["kilobytes_of_logs"] <= early["kilobytes_of_logs"] + 3 * rows
