"""Errors that end a run with one line on standard error."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

# Reasons why a file cannot be written or read; EFBIG is a limit on its size.
FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
FILE_ERRORS += (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG)
MEMORY_REMEDIES = (
    "to use less memory: --remat, --mixed_precision=bfloat16 or a smaller --train_batch_size; when pretraining, "
    "--grad_cache_micro_batch=N, the same contrastive batch with N images in memory at a time; when evaluating, a "
    "smaller --eval_batch_size"
)


class SettingError(ValueError):
    """A setting or an input that cannot be used. The message is the one line that the user sees; exit status 2."""


class UnreadableError(SettingError):
    """A file that cannot be read, whatever its content, for example for want of permission."""


class ConfigVersionError(SettingError):
    """A ``config.json`` that was written by a version with another format."""


class LostWorkerError(RuntimeError):
    """The connection to another worker is lost. The message is the one line that the user sees; exit status 3."""


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, without TensorFlow's graph locations."""
    message = re.sub(r"{{.*?}}\s*", "", str(error)).strip()
    return (message.splitlines() or [type(error).__name__])[0][:300]


@contextlib.contextmanager
def explained_errors(model_dir: str) -> Iterator[None]:
    """Turns errors of Python and TensorFlow that a user can fix into one line; any other error passes unchanged.

    Args:
        model_dir: for the message.

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
            place = re.search(r"\w+ record at \d+|$", message)[0]
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
