"""Data services produce the same batches as this process; unsuitable ones are refused in one line."""

import contextlib
import dataclasses
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import service
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import WHOLE, Part, TrainingInput
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError

COUNT, BATCH, SIZE = 14, 8, 16
CORRUPT = 3
RUNNING = []


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24, 3), np.uint8)
    paths = tuple(str(folder / f"{i:02}.png") for i in range(COUNT))
    for i, path in enumerate(paths):
        Image.fromarray(pixels[i]).save(path)
    (folder / f"{CORRUPT:02}.png").write_bytes(b"nothing")
    return FileSource("photos", paths, np.arange(COUNT, dtype=np.int32), paths)


def start():
    """Starts a service in this process; it is never stopped, as stopping waits for all iterators."""
    while True:  # until two consecutive ports are free
        with socket.create_server(("", 0)) as free:
            address = f"localhost:{free.getsockname()[1]}"
        with contextlib.suppress(SettingError):
            RUNNING.append(service.serve(address))
            return f"grpc://{address}"


@pytest.fixture(scope="module")
def addresses():
    """Two services of this process."""
    return [start() for _ in range(2)]


def batches(source, part=WHOLE, first=0, **changes):
    data = TrainingInput(source, BATCH, 2, ViewSettings(SIZE), seed=0, part=part, **changes)
    return list(data.batches(first, 6 - first).as_numpy_iterator())


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_services_produce_the_same_batches(photos, addresses, count):
    alone, served = (dataclasses.replace(photos, corrupt=set()) for _ in range(2))
    expected = batches(alone)
    services = service.services(",".join(addresses[:count]), served, timeout=60)
    assert_equal(batches(served, services=services), expected)
    assert served.corrupt == alone.corrupt == {photos.paths[CORRUPT]}  # reported by the services
    assert_equal(batches(served, services=services, first=4), expected[4:])  # a resumed run


@pytest.mark.slow
def test_services_turn_images_upright_and_show_them_on_white(tmp_path, addresses):
    """JPEG and PNG are decoded without Python, including these conversions."""
    exif, pixels = Image.Exif(), np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24, 4), np.uint8)
    exif[0x0112] = 6
    paths = [tmp_path / f"{i:02}.{suffix}" for i, suffix in zip(range(BATCH), ["jpg", "png"] * BATCH, strict=False)]
    for i, path in enumerate(paths):
        image = Image.fromarray(pixels[i])
        (image.convert("RGB") if path.suffix == ".jpg" else image).save(path, exif=exif)
    Image.fromarray(pixels[0, :, :, 0].astype(np.uint16)).save(paths[1])  # nearly black
    source = FileSource("odd", tuple(map(str, paths)), None, ())
    assert_equal(batches(source, services=(addresses[0],)), batches(source))
    assert source.corrupt == set()


@pytest.mark.slow
def test_each_worker_asks_for_its_own_rows_and_services_can_augment(photos, addresses):
    part = Part(1, 2)
    expected = batches(photos, part, augment_on_host=True)
    assert_equal(batches(photos, part, augment_on_host=True, services=tuple(addresses)), expected)


def test_services_that_cannot_share_a_batch_are_refused(photos):
    with pytest.raises(SettingError, match=r"^--data_service: 3 services cannot share a worker's 8 images equally$"):
        batches(photos, services=("a", "b", "c"))


def test_a_service_with_several_workers_is_refused(photos):
    """It would yield every batch once per worker."""
    address = start()
    config = tf.data.experimental.service.WorkerConfig(address.removeprefix("grpc://"), heartbeat_interval_ms=100)
    RUNNING.append(tf.data.experimental.service.WorkerServer(config))
    endless = TrainingInput(photos, BATCH, 2, ViewSettings(SIZE), seed=0, services=(address,)).batches(0, 10**9)
    with pytest.raises(tf.errors.InvalidArgumentError, match="--data_service: a step is missing or doubled"):
        for _ in endless:
            pass


@pytest.mark.parametrize(
    "value, changes, why",
    [
        ("cpu0:5050", {}, r"must be grpc://HOST:PORT; separate several by commas"),
        ("grpc://cpu0", {}, r"must be grpc://HOST:PORT; separate several by commas"),
        ("grpc://no.such.host.invalid:5050", {}, r"no\.such\.host\.invalid does not resolve"),
        ("grpc://localhost:1", {}, r"grpc://localhost:1 did not answer within --worker_timeout=1 seconds"),
        ("grpc://a:1,grpc://a:1", {}, r"the same service is listed twice"),
        ("grpc://a:1", {"paths": ("a.png", "b.webp")}, r"services decode JPEG and PNG, not b\.webp"),
        ("grpc://a:1", {"paths": ("a.JPG", "b.jfif", "c.TIFF")}, r"services decode JPEG and PNG, not c\.TIFF"),
        ("grpc://a:1", {"paths": ("a.png", "b.avif", "c.heic")}, r"services decode JPEG and PNG, not b\.avif"),
        ("grpc://a:1", {"encoded": np.array([b""])}, r"photos is in this machine's memory, .*"),
    ],
)
def test_unsuitable_services_and_sources_are_refused_in_one_line(photos, value, changes, why):
    with pytest.raises(SettingError, match=rf"^--data_service={value}: {why}$"):
        service.services(value, dataclasses.replace(photos, **changes), timeout=1)


def test_images_in_memory_are_not_served():
    source = ArraySource("digits", np.zeros((2, 8, 8, 3), np.uint8), None, ())
    with pytest.raises(SettingError, match=r"^--data_service=grpc://a:1: digits is in this machine's memory"):
        service.services("grpc://a:1", source, timeout=1)


def test_a_port_in_use_is_refused_in_one_line(addresses):
    address = addresses[0].removeprefix("grpc://")
    with pytest.raises(SettingError, match=rf"^--address={address}: no service can listen there \("):
        service.serve(address)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_service(number):
    while True:  # until two consecutive ports are free
        with socket.create_server(("", 0)) as free:
            command = ["-m", "simclrv2_tf.data.service", f"--address=localhost:{free.getsockname()[1]}"]
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
        if process.stdout.readline().startswith("--data_service=grpc://localhost:"):
            break
    process.send_signal(number)
    assert process.wait(60) == 128 + number


@pytest.mark.parametrize("address", ["cpu0", "cpu0:port", "cpu0:99999"])
def test_an_address_without_a_port_is_refused_in_one_line(address):
    with pytest.raises(SettingError, match=rf"^--address={address}: no service can listen there \("):
        service.serve(address)
