"""Fingerprints of images and labels, by which a run recognizes its data.

Arrays are hashed whole. For files, the names, sizes and a bounded part of the content are hashed: all of it up to
``WHOLE_BYTES`` in total; above that, the start, middle and end of each file, for at most ``MAX_FILES`` files.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

import numpy as np
import tensorflow as tf

from simclrv2_tf.data import reading

WHOLE_BYTES = 256 * 2**20
MIN_PIECE = 4096  # minimum bytes to read at each of three places of a file
MAX_FILES = 100_000
CHUNK = 256  # files that a thread reads one after another
THREADS = 16  # so that requests to a network file system overlap

_contents: dict[bytes, bytes] = {}  # content digests of files, by the digest of their status


def digest(num_examples: int, *parts: np.ndarray | str | bytes | None) -> str:
    """Returns a fingerprint: the number of images and a hash of arrays, with their shapes and dtypes, and texts."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, np.ndarray):
            hashed.update(f"{part.dtype.str} {part.shape}\0".encode())
            hashed.update(np.ascontiguousarray(part))  # type: ignore[arg-type]
        elif part is not None:
            hashed.update((os.fsencode(part) if isinstance(part, str) else part) + b"\0")
    return f"{num_examples} ({hashed.hexdigest()})"


def file_statuses(paths: Sequence[str]) -> np.ndarray:
    """Returns `reading.file_status` of each file, int64 ``[n, 4]``."""
    chunks = _map_chunks(lambda rows: [reading.file_status(paths[row]) for row in rows], np.arange(len(paths)))
    return np.array([status for chunk in chunks for status in chunk], np.int64).reshape(-1, 4)


def content_digest(paths: Sequence[str], statuses: np.ndarray) -> bytes:
    """Returns `read_digest` of local files. A process reads them only once while their status stays the same.

    Args:
        paths: paths of the files.
        statuses: their `file_statuses`. Only regular files are opened.
    """
    key = hashlib.blake2b(statuses, digest_size=16)  # type: ignore[arg-type]
    for path in paths:
        key.update(os.fsencode(path) + b"\0")
    if key.digest() not in _contents:
        _contents[key.digest()] = read_digest(paths, statuses[:, 0], io.FileIO)
    return _contents[key.digest()]


def read_digest(paths: Sequence[str], sizes: np.ndarray, open_file: Callable[[str], IO[bytes]]) -> bytes:
    """Returns a hash of the content of files, in order; only a bounded part is read if they are large or many."""
    rows = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), MAX_FILES)).astype(int))
    is_whole, piece = np.maximum(sizes, 0).sum() <= WHOLE_BYTES, max(MIN_PIECE, WHOLE_BYTES // (3 * len(rows)))

    def read_files(rows: np.ndarray) -> bytes:
        hashed = hashlib.blake2b(digest_size=16)
        for row in rows:
            for part in _read_pieces(open_file, paths[row], int(sizes[row]), WHOLE_BYTES if is_whole else piece):
                hashed.update(part)
            hashed.update(b"\0")
        return hashed.digest()

    return hashlib.blake2b(b"".join(_map_chunks(read_files, rows)), digest_size=16).digest()


def _read_pieces(open_file: Callable[[str], IO[bytes]], path: str, size: int, piece: int) -> Iterator[bytes]:
    """Yields the start, the middle and the end of a file, ``piece`` bytes each; all of it if it has at most three."""
    if size <= 0:
        return
    try:
        with open_file(path) as file:
            for offset in range(0, size, piece) if size <= 3 * piece else (0, (size - piece) // 2, size - piece):
                file.seek(offset)
                yield file.read(piece)
    except (OSError, tf.errors.OpError):  # it counts as corrupt when it is trained on
        yield b"unreadable"


def _map_chunks(function: Callable[[np.ndarray], Any], rows: np.ndarray) -> list[Any]:
    """Calls a function with chunks of rows in several threads; returns the results in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, np.array_split(rows, -(-len(rows) // CHUNK) or 1)))
