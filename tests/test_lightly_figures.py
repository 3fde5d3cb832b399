"""Recomputes the figures in docs/faq.md that compare lightly's formulas with this package."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import LARS, ViewSettings, WarmUpCosine
from simclrv2_tf.data import augment, cropping

PAGE = pathlib.Path(__file__).parents[1] / "docs/faq.md"


@pytest.fixture
def figures():
    """Returns the numbers in the row of the table whose name the test passes."""

    def numbers(name: str) -> list[str]:
        (row,) = re.findall(rf"^\| {name} \| (.*) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
        return re.findall(r"\d[\d,.]*\d|\d", row)

    return numbers


def written(*values: float, digits: int = 2) -> set[str]:
    return {f"{value:.{digits}f}" for value in values}


def test_memory_bank(figures):
    images, rows = 256, 4096
    ours, theirs = 2 * images - 2 + rows, rows
    losses = written(np.log(theirs + 1), 2 * np.log(ours + 1), digits=1)
    assert {f"{ours:,}", f"{theirs:,}", *losses} <= set(figures("memory bank of M rows"))


def test_trust_ratio(figures):
    """The gradient g of a kernel below a batch norm is orthogonal to it; λ‖w‖ is a multiple of ‖g‖."""
    weight, gradient = np.array([[3.0, 0.0]], "float32"), np.array([[0.0, 2.0]], "float32")
    ratios = []
    for share in (1.0, 0.1):
        decay = share * 2.0 / 3.0
        variable = keras.Variable(weight)
        LARS(1.0, momentum=0.0, weight_decay=decay).apply([tf.constant(gradient)], [variable])
        total = gradient + decay * weight
        theirs = 0.001 * 3.0 / (2.0 + decay * 3.0) * np.linalg.norm(total)
        ratios.append(np.linalg.norm(weight - variable.numpy()) / theirs)
    assert written(*ratios) <= set(figures("LARS, trust ratio"))


def test_momentum_under_a_schedule(figures):
    """For equal gradients and a trust ratio of 1."""
    rates = WarmUpCosine(1.0, total_steps=1000, warmup_steps=100)(tf.range(1000)).numpy()
    ours = theirs = 0.0
    ratios = {}
    for step, rate in enumerate(rates):
        ours, theirs = 0.9 * ours + rate, 0.9 * theirs + 1
        ratios[step] = ours / (rate * theirs) if rate else 0
    assert written(ratios[10], ratios[100], ratios[550], ratios[900]) <= set(figures("LARS, momentum"))
    assert written(ratios[990], digits=1) <= set(figures("LARS, momentum"))
    assert f"{rates[-1]:.0e}" == "3e-06"  # of the peak, at the last step
    assert {"3", "10", "0.001"} <= set(figures("end of the cosine"))


def test_crops(figures):
    uniforms = np.random.default_rng(0).random((50_000, cropping.CROP_DRAWS), np.float32)
    shares = []
    for sampler in ("tensorflow", "torchvision"):
        boxes = cropping.random_crop_boxes(uniforms, 500, 500, ViewSettings(224, crop_sampler=sampler)).numpy()
        areas = boxes[:, 2] * boxes[:, 3] / 500**2
        shares += [100 * areas.mean(), 100 * np.mean(areas < 0.2)]
    assert written(*shares, digits=0) <= set(figures("crops")), shares


def test_colors(figures):
    def adjusted(color: tuple[float, ...], contrast: float = 1.0, saturation: float = 1.0) -> np.ndarray:
        image = tf.broadcast_to(tf.constant(color), [1, 2, 2, 3])
        factors = [tf.constant([value]) for value in (1.0, contrast, saturation, 0.0)]
        return augment.adjust_colors(image, *factors, tf.constant([0])).numpy()[0, 0, 0]

    def blended(color: tuple[float, ...], factor: float) -> np.ndarray:
        return factor * np.array(color) + (1 - factor) * np.dot(augment.LUMA, color)

    color = (0.6, 0.3, 0.2)
    np.testing.assert_allclose(adjusted(color, contrast=0.2), color, rtol=1e-5)
    assert written(*blended(color, 0.2), np.dot(augment.LUMA, color)) <= set(figures("contrast"))
    color = (0.8, 0.4, 0.2)
    assert written(*adjusted(color, saturation=0.5), digits=1) <= set(figures("saturation"))
    assert written(*blended(color, 0.5)) <= set(figures("saturation"))


def test_blur_at_the_border(figures):
    blurred = augment.gaussian_blur(tf.ones([1, 224, 224, 1]), tf.constant([2.0]), 224 // 10).numpy()[0, ..., 0]
    assert written(blurred[0, 112], blurred[0, 0]) <= set(figures("blur"))
