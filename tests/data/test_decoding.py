"""Views of encoded images: decoded once, cropped and resized; JPEGs at a fraction of their size if that suffices."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import augment
from simclrv2_tf.data.augment import CROP_DRAWS, ViewSettings
from simclrv2_tf.data.decoding import cropped_views, decode

SIZE = 16


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def encoded(height, width, encode=tf.io.encode_jpeg):
    """Returns encoded noise, whose pixels differ with every way of decoding."""
    return encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def crops_of(count, views=2):
    return np.random.default_rng(1).random((count, views, CROP_DRAWS), np.float32)


def resized(image, boxes, settings):
    """Returns the views that a straightforward implementation would compute."""
    size = (settings.image_size, settings.image_size)
    views = [tf.image.resize(image[y : y + h, x : x + w], size, settings.resize_method) for y, x, h, w in boxes]
    return np.clip(views, 0, 255)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height, width", [(20, 30), (50, 41), (120, 150)])  # the last one is not cast before
def test_views_are_the_crops_resized_and_rounded(height, width, method):
    settings = ViewSettings(SIZE, resize_method=method)
    jpeg = encoded(height, width)
    for crops in crops_of(5):
        boxes = augment.random_crop_boxes(crops, height, width, settings).numpy()
        views = cropped_views(jpeg, tf.constant(crops), settings).numpy()
        assert views.dtype == np.uint8 and views.shape == (2, SIZE, SIZE, 3)
        np.testing.assert_allclose(views, resized(tf.io.decode_jpeg(jpeg), boxes, settings), rtol=0, atol=0.501)


def test_a_scaled_jpeg_is_as_small_as_its_smallest_crop_allows():
    settings = ViewSettings(SIZE, jpeg_scaling=True)
    height, width = 290, 251
    jpeg = encoded(height, width)
    decoded = {ratio: tf.io.decode_jpeg(jpeg, ratio=ratio) for ratio in (1, 2, 4, 8)}
    seen = set()
    for crops in crops_of(20):
        boxes = augment.random_crop_boxes(crops, height, width, settings).numpy()
        ratio = max(r for r in decoded if boxes[:, 2:].min() >= r * SIZE)
        views = cropped_views(jpeg, tf.constant(crops), settings)
        np.testing.assert_allclose(views, resized(decoded[ratio], boxes // ratio, settings), rtol=0, atol=0.501)
        assert (boxes[:, 2:] // ratio >= SIZE).all()  # no view is enlarged
        seen.add(ratio)
    assert seen == {4, 8}


def test_small_jpegs_and_other_formats_are_not_scaled():
    exact, scaled = (ViewSettings(SIZE, jpeg_scaling=scaling) for scaling in (False, True))
    for image in (encoded(31, 31), encoded(290, 251, tf.io.encode_png)):
        for crops in crops_of(3):
            views = [cropped_views(image, tf.constant(crops), settings) for settings in (exact, scaled)]
            np.testing.assert_array_equal(*views)


def test_a_scaled_jpeg_differs_by_less_than_a_pixel_of_a_view():
    """Its boxes are whole pixels of the smaller image, which has at least as many pixels as the view."""
    y, x = np.mgrid[:290, :251] / 290
    waves = [np.sin(6 * x + 2 * y), np.cos(5 * y), np.sin(4 * (x - y))]
    slope = 60 * np.hypot(6, 2) / SIZE  # of the waves below, a pixel of a view of the whole image
    jpeg = tf.io.encode_jpeg((127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8), quality=95)
    for crops in crops_of(10):
        exact, scaled = (
            cropped_views(jpeg, tf.constant(crops), ViewSettings(SIZE, jpeg_scaling=on)).numpy().astype(float)
            for on in (False, True)
        )
        difference = np.abs(exact - scaled)
        assert 0 < difference.mean() < slope / 4 and difference.max() < slope


def saved(format, size=(5, 4), **options):
    frames = [Image.fromarray(np.full((*size, 3), value, np.uint8)) for value in (200, 0)]
    file = io.BytesIO()
    frames[0].save(file, format, append_images=frames[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize("format, options", [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_animation_gives_its_first_frame(format, options):
    image = decode(saved(format, save_all=True, **options))
    np.testing.assert_array_equal(image, np.full((5, 4, 3), 200, np.uint8))


def test_images_of_16_bits_per_channel_lose_the_lower_8():
    pixels = np.random.default_rng(0).integers(0, 2**16, (5, 4, 3), np.uint16)
    np.testing.assert_array_equal(decode(tf.io.encode_png(pixels)), pixels >> 8)


def patched(data, at, *sides):
    return data[:at] + struct.pack(*sides) + data[at + struct.calcsize(sides[0]) :]


PNG, JPEG, GIF = (saved(format) for format in ("PNG", "JPEG", "GIF"))
BOMBS = {  # each claims more pixels than it should
    "png": patched(PNG, 16, ">II", 50_000, 50_000),
    "small_png": patched(PNG, 16, ">II", 14_000, 14_000),
    "jpeg": patched(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65_000, 65_000),
    "gif": patched(GIF, 6, "<HH", 65_000, 65_000),
}


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_of_too_many_pixels_is_refused_before_it_takes_memory(kind, scaling):
    settings = ViewSettings(SIZE, jpeg_scaling=scaling)
    for make in (decode, lambda encoded: cropped_views(encoded, crops_of(1)[0], settings)):
        with pytest.raises(tf.errors.OpError, match=r"too many pixels|DecompressionBombError"):
            make(tf.constant(BOMBS[kind]))


def test_only_image_formats_are_read_that_run_nothing():
    """Pillow would start Ghostscript for this file."""
    with pytest.raises(tf.errors.OpError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n")
