"""A bar on a terminal, plain lines elsewhere."""

import io
import sys

from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.runs import progress

PLAN = Plan(total_steps=4, epoch_steps=2, interval_steps=2, warmup_steps=0, peak_learning_rate=0.1)


def test_lines_without_a_terminal_are_plain_and_few(capsys):
    shown = progress.Progress(8, PLAN, 0)
    shown.add({"loss": 2.5}, 1, 0.5)
    shown.add({"loss": 1.5}, 1, 0.5)
    shown.show({"epoch": 1.0, "loss": 2.0, "online_top1": 0.5, "note": 3})
    assert capsys.readouterr().out == "step 2 of 4  loss 2  online_top1 0.5\n"


def test_a_long_interval_tells_that_it_goes_on(capsys, monkeypatch):
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
