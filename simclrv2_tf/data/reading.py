"""Safe reading of untrusted paths: pipes, sockets, devices and files above a maximum size are never opened."""

import os
import stat
from collections.abc import Callable


def file_status(path: str) -> tuple[int, int, int, int]:
    """Returns the size of a file in bytes, and values that change with its content: two times in ns and the inode.

    The size is 0 if the file is missing, −1 if it is not a regular file.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0, 0
    size = status.st_size if stat.S_ISREG(status.st_mode) else -1
    return size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def file_size(path: str) -> int:
    """Returns the size of a file in bytes: 0 if it is missing, −1 if it is not a regular file."""
    return file_status(path)[0]


def read_file(path: str, max_bytes: int, head_bytes: int = 0, accepts: Callable[[bytes], bool] | None = None) -> bytes:
    """Returns the content of a file, b"" if it cannot or must not be read.

    Args:
        path: path of the file.
        max_bytes: its maximum size.
        head_bytes: number of bytes that ``accepts`` sees.
        accepts: returns whether to read the rest of a file that begins with these bytes; None: always.
    """
    size = file_size(path)
    if not 0 < size <= max_bytes:
        return b""
    try:
        with open(path, "rb") as file:
            head = file.read(min(head_bytes, size))
            # no more than its size: some files in /proc never end although their size is 0
            return head + file.read(size - len(head)) if accepts is None or accepts(head) else b""
    except OSError:
        return b""


def host_memory() -> int | None:
    """Returns the memory of this machine, or of its container, in bytes; None if unknown."""
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
        return machine if limit == "max" else min(machine, int(limit))
    except FileNotFoundError:  # not in a container
        return machine
    except (AttributeError, OSError, ValueError):  # on Windows
        return None
