"""Metric averages, and the progress bar on a terminal or plain lines elsewhere."""

import gc
import io
import math
import sys

import pytest

from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.runs import progress

PLAN = Plan(total_steps=4, epoch_steps=2, interval_steps=2, warmup_steps=0, peak_learning_rate=0.1)


def test_interval_means_are_weighted_by_steps_and_restart_after_a_row():
    means = progress.IntervalMeans(("loss", "top1"))
    means.add({"loss": 1.0, "top1": 0.5}, 3, 0)
    means.add({"loss": 5.0, "top1": 0.1}, 1, 2)
    assert means.take() == pytest.approx({"loss": 2.0, "top1": 0.4, "skipped_steps": 2})
    means.add({"loss": 7.0, "top1": 0.0}, 1, 0)
    assert means.take() == {"loss": 7.0, "top1": 0.0}
    means.add({"loss": 0.0, "top1": 0.0}, 0, 4)
    assert math.isnan(means.take()["loss"])


def test_lines_without_a_terminal_are_plain_and_few(capsys):
    bar = progress.Progress(8, PLAN, 0)
    bar.add({"loss": 2.5}, 1, 0.5)
    bar.add({"loss": 1.5}, 1, 0.5)
    bar.show({"epoch": 1.0, "loss": 2.0, "online_top1": 0.5, "note": 3})
    assert capsys.readouterr().out == "step 2 of 4  loss 2  online_top1 0.5\n"


def test_a_long_interval_prints_lines_in_between(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_PER_LINE", -1)
    progress.Progress(8, PLAN, 0).add({"loss": 2.5}, 1, 0.5)
    assert capsys.readouterr().out == "step 1 of 4  loss 2.5  learning_rate 0.1  images_per_second 16\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    progress.Progress(8, PLAN, 0).show({"epoch": 1.0, "loss": 2.0})
    assert "0/4" in terminal.getvalue() and "loss: 2.0" in terminal.getvalue()


def test_steps_leave_nothing_in_memory():
    """TensorFlow caches every Python number that it converts, such as a step."""

    def growth(steps: int) -> int:
        before = sys.getallocatedblocks()
        for _ in range(steps):
            bar.add({"loss": 1.0}, 1, 0.0)
            bar.rates()
        gc.collect()
        return sys.getallocatedblocks() - before

    bar = progress.Progress(8, Plan(10**6, 100, 100, 0, 0.1), first_step=1000)  # Python itself keeps small numbers
    growth(100)  # fills other caches, of bounded size
    assert min(growth(1000) for _ in range(4)) < 500  # other threads may allocate, but not each time


@pytest.mark.parametrize("total, first", [(1000, 0), (1200, 200)])
def test_the_expected_time_is_printed_once_after_the_first_steps(total, first, capsys):
    plan = Plan(total_steps=total, epoch_steps=10, interval_steps=1000, warmup_steps=0, peak_learning_rate=0.1)
    bar = progress.Progress(8, plan, first)
    bar.add({"loss": 1.0}, 10, 100.0)  # compiles
    for _ in range(4):
        bar.add({"loss": 1.0}, 10, 4.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Expected" in line]
    assert lines == ["Expected: about 6 min 28 s for the remaining 970 steps; evaluations come on top."]


def test_the_expected_time_of_a_short_run_is_not_printed(capsys):
    bar = progress.Progress(8, PLAN, 0)
    for _ in range(3):
        bar.add({"loss": 1.0}, 1, 10.0)
    assert "Expected" not in capsys.readouterr().out
