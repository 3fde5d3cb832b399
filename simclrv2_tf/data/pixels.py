"""Pixels of any bit depth and number of channels as 8-bit RGB: the same for files, arrays and data sets."""

import numpy as np
import tensorflow as tf

from simclrv2_tf.errors import SettingError

DEEP_BITS = 16  # bits per channel of an image that has more than 8


def reduce_depth(image: tf.Tensor, image_bits: int = 0) -> tf.Tensor:
    """Returns the upper 8 of the bits that an image uses.

    Args:
        image: uint16 of any shape.
        image_bits: bits in use, 8 to 16, so that ``2 ** image_bits − 1`` becomes 255; 0: all 16.

    Returns:
        uint8; 255 for a greater value than these bits can hold.
    """
    upper = tf.bitwise.right_shift(image, tf.constant((image_bits or DEEP_BITS) - 8, tf.uint16))
    return tf.cast(tf.minimum(upper, tf.constant(255, tf.uint16)), tf.uint8)


def rgb_on_white(image: tf.Tensor) -> tf.Tensor:
    """Converts images to RGB; what is transparent shows a white background.

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


def as_images(array: np.ndarray, where: str) -> np.ndarray:
    """Converts grey, RGB or RGBA images, uint8 or floats in [0, 1], to uint8 ``[n, height, width, 3]``.

    Raises:
        SettingError: for anything else; its text begins with ``where``.
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
    elif array.dtype != np.uint8:
        raise SettingError(
            f"{where}: images must be uint8 or floats in [0, 1], not {array.dtype}; divide them by the greatest value "
            "that they can have, such as 65535 or 4095"
        )
    array = array.astype(np.uint8)
    if array.shape[-1] == 4:
        return np.stack([rgb_on_white(image).numpy() for image in array])
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array
