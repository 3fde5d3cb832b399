"""One function per ``--mode``, all with one signature: from a config and a strategy to a result."""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.devices import choose_strategy, worker_context
from simclrv2_tf.errors import LostWorkerError, SettingError
from simclrv2_tf.modes import benchmark, evaluate, export, preview, report, semi_supervised, summary, train
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, finished_result, resolve_config
from simclrv2_tf.runs.memory import explain_out_of_memory
from simclrv2_tf.settings.config import STAGES, Config

MODES: dict[str, Callable[[Config, Strategy], Result]] = {
    **dict.fromkeys(STAGES, train.train),
    "semi_supervised": semi_supervised.semi_supervised,
    "evaluate": evaluate.evaluate,
    "embed": evaluate.embed,
    "export": export.export,
    "import_checkpoint": export.import_checkpoint,
    "summary": summary.summary,
    "preview": preview.preview,
    "benchmark": benchmark.benchmark,
    "report": report.report,
}
WITHOUT_DEVICES = ("summary", "report")  # these neither wait for workers nor touch a GPU


def run(flags: Mapping[str, Any]) -> Result:
    """Resolves the settings once, then runs the mode.

    Args:
        flags: settings that are given, by name.

    Raises:
        SettingError: for a setting or an input that cannot be used, before anything is written.
    """
    with _explain_file_errors(flags), _explain_data_errors(), explain_out_of_memory():
        if keras.backend.backend() != "tensorflow":
            raise SettingError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")
        mode = flags.get("mode", "pretrain")
        config = resolve_config(flags)
        strategy = tf.distribute.get_strategy() if mode in WITHOUT_DEVICES else choose_strategy(config)
        with worker_context(strategy):
            if "train_batch_size" not in flags:
                config = cap_batch_size(config, strategy)
            result = finished_result(config) if mode in STAGES else None
            return result or MODES[mode](config, strategy)


@contextlib.contextmanager
def _explain_data_errors() -> Iterator[None]:
    """Turns TensorFlow's errors for damaged records and restarted data services into one line."""
    try:
        yield
    except tf.errors.DataLossError as error:
        place = re.search(r"\w+ record at \d+|$", str(error))[0]
        raise SettingError(f"--dataset: one of its files is damaged ({place}); prepare it again") from None
    except (tf.errors.NotFoundError, tf.errors.InvalidArgumentError) as error:
        if not (why := re.search(r"--data_service: [a-z ]+|Unknown iteration client", str(error))):
            raise
        raise LostWorkerError(
            f"a data service was restarted, or has several workers ({why[0]}); run the same command again to resume "
            "from the latest checkpoint"
        ) from None


# Why a file cannot be written or read: EFBIG is a limit on its size.
FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def _explain_file_errors(flags: Mapping[str, Any]) -> Iterator[None]:
    """Turns an error of Python or TensorFlow about a file into one line; files that were there are intact."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = next((os.strerror(number) for number in FILE_ERRORS if os.strerror(number) in str(error)), "")
        if not reason:
            raise
        place = getattr(error, "filename", None) or "a file"
        raise SettingError(
            f"--model_dir={flags.get('model_dir', '')}: {place} cannot be written or read ({reason}); what was saved "
            "before is intact: fix that and run the same command again"
        ) from None
