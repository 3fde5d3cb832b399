"""Views of images: crop, flip, colour, blur (SimCLR, arXiv 2002.05709, appendix A) and the evaluation crop.

Every random function takes its random numbers as an argument, uniform in [0, 1): one row of them a view. It is batched,
holds no random operation and compiles under XLA, so a view depends on its own row alone: host or device, one replica
or many, first run or resumed.
"""

import dataclasses
import itertools

import keras
import numpy as np
import tensorflow as tf

DRAWS = ("flip", "jitter", "brightness", "contrast", "saturation", "hue", "order", "grayscale", "blur", "sigma")
NUM_DRAWS = len(DRAWS)

CROP_ATTEMPTS = 100
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # an aspect for each attempt, a height for each attempt, then y and x

MIN_COVERED = 0.1  # no crop is smaller than this part of the image, whatever crop_area_min says
LUMA = (0.2989, 0.587, 0.114)
SIGMA_RANGE = (0.1, 2.0)  # pixels
UNCROPPED_SIZE = 32  # evaluation images of this size or less are not cropped

# ORDERS[k, c] says when the k-th order applies the operation c: brightness, contrast, saturation, hue.
ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)


@keras.saving.register_keras_serializable(package="simclrv2_tf")
@dataclasses.dataclass(frozen=True)
class ViewSettings:
    """What makes a view; the defaults are those of pretraining on ImageNet (SimCLR, appendix A).

    CIFAR-10 takes ``color_jitter_strength=0.5, blur_probability=0``; fine-tuning `ViewSettings.crop_and_flip`.

    Attributes:
        image_size: side of the square view, pixels.
        crop_area_min: least part of the image's area in a crop (never below ``MIN_COVERED``).
        crop_area_max: greatest part.
        crop_aspect_min: least width / height of a crop.
        crop_aspect_max: greatest.
        flip: mirror left and right with probability one half.
        color_jitter_strength: s; brightness, contrast and saturation are multiplied by U(1 ∓ 0.8 s) and the hue turned
            by U(∓ 0.2 s) of a full turn, in random order. 0: no colour operation at all, grayscale included.
        jitter_probability: of these four, together.
        grayscale_probability: of dropping the colours.
        blur_probability: of a Gaussian blur with sigma U(0.1, 2) pixels, ``image_size // 10`` wide. 0: none.
        resize_method: "bicubic" or "bilinear".
        jpeg_scaling: decode a JPEG at a half, a quarter or an eighth of its size, as long as no crop falls below
            ``image_size``. Cheaper for large photographs, and other pixels.

    Raises:
        ValueError: a resize method of another name, an empty range, or a probability outside [0, 1].

    Example:
        >>> pretraining = ViewSettings(32, color_jitter_strength=0.5, blur_probability=0.0)  # CIFAR-10
        >>> fine_tuning = ViewSettings.crop_and_flip(32)
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
        """Views for training on labels: neither colour nor blur."""
        return cls(image_size, **{"color_jitter_strength": 0.0, "blur_probability": 0.0, **changes})

    def get_config(self) -> dict[str, object]:
        """For a model that is saved with its views."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, object]) -> "ViewSettings":
        """The inverse of ``get_config``."""
        return cls(**config)


def random_crop_boxes(
    uniforms: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, settings: ViewSettings
) -> tf.Tensor:
    """Boxes distributed as those of TensorFlow's ``sample_distorted_bounding_box`` over a whole image.

    An attempt draws the aspect uniformly, then the height uniformly among the integers that the areas allow; one that
    misses the area range by rounding is moved by a pixel, one that still misses it is rejected. The first accepted
    attempt is the box, the whole image if there is none.

    Args:
        uniforms: float32 ``[..., CROP_DRAWS]`` in [0, 1).
        height: of the images, pixels: a number, or ``[...]`` (any shape that broadcasts to it).
        width: the same.
        settings: the ranges of area and aspect.

    Returns:
        int32 ``[..., 4]``: y, x, height, width in pixels.
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
    found = tf.reduce_any(accepted, axis=-1, keepdims=True)
    crop_h, crop_w = (
        tf.where(found, tf.gather(crop, first, axis=-1, batch_dims=-1), image)
        for crop, image in ((h, image_h), (w, image_w))
    )
    # As the sampler does, the last offset is left out: a crop ends one pixel before the far border, if smaller at all.
    y = tf.floor(offsets[..., :1] * (image_h - crop_h))
    x = tf.floor(offsets[..., 1:] * (image_w - crop_w))
    return tf.cast(tf.concat([y, x, crop_h, crop_w], axis=-1), tf.int32)


def _keys_cubic(distance: tf.Tensor) -> tf.Tensor:
    """Keys's cubic kernel, a = −1/2 (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return tf.where(distance <= 1, near, tf.where(distance < 2, far, 0.0))


def _triangle(distance: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - distance, 0)


KERNELS = {"bicubic": _keys_cubic, "bilinear": _triangle}


def _resize_weights(start: tf.Tensor, length: tf.Tensor, source: int, size: int, method: str) -> tf.Tensor:
    """Weights ``[..., size, source]`` that resize the pixels ``start … start + length − 1`` of a line to ``size``."""
    start, length = (tf.cast(value, tf.float32)[..., tf.newaxis, tf.newaxis] for value in (start, length))
    position = (tf.range(size, dtype=tf.float32)[:, tf.newaxis] + 0.5) * (length / size) - 0.5
    if method == "bicubic":
        position = tf.round(position * 1024) / 1024  # tf.image.resize reads this kernel from a table of 1,024 steps
    pixel = tf.range(source, dtype=tf.float32) - start
    inside = (pixel >= 0) & (pixel < length)
    weights = tf.where(inside, KERNELS[method](tf.abs(position - pixel)), 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def _transform_lines(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """``rows [..., i, h]`` and ``columns [..., k, w]`` applied to ``images [..., h, w, c]``: ``[..., i, k, c]``."""
    return tf.einsum("...ih,...hkc->...ikc", rows, tf.einsum("...kw,...hwc->...hkc", columns, images))


def crop_and_resize(images: tf.Tensor, boxes: tf.Tensor, size: int, method: str = "bicubic") -> tf.Tensor:
    """Several crops of each image, each resized to a square, by two matrix products a crop.

    The same as cropping, then ``tf.image.resize(crop, method, antialias=False)``. Bicubic overshoots [0, 1] a little,
    as there; `augment_views` clips it.

    Args:
        images: uint8 or float ``[B, H, W, C]``; uint8 is divided by 255.
        boxes: int32 ``[B, V, 4]``: y, x, height, width in pixels, inside the image.
        size: side of the result, pixels.
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
    """Luma of ``[..., 3]`` RGB images in all three channels."""
    return tf.broadcast_to(tf.reduce_sum(images * LUMA, axis=-1, keepdims=True), tf.shape(images))


def _clip(images: tf.Tensor) -> tf.Tensor:
    return tf.clip_by_value(images, 0.0, 1.0)


def _adjust_contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(images, axis=[1, 2], keepdims=True)
    return _clip(images * factor + mean * (1 - factor))  # in this form a factor of 1 changes no bit


def _adjust_hue_and_saturation(images: tf.Tensor, turn: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Turns the hue and multiplies the saturation in HSV space; images ``[N, H, W, 3]``, parameters ``[N, 1, 1]``."""
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
    """Each image's brightness, contrast, saturation and hue changed, in its own order, clipped to [0, 1] after each.

    The operations are those of ``tf.image.adjust_*``, brightness a factor. Hue and saturation need HSV space, so the
    sequence has two places there, and before, between and after them three for brightness, contrast, brightness. Every
    order is a way through these places; where an image does not stop, its factor is 1. That costs two conversions to
    HSV and three means, against four of each for a choice among four operations in four rounds.

    Args:
        images: float32 ``[N, H, W, 3]`` in [0, 1].
        brightness: factors ``[N]``.
        contrast: factors ``[N]``, about the mean of each channel.
        saturation: factors ``[N]``.
        hue: ``[N]`` in turns.
        order: int32 ``[N]``, row of `ORDERS`.

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
    """Gaussian blur of each image with its own sigma; beyond the border the image is 0.

    Args:
        images: float32 ``[N, H, W, C]``.
        sigma: float32 ``[N]``, pixels, above 0.
        kernel_size: taps of the kernel, which sum to 1; an even number means the next odd one.

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
    """Flip, colour jitter, grayscale and blur of cropped images, each by its own row of random numbers.

    Args:
        images: uint8 or float ``[N, S, S, 3]``; uint8 is divided by 255, floats are clipped to [0, 1].
        draws: float32 ``[N, NUM_DRAWS]`` in [0, 1), in the order of `DRAWS`.
        settings: which operations, how strong and how often.

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
    if settings.blur_probability and kernel_size > 1:  # one tap is no blur
        blurred = gaussian_blur(images, between("sigma", *SIGMA_RANGE), kernel_size)
        images = _clip(where("blur", settings.blur_probability, blurred, images))
    return images


def _center_crop_box(height: tf.Tensor, width: tf.Tensor, aspect: float, fraction: float) -> tuple[tf.Tensor, ...]:
    """y, x, height and width (int32) of the central part of an image that has the given width / height."""
    image_h, image_w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    # products in the order of the published evaluation: where they end in .5, the order decides the rounding
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
    """The evaluation view of one image: its centre, of the aspect of ``size``, resized to it.

    Where both sides of ``size`` are ``UNCROPPED_SIZE`` pixels or less, the whole image is resized.

    Args:
        image: uint8 or float ``[H, W, C]``, H and W static or not; uint8 is divided by 255.
        size: height and width of the result, pixels.
        crop_fraction: side of the crop as a part of the largest one of that aspect.
        method: "bicubic", "bilinear", or "tf1" for TensorFlow 1's bicubic (a = −3/4, no half-pixel centres), on which
            the published weights were trained.

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
