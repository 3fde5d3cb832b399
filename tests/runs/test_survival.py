"""A run that is killed, interrupted or out of disk space resumes to the bits of an uninterrupted run."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import children
import numpy as np
import pytest
from children import TOY
from PIL import Image

from simclrv2_tf.interrupts import SIGNALS
from simclrv2_tf.runs.signals import StopRequest
from simclrv2_tf.schemas import read_record


@pytest.fixture(autouse=True)
def fresh_keras():
    """Everything runs in child processes."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the model directory of an uninterrupted run and the number of its calls."""
    folder = tmp_path_factory.mktemp("whole")
    counter = children.SignalAt(0, count_to=folder / "calls")
    assert children.run(TOY | {"model_dir": folder / "run"}, folder / "log", counter) == 0
    return folder / "run", int((folder / "calls").read_text())


def kill_and_compare(kills, whole, model_dir):
    """Runs a command with each fault in turn, then to its end, and compares the records with the whole run's."""
    settings = TOY | {"model_dir": model_dir}
    for kill in kills:
        status = children.run(settings, model_dir.with_suffix(".log"), kill)
        assert status in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert children.run(settings, model_dir.with_suffix(".log")) == 0
    children.assert_same_records(model_dir, whole)


def random_kills(seed, calls, count):
    """Returns kills that all come before the end of the run."""
    moments = random.Random(seed)
    return [children.SignalAt(moments.randrange(1, calls // (count + 1))) for _ in range(count)]


def test_kills_while_saving_evaluating_and_training_change_nothing(whole, tmp_path):
    model_dir, calls = whole
    saving, evaluating = children.FileSizeLimit(100_000, fatal=True), children.SignalAt(1, function="collect_batches")
    kill_and_compare([saving, evaluating, *random_kills(0, calls, 1)], model_dir, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_kills_at_random_moments_change_nothing(seed, whole, tmp_path):
    model_dir, calls = whole
    kill_and_compare(random_kills(seed, calls, 4), model_dir, tmp_path / "run")


@pytest.mark.slow
def test_kills_before_each_kind_of_file_change_nothing(whole, tmp_path):
    before = [("write_row", 1), ("_write_rows", 1), ("save", 1), ("_write", 1)]
    before += [("write_atomically", 1), ("write_atomically", 2), ("_remove", 1), ("write_result", 1)]
    kill_and_compare([children.SignalAt(call, function=name) for name, call in before], whole[0], tmp_path / "run")


@pytest.mark.slow
def test_kills_between_the_stages_change_nothing(tmp_path):
    more = {"mode": "semi_supervised", "labels_per_class": 2, "train_batch_size": 20, "memory_size": 0}
    whole, killed = (TOY | more | {"model_dir": tmp_path / name} for name in ("whole", "killed"))
    assert children.run(whole, tmp_path / "log") == 0
    between = children.SignalAt(1, function="finished_result")
    for _ in range(4):
        assert children.run(killed, tmp_path / "log", between) == -signal.SIGKILL
    assert children.run(killed, tmp_path / "log") == 0
    stages = sorted(path.parent.name for path in (tmp_path / "whole").glob("*/config.json"))
    assert len(stages) == 5
    for stage in stages:
        children.assert_same_records(tmp_path / "killed" / stage, tmp_path / "whole" / stage)
    results = [json.loads((settings["model_dir"] / "result.json").read_text()) for settings in (whole, killed)]
    assert results[0] | {"seconds": 0} == results[1] | {"seconds": 0}


@pytest.mark.parametrize(
    ("number", "status"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_signal_saves_the_step_and_the_run_resumes_from_it(number, status, whole, tmp_path):
    model_dir, calls = whole
    settings = TOY | {"model_dir": tmp_path / "run"}
    assert children.run(settings, tmp_path / "log", children.SignalAt(calls // 3, number)) == status
    log = (tmp_path / "log").read_text()
    assert f"{number.name}: stopping after this step" in log and "Traceback" not in log
    assert ("To resume: python run.py --mode=pretrain" in log) == (number is signal.SIGINT)
    before = read_record(tmp_path / "run", "training_time.json")["seconds"]
    assert children.run(settings, tmp_path / "log") == 0
    assert read_record(tmp_path / "run", "result.json")["seconds"] > before > 0
    children.assert_same_records(tmp_path / "run", model_dir)


@pytest.mark.parametrize(
    ("stride", "more"),
    [
        (9, {}),
        pytest.param(1, {"report": "true", "keep_best": "loss"}, marks=pytest.mark.slow),
    ],
    ids=["some changes", "all changes"],
)
def test_a_full_disk_stops_the_run_and_it_resumes_when_there_is_space(stride, more, whole, tmp_path):
    """The disk fills up at each change of a file in turn; the run resumes from its last checkpoint."""
    settings = TOY | {"model_dir": tmp_path / "run"} | more
    child = children.start(tmp_path / "log", children.run_on_full_disks, settings, stride, tmp_path / "runs")
    child.join()
    *stopped, last = json.loads((tmp_path / "runs").read_text())
    assert last["status"] == 0 and not last["left"] and len(stopped) > 1
    for run in stopped:
        message = run["output"].splitlines()[-1]
        assert run["status"] == 2 and message.startswith(f"error: --model_dir={tmp_path}/run: "), run
        assert "(File too large" in message or "; File too large" in message, message
        assert "Traceback" not in run["output"], run
    newest = [max(run["steps"], default=0) for run in (*stopped, last)]
    assert newest == sorted(newest) and newest[-1] == 11
    children.assert_same_records(tmp_path / "run", whole[0], pictures="report" not in more)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_run_whose_data_service_has_died_obeys_a_signal(number, tmp_path):
    """It is killed during a step, which then never ends."""
    for i in range(20):
        path = tmp_path / "images" / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)).save(path)
    (address,) = json.loads(children.workers(1)[0]["TF_CONFIG"])["cluster"]["worker"]
    command = [sys.executable, "-m", "simclrv2_tf.data.service", f"--address={address}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout.readline() == f"--data_service=grpc://{address}\n"
        settings = TOY | {"dataset": f"folder:{tmp_path}/images", "mode": "supervised", "memory_size": 0}
        settings |= {"train_batch_size": 8, "train_steps": 10**6, "data_service": f"grpc://{address}"}
        log, model_dir = tmp_path / "log", tmp_path / "run"
        run = children.start(log, children.program, settings | {"model_dir": model_dir})
        while run.is_alive() and not list(model_dir.glob("checkpoints/*.index")):
            run.join(0.2)
        service.kill()
    seconds = 0.0
    while (used := cpu_seconds(run.pid)) > seconds + 0.05:  # until it waits for the first batch that is not there
        seconds = used
        run.join(5)
    os.kill(run.pid, number)
    run.join(60)
    message = f"{number.name}: stopped while waiting for the data service grpc://{address}, which does not answer"
    assert run.exitcode == 128 + number and log.read_text().splitlines()[-1] == message, log.read_text()


def cpu_seconds(process_id):
    fields = pathlib.Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def stop_twice():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


def test_a_second_signal_stops_immediately(tmp_path):
    child = children.start(tmp_path / "log", stop_twice)
    child.join()
    assert child.exitcode == -signal.SIGINT and "repeat to stop now" in (tmp_path / "log").read_text()


def test_a_run_can_continue_on_a_full_disk(tmp_path):
    settings = TOY | {"model_dir": tmp_path / "run", "on_checkpoint_error": "continue"}
    assert children.run(settings, tmp_path / "log", children.FileSizeLimit(100_000)) == 0
    assert (tmp_path / "log").read_text().count("could not be saved") == 4
    assert not list(tmp_path.rglob("step-*"))
    assert (tmp_path / "run/result.json").is_file()
