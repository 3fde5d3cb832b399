"""Several workers, each a process: one run, written by the chief alone; it survives a worker, and a signal to one."""

import re
import signal

import children
import numpy as np
import pytest
from test_survival import TOY

COUNT = 2


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here runs in this process."""


def run(settings, place, faults=(children.NO_FAULT,) * COUNT):
    """Exit status and output of each worker."""
    logs = [place / f"log{index}" for index in range(COUNT)]
    workers = [
        children.start(log, children.program, settings, fault, environment)
        for log, fault, environment in zip(logs, faults, children.workers(COUNT), strict=True)
    ]
    for worker in workers:
        worker.join()
    return [worker.exitcode for worker in workers], [log.read_text() for log in logs]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two workers that nothing has stopped; its outputs, and the number of calls in it."""
    place = tmp_path_factory.mktemp("whole")
    faults = [children.SignalAt(0, count_to=place / "calls"), children.NO_FAULT]
    status, logs = run(TOY | {"model_dir": place / "run"}, place, faults)
    assert status == [0, 0], logs
    return place / "run", logs, int((place / "calls").read_text())


def test_the_run_is_that_of_one_device(whole, tmp_path):
    """In float32: rows of the metrics, accuracies of short last batches among them, and the weights."""
    settings = TOY | {"model_dir": tmp_path / "run"}
    assert children.run(settings, tmp_path / "log") == 0
    one, two = children.records(tmp_path / "run"), children.records(whole[0])
    assert one["rows"][0] == two["rows"][0]
    np.testing.assert_allclose(np.array(two["rows"][1:], float), np.array(one["rows"][1:], float), rtol=2e-3)
    assert one["variables"].keys() == two["variables"].keys()


def test_only_the_chief_writes(whole):
    model_dir, (chief, other), _ = whole
    assert "pretrain: done" in chief and "Traceback" not in chief
    assert other.strip() == ""
    assert len(list((model_dir / "tensorboard").glob("events.*"))) == 1


@pytest.mark.parametrize("victim", range(COUNT))
def test_a_dead_worker_stops_the_others_and_the_run_goes_on(victim, whole, tmp_path):
    model_dir, _, calls = whole
    settings = TOY | {"model_dir": tmp_path / "run"}
    faults = [children.NO_FAULT] * COUNT
    faults[victim] = children.SignalAt(calls // 3)
    status, logs = run(settings, tmp_path, faults)
    assert status[victim] == -signal.SIGKILL and status[1 - victim] == 3
    assert re.fullmatch(r"error: another worker is gone \(.*\)\. Start the same .*", logs[1 - victim].splitlines()[-1])
    assert "Traceback" not in logs[1 - victim]
    assert run(settings, tmp_path)[0] == [0, 0]
    children.assert_same_records(tmp_path / "run", model_dir)


def test_a_signal_to_one_worker_stops_and_saves_all(whole, tmp_path):
    model_dir, _, calls = whole
    settings = TOY | {"model_dir": tmp_path / "run"}
    status, logs = run(settings, tmp_path, [children.NO_FAULT, children.SignalAt(calls // 3, signal.SIGTERM)])
    assert status == [128 + signal.SIGTERM] * 2, logs
    assert re.search(r"Stopped at step \d+ of 11", logs[0])
    assert run(settings, tmp_path)[0] == [0, 0]
    children.assert_same_records(tmp_path / "run", model_dir)
