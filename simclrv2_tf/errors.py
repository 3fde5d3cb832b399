"""Errors that end a run with one line on standard error."""

import re


class SettingError(ValueError):
    """A setting or an input that cannot be used. The message is the one line that the user sees; exit status 2."""


class ConfigVersionError(SettingError):
    """A ``config.json`` that was written by a version with another format."""


class LostWorkerError(RuntimeError):
    """The connection to another worker is lost. The message is the one line that the user sees; exit status 3."""


def first_line(error: BaseException) -> str:
    """Returns the first line of a library's error message, without TensorFlow's graph locations."""
    message = re.sub(r"{{.*?}}\s*", "", str(error)).strip()
    return (message.splitlines() or [type(error).__name__])[0][:300]
