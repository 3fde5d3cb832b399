"""A long run needs no more memory, files or threads than a short one."""

import json

import children
import pytest
from children import TOY

# Evaluated, logged and saved again and again: what an interval might leave behind counts more than what a step might.
LONG = {"train_batch_size": 8, "eval_batch_size": 50, "keep_checkpoint_max": 2, "deterministic": "false"}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here runs in this process."""


@pytest.mark.parametrize(
    ("first", "last", "more"),
    [
        (500, 2000, {"checkpoint_steps": 50, "memory_size": 0}),
        pytest.param(2000, 20000, {"checkpoint_steps": 100, "report": "true"}, marks=pytest.mark.soak),
    ],
    ids=["short", "long"],
)
def test_memory_files_and_threads_stay_flat(first, last, more, tmp_path):
    settings = TOY | LONG | more | {"train_steps": last, "model_dir": tmp_path / "run"}
    meter = children.Meter({first, last - 1}, tmp_path / "found")
    assert children.run(settings, tmp_path / "log", meter) == 0, (tmp_path / "log").read_text()[-2000:]
    early, late = json.loads((tmp_path / "found").read_text())
    print(f"{early} -> {late}")
    assert late["megabytes"] < early["megabytes"] + 15
    assert late["files"] <= early["files"] + 1 and late["threads"] <= early["threads"] + 1
