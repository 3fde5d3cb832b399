"""Files are written whole and renamed into place: a kill or a full disk leaves the old one or the new one."""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write, of the same suffix, which takes the place of ``path`` when it is whole; else it goes."""
    unfinished = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file's content at once, text in UTF-8; OSError leaves the old one."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())  # or a power cut may find the new name before the new content
