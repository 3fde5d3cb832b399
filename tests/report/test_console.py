"""Summary boxes: framed on a terminal, plain lines elsewhere, nothing with --quiet."""

import io
import sys

import pytest

from simclrv2_tf import cli
from simclrv2_tf.report.console import box

FACTS = {"data": "digits, 1,297 images", "network": "ResNet-18 " + "with a long description " * 8}


class Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_a_pipe_gets_plain_lines(capsys):
    assert box("pretrain: runs/x", {"data": "digits", "steps": "10"}).splitlines() == [
        "pretrain: runs/x",
        "  data   digits",
        "  steps  10",
    ]


@pytest.mark.parametrize("title", ["pretrain: runs/x", "pretrain: " + "a long path " * 20])
def test_a_frame_on_a_terminal_is_closed_and_fits(title, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="utf-8"))
    monkeypatch.setenv("COLUMNS", "70")
    first, *middle, last = box(title, FACTS).splitlines()
    assert {len(line) for line in (first, *middle, last)} == {len(first)} and len(first) <= 70
    assert first[0] + first[-1] + last[0] + last[-1] == "╭╮╰╯" and "pretrain: " in first
    assert all(line.startswith("│ ") and line.endswith(" │") for line in middle)
    assert sum("description" in line for line in middle) > 1


def test_an_ascii_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="ascii"))
    assert box("title", {"data": "digits"}) == "title\n  data  digits"


def test_quiet_prints_only_errors(capsys):
    cli.main(["run.py", "--mode=summary", "--resnet_depth=18", "--image_size=8", "--quiet"])
    assert capsys.readouterr() == ("", "")
    with pytest.raises(SystemExit):
        cli.main(["run.py", "--mode=summary", "--resnet_depth=19", "--quiet"])
    assert "--resnet_depth=19" in capsys.readouterr().err
