"""The completion scripts, run in real shells."""

import dataclasses
import shutil
import subprocess

import pytest

from simclrv2_tf import cli
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


def script(shell, capsys):
    cli.main(["run.py", f"--completion={shell}"])
    return capsys.readouterr().out


def complete(words, capsys):
    """Returns the completions of the last word of a command line, given the words into which bash splits it."""
    quoted = " ".join(f"'{word}'" for word in words)
    commands = f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _simclrv2_tf; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    run = subprocess.run(["bash", "-c", script("bash", capsys) + commands], capture_output=True, text=True, timeout=60)
    assert run.stderr == ""
    return run.stdout.split()


def test_flags_are_completed(capsys):
    assert complete(["simclrv2-tf", "--learning_r"], capsys) == ["--learning_rate=", "--learning_rate_scaling="]
    assert complete(["simclrv2-tf", "--mode", "=", "pretrain", "--nouse_f"], capsys) == ["--nouse_flip"]
    every = complete(["simclrv2-tf", "--"], capsys)
    assert {f"--{field.name}" for field in dataclasses.fields(Config)} <= {name.rstrip("=") for name in every}


@pytest.mark.parametrize("words", [["--mode", "=", "pre"], ["--mode=pre"], ["--mode", "pre"]])
def test_values_are_completed(words, capsys):
    assert complete(["simclrv2-tf", *words], capsys) == ["pretrain", "predict", "preview"]


def test_all_values_are_offered_after_the_equals_sign(capsys):
    assert complete(["simclrv2-tf", "--keep_best", "="], capsys) == ["none", "loss", "top1"]
    assert complete(["simclrv2-tf", "--model_dir", "=", "ru"], capsys) == []  # bash falls back to file names


@pytest.mark.skipif(not shutil.which("zsh"), reason="zsh is not installed")
def test_zsh_accepts_its_script(capsys):
    command = script("zsh", capsys) + "\nprint $_comps[simclrv2-tf]"
    run = subprocess.run(["zsh", "-fc", command], capture_output=True, text=True, timeout=60)
    assert "_bash_complete" in run.stdout and "_simclrv2_tf" in run.stdout, run.stderr


def test_another_shell_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["run.py", "--completion=fish"])
    assert end.value.code == 2 and "should be one of <bash|zsh>" in capsys.readouterr().err
