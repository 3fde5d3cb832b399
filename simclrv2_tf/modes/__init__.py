"""What each ``--mode`` does, one function each: from settings to a trained, evaluated and reported run."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.devices import choose_strategy, worker_context
from simclrv2_tf.errors import LostWorkerError, SettingError
from simclrv2_tf.modes.benchmark import benchmark
from simclrv2_tf.modes.costs import explain_out_of_memory
from simclrv2_tf.modes.evaluate import embed, evaluate, export
from simclrv2_tf.modes.import_checkpoint import import_checkpoint
from simclrv2_tf.modes.preview import preview
from simclrv2_tf.modes.report import report
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, finished_result, resolve_config
from simclrv2_tf.modes.semi_supervised import semi_supervised
from simclrv2_tf.modes.summary import summary
from simclrv2_tf.modes.train import classify, pretrain
from simclrv2_tf.settings.config import Config
from simclrv2_tf.tools.tpu_preflight.preflight import tpu_preflight


@contextlib.contextmanager
def _explain_data_errors() -> Iterator[None]:
    """Data that are damaged or cut off, and services that lost their place, end a run in one line."""
    try:
        yield
    except tf.errors.DataLossError as error:
        place = re.search(r"\w+ record at \d+|$", str(error))[0]
        raise SettingError(f"--dataset: one of its files is damaged ({place}); prepare it anew") from None
    except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
        if not (why := re.search(r"--data_service: [a-z ]+|Unknown iteration client", str(error))):
            raise
        raise LostWorkerError(
            f"a data service was started anew, or has several workers ({why[0]}). Start the same command again: it "
            "goes on at the newest checkpoint."
        ) from None


# Why a file cannot be written, or read: EFBIG is a limit on its size.
FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def _explain_file_errors(explicit: dict[str, Any]) -> Iterator[None]:
    """A file that Python or TensorFlow cannot write ends a run in one line: those that were there are whole."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = next((os.strerror(number) for number in FILE_ERRORS if os.strerror(number) in str(error)), "")
        if not reason:
            raise
        place = getattr(error, "filename", None) or "a file"
        told = f"--model_dir={explicit.get('model_dir', '')}: {place} cannot be written or read ({reason})"
        raise SettingError(f"{told}; what was saved before is whole: put that right, then run it again") from None


def run(explicit: dict[str, Any]) -> Result:
    """Runs the mode that the settings name.

    Args:
        explicit: the settings that the user gave, by name.

    Raises:
        SettingError: for a setting or an input that cannot be used, before anything is written.
    """
    with _explain_file_errors(explicit), _explain_data_errors(), explain_out_of_memory():
        return _run(explicit)


def _run(explicit: dict[str, Any]) -> Result:
    _check_backend()
    mode = explicit.get("mode", "pretrain")
    resolve_own_config: dict[str, Callable[[dict[str, Any]], Result]] = {
        "summary": summary,
        "preview": preview,
        "tpu_preflight": tpu_preflight,
        "benchmark": benchmark,
        "report": report,
    }
    if mode in resolve_own_config:
        return resolve_own_config[mode](explicit)
    functions: dict[str, Callable[[Config, Strategy], Result]] = {
        "pretrain": pretrain,
        "finetune": classify,
        "linear_eval": classify,
        "supervised": classify,
        "distill": classify,
        "evaluate": evaluate,
        "embed": embed,
        "export": export,
        "import_checkpoint": import_checkpoint,
        "semi_supervised": semi_supervised,
    }
    config = resolve_config(explicit)
    strategy = choose_strategy(config)
    with worker_context(strategy):
        if "train_batch_size" not in explicit:
            config = cap_batch_size(config, strategy)
        return finished_result(config) or functions[mode](config, strategy)


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise SettingError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")
