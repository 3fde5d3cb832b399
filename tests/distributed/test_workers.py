"""Several workers, each a process: one run, written by the chief alone; it outlives a signal and a worker's loss."""

import re
import signal

import children
import numpy as np
import pytest
from children import TOY

# Learning from labels is traced in half the time of pretraining (see test_device_layouts.py). In float64, for
# comparison with one device; the last batch of an evaluation is short.
SETTINGS = TOY | {
    "mode": "supervised",
    "memory_size": 0,
    "mixed_precision": "float64",
    "eval_batch_size": 180,
    "eval_steps": 0,
    "worker_timeout": 60,
}
COUNT = 2
CALLS = 700  # of the package's functions, from the first step on: some steps


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here runs in this process."""


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    place = tmp_path_factory.mktemp("one")
    assert children.run(SETTINGS | {"model_dir": place / "run"}, place / "log") == 0
    return children.records(place / "run")


def run(place, faults=(children.NO_FAULT,) * COUNT):
    """Exit status and output of each worker."""
    logs = [place / f"log{index}" for index in range(COUNT)]
    workers = [
        children.start(log, children.program, SETTINGS | {"model_dir": place / "run"}, fault, environment)
        for log, fault, environment in zip(logs, faults, children.workers(COUNT), strict=True)
    ]
    for worker in workers:
        worker.join()
    outputs = [log.read_text() for log in logs]
    for log in logs:
        log.unlink()
    return [worker.exitcode for worker in workers], outputs


def assert_equal(model_dir, one_device):
    found = children.records(model_dir)
    assert found["rows"][0] == one_device["rows"][0]
    rows, expected = (np.array(r["rows"][1:], float) for r in (found, one_device))
    np.testing.assert_allclose(rows, expected, rtol=2e-5)  # written with six digits
    assert found["variables"].keys() == one_device["variables"].keys()
    for name, value in one_device["variables"].items():
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            atol = 1e-8 * max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(found["variables"][name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
def test_a_run_of_workers_that_is_signalled_and_then_loses_one(one_device, tmp_path):
    """SIGTERM to one saves all; kill -9 of one stops the other; the third start runs to the end."""
    status, (chief, other) = run(tmp_path, [children.NO_FAULT, children.SignalAt(CALLS, signal.SIGTERM)])
    assert status == [128 + signal.SIGTERM] * 2, (chief, other)
    assert re.search(r"Stopped at step \d+ of 11", chief) and "SIGTERM: stopping after this step" in other

    status, (chief, other) = run(tmp_path, [children.NO_FAULT, children.SignalAt(CALLS // 2)])
    assert status == [3, -signal.SIGKILL], (chief, other)
    assert "Going on at step" in chief and "Traceback" not in chief
    assert re.fullmatch(r"error: another worker is gone \(.*\)\. Start the same command .*", chief.splitlines()[-1])

    status, (chief, other) = run(tmp_path)
    assert status == [0, 0], (chief, other)
    assert "MultiWorkerMirroredStrategy, 25 images per replica" in chief
    assert "supervised: done" in chief and not re.search("supervised|step", other)
    assert len(list((tmp_path / "run").rglob("result.json"))) == 1
    assert_equal(tmp_path / "run", one_device)


@pytest.mark.slow
def test_the_loss_of_the_chief(one_device, tmp_path):
    status, (chief, other) = run(tmp_path, [children.SignalAt(CALLS), children.NO_FAULT])
    assert status == [-signal.SIGKILL, 3], (chief, other)
    assert "error: another worker is gone" in other and "Traceback" not in other
    assert run(tmp_path)[0] == [0, 0]
    assert_equal(tmp_path / "run", one_device)
