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


def test_kills_at_random_moments_change_nothing(whole, tmp_path):
    model_dir, calls = whole
    kills = random.Random(0)
    settings = TOY | {"model_dir": tmp_path / "run"}
    for _ in range(4):
        fault = children.SignalAt(kills.randrange(1, calls // 2))
        assert children.run(settings, tmp_path / "log", fault) == -signal.SIGKILL
    assert children.run(settings, tmp_path / "log") == 0
    children.assert_same_records(tmp_path / "run", model_dir)
