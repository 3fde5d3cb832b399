"""Errors that end a run with one line on standard error."""

import contextlib
import errno
import functools
import logging
import os
import re
from collections.abc import Iterator

log = logging.getLogger(__name__)

# Reasons why a file cannot be written or read; EFBIG is a limit on its size.
FILE_ERRORS: tuple[int, ...] = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
FILE_ERRORS += (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG)
MEMORY_REMEDIES = (
    "to use less memory: --remat, --mixed_precision=bfloat16 or a smaller --train_batch_size; when pretraining, "
    "--grad_cache_micro_batch=N, the same contrastive batch with N images in memory at a time; when evaluating, a "
    "smaller --eval_batch_size"
)


class SettingError(ValueError):
    """A setting or an input that cannot be used. The message is the one line that the user sees; exit status 2."""


class UnreadableError(SettingError):
    """A file that cannot be read, whatever its content, for example for lack of permission."""


class DamagedError(ValueError):
    """The content of a file is invalid. The message is the reason, without the name of the file."""


class ConfigVersionError(SettingError):
    """A ``config.json`` that was written by a version with another format."""


class LostWorkerError(RuntimeError):
    """The connection to another worker is lost. The message is the one line that the user sees; exit status 3."""


def shorten(text: object, length: int) -> str:
    """Puts a text on one line of at most ``length`` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, without TensorFlow's graph locations."""
    message = re.sub(r"{{.*?}}\s*", "", str(error)).strip()
    return (message.splitlines() or [type(error).__name__])[0][:300]


@functools.cache  # the stages of one process have the same data
def warn_once(logger: logging.Logger, message: str) -> None:
    """Logs a warning once per process."""
    logger.warning("%s", message)


@contextlib.contextmanager
def warn_instead() -> Iterator[None]:
    """Turns a SettingError into a warning, for optional parts of a run such as the report of an interval."""
    try:
        yield
    except SettingError as error:
        log.warning("%s", error)


@contextlib.contextmanager
def explained_errors(model_dir: str) -> Iterator[None]:
    """Turns errors of Python and TensorFlow that a user can fix into one line; any other error passes unchanged.

    Args:
        model_dir: model directory, for the message.

    Raises:
        SettingError: for a full disk and the like, damaged TFDS records, or too little memory.
        LostWorkerError: for a data service that was restarted.
    """
    import tensorflow as tf  # takes seconds, and only a run needs it

    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        message, line = str(error), first_line(error)
        if isinstance(error, tf.errors.DataLossError):
            place = "".join(re.findall(r"\w+ record at \d+", message)[:1])
            raise SettingError(f"--dataset: one of its files is damaged ({place}); prepare it again") from None
        if isinstance(error, tf.errors.NotFoundError | tf.errors.InvalidArgumentError) and (
            service := re.search(r"--data_service: [a-z ]+|Unknown iteration client", message)
        ):
            raise LostWorkerError(
                f"a data service was restarted, or has several workers ({service[0]}); run the same command again to "
                "resume from the latest checkpoint"
            ) from None
        if reason := next((os.strerror(number) for number in FILE_ERRORS if os.strerror(number) in message), ""):
            place = getattr(error, "filename", None) or "a file"
            raise SettingError(
                f"--model_dir={model_dir}: {place} cannot be written or read ({reason}); what was saved before is "
                "intact: fix that and run the same command again"
            ) from None
        if isinstance(error, tf.errors.ResourceExhaustedError) and re.search(r"oom|memory", line, re.IGNORECASE):
            raise SettingError(f"out of memory ({line}); {MEMORY_REMEDIES}") from None
        raise
