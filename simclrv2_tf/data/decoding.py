"""Image decoding on the host: whole images, crops, and substitutes for corrupt images.

All of it is single-threaded graph code; `tf.data` runs it on several chunks of images at a time.
"""

import contextlib
import functools
import io
import logging
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from simclrv2_tf.data import cropping, headers, pixels
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.errors import warn_once

log = logging.getLogger(__name__)

# Marks graph code without tensor-dependent Python control flow: converting it would only take time.
graph_code = tf.autograph.experimental.do_not_convert

# Maximum number of pixels of one image: Pillow's limit, 179 million. Decoded they take 537 MB.
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS

# A JPEG can be decoded at 1/ratio of its size: the transform of each 8 × 8 block then yields fewer pixels.
RATIOS = (1, 2, 4, 8)

PNG_HEADER_BYTES = 33
HEAD_BYTES = 12  # bytes at the start of a file from which its format is recognized
TIFF_BITS_PER_SAMPLE = 258  # TIFF tag number


def may_be_image(head: bytes) -> bool:
    """Returns whether a file that begins with these `HEAD_BYTES` may be of a format that `decode` reads."""
    starts = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    return head.startswith(starts) or head[8:12] == b"WEBP" or head[4:8] == b"ftyp"


def decode(encoded: tf.Tensor, image_bits: int = 0) -> tf.Tensor:
    """Decodes an image as viewers show it: upright, and on white where it is transparent.

    JPEG, PNG, BMP, WebP, GIF, TIFF, AVIF and, with ``pillow-heif``, HEIC are read; for an animation, the first frame.

    Args:
        encoded: the file's content, a string scalar.
        image_bits: bits per channel that images of 16 bits use, see ``pixels.reduce_depth``; 0: all 16.

    Returns:
        uint8 ``[height, width, 3]``.

    Raises:
        tf.errors.OpError: for another format, a damaged file, or more than `MAX_PIXELS`.
    """
    encoded = tf.convert_to_tensor(encoded)
    pillow = functools.partial(_decode_with_pillow, image_bits=image_bits)

    def other() -> tf.Tensor:
        by_pillow = lambda: tf.py_function(pillow, [encoded], tf.uint8)  # noqa: E731
        return tf.cond(_is_png(encoded), lambda: _decode_png(encoded, image_bits), by_pillow)

    return _decode(encoded, other)


def decode_in_graph(encoded: tf.Tensor, image_bits: int = 0) -> tf.Tensor:
    """Decodes JPEG and PNG as `decode` does, but without Python, so it can be exported or run on a data service."""
    encoded = tf.convert_to_tensor(encoded)
    return _decode(encoded, lambda: _decode_png(encoded, image_bits))


def _decode(encoded: tf.Tensor, other: Callable[[], tf.Tensor]) -> tf.Tensor:
    image = tf.cond(tf.io.is_jpeg(encoded), lambda: _decode_jpeg(encoded), other)
    return tf.ensure_shape(image, [None, None, 3])


def _decode_jpeg(encoded: tf.Tensor, ratio: int = 1) -> tf.Tensor:
    checks = [_check_size(tf.io.extract_jpeg_shape(encoded)[:2]), headers.check_scans(encoded)]
    with tf.control_dependencies(checks):
        image = tf.io.decode_jpeg(encoded, channels=3, ratio=ratio)
    return headers.turn_upright(image, headers.jpeg_orientation(encoded))


def _check_size(size: tf.Tensor) -> tf.Operation | None:
    """Raises if a JPEG or PNG header declares more than `MAX_PIXELS`: decoding it could exhaust the memory."""
    num_pixels = tf.reduce_prod(tf.cast(size, tf.int64))
    return tf.debugging.assert_less_equal(num_pixels, tf.constant(MAX_PIXELS, tf.int64), "too many pixels")


def _is_png(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, 4) == b"\x89PNG"


@headers.rare_branch
def _decode_png(encoded: tf.Tensor, image_bits: int) -> tf.Tensor:
    with tf.control_dependencies([_check_png(encoded)]):
        encoded = tf.identity(encoded)
    header = tf.io.decode_raw(tf.strings.substr(encoded, 24, 2), tf.uint8)
    is_deep, has_alpha_channel = header[0] == pixels.DEEP_BITS, header[1] >= 4
    uses_all_bits = image_bits in (0, pixels.DEEP_BITS)

    def stored(channels: int) -> tf.Tensor:
        image = lambda: tf.io.decode_png(encoded, channels)  # noqa: E731  # the upper 8 of 16 bits
        return image() if uses_all_bits else tf.cond(is_deep, lambda: rescaled(channels), image)

    def rescaled(channels: int) -> tf.Tensor:
        image = decode_deep_png(encoded, channels)
        color, alpha = pixels.reduce_depth(image[..., :3], image_bits), pixels.reduce_depth(image[..., 3:])
        return tf.concat([color, alpha], axis=-1)

    def seen() -> tf.Tensor:
        transparent_color = headers.find_png_chunk(encoded, tf.constant("tRNS"))
        has_alpha = has_alpha_channel | (transparent_color != "")
        image = tf.cond(has_alpha, lambda: pixels.rgb_on_white(stored(4)), lambda: stored(3))
        return headers.turn_upright(image, headers.png_orientation(encoded))

    is_plain = ~(has_alpha_channel | headers.contains(encoded, "tRNS|eXIf"))
    return tf.cond(is_plain, lambda: stored(3), seen)


def decode_deep_png(encoded: tf.Tensor, channels: int = 3) -> tf.Tensor:
    """Decodes a PNG with 16 bits per channel to uint16 ``[height, width, channels]``."""
    with tf.control_dependencies([_check_png(encoded)]):
        return tf.io.decode_png(encoded, channels, tf.uint16)


def _check_png(encoded: tf.Tensor) -> tf.Operation | None:
    is_png = _is_png(encoded) & (tf.strings.length(encoded) > PNG_HEADER_BYTES)
    with tf.control_dependencies([tf.debugging.Assert(is_png, ["the image is neither JPEG nor PNG"])]):
        return _check_size(tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, False))  # width, height


def _decode_with_pillow(encoded: tf.Tensor, image_bits: int) -> np.ndarray:
    # no other formats, as Pillow runs programs for some; it checks the number of pixels itself
    with Image.open(io.BytesIO(encoded.numpy()), formats=_pillow_formats()) as image:
        image.load()
        bits = tiff_depths(image)
        _check_depth(image.mode, bits, image_bits)
        with contextlib.suppress(Exception):  # the EXIF data may be damaged
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I;16"):
            array = pixels.reduce_depth(np.asarray(image)[..., np.newaxis], image_bits or bits[0])
        else:
            array = np.asarray(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        return pixels.rgb_on_white(array).numpy()


@functools.cache
def _pillow_formats() -> tuple[str, ...]:
    """Returns the formats that are read by Pillow; HEIC only if ``pillow-heif`` is installed."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in ("AVIF", "BMP", "GIF", "HEIF", "TIFF", "WEBP") if name in Image.OPEN)


def tiff_depths(image: Image.Image) -> tuple[int, ...]:
    """Returns the bits of each channel of a TIFF as its header states them; (8,) for another format."""
    return getattr(image, "tag_v2", {}).get(TIFF_BITS_PER_SAMPLE, (8,))


def _check_depth(mode: str, bits: tuple[int, ...], image_bits: int) -> None:
    """Raises ValueError for pixels whose range is unknown, or that Pillow reduces to 8 bits before we can see them."""
    if mode in ("I", "F"):
        _refuse("images of 32 bits per channel, or of signed numbers, are not read; convert them to 8 or 16 bits")
    if image_bits not in (0, pixels.DEEP_BITS) and len(bits) > 1 and max(bits) > 8:
        _refuse(f"--image_bits={image_bits}: TIFF images in color with 16 bits are not read; convert them to PNG")


def _refuse(reason: str) -> None:
    warn_once(log, f"{reason} (they count as corrupt)")
    raise ValueError(reason)


def cropped_views(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings, image_bits: int = 0) -> tf.Tensor:
    """Decodes an image once and returns random crops of it, resized.

    Args:
        encoded: an image that `decode` can read.
        crops: float32 ``[views, CROP_DRAWS]``, the random numbers of ``cropping.random_crop_boxes``.
        settings: ranges of the crops, size and resize method.
        image_bits: as in `decode`.

    Returns:
        uint8 ``[views, size, size, 3]``.
    """
    if settings.jpeg_scaling:
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _views_of_scaled_jpeg(encoded, crops, settings),
            lambda: views_of_image(decode(encoded, image_bits), crops, settings),
        )
    return views_of_image(decode(encoded, image_bits), crops, settings)


def views_of_image(image: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Like `cropped_views`, for a decoded image, uint8 ``[h, w, 3]``."""
    shape = tf.shape(image)
    return _views(image, cropping.random_crop_boxes(crops, shape[0], shape[1], settings), settings)


def _views_of_scaled_jpeg(encoded: tf.Tensor, crops: tf.Tensor, settings: ViewSettings) -> tf.Tensor:
    """Decodes at the smallest size at which the smallest crop still has as many pixels as a view."""
    shape, orientation = tf.io.extract_jpeg_shape(encoded)[:2], headers.jpeg_orientation(encoded)
    height, width = tf.unstack(tf.where(headers.swaps_sides(orientation), shape[::-1], shape))  # of the upright image
    boxes = cropping.random_crop_boxes(crops, height, width, settings)  # [views, 4]
    smallest = tf.reduce_min(boxes[:, 2:])
    choice = tf.add_n([tf.cast(smallest >= ratio * settings.image_size, tf.int32) for ratio in RATIOS[1:]])

    def views_at(ratio: int) -> tf.Tensor:
        return _views(_decode_jpeg(encoded, ratio), boxes // ratio, settings)

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
        view = cropping.resize(crop, size, method) + 0.5
        if method.startswith("bicubic"):  # bicubic overshoots
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
    one per image would take a third of the time of decoding it, so there is one per chunk. Only a chunk that misses an
    element is read again, with a data set per image.

    Args:
        read: maps an index and further arguments to a tensor of static shape; raises for a corrupt image.
        indices: indices of the images to read, int64 ``[c]``.
        arguments: further arguments of ``read``, each ``[c, ...]``.
        labels: labels of all images that could be read, int32 ``[n]``; substitutes wrap around after the last image.
        substitutes: images to try in place of a corrupt one.

    Returns:
        ``images`` ``[c, ...]``, their ``labels`` int32 ``[c]`` and ``weights`` float32 ``[c]``: 1, or 0 for a corrupt
        image without substitute, which is all zeros and keeps its label. And bool ``[c]``: True if corrupt.
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
