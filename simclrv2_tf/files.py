"""Atomic writes, and paths for libraries that read them as patterns.

A file or folder is written completely and then renamed; a kill or a full disk leaves the old one.
"""

import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator

import filelock

from simclrv2_tf.errors import DamagedError, SettingError
from simclrv2_tf.interrupts import scratch_dir

# Names of temporary folders, and in these, of the lock and the old content.
SCRATCH, LOCK, EARLIER = ".simclrv2-", "lock", "old-"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a path of the same name at which the caller writes a file or a folder, which then replaces ``path``.

    The yielded path is in a new folder of random name beside ``path``, so nothing is written through a link; if
    ``path`` is a link, the link is replaced, not its target. The folder is removed at the end, also after an error. A
    killed process leaves it to the next call for any path in the same directory. Of several processes that replace the
    same path at once, the last one wins.

    Raises:
        OSError: if the folder cannot be created, or ``path`` cannot be replaced; its old content remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(path.parent):
        if name.startswith(SCRATCH):
            _remove_abandoned(path.parent / name)
    scratch, lock = _create_scratch(path.parent)
    try:
        yield scratch / path.name
        _flush(scratch / path.name)
        _move(scratch / path.name, path, scratch / f"{EARLIER}{path.name}")
    finally:
        _remove(scratch, lock)


def _create_scratch(parent: pathlib.Path) -> tuple[pathlib.Path, filelock.BaseFileLock]:
    """Creates a folder that is locked while its process lives, as far as the file system has locks."""
    while True:
        scratch = pathlib.Path(tempfile.mkdtemp(prefix=SCRATCH, dir=parent))
        lock = filelock.FileLock(scratch / LOCK, timeout=0)
        try:
            lock.acquire()
        except (filelock.Timeout, FileNotFoundError, FileExistsError):  # another process has removed the folder
            continue
        except OSError:  # no locks: no other process can lock it either, so none removes it
            return scratch, lock
        if os.path.lexists(scratch / LOCK):
            return scratch, lock
        lock.release()  # it was removed between opening and locking the file


def _remove_abandoned(scratch: pathlib.Path) -> None:
    """Removes a temporary folder unless its process lives."""
    if scratch.is_symlink():
        return
    lock = filelock.FileLock(scratch / LOCK, timeout=0)
    with contextlib.suppress(OSError):  # filelock.Timeout is one
        lock.acquire()
        _remove(scratch, lock)


def _remove(scratch: pathlib.Path, lock: filelock.BaseFileLock) -> None:
    """Removes a temporary folder; moves the old content back if nothing took its place.

    The folder is renamed first, while it is locked, so that a process that waits for its lock cannot use it afterwards.
    Windows refuses this because the lock file is open.
    """
    for earlier in scratch.glob(f"{EARLIER}*"):
        path = scratch.with_name(earlier.name.removeprefix(EARLIER))
        if not os.path.lexists(path):
            earlier.rename(path)
    with contextlib.suppress(OSError):
        scratch = scratch.rename(f"{scratch}-removed")
    lock.release()
    shutil.rmtree(scratch, ignore_errors=True)


def _move(unfinished: pathlib.Path, path: pathlib.Path, earlier: pathlib.Path) -> None:
    """Moves new content to its path, and the old content out of the way unless a file replaces a file."""
    is_moved = False
    while not is_moved:
        if path.is_dir() or unfinished.is_dir():
            with contextlib.suppress(FileNotFoundError):
                path.rename(earlier)
        try:
            os.replace(unfinished, path)
            is_moved = True
        except OSError as error:  # these mean that another process has moved its content there in the meantime
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                raise
        shutil.rmtree(earlier, ignore_errors=True)


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


def refuse_link(path: pathlib.Path) -> None:
    """Raises SettingError if a folder of a run is a link, through which files would be written elsewhere."""
    if path.is_symlink():
        raise SettingError(
            f"--model_dir={path.parent}: {path.name} is a link; replace it with a folder if you trust the run"
        )


@functools.cache
def plain_path(folder: str) -> str:
    r"""Returns a path of a folder without the pattern characters ``*``, ``?``, ``[`` and ``\``.

    TensorFlow expands the path of a checkpoint that it reads, so that ``lr[0.1]`` would name ``lr0``. If there are such
    characters, the path is that of a link, which is removed when the process exits. Paths on ``gs://`` and the like are
    returned unchanged.

    Raises:
        OSError: if there is no temporary directory.
    """
    if is_plain(folder) or "://" in folder:
        return folder
    link = _new_link()
    os.symlink(os.path.abspath(folder), link, target_is_directory=True)
    return link


def link_files(paths: Iterable[str]) -> str:
    """Returns a folder with links to local files, which is removed when the process exits.

    Raises:
        OSError: if there is no temporary directory.
    """
    folder = _new_link()
    os.mkdir(folder)
    for path in paths:
        os.symlink(os.path.abspath(path), os.path.join(folder, os.path.basename(path)))
    return folder


def is_plain(path: str) -> bool:
    """Returns whether a path has no pattern characters. Windows path separators do not count."""
    return not re.search(r"[*?\[\\]", path.replace(os.sep, "/"))


def _new_link() -> str:
    return os.path.join(_links(), str(len(os.listdir(_links()))))


@functools.cache
def _links() -> str:
    folder = tempfile.gettempdir()
    return scratch_dir("simclrv2-links-", folder if is_plain(folder) else "/tmp")


def read_bounded(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Returns the content of a regular file; a pipe, a socket or a device is never opened.

    Raises:
        DamagedError: with the reason, if it is not a regular file, or its size is above ``max_bytes`` or wrong.
        OSError: if it cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DamagedError("it is no regular file")
    if status.st_size > max_bytes:
        raise DamagedError(f"it has more than {max_bytes >> 20} MB")
    with open(path, "rb") as file:
        content = file.read(status.st_size + 1)
    if len(content) != status.st_size:  # as in /proc
        raise DamagedError("its size is not that of its content")
    return content
