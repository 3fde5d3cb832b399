"""Several programs use one model directory at once without interference."""

import json
import signal
from multiprocessing.synchronize import Barrier

import children
import pytest
import tensorflow as tf

SETTINGS = children.TOY | {
    "mode": "supervised",
    "train_steps": 15,
    "checkpoint_steps": 1,  # each removes the previous checkpoint
    "keep_checkpoint_max": 1,
    "report": "true",
}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Everything runs in child processes."""


def start_together(barrier: Barrier, settings: dict) -> None:
    barrier.wait()
    children.program(settings)


@pytest.mark.slow
def test_two_exports_two_reports_an_evaluation_and_a_training(tmp_path):
    """The training resumes when the others start, and its results are bit-equal to an undisturbed one."""
    whole, model_dir = tmp_path / "whole", tmp_path / "run"
    assert children.run(SETTINGS | {"model_dir": whole}, tmp_path / "log") == 0
    training = SETTINGS | {"model_dir": model_dir}
    stop = children.SignalAt(1, signal.SIGTERM, function="write_row")
    assert children.run(training, tmp_path / "log", stop) == 128 + signal.SIGTERM
    export, report = {"mode": "export", "checkpoint": model_dir}, {"mode": "report", "model_dir": model_dir}
    programs = [training, export, export, report, report, {"mode": "evaluate", "checkpoint": model_dir}]
    barrier = children.context.Barrier(len(programs))
    logs = [tmp_path / f"log{number}" for number in range(len(programs))]
    started = [
        children.start(log, start_together, barrier, settings) for log, settings in zip(logs, programs, strict=True)
    ]
    for child in started:
        child.join()
    assert [child.exitcode for child in started] == [0] * len(programs), [log.read_text()[-500:] for log in logs]
    assert "Resuming from step 1 of 15" in logs[0].read_text()
    children.assert_same_records(model_dir, whole)
    assert not list(model_dir.rglob(".simclrv2-*"))
    assert 0 <= json.loads((model_dir / "evaluation.json").read_text())["top1"] <= 1
    assert (model_dir / "report.html").read_text().rstrip().endswith("</html>")
    assert "serving_default" in tf.saved_model.load(str(model_dir / "saved_model")).signatures
