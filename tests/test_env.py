"""Environment setup before TensorFlow is imported. Each test starts a new Python process."""

import ast
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import saved_runs

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


KERAS = """
from simclrv2_tf.env import import_tensorflow
import_tensorflow()
import keras
print(keras.backend.backend(), keras.config.floatx(), keras.config.epsilon(), keras.config.image_data_format())
print(keras.config.max_epochs(), keras.config.max_steps_per_epoch(), keras.src.backend.config.keras_home())
"""


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param('{"backend": "torch"}', marks=pytest.mark.slow),
        '{"backend": "jax", "floatx": "float16", "epsilon": 0.5, "image_data_format": "channels_first"}',
        pytest.param("{", marks=pytest.mark.slow),
    ],
)
def test_the_settings_of_keras_json_do_not_matter_but_its_folder_does(settings, tmp_path):
    (tmp_path / "keras.json").write_text(settings)
    variables = {"KERAS_BACKEND": "openvino", "KERAS_MAX_EPOCHS": "x", "KERAS_MAX_STEPS_PER_EPOCH": "1"}
    run = python(KERAS, KERAS_HOME=str(tmp_path), **variables)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == ["tensorflow float32 1e-07 channels_last", f"None None {tmp_path}"]
    assert (tmp_path / "keras.json").read_text() == settings


@pytest.mark.parametrize("content", ['{"floatx": "bfloat99"}', '{"epsilon": "small"}', "[1]", '{"floatx": []}', None])
def test_a_keras_json_that_keras_refuses_is_named(content, tmp_path):
    if content is None:
        (tmp_path / "keras.json").mkdir()
    else:
        (tmp_path / "keras.json").write_text(content)
    code = "from simclrv2_tf.cli import main; main(['run.py', '--dataset=digits', '--mode=summary'])"
    run = python(code, KERAS_HOME=str(tmp_path))
    assert run.returncode == 2 and run.stderr.startswith(f"error: {tmp_path}/keras.json: Keras refuses it (")
    assert run.stderr.count("\n") == 1


def test_importing_the_package_selects_tensorflow_unless_the_environment_names_another_backend(tmp_path):
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    code = "import simclrv2_tf; simclrv2_tf.nt_xent; import keras; print(keras.backend.backend())"
    assert python(code, KERAS_HOME=str(tmp_path), KERAS_BACKEND="tensorflow").stdout == "tensorflow\n"
    unset = "import os; del os.environ['KERAS_BACKEND']\n"
    assert python(unset + code, KERAS_HOME=str(tmp_path)).stdout == "tensorflow\n"


# All modes, in one process: a command per line.
MODES = """
--mode=pretrain --dataset=digits --recipe=none --resnet_depth=10 --width_multiplier=0.0625 --image_size=8 --report=false
  --train_batch_size=50 --train_steps=4 --checkpoint_steps=2 --eval_steps=1 --eval_batch_size=100 --model_dir=D/pretrain
--mode=finetune --checkpoint=D/pretrain --train_batch_size=50 --train_steps=2 --checkpoint_steps=2 --model_dir=D/run
--mode=distill --teacher=D/run --dataset=digits --recipe=none --resnet_depth=10 --width_multiplier=0.0625 --image_size=8
  --train_batch_size=50 --train_steps=2 --checkpoint_steps=2 --report=false --model_dir=D/distill
--mode=evaluate --checkpoint=D/run
--mode=embed --checkpoint=D/run --format=npz
--mode=predict --checkpoint=D/run --images=D/images
--mode=export --checkpoint=D/run --format=saved_model
--mode=export --checkpoint=D/run --format=litert
--mode=export --checkpoint=D/run --format=tf1_checkpoint
--mode=import_checkpoint --checkpoint=D/run/tf1_checkpoint --model_dir=D/imported
--mode=report --model_dir=D/run
--mode=report --compare=D/pretrain,D/run --model_dir=D/compared
--mode=summary --checkpoint=D/run
--mode=preview --checkpoint=D/run --model_dir=D/preview
--mode=benchmark --checkpoint=D/run --train_batch_size=50
"""
ALL_MODES = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from simclrv2_tf import cli
for command in {MODES!r}.replace("\\n  ", " ").replace("D/", sys.argv[1] + "/").splitlines()[1:]:
    cli.main(["run.py", *command.split(), "--deterministic"])
"""


@pytest.mark.slow
def test_no_mode_needs_anything_of_the_account(tmp_path):
    """No home, temporary directory, writable working directory or output; different Keras settings; no asserts."""

    def run(name: str, options: list[str], **arguments: Any) -> list[str]:
        folder = tmp_path / name
        saved_runs.save_images(folder / "images", ["a.png", "b.png"])
        subprocess.run([sys.executable, *options, "-c", ALL_MODES, str(folder)], check=True, **arguments)
        metrics = [path.read_text().splitlines() for path in sorted(folder.glob("*/metrics.csv"))]
        rows = [[line.split(",") for line in lines] for lines in metrics]
        speeds = [header.index("images_per_second") for header, *_ in rows]
        numbers = [[row[:i] + row[i + 1 :] for row in table] for i, table in zip(speeds, rows, strict=True)]
        evaluation = json.loads((folder / "run/evaluation.json").read_text()) | {"checkpoint": ""}
        predictions = (folder / "run/predictions.csv").read_text().replace(name, "")
        return [*numbers, evaluation, predictions, sorted(p.name for p in folder.glob("*/*"))]

    (tmp_path / "keras.json").write_text('{"backend": "torch", "floatx": "float16", "epsilon": 0.5}')
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "TMPDIR")}
    environment |= {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "jax", "KERAS_MAX_EPOCHS": "1"}
    environment |= {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "SLURM_STEP_NUM_TASKS": "many"}
    usual = run("usual", [], stdout=subprocess.DEVNULL)
    with open("/dev/full", "w") as full:
        assert run("oddé", ["-OO"], stdout=full, stderr=full, env=environment, cwd="/proc") == usual


PLATFORM = """
import builtins, importlib, pathlib, pkgutil, sys

real_import = builtins.__import__

def import_without_posix(name, globals=None, *rest, **more):
    importer = (globals or {}).get("__name__", "")
    if name in ("fcntl", "grp", "pwd", "resource", "termios") and importer.startswith("simclrv2_tf"):
        raise ImportError(f"{importer} imports {name}")
    return real_import(name, globals, *rest, **more)

builtins.__import__ = import_without_posix
import simclrv2_tf
for module in pkgutil.walk_packages(simclrv2_tf.__path__, "simclrv2_tf."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from simclrv2_tf.env import cache_xla_tuning
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.runs.signals import StopRequest
cache_xla_tuning(pathlib.Path(sys.argv[1]))
with RunDirectory(pathlib.Path(sys.argv[1])).locked(), StopRequest():
    print("locked")
"""


def test_the_package_imports_no_module_that_only_posix_systems_have(tmp_path):
    """Only its own imports are refused, because libraries choose theirs by the platform, which is still POSIX."""
    command = [sys.executable, "-c", PLATFORM, str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "locked\n"), run.stderr


# Names that Windows lacks, or macOS, such as sched_getaffinity.
POSIX = {
    "os": "O_DIRECTORY O_NOFOLLOW O_NONBLOCK chown fchmod fork getegid geteuid getgid getpgid getuid killpg "
    "lchown mkfifo nice pread pwrite sched_getaffinity set_blocking setsid statvfs sysconf uname wait3 wait4",
    "signal": "SIGALRM SIGCHLD SIGHUP SIGKILL SIGPIPE SIGQUIT SIGUSR1 SIGUSR2 SIGXFSZ alarm pause pthread_sigmask "
    "setitimer sigwait",
    "socket": "AF_UNIX SO_REUSEPORT",
}
GUARDED = {("reading.py", "sysconf")}  # in a block that ignores AttributeError


def test_names_that_windows_lacks_are_not_used_unguarded():
    used = set()
    for path in (ROOT / "simclrv2_tf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_name = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_name and node.attr in POSIX.get(node.value.id, "").split():
                used.add((path.name, node.attr))
    assert used == GUARDED


OUTPUT = """
import os, sys
from simclrv2_tf.env import make_output_robust
make_output_robust()
for line in range(3000):
    print(f"{line} ─ é \\udcff")
    print(f"{line} ─ é \\udcff", file=sys.stderr)
os.write(3, b"end")
"""


def report_of(arguments: str, **environment: str) -> str:
    """Runs OUTPUT in a shell; returns what it writes to the file descriptor 3, its exit status, and its output."""
    command = f'{{ "$0" -c "$1" {arguments} ; echo " status $?" >&3; }} 3>&4'
    shell = ["bash", "-c", f"exec 4>&1; {command}", sys.executable, OUTPUT]
    inherited = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(shell, env=inherited, capture_output=True, timeout=60).stdout.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        ">&- 2>&-",
        "<&- >&- 2>&-",
        "> >(true) 2> >(true)",
        "2>&1 | head -n 1 >/dev/null",
        ">/dev/full 2>/dev/full",
        ">/dev/null 2>&1",
    ],
)
def test_output_that_nobody_takes_is_no_error(arguments):
    if "|" in arguments:
        arguments = "> >(head -n 1 >/dev/null) 2>&1"
    assert report_of(arguments) == "end status 0\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "utf-8:strict"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding, tmp_path):
    assert report_of(f">{tmp_path}/out 2>{tmp_path}/err", PYTHONIOENCODING=encoding) == "end status 0\n"
    dash, accent = ("─", "é") if "utf" in encoding else (r"\u2500", "é" if encoding == "latin-1" else r"\xe9")
    for name in ("out", "err"):
        lines = (tmp_path / name).read_bytes().decode("utf-8" if "utf" in encoding else encoding).splitlines()
        assert lines == [rf"{line} {dash} {accent} \udcff" for line in range(3000)]


def test_a_closed_output_does_not_become_a_file_that_is_opened_later(tmp_path):
    code = f"""
import os
from simclrv2_tf.env import make_output_robust
make_output_robust()
file = open({str(tmp_path / "file")!r}, "w")
os.write(1, b"printed by a library")
os.write(2, b"printed by a library")
"""
    subprocess.run(["bash", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], cwd=ROOT, check=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_a_full_pipe_that_does_not_block_is_waited_for():
    code = "from simclrv2_tf.env import make_output_robust; make_output_robust(); print('x' * 10**6)"
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=write)
    os.close(write)
    with open(read, "rb") as file:
        assert len(file.read()) == 10**6 + 1
    assert process.wait() == 0


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
