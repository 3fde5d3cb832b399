"""Augmentation: random crop, flip, colour and blur (SimCLR, arXiv 2002.05709, appendix A), and the evaluation crop.

Every random function takes its random numbers, uniform in [0, 1), as an argument, one row per view. It is batched,
contains no random operation and compiles under XLA. A view thus depends on its own row alone: it is the same on host
and device, on one replica and on many, in a first run and a resumed one.
"""

import dataclasses
import itertools

import keras
import numpy as np
import tensorflow as tf

DRAWS = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "grayscale", "blur", "sigma")
NUM_DRAWS = len(DRAWS)
NUM_BASE_DRAWS = 10  # these share a stream with the crops; draws that are appended leave their numbers as they are

CROP_ATTEMPTS = 100
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # one aspect per attempt, one height per attempt, then y and x

MIN_COVERED = 0.1  # least share of the image's area in a crop, even if crop_area_min is smaller
LUMA = (0.2989, 0.587, 0.114)
SIGMA_RANGE = (0.1, 2.0)  # px
UNCROPPED_SIZE = 32  # px; evaluation images up to this size are not cropped

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
        crop_area_min: least share of the image's area in a crop (never below ``MIN_COVERED``).
        crop_area_max: greatest share.
        crop_aspect_min: least width / height of a crop.
        crop_aspect_max: greatest width / height.
        flip: mirror left and right with probability one half.
        color_jitter_strength: s; brightness, contrast and saturation are multiplied by U(1 ∓ 0.8 s) and the hue is
            rotated by U(∓ 0.2 s) of a full turn, in random order. 0: no colour operation, not even grayscale.
        jitter_probability: of all four of them together.
        grayscale_probability: of dropping the colours.
        blur_probability: of a Gaussian blur with sigma U(0.1, 2) px and a kernel of ``image_size // 10`` px. 0: none.
        resize_method: "bicubic" or "bilinear".
        jpeg_scaling: decode a JPEG at a half, a quarter or an eighth of its size, as long as no crop falls below
            ``image_size``. Cheaper for large photographs, but the pixels differ.

    Raises:
        ValueError: for an unknown resize method, an empty range, or a probability outside [0, 1].
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
    resize_method: str = "bicubic"
    jpeg_scaling: bool = False

    def __post_init__(self) -> None:
        if self.resize_method not in KERNELS:
            raise ValueError(f"resize_method must be one of {', '.join(KERNELS)}, not {self.resize_method!r}")
        if not 0 < self.crop_area_min <= self.crop_area_max <= 1:
            raise ValueError(f"crop areas must obey 0 < {self.crop_area_min} <= {self.crop_area_max} <= 1")
        if not 0 < self.crop_aspect_min <= self.crop_aspect_max:
            raise ValueError(f"crop aspects must obey 0 < {self.crop_aspect_min} <= {self.crop_aspect_max}")
        if self.color_jitter_strength < 0:
            raise ValueError(f"color_jitter_strength must not be negative, but is {self.color_jitter_strength}")
        for name in ("jitter_probability", "grayscale_probability", "blur_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], but is {getattr(self, name)}")

    @classmethod
    def crop_and_flip(cls, image_size: int, **changes: object) -> "ViewSettings":
        """Returns the settings for training on labels: neither colour nor blur."""
        return cls(image_size, **{"color_jitter_strength": 0.0, "blur_probability": 0.0, **changes})

    def get_config(self) -> dict[str, object]:
        """Returns the fields, for Keras's serialization."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, object]) -> "ViewSettings":
        """Inverse of ``get_config``."""
        return cls(**config)


def random_crop_boxes(
    uniforms: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, settings: ViewSettings
) -> tf.Tensor:
    """Returns boxes distributed like those of TensorFlow's ``sample_distorted_bounding_box`` over a whole image.

    An attempt draws the aspect uniformly, then the height uniformly among the integers that the areas allow. If
    rounding puts it outside the area range, its height is moved by one pixel; if that does not suffice, it is rejected.
    The box is the first accepted attempt, or the whole image if there is none.

    Args:
        uniforms: float32 ``[..., CROP_DRAWS]`` in [0, 1).
        height: of the images, px: a number, or any shape that broadcasts to ``[...]``.
        width: likewise.
        settings: the ranges of area and aspect.

    Returns:
        int32 ``[..., 4]``: y, x, height, width in px.
    """
    image_h, image_w = (tf.cast(side, tf.float32)[..., tf.newaxis] for side in (height, width))
    image_area = image_h * image_w
    min_area, max_area = settings.crop_area_min * image_area, settings.crop_area_max * image_area
    aspects, heights, offsets = tf.split(uniforms, [CROP_ATTEMPTS, CROP_ATTEMPTS, 2], axis=-1)

    aspect = settings.crop_aspect_min + aspects * (settings.crop_aspect_max - settings.crop_aspect_min)
    widest = tf.floor((image_w + 0.5) / aspect)  # the greatest height whose rounded width the image can hold
    widest -= tf.cast(tf.round(widest * aspect) > image_w, tf.float32)
    highest = tf.round(tf.sqrt(max_area / aspect))
    highest = tf.minimum(tf.where(tf.round(highest * aspect) > image_w, widest, highest), image_h)
    lowest = tf.minimum(tf.round(tf.sqrt(min_area / aspect)), highest)
    h = lowest + tf.floor(heights * (highest - lowest + 1))
    h += tf.cast(h * tf.round(h * aspect) < min_area, tf.float32)
    h -= tf.cast(h * tf.round(h * aspect) > max_area, tf.float32)
    w = tf.round(h * aspect)

    area = h * w
    accepted = (area >= min_area) & (area <= max_area) & (area >= MIN_COVERED * image_area)
    accepted &= (h <= image_h) & (w <= image_w) & (w > 0)
    first = tf.argmax(tf.cast(accepted, tf.int32), axis=-1)[..., tf.newaxis]
    any_accepted = tf.reduce_any(accepted, axis=-1, keepdims=True)
    crop_h, crop_w = (
        tf.where(any_accepted, tf.gather(crop, first, axis=-1, batch_dims=-1), image)
        for crop, image in ((h, image_h), (w, image_w))
    )
    # Like TensorFlow's sampler, without the last offset: a crop smaller than the image ends before its far border.
    y = tf.floor(offsets[..., :1] * (image_h - crop_h))
    x = tf.floor(offsets[..., 1:] * (image_w - crop_w))
    return tf.cast(tf.concat([y, x, crop_h, crop_w], axis=-1), tf.int32)


def _keys_cubic(distance: tf.Tensor) -> tf.Tensor:
    """Keys's cubic kernel with a = −1/2 (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return tf.where(distance <= 1, near, tf.where(distance < 2, far, 0.0))


def _triangle(distance: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - distance, 0)


KERNELS = {"bicubic": _keys_cubic, "bilinear": _triangle}


def _resize_weights(start: tf.Tensor, length: tf.Tensor, source: int, size: int, method: str) -> tf.Tensor:
    """Returns weights ``[..., size, source]`` that resize ``length`` pixels of a line from ``start`` on to ``size``."""
    start, length = (tf.cast(value, tf.float32)[..., tf.newaxis, tf.newaxis] for value in (start, length))
    position = (tf.range(size, dtype=tf.float32)[:, tf.newaxis] + 0.5) * (length / size) - 0.5
    if method == "bicubic":
        position = tf.round(position * 1024) / 1024  # tf.image.resize reads this kernel from a table of 1,024 steps
    pixel = tf.range(source, dtype=tf.float32) - start
    inside = (pixel >= 0) & (pixel < length)
    weights = tf.where(inside, KERNELS[method](tf.abs(position - pixel)), 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def _transform_lines(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Applies ``rows [..., i, h]`` and ``columns [..., k, w]`` to ``images [..., h, w, c]``: ``[..., i, k, c]``."""
    return tf.einsum("...ih,...hkc->...ikc", rows, tf.einsum("...kw,...hwc->...hkc", columns, images))


def crop_and_resize(images: tf.Tensor, boxes: tf.Tensor, size: int, method: str = "bicubic") -> tf.Tensor:
    """Returns several crops of each image, each resized to a square, by two matrix products per crop.

    Same result as cropping, then ``tf.image.resize(crop, method, antialias=False)``. As there, bicubic overshoots
    [0, 1] slightly; `augment_views` clips it.

    Args:
        images: uint8 or float ``[B, H, W, C]``; uint8 is divided by 255.
        boxes: int32 ``[B, V, 4]``: y, x, height, width in px, inside the image.
        size: height and width of the result, px.
        method: "bicubic" or "bilinear".

    Returns:
        float32 ``[B, V, size, size, C]``.
    """
    images = tf.image.convert_image_dtype(images, tf.float32)
    height, width = images.shape[1] or tf.shape(images)[1], images.shape[2] or tf.shape(images)[2]
    y, x, crop_h, crop_w = tf.unstack(boxes, axis=-1)
    rows = _resize_weights(y, crop_h, height, size, method)
    columns = _resize_weights(x, crop_w, width, size, method)
    return _transform_lines(images[:, tf.newaxis], rows, columns)


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

    return _transform_lines(images, band(images.shape[1]), band(images.shape[2]))


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
    """
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
        jittered = adjust_colors(images, *factors, turn, order)
        images = where("jitter", settings.jitter_probability, jittered, images)
        images = where("grayscale", settings.grayscale_probability, to_grayscale(images), images)
    kernel_size = settings.image_size // 10
    if settings.blur_probability and kernel_size > 1:  # a single tap does not blur
        blurred = gaussian_blur(images, between("sigma", *SIGMA_RANGE), kernel_size)
        images = _clip(where("blur", settings.blur_probability, blurred, images))
    return images


def _center_crop_box(height: tf.Tensor, width: tf.Tensor, aspect: float, fraction: float) -> tuple[tf.Tensor, ...]:
    """Returns y, x, height and width (int32) of the central part of an image with the given width / height."""
    image_h, image_w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    # products in the order of the official evaluation: where they end in .5, the order decides the rounding
    sides = tf.where(
        aspect > image_w / image_h,
        [fraction / aspect * image_w, fraction * image_w],
        [fraction * image_h, fraction * aspect * image_h],
    )
    crop_h, crop_w = tf.unstack(tf.cast(tf.round(sides), tf.int32))
    return (height - crop_h + 1) // 2, (width - crop_w + 1) // 2, crop_h, crop_w


def center_crop_and_resize(
    image: tf.Tensor, size: tuple[int, int], crop_fraction: float = 0.875, method: str = "bicubic"
) -> tf.Tensor:
    """Returns the evaluation view of one image: its centre, with the aspect of ``size``, resized to it.

    If height and width of ``size`` are at most ``UNCROPPED_SIZE`` px, the whole image is resized.

    >>> center_crop_and_resize(tf.zeros([480, 640, 3], tf.uint8), (224, 224)).shape
    TensorShape([224, 224, 3])

    Args:
        image: uint8 or float ``[H, W, C]``, H and W static or not; uint8 is divided by 255.
        size: height and width of the result, px.
        crop_fraction: height of the crop as a share of the largest crop with that aspect.
        method: "bicubic", "bilinear", or "tf1" for TensorFlow 1's bicubic (a = −3/4, no half-pixel centres), with
            which the published weights were trained.

    Returns:
        float32 ``[height, width, C]`` in [0, 1].
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    if max(size) > UNCROPPED_SIZE:
        shape = tf.shape(image)
        y, x, crop_h, crop_w = _center_crop_box(shape[0], shape[1], size[1] / size[0], crop_fraction)
        image = image[y : y + crop_h, x : x + crop_w]
    if method == "tf1":
        image = tf.raw_ops.ResizeBicubic(images=image[tf.newaxis], size=size)[0]
    else:
        image = tf.image.resize(image, size, method)
    return _clip(image)
