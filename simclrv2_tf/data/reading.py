"""Reading of files that may be anything: a pipe, a socket or a device is never opened, nor is a file above a size."""

import os
import stat
from collections.abc import Callable


def file_size(path: str) -> int:
    """Returns the size of a file in bytes: 0 if it is missing, −1 if it is no regular file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else -1


def read_file(path: str, max_bytes: int, head_bytes: int = 0, accepts: Callable[[bytes], bool] | None = None) -> bytes:
    """Returns the content of a file, b"" if it cannot or must not be read.

    Args:
        path: of the file.
        max_bytes: its size at most.
        head_bytes: number of bytes that ``accepts`` sees.
        accepts: whether the rest of a file that begins with these bytes is to be read; None: always.
    """
    if not 0 <= file_size(path) <= max_bytes:
        return b""
    try:
        with open(path, "rb") as file:
            head = file.read(head_bytes)
            return head + file.read() if accepts is None or accepts(head) else b""
    except OSError:
        return b""
