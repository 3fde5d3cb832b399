"""Environment setup that must precede ``import tensorflow``: log level, XLA's tuning cache, filtered messages.

The user's own configuration has no effect: Keras gets its default settings, and output without a reader is dropped.
"""

import contextlib
import importlib.metadata
import io
import os
import pathlib
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from simclrv2_tf.errors import SettingError, first_line

# Messages of TensorFlow's libraries that no log level hides, because they are written while the libraries load.
STARTUP_NOISE = (
    "All log messages before absl::InitializeLog",
    "oneDNN custom operations are on",
    "Could not find cuda drivers on your machine",
)
NO_DRIVER_NOISE = ("failed call to cuInit",)

_writer = None  # lock of the one process that writes to the tuning cache


def import_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and lists its devices, and Keras with default settings, whatever its ``keras.json`` says.

    Args:
        verbose: show all log messages of TensorFlow.

    Raises:
        SettingError: if Keras refuses its ``keras.json``.
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in ("KERAS_MAX_EPOCHS", "KERAS_MAX_STEPS_PER_EPOCH"):
        os.environ.pop(name, None)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    # Waiting threads of scikit-learn give up their core. Otherwise t-SNE takes 15 times the CPU time on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    has_gpu_driver = any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
    if has_gpu_driver:
        cache_xla_tuning(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")))
    hidden = STARTUP_NOISE if has_gpu_driver else STARTUP_NOISE + NO_DRIVER_NOISE
    quiet = os.environ["TF_CPP_MIN_LOG_LEVEL"] not in ("", "0", "1") and "tensorflow" not in sys.modules
    with filtered_stderr(hidden) if quiet else contextlib.nullcontext():
        try:
            import keras
            import tensorflow as tf
        except (AssertionError, AttributeError, OSError, TypeError, ValueError) as error:
            file = os.path.join(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"), "keras.json")
            if not os.path.lexists(file):
                raise
            raise SettingError(f"{file}: Keras refuses it ({first_line(error)}); correct or delete it") from None
        tf.config.list_physical_devices()
    keras.config.set_floatx("float32")
    keras.config.set_epsilon(1e-7)
    keras.config.set_image_data_format("channels_last")


class _Output(io.FileIO):
    """File descriptor that drops output that cannot be written, because its reader is gone or the disk is full."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a full pipe that another process made non-blocking
                select.select([], [self], [])
            return written
        except OSError:
            return memoryview(data).nbytes


def make_output_robust() -> None:
    """Makes standard output and error accept any text at any time.

    Characters that their encoding lacks are escaped. A stream that is closed, or loses its reader later, is no error.
    Streams that Python code has replaced are left alone.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next opened file gets this number, and with it what libraries print
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        stream = getattr(sys, name)
        if name == "stdin" or stream is not getattr(sys, f"__{name}__"):
            continue
        encoding = stream.encoding if stream else "utf-8"
        output = io.BufferedWriter(_Output(number, "wb", closefd=False))
        # line-buffered also into files, so that both streams stay in order if they share a file
        setattr(sys, name, io.TextIOWrapper(output, encoding, "backslashreplace", line_buffering=True))


def cache_xla_tuning(cache: pathlib.Path) -> None:
    """Makes XLA cache its GPU autotuning, most of the first compile, for later runs.

    Of several concurrent processes one writes to the cache and the others read. XLA's entries name the GPU model.

    Args:
        cache: the user's cache directory; if it is not absolute or not writable, nothing is cached.
    """
    global _writer
    flags = os.environ.get("XLA_FLAGS", "")
    directory = cache / "simclrv2_tf" / f"xla_tuning_tensorflow_{importlib.metadata.version('tensorflow')}"
    if "autotune" in flags or not cache.is_absolute() or len(str(cache).split()) > 1:  # the flags are split at spaces
        return
    import filelock  # only for GPUs

    mode = "UPDATE"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _writer = filelock.FileLock(directory / "writer.lock", timeout=0)
        _writer.acquire()
    except filelock.Timeout:
        mode = "READ"
    except OSError:
        return
    os.environ["XLA_FLAGS"] = (
        f"{flags} --xla_gpu_per_fusion_autotune_cache_dir={directory} "
        f"--xla_gpu_experimental_autotune_cache_mode=AUTOTUNE_CACHE_MODE_{mode}"
    ).strip()


@contextlib.contextmanager
def filtered_stderr(texts: tuple[str, ...]) -> Iterator[None]:
    """Drops lines that contain one of the texts from standard error, also those of C++; all others appear at once.

    The filter is a process of its own, so that the last messages of a crash get through.
    """
    if not shutil.which("grep"):
        yield
        return
    sys.stderr.flush()
    stderr = os.dup(2)
    patterns = [argument for text in texts for argument in ("-e", text)]
    with subprocess.Popen(["grep", "--line-buffered", "-avF", *patterns], stdin=subprocess.PIPE, stdout=2) as grep:
        assert grep.stdin is not None
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
