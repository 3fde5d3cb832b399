"""A run of several worker processes: only the chief writes; the run survives a signal and the loss of a worker."""

import contextlib
import json
import os
import re
import signal
import socket

import children
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.modes.setup import build_run
from simclrv2_tf.runs.checkpoints import Checkpoints
from simclrv2_tf.runs.progress import IntervalMeans

# Training with labels is traced in half the time of pretraining (which test_device_layouts.py covers). In float64, to
# compare with one device; the last batch of an evaluation is short.
SETTINGS = children.TOY | {
    "mode": "supervised",
    "memory_size": 0,
    "mixed_precision": "float64",
    "eval_batch_size": 180,
    "eval_steps": 0,
    "worker_timeout": 60,
}
COUNT = 2
CALLS = 700  # of functions of the package since the first step: a few steps


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    assert children.run(SETTINGS | {"model_dir": folder / "run"}, folder / "log") == 0
    return children.records(folder / "run")


def run(folder, faults=(children.NO_FAULT,) * COUNT, model_dirs=("run",) * COUNT, settings=SETTINGS):
    """Returns exit status and output of each worker."""
    logs = [folder / f"log{index}" for index in range(COUNT)]
    workers = [
        children.start(log, children.program, settings | {"model_dir": folder / model_dir}, fault, environment)
        for log, fault, environment, model_dir in zip(logs, faults, children.workers(COUNT), model_dirs, strict=True)
    ]
    for worker in workers:
        worker.join()
    outputs = [log.read_text() for log in logs]
    for log in logs:
        log.unlink()
    return [worker.exitcode for worker in workers], outputs


def assert_equal(model_dir, one_device):
    records = children.records(model_dir)
    assert records["rows"][0] == one_device["rows"][0]
    rows, expected = (np.array(r["rows"][1:], float) for r in (records, one_device))
    np.testing.assert_allclose(rows, expected, rtol=2e-5)  # written with six digits
    assert records["variables"].keys() == one_device["variables"].keys()
    for name, value in one_device["variables"].items():
        if isinstance(value, np.ndarray) and value.dtype == np.float64:
            atol = 1e-8 * max(np.abs(value).max(), 1e-3)
            np.testing.assert_allclose(records["variables"][name], value, rtol=0, atol=atol, err_msg=name)


def test_workers_with_different_checkpoints_are_refused(tmp_path):
    run_of_one = build_run(
        resolve_config(SETTINGS | {"report": False, "deterministic": True}), tf.distribute.get_strategy()
    )
    means = IntervalMeans(run_of_one.method.train_metrics)
    Checkpoints(tmp_path / "other", run_of_one.method, extra_parts={"interval": means.variables}).save(3)
    status, outputs = run(tmp_path, model_dirs=("run", "other"))
    assert status == [2, 2], outputs
    progress = "progress in --model_dir is no checkpoint, no result on worker 0 but step-3, no result on worker 1"
    for output in outputs:
        assert output.splitlines()[-1].startswith(f"error: the workers disagree: {progress}; start all of them ")


@pytest.mark.parametrize("kind", ["other image", "no file"])
def test_workers_with_different_data_are_refused(kind, tmp_path):
    """Also if one of them cannot open the data at all. Each runs in a folder of its own."""
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3), np.uint8)
    folders = [tmp_path / f"machine{index}" for index in range(COUNT)]
    for index, folder in enumerate(folders):
        folder.mkdir()
        images[3, 4, 5, 0] ^= index
        arrays = {f"x_{split}": images for split in ("train", "test")}
        arrays |= {f"y_{split}": np.arange(100) % 10 for split in ("train", "test")}
        if kind == "other image" or index == 0:
            np.savez(folder / "data.npz", **arrays)
    settings = SETTINGS | {"dataset": "npz:data.npz"}
    status, outputs = run(tmp_path, [contextlib.chdir(folder) for folder in folders], settings=settings)
    assert status == [2, 2], outputs
    if kind == "no file":
        refusal = "--dataset=npz:data.npz: there is no file data.npz"
        expected = [f"error: worker 1 has stopped: {refusal}", f"error: {refusal}"]
        assert [output.splitlines()[-1] for output in outputs] == expected
    else:
        value = r"100 \(\w{16}\)"
        message = (
            rf"error: the workers disagree: images is {value} on worker 0 but {value} on worker 1; eval_images is .*"
        )
        assert all(re.fullmatch(message, output.splitlines()[-1]) for output in outputs), outputs
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_worker_that_waits_for_others_obeys_a_signal(number, tmp_path):
    environment = children.workers(COUNT)[0]
    log, settings = tmp_path / "log", SETTINGS | {"model_dir": tmp_path / "run"}
    worker = children.start(log, children.program, settings, children.NO_FAULT, environment)
    host, _, port = json.loads(environment["TF_CONFIG"])["cluster"]["worker"][0].rpartition(":")
    while worker.is_alive():  # until it listens, from which on it waits
        with contextlib.suppress(ConnectionError):
            socket.create_connection((host, int(port))).close()
            break
    os.kill(worker.pid, number)
    worker.join(60)
    assert worker.exitcode == 128 + number and f"{number.name}: stopping; repeat to stop now." in log.read_text()


@pytest.mark.slow
def test_workers_survive_a_signal_and_the_loss_of_one(one_device, tmp_path):
    """SIGTERM to one worker stops both after a checkpoint; SIGKILL of one stops the other; the third start finishes."""
    status, (chief, other) = run(tmp_path, [children.NO_FAULT, children.SignalAt(CALLS, signal.SIGTERM)])
    assert status == [128 + signal.SIGTERM] * 2, (chief, other)
    assert re.search(r"Stopped at step \d+ of 11", chief) and "SIGTERM: stopping after this step" in other

    status, (chief, other) = run(tmp_path, [children.NO_FAULT, children.SignalAt(CALLS // 2)])
    assert status == [3, -signal.SIGKILL], (chief, other)
    assert "Resuming from step" in chief and "Traceback" not in chief
    message = r"error: lost connection to another worker \(.*\); restart to resume from the latest checkpoint .*"
    assert re.fullmatch(message, chief.splitlines()[-1])

    status, (chief, other) = run(tmp_path)
    assert status == [0, 0], (chief, other)
    assert "MultiWorkerMirroredStrategy, 25 images per replica" in chief
    assert "supervised: done" in chief and not re.search(r"supervised: |step \d", other)  # nothing is printed twice
    assert len(list((tmp_path / "run").rglob("result.json"))) == 1
    assert_equal(tmp_path / "run", one_device)


@pytest.mark.slow
def test_workers_survive_the_loss_of_the_chief(one_device, tmp_path):
    status, (chief, other) = run(tmp_path, [children.SignalAt(CALLS), children.NO_FAULT])
    assert status == [-signal.SIGKILL, 3], (chief, other)
    assert "error: lost connection to another worker" in other and "Traceback" not in other
    assert run(tmp_path)[0] == [0, 0]
    assert_equal(tmp_path / "run", one_device)
