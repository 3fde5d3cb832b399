"""Fingerprints depend on the content of images, and on nothing else."""

import os

import numpy as np
import pytest

from simclrv2_tf.data import fingerprints
from simclrv2_tf.data.sources import ArraySource, FileSource


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


@pytest.fixture(autouse=True)
def nothing_read_before(monkeypatch):
    monkeypatch.setattr(fingerprints, "_contents", {})


@pytest.fixture
def paths(tmp_path):
    """Paths of 20 files of 5,000 bytes."""
    paths = tuple(str(tmp_path / "files" / f"{i % 2}" / f"{i:02}.png") for i in range(20))
    content = np.random.default_rng(0).integers(0, 256, (20, 5000), np.uint8)
    for path, row in zip(paths, content, strict=True):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        row.tofile(path)
    return paths


def fingerprint(paths, **fields):
    return FileSource("some", tuple(paths), None, (), **fields).fingerprint


def flip_bit(path, offset):
    """Changes a bit of a file, but neither its size nor its time of modification."""
    status = os.stat(path)
    content = np.fromfile(path, np.uint8)
    content[offset] ^= 1
    content.tofile(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("offset", [0, 1234, 4999])
@pytest.mark.parametrize("row", [0, 7, 19])
def test_any_byte_of_a_small_set_counts(row, offset, paths):
    before = fingerprint(paths)
    flip_bit(paths[row], offset)
    assert fingerprint(paths) != before
    flip_bit(paths[row], offset)
    assert fingerprint(paths) == before


@pytest.mark.parametrize(
    ("offset", "is_noticed"), [(0, 1), (99, 1), (100, 0), (2450, 1), (2550, 0), (4899, 0), (4900, 1)]
)
def test_of_a_large_set_three_pieces_of_each_file_count(offset, is_noticed, paths, monkeypatch):
    monkeypatch.setattr(fingerprints, "WHOLE_BYTES", 0)
    monkeypatch.setattr(fingerprints, "MIN_PIECE", 100)
    before = fingerprint(paths)
    flip_bit(paths[3], offset)
    assert (fingerprint(paths) != before) == is_noticed


def test_the_number_of_files_that_are_read_is_bounded(paths, monkeypatch):
    monkeypatch.setattr(fingerprints, "MAX_FILES", 5)
    before = fingerprint(paths)
    for path in paths:
        flip_bit(path, 9)
        assert (fingerprint(paths) != before) == (path in paths[:1] + paths[4::5])
        flip_bit(path, 9)
    with open(paths[2], "ab") as file:
        file.write(b"more")
    assert fingerprint(paths) != before  # the sizes of all


def test_two_files_that_are_exchanged_count(paths):
    before = fingerprint(paths)
    os.rename(paths[4], paths[4] + "x")
    os.rename(paths[6], paths[4])
    os.rename(paths[4] + "x", paths[6])
    assert fingerprint(paths) != before


def test_neither_the_place_nor_the_cache_nor_times_count(paths, tmp_path):
    before = fingerprint(paths)
    assert fingerprint(paths, encoded=np.array([b"cached"] * 20, object)) == before
    os.utime(paths[0], (1, 1))
    assert fingerprint(paths) == before
    os.rename(tmp_path / "files", tmp_path / "elsewhere")
    assert fingerprint(path.replace("/files/", "/elsewhere/") for path in paths) == before


def test_files_that_have_not_changed_are_read_once(paths, monkeypatch):
    reads, read_digest = [], fingerprints.read_digest
    monkeypatch.setattr(fingerprints, "read_digest", lambda *args: reads.append(args) or read_digest(*args))
    assert fingerprint(paths) == fingerprint(paths) and len(reads) == 1


def test_shape_dtype_and_labels_of_arrays_count():
    images, names = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3), ("a", "b")
    sources = [
        ArraySource("one", images, np.array([0, 1], np.int32), names),
        ArraySource("one", images.reshape(2, 2, 8, 3), np.array([0, 1], np.int32), names),
        ArraySource("one", images, np.array([1, 0], np.int32), names),
        ArraySource("one", images, None, ()),
        ArraySource("one", images, np.array([0, 1], np.int32), ("b", "a")),
        ArraySource("one", images[::-1], np.array([0, 1], np.int32), names),
    ]
    assert len({source.fingerprint for source in sources}) == len(sources)
    assert (
        ArraySource("another", images.copy(), np.array([0, 1], np.int32), names).fingerprint == sources[0].fingerprint
    )
