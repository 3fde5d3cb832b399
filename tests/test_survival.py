"""A run that is killed, interrupted or denied the disk goes on to the bits of a run that was never stopped."""

import random
import signal

import children
import pytest

TOY = {
    "mode": "pretrain",
    "dataset": "digits",
    "recipe": "none",
    "resnet_depth": 18,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 50,
    "train_steps": 11,
    "checkpoint_steps": 3,
    "eval_batch_size": 100,
    "eval_steps": 1,
    "memory_size": 100,
    "report": "false",
    "deterministic": "true",
}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here runs in this process."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped, and the number of calls in it."""
    place = tmp_path_factory.mktemp("whole")
    counting = children.SignalAt(0, count_to=place / "calls")
    assert children.run(TOY | {"model_dir": place / "run"}, place / "log", counting) == 0
    return place / "run", int((place / "calls").read_text())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_kills_at_random_moments_change_nothing(seed, whole, tmp_path):
    """Four kills a run, none so late that the run could end before the last one."""
    model_dir, calls = whole
    moments = random.Random(seed)
    settings = TOY | {"model_dir": tmp_path / "run"}
    for _ in range(4):
        kill = children.SignalAt(moments.randrange(1, calls // 5))
        assert children.run(settings, tmp_path / "log", kill) == -signal.SIGKILL
    assert children.run(settings, tmp_path / "log") == 0
    children.assert_same_records(tmp_path / "run", model_dir)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_step_and_the_run_goes_on_from_there(number, status, whole, tmp_path):
    model_dir, calls = whole
    settings = TOY | {"model_dir": tmp_path / "run"}
    assert children.run(settings, tmp_path / "log", children.SignalAt(calls // 3, number)) == status
    log = (tmp_path / "log").read_text()
    assert f"{number.name}: stopping after this step" in log and "Traceback" not in log
    assert ("To go on: python run.py --mode=pretrain" in log) == (number is signal.SIGINT)
    assert children.run(settings, tmp_path / "log") == 0
    children.assert_same_records(tmp_path / "run", model_dir)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(whole, tmp_path):
    settings = TOY | {"model_dir": tmp_path / "run"}
    assert children.run(settings, tmp_path / "log", children.FileSizeLimit(100_000)) == 2
    log = (tmp_path / "log").read_text()
    assert "step 3 could not be saved" in log and "make room" in log and "Traceback" not in log
    assert children.run(settings, tmp_path / "log") == 0
    children.assert_same_records(tmp_path / "run", whole[0])


def test_a_full_disk_can_be_outlived(tmp_path):
    settings = TOY | {"model_dir": tmp_path / "run", "on_checkpoint_error": "continue"}
    assert children.run(settings, tmp_path / "log", children.FileSizeLimit(100_000)) == 0
    assert (tmp_path / "log").read_text().count("could not be saved") == 4
    assert not list(tmp_path.rglob("step-*"))
    assert (tmp_path / "run/result.json").is_file()
