"""Environment setup that must precede ``import tensorflow``: log level, XLA's tuning cache, filtered messages."""

import contextlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

# Messages of TensorFlow's libraries that no log level hides, because they are written while the libraries load.
STARTUP_NOISE = (
    "All log messages before absl::InitializeLog",
    "oneDNN custom operations are on",
    "Could not find cuda drivers on your machine",
)
NO_DRIVER_NOISE = ("failed call to cuInit",)

_writer = None  # the open lock file of the one process that writes to the tuning cache


def import_tensorflow(verbose: bool = False) -> None:
    """Imports TensorFlow and lists its devices. Environment variables that are already set are kept.

    Args:
        verbose: show all log messages of TensorFlow.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if verbose else "2")
    # Waiting threads of scikit-learn give up their core. Otherwise t-SNE takes 15 times the CPU time on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    has_gpu_driver = any(map(os.path.exists, ("/dev/nvidiactl", "/dev/dxg")))
    if has_gpu_driver:
        cache_xla_tuning(pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser())
    hidden = STARTUP_NOISE if has_gpu_driver else STARTUP_NOISE + NO_DRIVER_NOISE
    quiet = int(os.environ["TF_CPP_MIN_LOG_LEVEL"] or 0) >= 2 and "tensorflow" not in sys.modules
    with filtered_stderr(hidden) if quiet else contextlib.nullcontext():
        import tensorflow as tf

        tf.config.list_physical_devices()


def cache_xla_tuning(cache: pathlib.Path) -> None:
    """Makes XLA cache its GPU autotuning, most of the first compile, for later runs.

    Of several concurrent processes one writes to the cache and the others read. XLA's entries name the GPU model.

    Args:
        cache: the user's cache directory; if it is not writable, nothing is cached.
    """
    global _writer
    flags = os.environ.get("XLA_FLAGS", "")
    directory = cache / "simclrv2_tf" / f"xla_tuning_tensorflow_{importlib.metadata.version('tensorflow')}"
    if "autotune" in flags or len(str(directory).split()) > 1:  # the flags are split at spaces
        return
    import fcntl  # not on Windows, where TensorFlow has no GPUs

    mode = "UPDATE"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _writer = (directory / "writer.lock").open("w")
        fcntl.flock(_writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
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
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
