"""Files that must not be opened: pipes, sockets, devices and files above a size. They count as corrupt."""

import os
import socket
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from simclrv2_tf.data import reading
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput, evaluation_input
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.settings.config import Config

SIZE = 8


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


@pytest.fixture
def odd_files(tmp_path):
    """Files that are not readable images, by name; opening the pipe would block, and reading the device never ends."""
    paths = {
        name: str(tmp_path / f"{name}.png") for name in ("pipe", "socket", "device", "sparse", "missing", "folder")
    }
    os.mkfifo(paths["pipe"])
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(paths["socket"])
    os.symlink("/dev/zero", paths["device"])
    with open(paths["sparse"], "wb") as file:
        file.truncate(10**12)
    os.mkdir(paths["folder"])
    return paths


@pytest.fixture
def image_path(tmp_path):
    path = str(tmp_path / "image.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return path


def test_sizes(odd_files, image_path):
    sizes = {name: reading.file_size(path) for name, path in odd_files.items()}
    assert sizes == {"pipe": -1, "socket": -1, "device": -1, "folder": -1, "sparse": 10**12, "missing": 0}
    assert reading.file_size(image_path) == os.path.getsize(image_path)
    assert reading.file_size("a\0b") == 0


def test_contents(odd_files, image_path):
    with open(image_path, "rb") as file:
        content = file.read()
    assert reading.read_file(image_path, len(content)) == content
    assert reading.read_file(image_path, len(content) - 1) == b""
    assert reading.read_file(image_path, 10**6, 4, lambda head: head == content[:4]) == content
    assert reading.read_file(image_path, 10**6, 4, lambda head: False) == b""
    assert {reading.read_file(path, 10**6) for path in odd_files.values()} == {b""}


@pytest.mark.parametrize("cache", [False, True])
def test_files_that_must_not_be_opened_are_corrupt(odd_files, image_path, cache):
    paths = (image_path, *odd_files.values(), image_path)
    settings = Config(cache_dataset=cache, max_file_mb=1, max_corrupt_share=1)
    source = FileSource.from_settings(settings, "odd", paths)
    assert source.in_memory == cache and source.num_examples == len(odd_files) + 2
    (batch,) = evaluation_input(source, len(paths), SIZE)
    np.testing.assert_array_equal(batch["weights"], [1, *[0] * len(odd_files), 1])
    assert source.corrupt == set(odd_files.values())
    source.corrupt.clear()
    list(TrainingInput(source, len(paths), 2, ViewSettings(SIZE), seed=0).batches(0, 1))
    assert source.corrupt == set(odd_files.values())


@pytest.mark.parametrize("cache", [False, True])
def test_the_limit_of_a_file_s_size_is_a_setting(tmp_path, image_path, cache):
    with open(image_path, "ab") as file:  # readers ignore what follows the image
        file.truncate(2 * 10**6)
    for limit, weight in ((2, 1), (1, 0)):
        settings = Config(cache_dataset=cache, max_file_mb=limit)
        source = FileSource.from_settings(settings, "large", (image_path,))
        (batch,) = evaluation_input(source, 1, SIZE)
        assert batch["weights"].numpy() == [weight]


def test_a_file_of_proc_that_never_ends_is_not_read():
    assert reading.file_size("/proc/self/pagemap") == 0  # its declared size
    assert reading.read_file("/proc/self/pagemap", 10**6) == b""


def test_a_cached_file_that_is_no_image_takes_no_memory(tmp_path, image_path):
    paths = [image_path, *(str(tmp_path / f"{i}.png") for i in range(5))]
    for path in paths[1:]:
        with open(path, "wb") as file:
            file.truncate(10**8)
    tracemalloc.start()
    source = FileSource.from_settings(Config(cache_dataset=True), "sparse", paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(map(len, source.encoded)) == [os.path.getsize(image_path), 0, 0, 0, 0, 0] and peak < 10**6


def test_the_fingerprint_depends_on_the_sizes(odd_files, image_path):
    def fingerprint(*paths):
        return FileSource("some", paths, None, ()).fingerprint

    before = fingerprint(image_path, odd_files["missing"], odd_files["pipe"])
    assert before == fingerprint(image_path, odd_files["missing"], odd_files["pipe"])
    with open(image_path, "ab") as file:
        file.write(b"more")
    assert before != fingerprint(image_path, odd_files["missing"], odd_files["pipe"])
