"""EXIF orientations are read from any position in a file, and nothing else is mistaken for one."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from simclrv2_tf.data import headers


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def tiff(orientation, order="<", start=8, before=0, kind=3, count=1):
    """Returns EXIF data: some entries, the orientation, and a thumbnail's directory with another orientation."""
    others = b"".join(struct.pack(order + "HHII", 0x0100 + i, 4, 1, 6) for i in range(before))
    entry = struct.pack(order + "HHIHH", 0x0112, kind, count, orientation, 0)
    thumbnail = struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, 5, 0, 0)
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", start)
    directory = struct.pack(order + "H", before + 1) + others + entry
    next_start = start + len(directory) + 4
    return magic.ljust(start, b"\0") + directory + struct.pack(order + "I", next_start) + thumbnail


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
ICC = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))
COMMENT = segment(0xFE, b"a comment")
XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")


def jpeg(*segments):
    """Returns a JPEG whose tables follow these segments."""
    file = io.BytesIO()
    Image.new("RGB", (16, 8)).save(file, "JPEG")
    return b"\xff\xd8" + b"".join(segments) + file.getvalue()[2 + len(JFIF) :]


def exif(*arguments, **changes):
    return segment(0xE1, headers.EXIF + tiff(*arguments, **changes))


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


PNG_IMAGE = [chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 1, 8, 0, 0, 0, 0)), chunk(b"IDAT", zlib.compress(bytes(4)))]


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join((*chunks, chunk(b"IEND", b"")))


def jpeg_orientation(content):
    return int(headers.jpeg_orientation(tf.constant(content)))


def png_orientation(content):
    return int(headers.png_orientation(tf.constant(content)))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_read_as_pillow_reads_it(orientation, order):
    for content in (jpeg(exif(orientation, order)), png(*PNG_IMAGE, chunk(b"eXIf", tiff(orientation, order)))):
        assert Image.open(io.BytesIO(content)).getexif()[0x0112] == orientation
    assert jpeg_orientation(jpeg(exif(orientation, order))) == orientation
    assert png_orientation(png(*PNG_IMAGE, chunk(b"eXIf", tiff(orientation, order)))) == orientation


@pytest.mark.parametrize(
    "segments",
    [
        [exif(6)],
        [JFIF, exif(6)],
        [JFIF, ICC, ICC, COMMENT, XMP, exif(6)],
        [segment(0xEE, b"Adobe\0d\0\0\0\0\1"), exif(6)],
        [exif(6, before=30), exif(3)],
        [exif(6, ">", start=4000)],
    ],
    ids=["alone", "after JFIF", "after many", "after Adobe", "the first of two", "a distant directory"],
)
def test_exif_is_found_among_other_segments(segments):
    assert jpeg_orientation(jpeg(*segments)) == 6


@pytest.mark.parametrize("place", range(1, 3))
def test_the_exif_chunk_of_a_png_may_be_anywhere(place):
    chunks = [*PNG_IMAGE[:place], chunk(b"eXIf", tiff(6)), *PNG_IMAGE[place:]]
    assert png_orientation(png(chunks[0], chunk(b"tEXt", b"Title\0eXIf is no chunk here"), *chunks[1:])) == 6


WHOLE = tiff(6)
DAMAGED = {
    "no entry": tiff(1),
    "orientation 0": tiff(0),
    "orientation 9": tiff(9),
    "other type": tiff(6, kind=1),
    "two values": tiff(6, count=2),
    "cut": WHOLE[:18],
    "header alone": WHOLE[:8],
    "cut in the header": WHOLE[:5],
    "empty": b"",
    "directory behind the end": WHOLE[:4] + struct.pack("<I", 10_000) + WHOLE[8:],
    "directory at a negative place": WHOLE[:4] + struct.pack("<i", -20) + WHOLE[8:],
    "directory in the header": WHOLE[:4] + struct.pack("<I", 0) + WHOLE[8:],
    "another byte order": b"XX" + WHOLE[2:],
}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_exif_counts_as_upright(data):
    assert jpeg_orientation(jpeg(segment(0xE1, headers.EXIF + data))) == 1
    assert jpeg_orientation(jpeg(COMMENT, segment(0xE1, headers.EXIF + data))) == 1
    assert png_orientation(png(*PNG_IMAGE, chunk(b"eXIf", data))) == 1


def test_files_without_exif_are_upright():
    for segments in itertools.permutations((JFIF, COMMENT, XMP, segment(0xED, b"Exif\0\0" + WHOLE)), 2):
        assert jpeg_orientation(jpeg(*segments)) == 1
    assert png_orientation(png(*PNG_IMAGE, chunk(b"tEXt", b"Title\0eXIf" + WHOLE))) == 1


def test_a_hostile_file_is_not_searched_forever():
    with pytest.raises(tf.errors.OpError, match="slice index 0"):  # it ends within the segments
        jpeg_orientation(b"\xff\xd8" + COMMENT * 50)
    assert jpeg_orientation(b"\xff\xd8" + segment(0xE5, b"") * 1_000_000 + b"\0" * 4) == 1
    assert png_orientation(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**31 - 1) + b"IDATeXIf" + WHOLE) == 1


def test_the_content_of_a_png_chunk():
    def find(content):
        return headers.find_png_chunk(tf.constant(content), tf.constant("tRNS"))

    assert find(png(PNG_IMAGE[0], chunk(b"tRNS", b"\0\7"), PNG_IMAGE[1])) == b"\0\7"
    assert find(png(*PNG_IMAGE)) == find(png(*PNG_IMAGE, chunk(b"tEXt", b"Title\0tRNS"))) == b""


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_pillow_turns_them(orientation):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(headers.turn_upright(pixels, tf.constant(orientation)), expected)
    assert bool(headers.swaps_sides(tf.constant(orientation))) == (expected.shape == (7, 5, 3))
