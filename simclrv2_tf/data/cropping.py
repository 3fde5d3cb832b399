"""Crops: random boxes for training, the central one for evaluation, and resizing.

Random numbers are arguments, as in ``augment``: a crop depends on its own row alone.
"""

import math

import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings, transform_lines
from simclrv2_tf.settings.fields import RESIZE_METHODS

CROP_ATTEMPTS = 100
CROP_DRAWS = 2 * CROP_ATTEMPTS + 2  # one aspect per attempt, one size per attempt, then y and x

MIN_COVERED = 0.1  # smallest fraction of the area in a crop of TensorFlow's sampler, even if crop_area_min is smaller
UNCROPPED_SIZE = 32  # px; evaluation images up to this size are not cropped


def random_crop_boxes(
    uniforms: tf.Tensor, height: int | tf.Tensor, width: int | tf.Tensor, settings: ViewSettings
) -> tf.Tensor:
    """Draws crop boxes with the sampler of the settings.

    Args:
        uniforms: float32 ``[..., CROP_DRAWS]`` in [0, 1).
        height: height of the images, px: a number, or any shape that broadcasts to ``[...]``.
        width: their width, likewise.
        settings: the sampler and the ranges of area and aspect.

    Returns:
        int32 ``[..., 4]``: y, x, height, width in px.
    """
    image_h, image_w = (tf.cast(side, tf.float32)[..., tf.newaxis] for side in (height, width))
    aspects, sizes, offsets = tf.split(uniforms, [CROP_ATTEMPTS, CROP_ATTEMPTS, 2], axis=-1)
    return SAMPLERS[settings.crop_sampler](aspects, sizes, offsets, image_h, image_w, settings)


def _tensorflow_boxes(
    aspects: tf.Tensor,
    heights: tf.Tensor,
    offsets: tf.Tensor,
    image_h: tf.Tensor,
    image_w: tf.Tensor,
    settings: ViewSettings,
) -> tf.Tensor:
    """Returns boxes distributed like those of TensorFlow's ``sample_distorted_bounding_box`` over a whole image.

    An attempt draws the aspect uniformly, then the height uniformly among the integers that the areas allow. If
    rounding puts it outside the area range, its height is moved by one pixel; if that does not suffice, it is rejected.
    The box is the first accepted attempt, or the whole image if there is none.
    """
    image_area = image_h * image_w
    min_area, max_area = settings.crop_area_min * image_area, settings.crop_area_max * image_area
    aspect = settings.crop_aspect_min + aspects * (settings.crop_aspect_max - settings.crop_aspect_min)
    widest = tf.floor((image_w + 0.5) / aspect)  # the largest height whose rounded width the image can hold
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
    crop_h, crop_w = _first_accepted(accepted, h, w, image_h, image_w)
    # Like TensorFlow's sampler, without the last offset: a crop smaller than the image ends before its far border.
    y = tf.floor(offsets[..., :1] * (image_h - crop_h))
    x = tf.floor(offsets[..., 1:] * (image_w - crop_w))
    return tf.cast(tf.concat([y, x, crop_h, crop_w], axis=-1), tf.int32)


def _torchvision_boxes(
    aspects: tf.Tensor,
    areas: tf.Tensor,
    offsets: tf.Tensor,
    image_h: tf.Tensor,
    image_w: tf.Tensor,
    settings: ViewSettings,
) -> tf.Tensor:
    """Returns boxes distributed like those of torchvision's ``RandomResizedCrop``.

    An attempt draws the area uniformly and the aspect uniformly on a logarithmic scale. It is rejected if the box
    does not fit into the image. After ten attempts, the box is the largest central one with an allowed aspect.
    """
    attempts = 10
    low, high = math.log(settings.crop_aspect_min), math.log(settings.crop_aspect_max)
    aspect = tf.exp(low + aspects[..., :attempts] * (high - low))
    share = settings.crop_area_min + areas[..., :attempts] * (settings.crop_area_max - settings.crop_area_min)
    area = share * image_h * image_w
    w, h = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    accepted = (w > 0) & (w <= image_w) & (h > 0) & (h <= image_h)

    central_h = tf.minimum(image_h, tf.round(image_w / settings.crop_aspect_min))
    central_w = tf.minimum(image_w, tf.round(image_h * settings.crop_aspect_max))
    crop_h, crop_w = _first_accepted(accepted, h, w, central_h, central_w)
    y = tf.floor(offsets[..., :1] * (image_h - crop_h + 1))
    x = tf.floor(offsets[..., 1:] * (image_w - crop_w + 1))
    is_central = ~tf.reduce_any(accepted, axis=-1, keepdims=True)
    y = tf.where(is_central, tf.floor((image_h - crop_h) / 2), y)
    x = tf.where(is_central, tf.floor((image_w - crop_w) / 2), x)
    return tf.cast(tf.concat([y, x, crop_h, crop_w], axis=-1), tf.int32)


def _first_accepted(
    accepted: tf.Tensor, h: tf.Tensor, w: tf.Tensor, default_h: tf.Tensor, default_w: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns height and width ``[..., 1]`` of the first accepted attempt ``[..., attempts]``, or the defaults."""
    first = tf.argmax(tf.cast(accepted, tf.int32), axis=-1)[..., tf.newaxis]
    any_accepted = tf.reduce_any(accepted, axis=-1, keepdims=True)
    return tuple(
        tf.where(any_accepted, tf.gather(crop, first, axis=-1, batch_dims=-1), default)
        for crop, default in ((h, default_h), (w, default_w))
    )


SAMPLERS = {"tensorflow": _tensorflow_boxes, "torchvision": _torchvision_boxes}


def _keys_cubic(distance: tf.Tensor) -> tf.Tensor:
    """Keys's cubic kernel with a = −1/2 (IEEE Trans. ASSP 29(6), 1981, eq. 15)."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return tf.where(distance <= 1, near, tf.where(distance < 2, far, 0.0))


def _triangle(distance: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - distance, 0)


KERNELS = {"bicubic": _keys_cubic, "bilinear": _triangle}
ANTIALIASED = "_antialiased"  # suffix of a name in RESIZE_METHODS


def resize(image: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """Resizes an image ``[h, w, c]`` to ``size`` by one of ``RESIZE_METHODS``: float32 in the range of the image."""
    kernel = method.removesuffix(ANTIALIASED)
    return tf.image.resize(image, size, kernel, antialias=kernel != method)


def _resize_weights(start: tf.Tensor, length: tf.Tensor, source: int, size: int, method: str) -> tf.Tensor:
    """Returns weights ``[..., size, source]`` that resize ``length`` pixels of a line from ``start`` on to ``size``."""
    start, length = (tf.cast(value, tf.float32)[..., tf.newaxis, tf.newaxis] for value in (start, length))
    position = (tf.range(size, dtype=tf.float32)[:, tf.newaxis] + 0.5) * (length / size) - 0.5
    if method == "bicubic":
        position = tf.round(position * 1024) / 1024  # tf.image.resize reads this kernel from a table of 1,024 steps
    pixel = tf.range(source, dtype=tf.float32) - start
    inside = (pixel >= 0) & (pixel < length)
    distance = tf.abs(position - pixel)
    if method.endswith(ANTIALIASED):
        distance /= tf.maximum(length / size, 1)
    weights = tf.where(inside, KERNELS[method.removesuffix(ANTIALIASED)](distance), 0.0)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


def crop_and_resize(images: tf.Tensor, boxes: tf.Tensor, size: int, method: str = "bicubic") -> tf.Tensor:
    """Returns several crops of each image, each resized to a square, by two matrix products per crop.

    Same result as cropping, then ``resize(crop, method)``. As there, bicubic overshoots [0, 1] slightly;
    `augment_views` clips it.

    Args:
        images: uint8 or float ``[B, H, W, C]``; uint8 is divided by 255.
        boxes: int32 ``[B, V, 4]``: y, x, height, width in px, inside the image.
        size: height and width of the result, px.
        method: one of ``RESIZE_METHODS``.

    Returns:
        float32 ``[B, V, size, size, C]``.
    """
    images = tf.image.convert_image_dtype(images, tf.float32)
    height, width = images.shape[1] or tf.shape(images)[1], images.shape[2] or tf.shape(images)[2]
    y, x, crop_h, crop_w = tf.unstack(boxes, axis=-1)
    rows = _resize_weights(y, crop_h, height, size, method)
    columns = _resize_weights(x, crop_w, width, size, method)
    return transform_lines(images[:, tf.newaxis], rows, columns)


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
        crop_fraction: height of the crop as a fraction of the largest crop with that aspect.
        method: one of ``RESIZE_METHODS``, or "tf1" for TensorFlow 1's bicubic (a = −3/4, no half-pixel centres), with
            which the published weights were trained.

    Returns:
        float32 ``[height, width, C]`` in [0, 1].

    Raises:
        ValueError: if an argument is none of these.
    """
    image = tf.convert_to_tensor(image)
    if method not in (*RESIZE_METHODS, "tf1"):
        raise ValueError(f"method={method}: must be one of {', '.join(RESIZE_METHODS)}, tf1")
    if image.shape.rank not in (None, 3) or len(size) != 2 or min(size) < 1 or not 0 < crop_fraction <= 1:
        raise ValueError(
            f"an image [H, W, C], a size of two numbers above 0 and a crop_fraction from 0 to 1 are needed, not "
            f"{image.shape}, {size} and {crop_fraction}"
        )
    image = tf.image.convert_image_dtype(image, tf.float32)
    if max(size) > UNCROPPED_SIZE:
        shape = tf.shape(image)
        y, x, crop_h, crop_w = _center_crop_box(shape[0], shape[1], size[1] / size[0], crop_fraction)
        image = image[y : y + crop_h, x : x + crop_w]
    if method == "tf1":
        image = tf.raw_ops.ResizeBicubic(images=image[tf.newaxis], size=size)[0]
    else:
        image = resize(image, size, method)
    return tf.clip_by_value(image, 0.0, 1.0)
