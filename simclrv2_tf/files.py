"""Atomic writes, and paths for libraries that read them as patterns.

A file or folder is written completely and then renamed; a kill or a full disk leaves the old one.
"""

import contextlib
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path of the same name at which the caller writes a file or a folder, which then replaces ``path``.

    The yielded path is in a new folder beside ``path``, so nothing is written through a link; if ``path`` is a link,
    the link is replaced, not its target. The folder is removed at the end, also after an error. A killed process leaves
    it to the next call for the same ``path``.

    Raises:
        OSError: if the folder cannot be created, or ``path`` cannot be replaced; its old content remains.
    """
    scratch = path.with_name(f".{path.name}.tmp")
    unfinished, earlier = scratch / path.name, scratch / f"{path.name}.old"
    _clear(scratch, earlier, path)
    scratch.mkdir(parents=True)
    try:
        yield unfinished
        _flush(unfinished)
        if path.is_dir() or unfinished.is_dir():  # a rename replaces only a file by a file
            with contextlib.suppress(FileNotFoundError):
                path.rename(earlier)
        os.replace(unfinished, path)
    finally:
        _clear(scratch, earlier, path)


def _clear(scratch: pathlib.Path, earlier: pathlib.Path, path: pathlib.Path) -> None:
    """Removes the temporary folder; moves the old content back if the new one did not take its place."""
    if scratch.is_symlink() or scratch.is_file():
        scratch.unlink()
    if os.path.lexists(earlier) and not os.path.lexists(path):
        earlier.rename(path)
    shutil.rmtree(scratch, ignore_errors=True)


def _flush(path: pathlib.Path) -> None:
    """Writes the data of all files to the disk; otherwise a power cut could leave the new name without the content."""
    for file in [path, *path.rglob("*")]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


def write_atomically(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file's content atomically, text as UTF-8. The old content remains if it raises OSError."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


@functools.cache
def plain_path(folder: str) -> str:
    r"""Returns a path of a folder without the characters of patterns, ``*``, ``?``, ``[`` and ``\``.

    TensorFlow expands the path of a checkpoint that it reads, so that ``lr[0.1]`` would name ``lr0``. If there are such
    characters, the path is that of a link, which is removed when the process exits. Paths on ``gs://`` and the like are
    returned unchanged.

    Raises:
        OSError: if there is no temporary directory.
    """
    if is_plain(folder) or "://" in folder:
        return folder
    link = os.path.join(_links().name, str(len(os.listdir(_links().name))))
    os.symlink(os.path.abspath(folder), link, target_is_directory=True)
    return link


def is_plain(path: str) -> bool:
    """Returns whether a path has no characters of patterns."""
    return not re.search(r"[*?\[\\]", path)


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    folder = tempfile.gettempdir()
    return tempfile.TemporaryDirectory(prefix="simclrv2-links-", dir=folder if is_plain(folder) else "/tmp")
