"""``run.log``: everything that a run prints, line by line, with times."""

import contextlib
import io
import logging
import logging.handlers
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from simclrv2_tf.errors import LostWorkerError, SettingError

MAX_BYTES = 5_000_000  # of run.log, and of run.log.1, which has the earlier lines

LINES = logging.getLogger(__name__)  # for lines that go to the file only; a no-op outside of `run_log`
LINES.setLevel(logging.INFO)
LINES.propagate = False


@contextlib.contextmanager
def run_log(model_dir: pathlib.Path) -> Iterator[None]:
    """Appends what is printed, logged or raised in its body to ``run.log``.

    A file that reaches ``MAX_BYTES`` is renamed to ``run.log.1``, and a new one starts. A line that cannot be written
    is dropped: a failing log must not stop the run.
    """
    handler = _Handler(model_dir / "run.log", maxBytes=MAX_BYTES, backupCount=1, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    loggers = LINES, logging.getLogger()
    for logger in loggers:
        logger.addHandler(handler)
    LINES.info("process %d: %s", os.getpid(), " ".join(sys.argv))
    try:
        with contextlib.redirect_stdout(_Tee(sys.stdout)):
            yield
    except (SettingError, LostWorkerError) as error:
        LINES.error("error: %s", error)
        raise
    except (KeyboardInterrupt, SystemExit) as error:
        LINES.info("ended by %r", error)
        raise
    except BaseException as error:
        LINES.error("error: %s", error, exc_info=True)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk
            handler.close()


class _Handler(logging.handlers.RotatingFileHandler):
    """File handler that does not follow a link at the file's path, and drops lines that it cannot write."""

    def _open(self) -> io.TextIOWrapper:
        def open_no_link(path: str, flags: int) -> int:
            return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # not on Windows

        path, errors = self.baseFilename, "backslashreplace"
        return cast(io.TextIOWrapper, open(path, self.mode, encoding=self.encoding, errors=errors, opener=open_no_link))

    def handleError(self, record: logging.LogRecord) -> None:
        """No-op."""


class _Tee:
    """Standard output that also logs complete lines, except those of progress bars, which have carriage returns."""

    def __init__(self, stream: TextIO):
        self.stream, self.line = stream, ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if line.strip() and "\r" not in line:
                LINES.info("%s", line)
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)
