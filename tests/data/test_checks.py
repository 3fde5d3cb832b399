"""Warnings about images that are nearly black for their bit depth, or nearly blank."""

import dataclasses
import io

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from simclrv2_tf.data import checks
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.input import TrainingInput, evaluation_input
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.settings.config import Config

tfds.disable_progress_bar()
SIZE, COUNT = 8, 6


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def gradient(greatest, height=9):
    return np.linspace(0, greatest, height * 12).reshape(height, 12).astype(np.uint16)


@pytest.fixture
def folder(tmp_path):
    """``folder(4095)``: 16-bit images with this largest value, and one 8-bit image; cached or not."""

    def build(greatest, cache=False, **changes):
        paths = [str(tmp_path / f"{i}.png") for i in range(COUNT)]
        for path in paths:
            Image.fromarray(gradient(greatest)).save(path)
        Image.fromarray(gradient(255).astype(np.uint8)).save(paths[0])
        (tmp_path / "broken.png").write_bytes(b"\x89PNG" + bytes(20) + b"\x10\0")
        settings = Config(cache_dataset=cache, **changes)
        return FileSource.from_settings(settings, "deep", [*paths, str(tmp_path / "broken.png")])

    return build


def messages(caplog):
    return [record.getMessage() for record in caplog.records if "corrupt" not in record.getMessage()]


def encoded(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("greatest, bits", [(4095, 12), (2000, 11), (1023, 10), (1024, 11), (250, 8), (1, 8)])
def test_unused_bits_are_warned_of_with_the_flag_that_uses_them(greatest, bits, kind, caplog):
    color = tf.io.encode_png(np.stack([gradient(100)] * 3, axis=-1)).numpy()
    images = [encoded(gradient(greatest), kind), encoded(gradient(50), kind), color, encoded(np.eye(9, dtype=bool))]
    checks.warn_of_unused_bits("deep", images)
    assert messages(caplog) == [
        f"deep: 16-bit images are nearly black, as their greatest value is {max(greatest, 100)}; "
        f"--image_bits={bits} uses the whole range"
    ]


@pytest.mark.parametrize("greatest", [0, 4096, 65_535])
def test_used_bits_are_not_warned_of(greatest, caplog):
    broken = encoded(gradient(50))[:50]
    checks.warn_of_unused_bits("deep", [encoded(gradient(greatest)), encoded(np.zeros((2, 2), np.uint8)), broken, b""])
    checks.warn_of_unused_bits("deep", [])
    assert messages(caplog) == []


def test_a_source_warns_once(folder, caplog):
    source = folder(1023)
    data = [TrainingInput(part, 2, 2, ViewSettings(SIZE), seed=0) for part in (source, source.subset(range(COUNT)))]
    for part in data:
        part.batches(0, 1)
        evaluation_input(part.source, 3, SIZE)
    assert len(messages(caplog)) == 1 and "--image_bits=10" in messages(caplog)[0]


def test_images_in_memory_are_checked_too(folder, caplog):
    evaluation_input(folder(1023, cache=True), 3, SIZE)
    assert "--image_bits=10" in messages(caplog)[0]


def test_no_image_is_checked_if_the_bits_are_set(folder, caplog):
    evaluation_input(folder(1023, image_bits=10), 3, SIZE)
    assert messages(caplog) == []


def test_the_bits_that_are_set_are_used_in_training_and_evaluation(folder):
    dark, bright = folder(4095), folder(4095, image_bits=12)
    for batches in (
        lambda source: evaluation_input(source, COUNT, SIZE),
        lambda source: TrainingInput(source, COUNT, 1, ViewSettings(SIZE), seed=0).batches(0, 1),
    ):
        greatest = [np.max(next(iter(batches(source)))["images"]) for source in (dark.subset([1]), bright.subset([1]))]
        assert greatest[1] > 12 * greatest[0] > 0


class DeepPhotos(tfds.core.GeneratorBasedBuilder):
    """Streamed images of several sizes that use 10 of 16 bits."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 1), dtype=np.uint16)
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"image": image}))

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            yield i, {"image": gradient(1023, 9 + i)[..., np.newaxis]}


def test_records_are_checked_and_scaled_too(tmp_path, caplog):
    DeepPhotos(data_dir=str(tmp_path)).download_and_prepare()
    settings = Config(dataset="deep_photos", data_dir=str(tmp_path))
    dark, bright = (open_source(settings.replace(image_bits=bits), "train") for bits in (0, 10))
    images = [next(iter(evaluation_input(source, COUNT, SIZE)))["images"].numpy() for source in (dark, bright)]
    assert images[0].max() < 0.02 and images[1].max() > 0.9
    (message,) = messages(caplog)
    assert message.startswith("deep_photos/train: ") and "--image_bits=10" in message


# Blank images

NOISE = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), np.uint8)
FLAT = np.full_like(NOISE, [200, 10, 10])  # one color, whose channels differ


def warned(images, caplog, resident=False, **changes):
    """Returns the warnings about two batches of these images."""
    source = ArraySource("flat", images, None, ())
    data = TrainingInput(source, 10, 2, ViewSettings(SIZE, blur_probability=0), seed=0, **changes)
    if resident:
        data = dataclasses.replace(data, resident=tf.Variable(images.reshape(10, -1), trainable=False))
    batches = checks.warn_if_blank(data.batches(0, 2), "flat", images if resident else None)
    assert batches.cardinality() == len(list(batches)) == 2
    for ours, plain in zip(batches, data.batches(0, 2), strict=True):
        assert ours.keys() == plain.keys()
        for key, value in plain.items():
            np.testing.assert_array_equal(ours[key], value)
    return {record.getMessage() for record in caplog.records}


@pytest.mark.parametrize("changes", [{}, {"augment_on_host": True}, {"resident": True}])
def test_blank_images_are_warned_of(changes, caplog):
    images = np.where(np.arange(10)[:, None, None, None] == 3, NOISE, FLAT)
    (message,) = warned(images, caplog, **changes)
    assert message.startswith("flat: 9 of 10 images of the first batch are nearly blank")
    caplog.clear()
    images[5] = NOISE[5]
    assert warned(images, caplog, **changes) == set()


def test_a_little_noise_is_no_picture(caplog):
    assert warned(FLAT + (NOISE > 250), caplog) and not warned(FLAT + NOISE // 32, caplog.clear() or caplog)


def test_blank_photos_are_warned_of(tmp_path, caplog):
    paths = [str(tmp_path / f"{i}.png") for i in range(4)]
    for path in paths:
        Image.fromarray(FLAT[0]).save(path)
    data = TrainingInput(FileSource("white", tuple(paths), None, ()), 4, 2, ViewSettings(SIZE), seed=0)
    list(checks.warn_if_blank(data.batches(0, 3), "white"))
    assert len(caplog.records) == 1 and caplog.records[0].getMessage().startswith("white: 4 of 4 images")
