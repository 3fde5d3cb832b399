"""Warnings about images that were probably decoded wrongly: nearly black, or nearly blank."""

import contextlib
import io
import logging
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from PIL import Image

from simclrv2_tf.data import pixels
from simclrv2_tf.data.decoding import decode_deep_png, graph_code, tiff_depths
from simclrv2_tf.data.reading import read_file

log = logging.getLogger(__name__)

NUM_SAMPLED = 32  # images per data set that are checked for unused bits
HEAD_BYTES = 26  # bytes to read of a file; those of a PNG include the bit depth

NUM_CHECKED = 64  # images of the first batch
BLANK_STD = 1.0  # standard deviation below which an image is nearly blank, in gray levels of 255
BLANK_SHARE = 0.9  # fraction of nearly blank images at which to warn


def warn_of_unused_bits(name: str, images: Iterable[bytes]) -> None:
    """Warns if the images with 16 bits per channel use so few of them that they are nearly black.

    Args:
        name: name of the data set.
        images: some encoded images.
    """
    pixels.warn_of_few_bits(name, max(map(_greatest_of_16_bits, images), default=0))


def read_if_deep(path: str, max_bytes: int) -> bytes:
    """Returns the content of a file if its image may have 16 bits per channel, else b""."""
    return read_file(path, max_bytes, HEAD_BYTES, _may_be_deep)


def _may_be_deep(head: bytes) -> bool:
    """Returns whether a file begins like a PNG with 16 bits per channel, or like a TIFF."""
    is_deep_png = head[:4] == b"\x89PNG" and head[24:25] == bytes([pixels.DEEP_BITS])
    return is_deep_png or head[:4] in (b"II*\0", b"MM\0*")


def _greatest_of_16_bits(encoded: bytes) -> int:
    """Returns the largest value of an image with 16 bits per channel; 0 for any other image, or a corrupt one."""
    if _may_be_deep(encoded[:HEAD_BYTES]):
        with contextlib.suppress(Exception):
            if encoded[:4] == b"\x89PNG":
                return int(decode_deep_png(encoded).numpy().max())
            with Image.open(io.BytesIO(encoded), formats=("TIFF",)) as image:
                return int(np.asarray(image).max()) if tiff_depths(image) == (pixels.DEEP_BITS,) else 0
    return 0


def warn_if_blank(batches: tf.data.Dataset, name: str, resident: np.ndarray | None = None) -> tf.data.Dataset:
    """Returns the same batches, and warns if nearly all images of the first one are nearly blank.

    Args:
        batches: dicts with ``views``, ``images`` or ``index``, as ``TrainingInput.batches`` returns them.
        name: name of the data set.
        resident: uint8 ``[n, height, width, 3]``, the images to which ``index`` refers.
    """

    def check(values: tf.Tensor) -> None:
        images = values.numpy() if resident is None else resident[values.numpy()]
        levels = 255 if values.dtype.is_floating else 1
        num_blank = sum(image.std(axis=(-3, -2)).max() * levels < BLANK_STD for image in images)  # in every channel
        if num_blank >= BLANK_SHARE * len(images):
            log.warning(
                "%s: %d of %d images of the first batch are nearly blank, as their pixels hardly differ; look at them "
                "with --mode=preview (if they have 16 bits per channel, set --image_bits)",
                *(name, num_blank, len(images)),
            )

    @graph_code
    def check_first(number: tf.Tensor, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        key = next(key for key in ("views", "index", "images") if key in batch)
        call = lambda: tf.group(tf.py_function(check, [batch[key][:NUM_CHECKED]], []))  # noqa: E731
        with tf.control_dependencies([tf.cond(number == 0, call, tf.no_op)]):
            return {key: tf.identity(value) for key, value in batch.items()}

    return batches.enumerate().map(check_first)
