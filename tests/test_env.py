"""Environment setup before TensorFlow is imported. Each test starts a new Python process."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    inherited = {k: v for k, v in os.environ.items() if k not in ("TF_CPP_MIN_LOG_LEVEL", "XLA_FLAGS")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


def test_importing_the_package_and_help_do_not_import_tensorflow():
    """TensorFlow alone takes seconds to import."""
    code = "import sys; from simclrv2_tf import cli; cli.main(['run.py', '--helpfull']); print(list(sys.modules))"
    run = python(code)
    assert run.returncode == 0 and "--train_batch_size" in run.stdout
    assert not {"tensorflow", "keras", "numpy"} & set(eval(run.stdout.splitlines()[-1]))


def test_tensorflow_starts_without_messages():
    run = python("from simclrv2_tf.env import import_tensorflow; import_tensorflow()")
    assert (run.returncode, run.stderr) == (0, "")


def test_verbose_shows_all_messages():
    run = python("from simclrv2_tf.env import import_tensorflow; import_tensorflow(verbose=True)")
    assert run.returncode == 0 and "oneDNN" in run.stderr


def test_only_matching_lines_are_dropped():
    """Other lines of C++ and the last message of a crash get through; standard error is restored afterwards."""
    code = """
import os, sys
from simclrv2_tf.env import filtered_stderr
with filtered_stderr(("hum", "[0]")):
    os.write(2, b"an error\\n a hum\\n")
    print("python's", file=sys.stderr)
    print("a [0]", file=sys.stderr)
print("hum", file=sys.stderr)
with filtered_stderr(("hum",)):
    os.write(2, b"the last words\\n")
    os.abort()
"""
    run = python(code)
    assert run.returncode < 0
    assert run.stderr.splitlines() == ["an error", "python's", "hum", "the last words"]


CACHE = """
import os, pathlib, sys
from simclrv2_tf.env import cache_xla_tuning
cache_xla_tuning(pathlib.Path({cache!r}))
print(os.environ.get("XLA_FLAGS", ""))
"""


def test_tuning_is_cached_in_the_users_directory_and_xla_accepts_the_flags(tmp_path):
    compiles = "import tensorflow as tf; print(tf.function(lambda x: x + 1, jit_compile=True)(1.0).numpy())"
    run = python(CACHE.format(cache=str(tmp_path)) + compiles, XLA_FLAGS="--xla_cpu_enable_fast_math=false")
    flags, result = run.stdout.splitlines()
    assert result == "2.0", run.stderr
    assert flags.startswith("--xla_cpu_enable_fast_math=false ") and flags.endswith("AUTOTUNE_CACHE_MODE_UPDATE")
    (directory,) = (tmp_path / "simclrv2_tf").iterdir()
    assert f"_cache_dir={directory} " in flags


def test_one_process_writes_and_the_others_read(tmp_path):
    code = CACHE.format(cache=str(tmp_path))
    second = f"import subprocess\nprint(subprocess.run([sys.executable, '-c', {code!r}], capture_output=True).stdout)"
    first, other = python(code + "os.environ['XLA_FLAGS'] = ''\n" + second).stdout.splitlines()
    assert "MODE_UPDATE" in first and "MODE_READ" in other


@pytest.mark.parametrize("flags", ["--xla_gpu_autotune_level=0", "--xla_gpu_per_fusion_autotune_cache_dir=/there"])
def test_autotuning_flags_of_the_user_are_kept(tmp_path, flags):
    assert python(CACHE.format(cache=str(tmp_path)), XLA_FLAGS=flags).stdout.strip() == flags
    assert not list(tmp_path.iterdir())


def test_nothing_is_cached_in_an_unusable_directory(tmp_path):
    (tmp_path / "file").touch()
    assert python(CACHE.format(cache=str(tmp_path / "file"))).stdout.strip() == ""
    assert python(CACHE.format(cache=str(tmp_path / "a directory"))).stdout.strip() == ""
