"""``run.log`` has what a run prints and logs, also when it is resumed, fails or fills its disk."""

import io
import logging
import re
import sys

import pytest

from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.runs import run_log as module
from simclrv2_tf.runs.progress import Progress
from simclrv2_tf.runs.run_log import run_log

PLAN = Plan(total_steps=4, epoch_steps=2, interval_steps=2, warmup_steps=0, peak_learning_rate=0.1)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras's state."""


def lines(model_dir):
    """Returns the lines without their times."""
    written = (model_dir / "run.log").read_text().splitlines()
    return [re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (.*)", line)[1] for line in written]


def test_printed_and_logged_lines_are_appended_in_order(tmp_path, capsys):
    for _ in range(2):
        with run_log(tmp_path):
            print("one\n\ntwo", end="")
            print(" halves")
            logging.getLogger("simclrv2_tf.test").warning("three %d", 3)
        print("after")
    first, *rest = lines(tmp_path)
    assert re.fullmatch(r"process \d+: .+", first)
    assert [line for line in rest if line != first] == ["one", "two halves", "three 3"] * 2 and rest.count(first) == 1
    assert capsys.readouterr().out == "one\n\ntwo halves\nafter\n" * 2


def test_a_line_is_on_disk_as_soon_as_it_is_printed(tmp_path):
    with run_log(tmp_path):
        print("now")
        assert lines(tmp_path)[-1] == "now"


@pytest.mark.parametrize(
    ("error", "text"),
    [(SettingError("--seed=x: why"), "error: --seed=x: why"), (SystemExit(143), "ended by SystemExit")],
)
def test_the_end_of_a_run_is_logged(error, text, tmp_path):
    with pytest.raises(type(error)), run_log(tmp_path):
        raise error
    assert lines(tmp_path)[-1].startswith(text)


def test_a_bug_is_logged_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), run_log(tmp_path):
        print(1 / 0)
    text = (tmp_path / "run.log").read_text()
    assert "error: division by zero\nTraceback" in text and "print(1 / 0)" in text


def test_the_log_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with run_log(tmp_path):
        for number in range(100):
            print(f"line {number}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.log", "run.log.1"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir()) and lines(tmp_path)[-1] == "line 99"


def test_a_full_disk_and_a_link_do_not_stop_a_run(tmp_path, file_size_limit, capsys):
    with file_size_limit(10), run_log(tmp_path):
        print("shown")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.log").symlink_to(tmp_path / "precious")
    with run_log(tmp_path / "other"):
        print("shown")
    assert (tmp_path / "precious").read_text() == "precious"
    assert capsys.readouterr() == ("shown\nshown\n", "")


def test_a_progress_bar_is_logged_as_a_line_per_row(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    with run_log(tmp_path):
        progress = Progress(8, PLAN, 0)
        progress.show({"loss": 2.0})
        progress.step = 4
        progress.show({"epoch": 2.0, "loss": 1.0})
        print("done")
    assert lines(tmp_path)[1:] == ["step 4 of 4  loss 1", "done"]
