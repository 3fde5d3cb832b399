"""Pixels of any bit depth and number of channels as 8-bit RGB: the same for files, arrays and data sets."""

import functools
import logging

import numpy as np
import tensorflow as tf

from simclrv2_tf.errors import SettingError

log = logging.getLogger(__name__)

DEEP_BITS = 16  # bits per channel of an image that has more than 8
MAX_OF_FEW_BITS = 2**12 - 1  # 16-bit images without a larger value probably use 12 bits or fewer


def reduce_depth(image: tf.Tensor, image_bits: int = 0) -> tf.Tensor:
    """Returns the upper 8 of the bits that an image uses.

    Args:
        image: uint16 of any shape.
        image_bits: bits in use, 8 to 16, so that ``2 ** image_bits − 1`` becomes 255; 0: all 16.

    Returns:
        uint8; 255 for values that are too large for these bits.
    """
    upper = tf.bitwise.right_shift(image, tf.constant((image_bits or DEEP_BITS) - 8, tf.uint16))
    return tf.cast(tf.minimum(upper, tf.constant(255, tf.uint16)), tf.uint8)


def rgb_on_white(image: tf.Tensor) -> tf.Tensor:
    """Converts images to RGB, with a white background where they are transparent.

    Args:
        image: uint8 ``[..., c]``: gray, gray and alpha, RGB, or RGBA.

    Returns:
        uint8 ``[..., 3]``.
    """
    channels = image.shape[-1]
    if channels is None:
        image = tf.cond(tf.shape(image)[-1] % 2 == 0, lambda: _compose(image), lambda: image)
    elif channels % 2 == 0:
        image = _compose(image)
    return tf.broadcast_to(image, tf.concat([tf.shape(image)[:-1], [3]], axis=0))


def _compose(image: tf.Tensor) -> tf.Tensor:
    color, alpha = image[..., :-1], image[..., -1:]

    def on_white() -> tf.Tensor:
        darkness = tf.cast(255 - color, tf.uint16) * tf.cast(alpha, tf.uint16)  # times 255
        return 255 - tf.cast((darkness + 127) // 255, tf.uint8)

    return tf.cond(tf.reduce_min(alpha) == 255, lambda: color, on_white)


def warn_of_few_bits(name: str, greatest: int) -> None:
    """Warns if images with 16 bits per channel use so few of them that they are nearly black.

    Args:
        name: name of the data.
        greatest: the largest value of the images; 0 if there are none.
    """
    if 0 < greatest <= MAX_OF_FEW_BITS:
        bits = max(greatest.bit_length(), 8)
        log.warning(
            "%s: 16-bit images are nearly black, as their greatest value is %d; --image_bits=%d uses the whole range",
            *(name, greatest, bits),
        )


_warn_once = functools.cache(warn_of_few_bits)  # the same arrays are opened several times in one process


def as_images(array: np.ndarray, where: str, image_bits: int = 0) -> np.ndarray:
    """Converts gray, RGB or RGBA images, uint8, uint16 or floats in [0, 1], to uint8 ``[n, height, width, 3]``.

    Args:
        array: images ``[n, height, width]`` or ``[n, height, width, 1, 3 or 4]``.
        where: the setting that names the data, for the messages.
        image_bits: bits in use of uint16, see `reduce_depth`; 0: all 16, with a warning if they are nearly black.

    Raises:
        SettingError: for any other array; the message begins with ``where``.
    """
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3, 4) or not array.size:
        raise SettingError(f"{where}: images must be [n, height, width] or [..., 1, 3 or 4], not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise SettingError(
                f"{where}: floating-point images must be finite and in [0, 1]; divide those up to 255 by 255"
            )
        array = np.rint(array * 255)
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:  # in either byte order
        array = _reduce_array(array.astype(np.uint16), where, image_bits)
    elif array.dtype != np.uint8:
        raise SettingError(
            f"{where}: images must be uint8, uint16 or floats in [0, 1], not {array.dtype}; divide them by the "
            "greatest value that they can have"
        )
    array = array.astype(np.uint8)
    if array.shape[-1] == 4:
        return np.stack([rgb_on_white(image).numpy() for image in array])
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _reduce_array(array: np.ndarray, where: str, image_bits: int) -> np.ndarray:
    """Reduces uint16 images ``[n, height, width, c]`` to uint8; a fourth channel is opacity, which uses all 16 bits."""
    color, alpha = array[..., :3], array[..., 3:]
    if not image_bits:
        _warn_once(where, int(color.max()))
    return np.concatenate([reduce_depth(color, image_bits).numpy(), reduce_depth(alpha).numpy()], axis=-1)
