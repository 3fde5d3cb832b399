"""Views of encoded images: decoded once, cropped and resized; JPEGs at a fraction of their size if possible."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from data.test_headers import chunk, png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from simclrv2_tf import errors
from simclrv2_tf.data import cropping, decoding
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.cropping import CROP_DRAWS
from simclrv2_tf.data.decoding import cropped_views, decode, decode_in_graph

SIZE = 16


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras."""


def encoded(height, width, encode=tf.io.encode_jpeg):
    """Returns encoded noise, whose pixels depend on the method of decoding."""
    return encode(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def crops_of(count, views=2):
    return np.random.default_rng(1).random((count, views, CROP_DRAWS), np.float32)


def resized(image, boxes, settings):
    """Returns the views that a straightforward implementation would compute."""
    size = (settings.image_size, settings.image_size)
    views = [tf.image.resize(image[y : y + h, x : x + w], size, settings.resize_method) for y, x, h, w in boxes]
    return np.clip(views, 0, 255)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("height, width", [(20, 30), (50, 41), (120, 150)])  # the last one is not cast before resizing
def test_views_are_the_crops_resized_and_rounded(height, width, method):
    settings = ViewSettings(SIZE, resize_method=method)
    jpeg = encoded(height, width)
    for crops in crops_of(5):
        boxes = cropping.random_crop_boxes(crops, height, width, settings).numpy()
        views = cropped_views(jpeg, tf.constant(crops), settings).numpy()
        assert views.dtype == np.uint8 and views.shape == (2, SIZE, SIZE, 3)
        np.testing.assert_allclose(views, resized(tf.io.decode_jpeg(jpeg), boxes, settings), rtol=0, atol=0.501)


def test_a_scaled_jpeg_is_as_small_as_its_smallest_crop_allows():
    settings = ViewSettings(SIZE, jpeg_scaling=True)
    height, width = 290, 251
    jpeg = encoded(height, width)
    decoded = {ratio: tf.io.decode_jpeg(jpeg, ratio=ratio) for ratio in (1, 2, 4, 8)}
    seen = set()
    for crops in crops_of(20):
        boxes = cropping.random_crop_boxes(crops, height, width, settings).numpy()
        ratio = max(r for r in decoded if boxes[:, 2:].min() >= r * SIZE)
        views = cropped_views(jpeg, tf.constant(crops), settings)
        np.testing.assert_allclose(views, resized(decoded[ratio], boxes // ratio, settings), rtol=0, atol=0.501)
        assert (boxes[:, 2:] // ratio >= SIZE).all()  # no view is enlarged
        seen.add(ratio)
    assert seen == {4, 8}


def test_small_jpegs_and_other_formats_are_not_scaled():
    exact, scaled = (ViewSettings(SIZE, jpeg_scaling=scaling) for scaling in (False, True))
    for image in (encoded(31, 31), encoded(290, 251, tf.io.encode_png)):
        for crops in crops_of(3):
            views = [cropped_views(image, tf.constant(crops), settings) for settings in (exact, scaled)]
            np.testing.assert_array_equal(*views)


def test_a_scaled_jpeg_differs_by_less_than_a_pixel_of_a_view():
    """Its boxes are whole pixels of the smaller image, which has at least as many pixels as the view."""
    y, x = np.mgrid[:290, :251] / 290
    waves = [np.sin(6 * x + 2 * y), np.cos(5 * y), np.sin(4 * (x - y))]
    slope = 60 * np.hypot(6, 2) / SIZE  # of the waves below, per pixel of a view of the whole image
    jpeg = tf.io.encode_jpeg((127 + 60 * np.stack(waves, axis=-1)).astype(np.uint8), quality=95)
    for crops in crops_of(10):
        exact, scaled = (
            cropped_views(jpeg, tf.constant(crops), ViewSettings(SIZE, jpeg_scaling=on)).numpy().astype(float)
            for on in (False, True)
        )
        difference = np.abs(exact - scaled)
        assert 0 < difference.mean() < slope / 4 and difference.max() < slope


def saved(format, size=(5, 4), **options):
    frames = [Image.fromarray(np.full((*size, 3), value, np.uint8)) for value in (200, 0)]
    file = io.BytesIO()
    frames[0].save(file, format, append_images=frames[1:], **options)
    return file.getvalue()


@pytest.mark.parametrize("format, options", [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})])
def test_an_animation_gives_its_first_frame(format, options):
    image = decode(saved(format, save_all=True, **options))
    np.testing.assert_array_equal(image, np.full((5, 4, 3), 200, np.uint8))


def test_images_of_16_bits_per_channel_lose_the_lower_8():
    pixels = np.random.default_rng(0).integers(0, 2**16, (5, 4, 3), np.uint16)
    np.testing.assert_array_equal(decode(tf.io.encode_png(pixels)), pixels >> 8)


# Appearance: compared with Pillow

ORIENTATIONS = range(1, 9)
TRANSPARENT = {"P": bytes(range(0, 240, 30)), "L": 2, "RGB": (1, 1, 1)}  # by palette index, or the transparent color
KINDS = {  # format: modes, options
    "JPEG": (("L", "RGB", "CMYK"), {"quality": 95, "subsampling": 0}),
    "PNG": (("1", "L", "LA", "P", "RGB", "RGBA", "I;16"), {}),
    "BMP": (("1", "L", "P", "RGB", "RGBA"), {}),
    "GIF": (("L", "P"), {}),
    "WEBP": (("L", "RGB", "RGBA"), {"lossless": True, "exact": True}),
    "TIFF": (("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"), {"compression": "tiff_lzw"}),
    "AVIF": (("L", "RGB", "RGBA"), {"quality": 100, "subsampling": "4:4:4"}),
}
MODES = [(kind, mode) for kind, (modes, _) in KINDS.items() for mode in modes]
HAS_EXIF = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def picture(mode, seed=0, height=5, width=7):
    pixels = np.random.default_rng(seed).integers(0, 2**16, (height, width, 4), np.uint16)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0])
    image = Image.fromarray((pixels >> 8).astype(np.uint8))
    if mode == "P":
        return image.convert("RGB").quantize(8)
    return image.convert("RGB").convert(mode) if mode == "CMYK" else image.convert(mode)


def file_of(image, kind, orientation=0, **options):
    exif = {}
    if orientation and kind in HAS_EXIF:
        exif = {"exif": Image.Exif()}
        exif["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, **KINDS[kind][1] if kind in KINDS else {}, **exif, **options)
    return file.getvalue()


def seen(content):
    """Returns a file as decoded by Pillow alone: upright, on white, its upper 8 bits."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode == "I;16":
        return np.repeat((np.asarray(image) >> 8)[..., np.newaxis], 3, axis=-1)
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


@functools.cache
def compiled(function, image_bits=0):
    """Returns the function as a graph that is traced once."""
    signature = [tf.TensorSpec([], tf.string)]
    return tf.function(lambda encoded: function(encoded, image_bits), signature, autograph=False)


def assert_seen(content, kind, expected=None):
    # JPEG decoders differ by some levels in noise, in which another pixel would differ by many
    expected, tolerance = seen(content) if expected is None else expected, {"JPEG": 12, "AVIF": 1}.get(kind, 0)
    for function in (decode, decode_in_graph) if kind in ("JPEG", "PNG") else (decode,):
        image = compiled(function)(content).numpy()
        assert image.dtype == np.uint8 and image.shape == expected.shape
        np.testing.assert_allclose(image.astype(int), expected, rtol=0, atol=tolerance)


@given(
    kind_and_mode=st.sampled_from(MODES),
    orientation=st.integers(0, 8),
    sides=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_image_is_decoded_as_pillow_shows_it(kind_and_mode, orientation, sides, seed):
    kind, mode = kind_and_mode
    assert_seen(file_of(picture(mode, seed, *sides), kind, orientation), kind)


@pytest.mark.parametrize("kind, mode", MODES)
def test_every_format_is_turned_upright_and_shown_on_white(kind, mode):
    for orientation in (0, *ORIENTATIONS):
        assert_seen(file_of(picture(mode), kind, orientation), kind)


@pytest.mark.parametrize("kind, mode", [("PNG", "P"), ("PNG", "L"), ("PNG", "RGB"), ("GIF", "P")])
def test_transparent_colors_show_white(kind, mode):
    image = picture(mode) if mode == "P" else picture(mode).point(lambda value: value // 100)
    for orientation in (0, 6):
        content = file_of(image, kind, orientation, transparency=2 if kind == "GIF" else TRANSPARENT[mode])
        assert (seen(content) == 255).all(axis=-1).any()
        assert_seen(content, kind)


def test_gray_pixels_of_16_bits_can_have_a_transparent_value():
    pixels = np.array([[1000, 30_000], [1001, 65_535]], np.uint16)
    content = file_of(Image.fromarray(pixels), "PNG")
    at = content.index(b"IDAT") - 4
    content = content[:at] + chunk(b"tRNS", struct.pack(">H", 1000)) + content[at:]
    assert_seen(content, "PNG", np.repeat([[[255], [30_000 >> 8]], [[1001 >> 8], [255]]], 3, axis=-1))


def test_a_name_within_the_pixels_of_a_png_is_no_chunk():
    """Packed pixels of 1 bit would be decoded wrongly if they were treated as transparent."""
    header = struct.pack(">IIBBBBB", 72, 1, 1, 0, 0, 0, 0)
    content = png(chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0tRNS eXIf", level=0)))
    assert b"tRNS" in content
    assert_seen(content, "PNG")


def test_heic_is_read_where_pillow_heif_is_installed():
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    image, exif, file = picture("RGB", height=64, width=80), Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    image.save(file, "HEIF", quality=-1, chroma=444, matrix_coefficients=0)
    expected = np.asarray(image.transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_allclose(decode(file.getvalue()).numpy().astype(int), expected, rtol=0, atol=1)


# Orientation and the crops of training


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_crops_are_those_of_the_upright_image(orientation):
    settings, image = ViewSettings(SIZE), picture("RGB", height=40, width=90)
    for crops in crops_of(3):
        views = [
            cropped_views(file_of(turned, "PNG", stored), crops, settings)
            for turned, stored in ((image, orientation), (ImageOps.exif_transpose(oriented(image, orientation)), 0))
        ]
        np.testing.assert_array_equal(*views)


def oriented(image, orientation):
    image.getexif()[0x0112] = orientation
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_scaled_jpegs_are_turned_upright(orientation):
    settings = ViewSettings(SIZE, jpeg_scaling=True)
    content = file_of(Image.open(io.BytesIO(encoded(290, 251).numpy())), "JPEG", orientation)
    height, width, _ = seen(content).shape
    for crops in crops_of(3):
        boxes = cropping.random_crop_boxes(crops, height, width, settings).numpy()
        ratio = max(r for r in (1, 2, 4, 8) if boxes[:, 2:].min() >= r * SIZE)
        assert ratio > 1
        stored = Image.fromarray(tf.io.decode_jpeg(content, ratio=ratio).numpy())
        upright = np.asarray(ImageOps.exif_transpose(oriented(stored, orientation)))
        views = cropped_views(tf.constant(content), crops, settings)
        np.testing.assert_allclose(views, resized(upright, boxes // ratio, settings), rtol=0, atol=0.501)


# Bit depth


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_fewer_bits_of_16_are_scaled_by_their_range(bits, channels):
    pixels = np.random.default_rng(0).integers(0, 2**bits, (5, 7, channels), np.uint16)
    pixels[0, 0], pixels[0, 1] = 0, 2**bits - 1
    if channels in (2, 4):
        pixels[..., -1] = 2**16 - 1  # opaque
    for function in (decode, decode_in_graph):
        image = compiled(function, bits)(tf.io.encode_png(pixels)).numpy()
        color = pixels[..., : channels - 1 + channels % 2]
        np.testing.assert_array_equal(image, np.broadcast_to(color >> (bits - 8), (5, 7, 3)))
        assert image[0, 0].tolist() == [0, 0, 0] and image[0, 1].tolist() == [255, 255, 255]
        assert np.abs(image - color * (255 / (2**bits - 1))).max() < 1


def test_bits_of_a_tiff_are_scaled_too_and_greater_values_are_white():
    pixels = np.array([[0, 2048, 4095, 4096, 65_535]], np.uint16)
    for order in ("<u2", ">u2"):
        content = file_of(Image.fromarray(pixels.astype(order)), "TIFF")
        image = compiled(decode, 12)(content)
        np.testing.assert_array_equal(image[..., 0], [[0, 128, 255, 255, 255]])


def test_transparent_pixels_of_16_bits_are_white_whatever_bits_the_colors_use():
    pixels = np.array([[[4095, 0, 0, 65_535], [4095, 0, 0, 0]]], np.uint16)
    image = compiled(decode, 12)(tf.io.encode_png(pixels))
    np.testing.assert_array_equal(image, [[[255, 0, 0], [255, 255, 255]]])


@pytest.mark.parametrize("kind, mode", [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("TIFF", "RGB"), ("JPEG", "RGB")])
def test_images_of_8_bits_do_not_depend_on_the_bits(kind, mode):
    content = file_of(picture(mode), kind)
    np.testing.assert_array_equal(compiled(decode, 12)(content), compiled(decode)(content))


def test_a_tiff_that_states_12_bits_is_scaled_by_them():
    """Pairs of values are packed into three bytes."""
    values = np.array([0, 4095, 2048, 100])
    packed = b"".join(int(one << 12 | other).to_bytes(3, "big") for one, other in values.reshape(2, 2))
    entries = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 200),
               (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 1, 6)]  # fmt: skip
    image = decode(tiff_of(entries).ljust(200, b"\0") + packed)
    np.testing.assert_array_equal(image[0, :, 0], values >> 4)


def tiff_of(entries):
    """Returns the header and the directory of a TIFF: tag, type, count and value of each entry."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)


def tiff_in_color(value):
    """Returns a TIFF of one RGB pixel with 16 bits per channel."""
    entries = [(256, 3, 1, 1), (257, 3, 1, 1), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 210),
               (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 6)]  # fmt: skip
    depths, pixel = struct.pack("<HHH", 16, 16, 16), struct.pack("<HHH", value, value, value)
    return tiff_of(entries).ljust(200, b"\0") + depths.ljust(10, b"\0") + pixel


def test_pixels_whose_range_is_lost_or_unknown_are_refused_and_the_reason_is_logged(caplog):
    errors.warn_once.cache_clear()
    np.testing.assert_array_equal(decode(tiff_in_color(0x8123)), [[[0x81] * 3]])
    for _ in range(2):
        with pytest.raises(tf.errors.OpError, match="color with 16 bits"):
            decode(tiff_in_color(0x0812), 12)
        for mode in ("I", "F"):
            with pytest.raises(tf.errors.OpError, match="32 bits"):
                decode(file_of(picture("L").convert(mode), "TIFF"))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2 and messages[0].startswith("--image_bits=12: ") and "corrupt" in messages[1]


# Without Python


@pytest.mark.parametrize("content", [saved("GIF"), saved("WEBP"), b"", b"\x89PNG", b"text"], ids=len)
def test_in_a_graph_only_jpeg_and_png_are_read(content):
    with pytest.raises(tf.errors.OpError, match="neither JPEG nor PNG"):
        decode_in_graph(content)


def test_the_graph_has_no_python_function():
    graph = compiled(decode_in_graph, 12).get_concrete_function().graph.as_graph_def()
    functions = [node for function in graph.library.function for node in function.node_def]
    assert not any("PyFunc" in node.op for node in (*graph.node, *functions))


def test_an_export_decodes_in_the_same_way(tmp_path):
    module = tf.Module()
    module.decode = compiled(decode_in_graph)
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for kind, mode, orientation in (("JPEG", "RGB", 6), ("PNG", "RGBA", 6), ("PNG", "L", 0)):
        content = file_of(picture(mode), kind, orientation)
        np.testing.assert_array_equal(loaded.decode(content), decode(content))


def test_damaged_exif_data_do_not_make_an_image_corrupt():
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        image = picture("RGB")
        content = file_of(image, kind, 6).replace(struct.pack("<HHI", 0x0112, 3, 1), b"\xff" * 8)
        decode(content)


def patched(data, at, *sides):
    return data[:at] + struct.pack(*sides) + data[at + struct.calcsize(sides[0]) :]


PNG, JPEG, GIF = (saved(format) for format in ("PNG", "JPEG", "GIF"))
BOMBS = {  # each claims more pixels than it should
    "png": patched(PNG, 16, ">II", 50_000, 50_000),
    "small_png": patched(PNG, 16, ">II", 14_000, 14_000),
    "jpeg": patched(JPEG, JPEG.index(b"\xff\xc0") + 5, ">HH", 65_000, 65_000),
    "gif": patched(GIF, 6, "<HH", 65_000, 65_000),
}


@pytest.mark.parametrize("scaling", [False, True])
@pytest.mark.parametrize("kind", BOMBS)
def test_a_header_of_too_many_pixels_is_refused_before_it_takes_memory(kind, scaling):
    settings = ViewSettings(SIZE, jpeg_scaling=scaling)
    for make in (decode, lambda encoded: cropped_views(encoded, crops_of(1)[0], settings)):
        with pytest.raises(tf.errors.OpError, match=r"too many pixels|DecompressionBombError"):
            make(tf.constant(BOMBS[kind]))


def test_only_image_formats_are_read_that_run_nothing():
    """Pillow would start Ghostscript for this file."""
    with pytest.raises(tf.errors.OpError, match="cannot identify"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\nshowpage\n")


def of_scans(count):
    """Returns a JPEG with ``count`` scans: its last one again and again."""
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8))
    image.save(file, "JPEG", progressive=True)
    jpeg, end = file.getvalue()[:-2], file.getvalue()[-2:]
    return jpeg + jpeg[jpeg.rfind(b"\xff\xda") :] * (count - jpeg.count(b"\xff\xda")) + end


def test_a_jpeg_of_many_scans_is_corrupt():
    """A file of 100 KB with thousands of scans, each of which walks through the image, takes minutes to decode."""
    whole = decode(of_scans(0))
    assert decode(of_scans(100)).shape == whole.shape
    settings = ViewSettings(SIZE, jpeg_scaling=True)
    for count in (101, 5000):
        for read in (decode, decode_in_graph, lambda jpeg: cropped_views(jpeg, tf.constant(crops_of(1)[0]), settings)):
            with pytest.raises(tf.errors.InvalidArgumentError, match="too many scans"):
                read(of_scans(count))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF"])
def test_the_head_of_an_image_shows_that_it_may_be_one(format):
    assert decoding.may_be_image(saved(format)[: decoding.HEAD_BYTES])
    assert not decoding.may_be_image(bytes(decoding.HEAD_BYTES)) and not decoding.may_be_image(b"")
