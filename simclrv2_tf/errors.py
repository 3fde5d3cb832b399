"""The errors that end a run in one line on standard error."""

import re


class SettingError(ValueError):
    """A setting or an input that cannot be used. Its text is the one line that the user sees; the exit status is 2."""


class LostWorkerError(RuntimeError):
    """Another worker of the run is gone. Its text is the one line that the user sees; the exit status is 3."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, without TensorFlow's places in graphs, for the line that the user sees."""
    told = re.sub(r"{{.*?}}\s*", "", str(error)).strip()
    return (told.splitlines() or [type(error).__name__])[0][:300]
