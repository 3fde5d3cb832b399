"""Atomic writes: a file is written completely and then renamed, so that a kill or a full disk leaves the old one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary file with the same suffix that replaces ``path`` at the end, or is removed on an OSError."""
    unfinished = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file's content atomically, text as UTF-8. The old content remains if it raises OSError."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # otherwise a power cut could leave the new name without the content
