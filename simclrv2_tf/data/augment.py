"""Augmentation of cropped views: flip, colour and blur (SimCLR, arXiv 2002.05709, appendix A).

Every random function takes its random numbers, uniform in [0, 1), as an argument, one row per view. It is batched,
contains no random operation and compiles under XLA. A view thus depends on its own row alone: it is the same on host
and device, on one replica and on many, in a first run and a resumed one.
"""

import dataclasses
import itertools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.settings.config import check_arguments

DRAWS = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "grayscale", "blur", "sigma")
NUM_DRAWS = len(DRAWS)
NUM_BASE_DRAWS = 10  # these share a stream with the crops; appended draws do not change their values

LUMA = (0.2989, 0.587, 0.114)
SIGMA_RANGE = (0.1, 2.0)  # px
MAX_IMAGE_SIZE = 4096  # px, as on the command line

# ORDERS[k, c]: position of operation c (brightness, contrast, saturation, hue) in the k-th order.
ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)


@keras.saving.register_keras_serializable(package="simclrv2_tf")
@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """Crop and augmentation of a view; the defaults are those for pretraining on ImageNet (SimCLR, appendix A).

    >>> pretraining = ViewSettings(224)
    >>> cifar10 = ViewSettings(32, color_jitter_strength=0.5, blur_probability=0.0)
    >>> finetuning = ViewSettings.crop_and_flip(224)

    Attributes:
        image_size: height and width of a view, px.
        crop_area_min: smallest fraction of the image's area in a crop (never below ``cropping.MIN_COVERED``).
        crop_area_max: largest fraction.
        crop_aspect_min: smallest width / height of a crop.
        crop_aspect_max: largest width / height.
        flip: mirror left and right with probability one half.
        color_jitter_strength: s; brightness, contrast and saturation are multiplied by U(1 ∓ 0.8 s) and the hue is
            rotated by U(∓ 0.2 s) of a full turn, in random order. 0: no colour operation, not even grayscale.
        jitter_probability: probability of all four of them together.
        grayscale_probability: probability of dropping the colours.
        blur_probability: probability of a Gaussian blur: sigma U(0.1, 2) px, kernel ``image_size // 10`` px. 0: none.
        crop_sampler: how crops are drawn: "tensorflow" as the official code does, or "torchvision", whose areas are
            uniform and whose aspects are uniform on a logarithmic scale.
        resize_method: "bicubic" or "bilinear"; "bicubic_antialiased" or "bilinear_antialiased" widen the kernel where
            an image is made smaller, as Pillow and torchvision do.
        jpeg_scaling: decode a JPEG at a half, a quarter or an eighth of its size, as long as no crop falls below
            ``image_size``. Cheaper for large photographs, but the pixels differ.

    Raises:
        ValueError: for an unknown crop sampler or resize method, an empty range, or a probability outside [0, 1].
    """

    image_size: int
    crop_area_min: float = 0.08
    crop_area_max: float = 1.0
    crop_aspect_min: float = 3 / 4
    crop_aspect_max: float = 4 / 3
    flip: bool = True
    color_jitter_strength: float = 1.0
    jitter_probability: float = 0.8
    grayscale_probability: float = 0.2
    blur_probability: float = 0.5
    crop_sampler: str = "tensorflow"
    resize_method: str = "bicubic"
    jpeg_scaling: bool = False

    def __post_init__(self) -> None:
        names = ("crop_area_min", "color_jitter_strength", "crop_sampler", "resize_method", "jpeg_scaling")
        check_arguments(use_flip=self.flip, **{name: getattr(self, name) for name in names})
        if not (isinstance(self.image_size, int) and 1 <= self.image_size <= MAX_IMAGE_SIZE):
            raise ValueError(f"image_size={self.image_size!r}: must be a whole number from 1 to {MAX_IMAGE_SIZE}")
        if not 0 < self.crop_area_min <= self.crop_area_max <= 1:
            raise ValueError(f"crop areas must obey 0 < {self.crop_area_min} <= {self.crop_area_max} <= 1")
        if not 0 < self.crop_aspect_min <= self.crop_aspect_max < math.inf:
            raise ValueError(f"crop aspects must obey 0 < {self.crop_aspect_min} <= {self.crop_aspect_max}")
        for name in ("jitter_probability", "grayscale_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], but is {getattr(self, name)}")

    @classmethod
    def crop_and_flip(cls, image_size: int, **changes: Any) -> "ViewSettings":
        """Returns the settings for training on labels: neither colour nor blur."""
        return cls(image_size, **{"color_jitter_strength": 0.0, "blur_probability": 0.0, **changes})

    def get_config(self) -> dict[str, Any]:
        """Returns the fields, for Keras's serialization."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ViewSettings":
        """Inverse of ``get_config``."""
        return cls(**config)


def transform_lines(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Applies ``rows [..., i, h]`` and ``columns [..., k, w]`` to ``images [..., h, w, c]``: ``[..., i, k, c]``."""
    return tf.einsum("...ih,...hkc->...ikc", rows, tf.einsum("...kw,...hwc->...hkc", columns, images))


def to_grayscale(images: tf.Tensor) -> tf.Tensor:
    """Returns the luma of ``[..., 3]`` RGB images in all three channels."""
    return tf.broadcast_to(tf.reduce_sum(images * LUMA, axis=-1, keepdims=True), tf.shape(images))


def _clip(images: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(images, 0.0, 1.0)


def _adjust_contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    return _clip(images * factor + mean * (1 - factor))  # in this form, a factor of 1 leaves every bit as it is


def _adjust_hue_and_saturation(images: tf.Tensor, turn: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Rotates the hue and scales the saturation in HSV space; images ``[N, H, W, 3]``, parameters ``[N, 1, 1]``."""
    red, green, blue = tf.unstack(images, axis=-1)
    value = tf.maximum(tf.maximum(red, green), blue)
    chroma = value - tf.minimum(tf.minimum(red, green), blue)
    scale = tf.math.divide_no_nan(1.0, chroma)
    hue = tf.where(
        value == red,
        (green - blue) * scale,
        tf.where(value == green, 2 + (blue - red) * scale, 4 + (red - green) * scale),
    )
    hue = tf.math.floormod(hue + 6 * turn, 6.0)  # in sixths of a turn
    chroma = tf.minimum(chroma * factor, value)
    ramps = (tf.abs(hue - 3) - 1, 2 - tf.abs(hue - 2), 2 - tf.abs(hue - 4))
    return tf.stack([value - chroma * (1 - _clip(ramp)) for ramp in ramps], axis=-1)


def adjust_colors(
    images: tf.Tensor,
    brightness: tf.Tensor,
    contrast: tf.Tensor,
    saturation: tf.Tensor,
    hue: tf.Tensor,
    order: tf.Tensor,
) -> tf.Tensor:
    """Changes each image's brightness, contrast, saturation and hue in its own order, clipped to [0, 1] after each.

    The operations are those of ``tf.image.adjust_*``, but brightness is a factor. Hue and saturation need HSV space.
    The fixed sequence therefore has two HSV operations and, before, between and after them, the three operations
    brightness, contrast, brightness. Every order is a choice among these places; in all others an image's factor is 1.
    This costs two conversions to HSV and three means, instead of four each for four rounds of four operations.

    Args:
        images: float32 ``[N, H, W, 3]`` in [0, 1].
        brightness: factors ``[N]``.
        contrast: factors ``[N]``, about the mean of each channel.
        saturation: factors ``[N]``.
        hue: ``[N]``, in full turns.
        order: int32 ``[N]``, rows of `ORDERS`.

    Returns:
        float32 ``[N, H, W, 3]`` in [0, 1].
    """
    b, c, s, h = tf.unstack(tf.gather(tf.constant(ORDERS), order), axis=-1)
    first, second = tf.minimum(s, h), tf.maximum(s, h)
    b_stretch, c_stretch = (tf.cast(op > first, tf.int32) + tf.cast(op > second, tf.int32) for op in (b, c))

    def only_if(chosen: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
        return tf.where(chosen, factor, 1.0)[:, tf.newaxis, tf.newaxis, tf.newaxis]

    for stretch in range(3):
        if stretch:
            is_hue = (h == first) if stretch == 1 else (h == second)
            turn, factor = tf.where(is_hue, hue, 0.0), tf.where(is_hue, 1.0, saturation)
            images = _adjust_hue_and_saturation(
                images, turn[:, tf.newaxis, tf.newaxis], factor[:, tf.newaxis, tf.newaxis]
            )
        images = _clip(images * only_if((b_stretch == stretch) & (b < c), brightness))
        images = _adjust_contrast(images, only_if(c_stretch == stretch, contrast))
        images = _clip(images * only_if((b_stretch == stretch) & (b > c), brightness))
    return images


def gaussian_blur(images: tf.Tensor, sigma: tf.Tensor, kernel_size: int) -> tf.Tensor:
    """Blurs each image by a Gaussian with its own sigma; beyond the border the image is 0.

    Args:
        images: float32 ``[N, H, W, C]``.
        sigma: float32 ``[N]``, px, above 0.
        kernel_size: taps of the kernel, which sum to 1; an even number is raised to the next odd one.

    Returns:
        float32 ``[N, H, W, C]``.
    """
    radius = kernel_size // 2
    precision = 1 / (2 * sigma[:, tf.newaxis, tf.newaxis] ** 2)
    taps = tf.range(-radius, radius + 1, dtype=tf.float32)
    total = tf.reduce_sum(tf.exp(-(taps**2) * precision), axis=-1, keepdims=True)

    def band(length: int) -> tf.Tensor:
        line = tf.range(length, dtype=tf.float32)
        distance = tf.abs(line - line[:, tf.newaxis])
        return tf.where(distance <= radius, tf.exp(-(distance**2) * precision) / total, 0.0)

    return transform_lines(images, band(images.shape[1]), band(images.shape[2]))


def augment_views(images: tf.Tensor, draws: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Applies flip, colour jitter, grayscale and blur to cropped images, each with its own row of random numbers.

    >>> draws = tf.random.stateless_uniform([8, NUM_DRAWS], seed=[0, 1])
    >>> augment_views(tf.zeros([8, 32, 32, 3]), draws, ViewSettings(32)).shape
    TensorShape([8, 32, 32, 3])

    Args:
        images: uint8 or float ``[N, S, S, 3]``; uint8 is divided by 255, floats are clipped to [0, 1].
        draws: float32 ``[N, NUM_DRAWS]`` in [0, 1), in the order of `DRAWS`.
        settings: the operations, their strengths and probabilities.

    Returns:
        float32 ``[N, S, S, 3]`` in [0, 1].

    Raises:
        ValueError: if the shapes are not those above.
    """
    images, draws = tf.convert_to_tensor(images), tf.convert_to_tensor(draws)
    if not (images.shape.is_compatible_with([None] * 3 + [3]) and draws.shape.is_compatible_with([None, NUM_DRAWS])):
        raise ValueError(
            f"images [N, S, S, 3] and draws [N, {NUM_DRAWS}] are needed, not {(images.shape, draws.shape)}"
        )
    images = _clip(tf.image.convert_image_dtype(images, tf.float32))
    draw = dict(zip(DRAWS, tf.unstack(draws, axis=-1), strict=True))

    def where(name: str, probability: float, changed: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return tf.where((draw[name] < probability)[:, tf.newaxis, tf.newaxis, tf.newaxis], changed, images)

    def between(name: str, low: float, high: float) -> tf.Tensor:
        return low + draw[name] * (high - low)

    if settings.flip:
        images = where("flip", 0.5, tf.reverse(images, axis=[2]), images)
    if strength := settings.color_jitter_strength:
        low, high = max(0.0, 1 - 0.8 * strength), 1 + 0.8 * strength
        factors = [between(name, low, high) for name in ("brightness", "contrast", "saturation")]
        turn = between("hue", -0.2 * strength, 0.2 * strength)
        order = tf.cast(draw["order"] * len(ORDERS), tf.int32)
        brightness, contrast, saturation = factors
        jittered = adjust_colors(images, brightness, contrast, saturation, turn, order)
        images = where("jitter", settings.jitter_probability, jittered, images)
        images = where("grayscale", settings.grayscale_probability, to_grayscale(images), images)
    kernel_size = settings.image_size // 10
    if settings.blur_probability and kernel_size > 1:  # a single tap does not blur
        blurred = gaussian_blur(images, between("sigma", *SIGMA_RANGE), kernel_size)
        images = _clip(where("blur", settings.blur_probability, blurred, images))
    return images
