"""Headers of JPEG and PNG files, read by graph code: the EXIF orientation, and the chunks of a PNG.

Orientations are numbered as in EXIF: 1 is upright; 2 to 4 are mirrored or turned by 180 degrees; 5 to 8 also swap the
sides. Damaged EXIF data are ignored, as in any viewer.
"""

import tensorflow as tf

# Runs a rare branch as a call. TensorFlow would insert its operations into the graph of every image, where each takes
# time even if the branch is not taken.
rare_branch = tf.function(autograph=False, experimental_attributes={"_noinline": True})

# Maximum number of segments or chunks to search in a file: a hostile one could have millions.
MAX_SEGMENTS = 100
MAX_CHUNKS = 100_000
# Maximum scans of a JPEG. A progressive one has about ten; decoding each walks through the whole image, so that a file
# of 100 KB with thousands of them takes minutes.
MAX_SCANS = 100

EXIF = b"Exif\0\0"
# Matches bytes with an EXIF entry of an orientation from 2 to 8, in either byte order.
TURNED = r"\C*(?:\x12\x01\x03\x00\x01\x00\x00\x00[\x02-\x08]\x00|\x01\x12\x00\x03\x00\x00\x00\x01\x00[\x02-\x08])\C*"


def jpeg_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the orientation of a JPEG file, int32 scalar from 1 to 8; 1 if it has none.

    The EXIF segment must precede the image's tables and data, as the standard demands.
    """
    first = _integers(_slice(encoded, 2, 4), tf.uint16)  # marker and length of a segment
    start = tf.where(first[0] == 0xFFE0, 4 + first[1], 2)  # of the segment after that of JFIF
    second = _integers(_slice(encoded, start, 4), tf.uint16)
    # nearly all upright files return here: their tables follow, or EXIF data without another orientation
    is_exif = _slice(encoded, start + 4, 6) == EXIF
    is_turned = tf.strings.regex_full_match(_slice(encoded, start, 2 + second[1]), TURNED)
    is_upright = (second[0] == 0xFFDB) | (is_exif & ~is_turned)
    return tf.cond(is_upright, lambda: tf.constant(1), lambda: _search_jpeg(encoded, start))


@rare_branch
def _search_jpeg(encoded: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the orientation from the segments at ``start`` and after it; see `jpeg_orientation`."""

    def segment(start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        header = _integers(_slice(encoded, start, 4), tf.uint16)
        is_exif = _slice(encoded, start + 4, 6) == EXIF
        return start, header, (header[0] == 0xFFE1) & is_exif

    def is_other_segment(_: tf.Tensor, header: tf.Tensor, is_exif: tf.Tensor) -> tf.Tensor:
        return ((header[0] // 16 == 0xFFE) | (header[0] == 0xFFFE)) & ~is_exif  # application segment or comment

    def next_segment(start: tf.Tensor, header: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return segment(start + 2 + header[1])

    start, header, is_exif = tf.while_loop(
        is_other_segment, next_segment, segment(start), maximum_iterations=MAX_SEGMENTS
    )
    length = tf.where(is_exif, tf.maximum(header[1] - 8, 0), 0)
    return _tiff_orientation(_slice(encoded, start + 10, length))


def check_scans(encoded: tf.Tensor) -> tf.Operation | None:
    """Raises InvalidArgumentError for a JPEG file with more than `MAX_SCANS` scans, including those of its thumbnails.

    The marker of a scan cannot occur in the data of another one.
    """
    parts = tf.strings.split(encoded, b"\xff\xda", maxsplit=MAX_SCANS + 1)
    return tf.debugging.assert_less_equal(tf.size(parts) - 1, MAX_SCANS, "too many scans")


def png_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the orientation of a PNG file as `jpeg_orientation` does; its EXIF chunk may be anywhere."""
    return _tiff_orientation(find_png_chunk(encoded, tf.constant("eXIf")))


@rare_branch
def find_png_chunk(encoded: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Returns the content of a chunk of a PNG file, a string scalar; "" if there is no such chunk."""
    end = tf.strings.length(encoded) - 12  # behind the last place where a chunk can start

    def length(start: tf.Tensor) -> tf.Tensor:
        return tf.maximum(_integers(_slice(encoded, start, 4), tf.int32)[0], 0)

    def is_other_chunk(start: tf.Tensor) -> tf.Tensor:
        return (start < end) & (_slice(encoded, start + 4, 4) != name)

    def next_chunk(start: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.minimum(start + 12 + tf.minimum(length(start), end), end),)

    # a search of all bytes takes less time than walking through the chunks, and nearly always suffices
    first = tf.where(contains(encoded, name), 8, end)
    (start,) = tf.while_loop(is_other_chunk, next_chunk, (first,), maximum_iterations=MAX_CHUNKS)
    is_found = (start < end) & ~is_other_chunk(start)
    return _slice(encoded, start + 8, tf.where(is_found, length(start), 0))


def contains(encoded: tf.Tensor, names: tf.Tensor | str) -> tf.Tensor:
    """Returns whether a file has any of the names, separated by ``|``, somewhere."""
    return tf.strings.regex_full_match(encoded, tf.strings.join([r"\C*(?:", names, r")\C*"]))


@rare_branch
def _tiff_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """Returns the orientation in the first directory of EXIF data, which have the structure of a TIFF file."""
    is_little = _slice(tiff, 0, 2) == b"II"
    tiff = tf.strings.join([tiff, b"\0" * 10])  # an empty directory, for data that end before their own
    last = tf.strings.length(tiff) - 2

    def integers(start: tf.Tensor | int, length: tf.Tensor | int, dtype: tf.DType) -> tf.Tensor:
        data = _slice(tiff, start, length)
        return tf.where(is_little, _integers(data, dtype, little_endian=True), _integers(data, dtype))

    start = integers(4, 4, tf.int32)[0]
    start = tf.where((start >= 8) & (start <= last), start, last)
    count = tf.minimum(integers(start, 2, tf.uint16)[0], (last - start) // 12)
    entries = tf.reshape(integers(start + 2, 12 * count, tf.uint16), [-1, 6])  # tag, type, count (2), value (2)
    is_orientation = (entries[:, 0] == 0x0112) & (entries[:, 1] == 3)  # 16 bits
    is_orientation &= entries[:, 2] + entries[:, 3] == 1  # a single value
    value = tf.reduce_max(tf.where(is_orientation, entries[:, 4], 1))
    return tf.where(value <= 8, tf.maximum(value, 1), 1)


def _slice(data: tf.Tensor, start: tf.Tensor | int, length: tf.Tensor | int) -> tf.Tensor:
    """Returns a substring, cut off at the end of the string: the error of ``substr`` would print the whole string."""
    return tf.strings.substr(data, tf.minimum(start, tf.strings.length(data)), length)


def _integers(data: tf.Tensor, dtype: tf.DType, little_endian: bool = False) -> tf.Tensor:
    """Returns the integers in a string as int32 ``[n]``; raises if it ends within one."""
    return tf.cast(tf.io.decode_raw(data, dtype, little_endian), tf.int32)


def swaps_sides(orientation: tf.Tensor) -> tf.Tensor:
    """Returns whether the upright image has the height of the stored one as its width."""
    return orientation >= 5


def turn_upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors an image ``[h, w, c]`` that was stored with this orientation."""

    return tf.cond(orientation > 1, lambda: _turn(image, orientation), lambda: image)


@rare_branch
def _turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    swapped = tf.transpose(image, tf.where(swaps_sides(orientation), [1, 0, 2], [0, 1, 2]))
    is_upside_down, is_mirrored = (
        tf.reduce_any(orientation == tf.constant(numbers)) for numbers in ([3, 4, 7, 8], [2, 3, 6, 7])
    )
    return tf.reverse(swapped, tf.boolean_mask([0, 1], tf.stack([is_upside_down, is_mirrored])))
