"""From encoded images to views on the host: decode once, crop and resize each view; what stands in for a corrupt one.

All of it is graph code of one thread; `tf.data` runs it for several chunks of images at a time.
"""

import functools
import io
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import augment
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.sources import EncodedSource, FileSource, RecordSource

# Graph code without tensor-dependent Python: converting it would only take time.
graph_code = tf.autograph.experimental.do_not_convert

# Other images to try, in turn, in the place of one that cannot be decoded.
SUBSTITUTES = 3

# Of one image; what Pillow allows, 179 million. Decoded they take 537 MB.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

# A JPEG can be decoded at 1/ratio of its size: the transform of each 8 × 8 block then yields fewer pixels.
RATIOS = (1, 2, 4, 8)

Make = Callable[..., tf.Tensor]


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """JPEG, PNG, BMP, WebP or GIF, of an animation the first frame, as uint8 ``[height, width, 3]``.

    tf.errors.OpError for what is none of them, damaged, or of more than `MAX_PIXELS`.
    """
    with tf.control_dependencies([_check_size(encoded)]):
        encoded = tf.identity(encoded)
    by_tensorflow = tf.io.is_jpeg(encoded) | _is_png(encoded)
    image = tf.cond(
        by_tensorflow,
        lambda: tf.io.decode_image(encoded, channels=3, expand_animations=False),
        lambda: tf.py_function(_by_pillow, [encoded], tf.uint8),
    )
    return tf.ensure_shape(image, [None, None, 3])


def _check_size(encoded: tf.Tensor) -> tf.Operation | None:
    """An error for a JPEG or PNG of more than `MAX_PIXELS`, from its header: a small file can fill the memory."""
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


def _by_pillow(encoded: tf.Tensor) -> np.ndarray:
    with Image.open(
        io.BytesIO(encoded.numpy()), formats=("BMP", "GIF", "WEBP")
    ) as image:  # it refuses too many pixels itself
        return np.asarray(image.convert("RGB"))


def cropped_views(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Random crops of one image, resized.

    Args:
        encoded: what `decode` takes.
        crops: float32 ``[views, CROP_DRAWS]``, the random numbers of ``augment.random_crop_boxes``.
        settings: ranges of the crops, size and method of resizing.

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
    """As `cropped_views`, of a decoded image, uint8 ``[h, w, 3]``."""
    shape = tf.shape(image)
    return _views(image, augment.random_crop_boxes(crops, shape[0], shape[1], settings), settings)


def _views_of_scaled_jpeg(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """At the smallest of `RATIOS` at which the smallest crop still has as many pixels as a view."""
    with tf.control_dependencies([_check_size(encoded)]):
        shape = tf.io.extract_jpeg_shape(encoded)
    boxes = augment.random_crop_boxes(crops, shape[0], shape[1], settings)
    smallest = tf.reduce_min(boxes[:, 2:])
    choice = tf.add_n([tf.cast(smallest >= ratio * settings.image_size, tf.int32) for ratio in RATIOS[1:]])

    def at(ratio: int) -> tf.Tensor:
        return _views(tf.io.decode_jpeg(encoded, channels=3, ratio=ratio), boxes // ratio, settings)

    return tf.switch_case(choice, [functools.partial(at, ratio) for ratio in RATIOS])


def _views(image: tf.Tensor, boxes: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    # TensorFlow resizes floats faster than bytes; but it reads few pixels of a large crop, and a cast all of them.
    small = tf.size(image) <= 3 * 8 * settings.image_size**2
    in_floats, format_bytes = (
        functools.partial(_resized, image, boxes, settings, kind) for kind in (tf.float32, tf.uint8)
    )
    return tf.cond(small, in_floats, format_bytes)


def _resized(image: tf.Tensor, boxes: tf.Tensor, settings: ViewSettings, kind: tf.DType) -> tf.Tensor:
    size, method = (settings.image_size, settings.image_size), settings.resize_method
    views = []
    for y, x, height, width in (tf.unstack(box) for box in tf.unstack(boxes)):
        crop = tf.cast(image[y : y + height, x : x + width], kind)
        view = tf.image.resize(crop, size, method) + 0.5
        if method == "bicubic":  # which overshoots
            view = tf.clip_by_value(view, 0, 255)
        views.append(tf.cast(view, tf.uint8))
    return tf.stack(views)


def read_files(source: FileSource, requests: tf.data.Dataset, make: Make, substitutes: int) -> tf.data.Dataset:
    """Makes something of each file, chunk by chunk, in order; for a corrupt one its neighbours are tried.

    Args:
        source: the files.
        requests: tuples of chunks: int64 indices ``[c]`` of files, and further arguments of ``make``, ``[c, ...]``.
        make: from an encoded image and its further arguments to a tensor of static shape.
        substitutes: how many of the files that follow a corrupt one may stand in for it.

    Returns:
        Of each chunk what was made ``[c, ...]``, int32 labels ``[c]`` (−1: unknown), whether it is of a file, bool
        ``[c]``: zeros stand for an image without any substitute, so that later positions do not move; and ``[c]`` what
        `report` takes.
    """
    labels = tf.constant(source.labels if source.labels is not None else [-1] * source.num_examples, tf.int32)
    contents = tf.constant([os.fsencode(path) for path in source.paths] if source.encoded is None else source.encoded)

    @tf.function(autograph=False)  # traced once for its two uses
    def read(index: tf.Tensor, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        content = contents[index] if source.encoded is not None else tf.io.read_file(contents[index])
        return make(content, *arguments), index

    @graph_code
    def read_chunk(*request: tf.Tensor) -> tuple[tf.Tensor, ...]:
        made, found = _read_chunk(read, request, source.num_examples, substitutes)
        wanted = request[0]
        whole = tf.constant(-1, tf.int64)
        return made, *_told(found, wanted, labels), tf.where(tf.equal(found, wanted), whole, wanted)

    return requests.map(read_chunk, tf.data.AUTOTUNE)


def read_records(source: RecordSource, requests: tf.data.Dataset, make: Make, substitutes: int) -> tf.data.Dataset:
    """As `read_files`, of chunks of encoded images ``[c]``, labels ``[c]`` and further arguments of ``make``.

    The neighbours of a corrupt record are those of its chunk, as others would have to be read first.
    """

    @graph_code
    def read_chunk(contents: tf.Tensor, labels: tf.Tensor, *arguments: tf.Tensor) -> tuple[tf.Tensor, ...]:
        size = tf.size(contents, tf.int64)

        @tf.function(autograph=False)
        def read(index: tf.Tensor, *arguments: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return make(contents[index], *arguments), index

        request = (tf.range(size), *arguments)
        made, found = _read_chunk(read, request, size, substitutes)
        wanted = request[0]
        bytes_of_corrupt = tf.where(contents == "", "empty", contents)
        return made, *_told(found, wanted, labels), tf.where(tf.equal(found, wanted), "", bytes_of_corrupt)

    return requests.map(read_chunk, tf.data.AUTOTUNE)


def _told(found: tf.Tensor, wanted: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Labels ``[c]`` of what stands for the ``wanted`` indices, and whether anything does, of ``_read_chunk``'s."""
    return tf.gather(labels, tf.where(found < 0, wanted, found)), found >= 0


def report(source: EncodedSource, corrupt: tf.Tensor) -> tf.Operation:
    """Tells a source which of its images could not be decoded; to be run where the source is.

    Args:
        source: of files or records.
        corrupt: ``[n]``, of files their indices, −1 for those that are whole; of records their bytes, or nothing.
    """
    there = corrupt >= 0 if corrupt.dtype.is_integer else corrupt != ""

    def tell(corrupt: tf.Tensor) -> None:
        for which in corrupt.numpy():
            source.report_corrupt(which)

    named = tf.boolean_mask(corrupt, there)
    return tf.cond(tf.size(named) > 0, lambda: tf.group(tf.py_function(tell, [named], [])), tf.no_op)


def _read_chunk(
    read: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    request: tuple[tf.Tensor, ...],
    total: int | tf.Tensor,
    substitutes: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What was made of a chunk ``[c, ...]``, and of which indices ``[c]``: −1 where there is nothing.

    Graph code cannot catch an exception, but a data set can leave out the elements that raise one. To set one up for
    each image would take a third of the time of decoding it, so there is one for each chunk, and only the images of a
    chunk from which something is missing get their own.

    Args:
        read: from an index and further arguments to what is made of it, and the index.
        request: indices ``[c]``, and further arguments ``[c, ...]``.
        total: of all indices; the substitutes of the last one are the first ones.
        substitutes: how many may be tried.
    """

    def readable(indices: tf.Tensor, *arguments: tf.Tensor) -> tf.data.Dataset:
        """Those that can be read; then zeros, of index −1."""
        found = tf.data.Dataset.from_tensor_slices((indices, *arguments)).map(read).ignore_errors()
        nothing = tf.zeros(found.element_spec[0].shape, found.element_spec[0].dtype), tf.constant(-1, tf.int64)
        return found.concatenate(tf.data.Dataset.from_tensors(nothing))

    @graph_code
    def first_readable(wanted: tf.Tensor, *arguments: tf.Tensor) -> tf.data.Dataset:
        candidates = tf.stack([(wanted + i) % total for i in range(substitutes + 1)])
        repeated = [tf.repeat(argument[tf.newaxis], substitutes + 1, axis=0) for argument in arguments]
        return readable(candidates, *repeated).take(1)

    size = tf.size(request[0], tf.int64)

    def one_by_one() -> tuple[tf.Tensor, tf.Tensor]:
        each = tf.data.Dataset.from_tensor_slices(request).flat_map(first_readable)
        return each.batch(size).get_single_element()

    made, found = readable(*request).batch(size + 1).get_single_element()
    return tf.cond(tf.size(found, tf.int64) > size, lambda: (made[:-1], found[:-1]), one_by_one)
