"""Crops match torchvision, and resizing matches Pillow; recorded crops are tested in ``test_augment``."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import cropping
from simclrv2_tf.data.augment import ViewSettings

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def draw_boxes(count, height, width, **ranges):
    settings = ViewSettings(32, crop_sampler="torchvision", **ranges)
    rows = np.random.default_rng(0).random((count, cropping.CROP_DRAWS), np.float32)
    return cropping.random_crop_boxes(rows, height, width, settings).numpy()


@pytest.mark.parametrize("method", RESAMPLING)
@pytest.mark.parametrize("size", [7, 24, 90])
def test_antialiased_crops_are_pillows(method, size):
    image = np.random.default_rng(0).random((61, 47), np.float32)
    y, x, height, width = 5, 9, 50, 33
    box = (x, y, x + width, y + height)
    expected = np.asarray(Image.fromarray(image).crop(box).resize((size, size), RESAMPLING[method]))

    pixels = np.repeat(image[..., np.newaxis], 3, axis=-1)
    boxes = np.array([[[y, x, height, width]]], np.int32)
    ours = cropping.crop_and_resize(pixels[np.newaxis], boxes, size, f"{method}_antialiased")[0, 0, ..., 0]
    np.testing.assert_allclose(ours, expected, atol=5e-6)

    by_image = cropping.resize(
        tf.constant(pixels[y : y + height, x : x + width]), (size, size), f"{method}_antialiased"
    )
    np.testing.assert_allclose(by_image[..., 0], expected, atol=5e-6)


def test_the_evaluation_view_is_antialiased():
    image = np.random.default_rng(0).random((80, 64), np.float32)
    pixels = np.repeat(image[..., np.newaxis], 3, axis=-1)
    view = cropping.center_crop_and_resize(pixels, (16, 16), method="bilinear_antialiased")
    expected = np.asarray(Image.fromarray(image).resize((16, 16), RESAMPLING["bilinear"]))
    np.testing.assert_allclose(view[..., 0], expected, atol=5e-6)
    plain = cropping.center_crop_and_resize(pixels, (16, 16), method="bilinear")
    assert plain.numpy().std() > 1.5 * expected.std()  # it reads two of five rows


def test_torchvision_boxes_have_uniform_areas_and_log_uniform_aspects():
    y, x, height, width = draw_boxes(20_000, 400, 400, crop_area_min=0.2, crop_area_max=0.6).T.astype(float)
    area, log_aspect = height * width / 400**2, np.log(width / height)
    for values, low, high in ((area, 0.2, 0.6), (log_aspect, math.log(3 / 4), math.log(4 / 3))):
        assert low - 0.01 < values.min() and values.max() < high + 0.01
        quantiles = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9])
        np.testing.assert_allclose((quantiles - low) / (high - low), [0.1, 0.25, 0.5, 0.75, 0.9], atol=0.015)
    for offset, size in ((y, height), (x, width)):
        share = offset / (400 - size)
        np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.015)
        assert offset.min() == 0 and (offset + size).max() == 400  # both borders are reached


def reference_box(random, height, width, area_range, aspect_range):
    """Returns a box by the published algorithm of ``torchvision.transforms.RandomResizedCrop``, in plain Python."""
    for _ in range(10):
        area = height * width * random.uniform(*area_range)
        aspect = math.exp(random.uniform(*np.log(aspect_range)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < aspect_range[0]:
        h = round(width / aspect_range[0])
    elif width / height > aspect_range[1]:
        w = round(height * aspect_range[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("height,width", [(48, 90), (31, 33), (20, 200)])
def test_torchvision_boxes_are_distributed_as_by_its_algorithm(height, width):
    count = 8000
    ours = draw_boxes(count, height, width, crop_area_min=0.3)
    random = np.random.default_rng(1)
    theirs = np.array([reference_box(random, height, width, (0.3, 1.0), (3 / 4, 4 / 3)) for _ in range(count)])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        levels = np.arange(max(height, width) + 1)
        distance = np.abs([np.mean(mine <= level) - np.mean(other <= level) for level in levels]).max()
        assert distance < 1.95 * math.sqrt(2 / count)  # Kolmogorov-Smirnov: exceeded once in 1,000


@pytest.mark.parametrize(
    "height,width,box", [(10, 100, [0, 43, 10, 13]), (100, 10, [43, 0, 13, 10]), (12, 10, [0, 0, 12, 10])]
)
def test_without_a_fitting_box_it_is_the_central_one(height, width, box):
    """Areas above the image's own never fit, as in ``RandomResizedCrop``'s last lines."""
    settings = ViewSettings(32, crop_sampler="torchvision", crop_area_min=1.0, crop_aspect_min=0.75)
    rows = np.full((1, cropping.CROP_DRAWS), 0.97, np.float32)  # the widest aspect, which does not fit
    if height > width:
        rows[:] = 0.03
    if (height, width) == (12, 10):
        rows[:, : cropping.CROP_ATTEMPTS] = 0.9
    np.testing.assert_array_equal(cropping.random_crop_boxes(rows, height, width, settings).numpy()[0], box)


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="crop_sampler=uniform: must be one of tensorflow, torchvision"):
        ViewSettings(32, crop_sampler="uniform")
