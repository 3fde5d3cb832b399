"""Decoding on the host: from an encoded image to its pixels or its crops, and substitutes for corrupt images.

All of it is single-threaded graph code; `tf.data` runs it on several chunks of images at a time.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import augment
from simclrv2_tf.data.augment import ViewSettings

# Marks graph code without tensor-dependent Python control flow: converting it would only take time.
graph_code = tf.autograph.experimental.do_not_convert

# Pixels of one image at most: Pillow's limit, 179 million. Decoded they take 537 MB.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

# A JPEG can be decoded at 1/ratio of its size: the transform of each 8 × 8 block then yields fewer pixels.
RATIOS = (1, 2, 4, 8)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, BMP, WebP or GIF image; of an animation the first frame.

    Args:
        encoded: the file's content, a string scalar.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        tf.errors.OpError: for another format, a damaged file, or more than `MAX_PIXELS`.
    """
    with tf.control_dependencies([_check_size(encoded)]):
        encoded = tf.identity(encoded)
    by_tensorflow = tf.io.is_jpeg(encoded) | _is_png(encoded)
    image = tf.cond(
        by_tensorflow,
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
        lambda: tf.py_function(_decode_with_pillow, [encoded], tf.uint8),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _check_size(encoded: tf.Tensor) -> tf.Operation | None:
    """Raises for a JPEG or PNG whose header announces more than `MAX_PIXELS`: a small file can fill the memory."""
    size = tf.case(
        [
            (tf.io.is_jpeg(encoded), lambda: tf.io.extract_jpeg_shape(encoded)[:2]),
            (_is_png(encoded), lambda: tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False)),
        ],
        default=lambda: tf.ones([2], tf.int32),
    )
    pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    return tf.debugging.assert_less_equal(pixels, tf.constant(MAX_PIXELS, tf.int64), "too many pixels")


def _is_png(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, 4) == b"\x89PNG"


def _decode_with_pillow(encoded: tf.Tensor) -> np.ndarray:
    # no other formats, as some run programs; Pillow checks the number of pixels itself
    with Image.open(io.BytesIO(encoded.numpy()), formats=("BMP", "GIF", "WEBP")) as image:
        return np.asarray(image.convert("RGB"))


def cropped_views(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Decodes an image once and returns random crops of it, resized.

    Args:
        encoded: an image that `decode` can read.
        crops: float32 ``[views, CROP_DRAWS]``, the random numbers of ``augment.random_crop_boxes``.
        settings: ranges of the crops, size and resize method.

    Returns:
        uint8 ``[views, size, size, 3]``.
    """
    if settings.jpeg_scaling:
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _views_of_scaled_jpeg(encoded, crops, settings),
            lambda: views_of_image(decode(encoded), crops, settings),
        )
    return views_of_image(decode(encoded), crops, settings)


def views_of_image(image: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Like `cropped_views`, for a decoded image, uint8 ``[h, w, 3]``."""
    shape = tf.shape(image)
    return _views(image, augment.random_crop_boxes(crops, shape[0], shape[1], settings), settings)


def _views_of_scaled_jpeg(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Decodes at the smallest size at which the smallest crop still has as many pixels as a view."""
    with tf.control_dependencies([_check_size(encoded)]):
        shape = tf.io.extract_jpeg_shape(encoded)
    boxes = augment.random_crop_boxes(crops, shape[0], shape[1], settings)  # [views, 4]
    smallest = tf.reduce_min(boxes[:, 2:])
    choice = tf.add_n([tf.cast(smallest >= ratio * settings.image_size, tf.int32) for ratio in RATIOS[1:]])

    def views_at(ratio: int) -> tf.Tensor:
        return _views(tf.io.decode_jpeg(encoded, channels=3, ratio=ratio), boxes // ratio, settings)

    return tf.switch_case(choice, [functools.partial(views_at, ratio) for ratio in RATIOS])


def _views(image: tf.Tensor, boxes: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    # TensorFlow resizes floats faster than bytes. But resizing reads few pixels of a large crop, a cast all of them.
    is_small = tf.size(image) <= 3 * 8 * settings.image_size**2
    from_floats, from_bytes = (
        functools.partial(_crop_and_resize, image, boxes, settings, dtype) for dtype in (tf.float32, tf.uint8)
    )
    return tf.cond(is_small, from_floats, from_bytes)


def _crop_and_resize(image: tf.Tensor, boxes: tf.Tensor, settings: ViewSettings, dtype: tf.DType) -> tf.Tensor:
    size, method = (settings.image_size, settings.image_size), settings.resize_method
    views = []
    for y, x, height, width in (tf.unstack(box) for box in tf.unstack(boxes)):
        crop = tf.cast(image[y : y + height, x : x + width], dtype)
        view = tf.image.resize(crop, size, method) + 0.5
        if method == "bicubic":  # which overshoots
            view = tf.clip_by_value(view, 0, 255)
        views.append(tf.cast(view, tf.uint8))
    return tf.stack(views)  # [views, size, size, 3]


def read_chunk(
    read: Callable[..., tf.Tensor],
    indices: tf.Tensor,
    arguments: tuple[tf.Tensor, ...],
    labels: tf.Tensor,
    substitutes: int,
) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    """Reads a chunk of images; a corrupt one is replaced by the first readable one of those that follow it.

    Graph code cannot catch an exception, but a `tf.data.Dataset` can leave out the elements that raise one. Building
    one per image would take a third of the time of decoding it, so there is one per chunk, and only if an element is
    missing from a chunk, its images are read again, each through a data set of its own.

    Args:
        read: from an index and further arguments to a tensor of static shape; raises for a corrupt image.
        indices: of the images to read, int64 ``[c]``.
        arguments: further arguments of ``read``, each ``[c, ...]``.
        labels: of all images that could be read, int32 ``[n]``; after the last of them comes the first.
        substitutes: images to try in place of a corrupt one.

    Returns:
        ``images`` ``[c, ...]``, their ``labels`` int32 ``[c]`` and ``weights`` float32 ``[c]``: 1, or 0 for a corrupt
        image without substitute, which is all zeros and keeps its label. And bool ``[c]``: which were corrupt.
    """
    size, total = tf.size(indices, tf.int64), tf.size(labels, tf.int64)

    @tf.function(autograph=False)  # traced once for its two uses
    def read_one(index: tf.Tensor, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return read(index, *arguments), index

    def readable(indices: tf.Tensor, *arguments: tf.Tensor) -> tf.data.Dataset:
        """Yields the images that can be read, then a zero image of index −1."""
        images = tf.data.Dataset.from_tensor_slices((indices, *arguments)).map(read_one).ignore_errors()
        nothing = tf.zeros(images.element_spec[0].shape, images.element_spec[0].dtype), tf.constant(-1, tf.int64)
        return images.concatenate(tf.data.Dataset.from_tensors(nothing))

    @graph_code
    def first_readable(index: tf.Tensor, *arguments: tf.Tensor) -> tf.data.Dataset:
        candidates = tf.stack([(index + i) % total for i in range(substitutes + 1)])
        repeated = [tf.repeat(argument[tf.newaxis], substitutes + 1, axis=0) for argument in arguments]
        return readable(candidates, *repeated).take(1)

    def read_one_by_one() -> tuple[tf.Tensor, tf.Tensor]:
        each = tf.data.Dataset.from_tensor_slices((indices, *arguments)).flat_map(first_readable)
        return each.batch(size).get_single_element()

    images, sources = readable(indices, *arguments).batch(size + 1).get_single_element()
    images, sources = tf.cond(
        tf.size(sources, tf.int64) > size, lambda: (images[:-1], sources[:-1]), read_one_by_one
    )  # sources [c]: the index that each image was read from, −1 for none
    is_read = sources >= 0
    chunk = {
        "images": images,
        "labels": tf.gather(labels, tf.where(is_read, sources, indices)),
        "weights": tf.cast(is_read, tf.float32),
    }
    return chunk, tf.not_equal(sources, indices)


def decode_in_graph(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG or PNG image by TensorFlow's operations alone, for an exported SavedModel.

    Args:
        encoded: the file's content, a string scalar.

    Returns:
        uint8 ``[height, width, 3]``.
    """
    return tf.ensure_shape(tf.io.decode_image(encoded, channels=3, expand_animations=False), [None, None, 3])
