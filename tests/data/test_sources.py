"""Every kind of data that ``--dataset`` can name opens with the right images and labels, or fails with one line."""

import gzip
import itertools
import os
import pathlib
import struct

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simclrv2_tf.data import catalog, decoding, records
from simclrv2_tf.data.catalog import label_subset, open_labelled, open_source
from simclrv2_tf.data.input import evaluation_input
from simclrv2_tf.data.records import RecordSource
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

tfds.disable_progress_bar()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras, and clearing its session takes long."""


def picture(seed, height=9, width=12, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path, array, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)


def settings(dataset, **changes):
    return Config(dataset=str(dataset), **changes)


def refusal(dataset, split="train", opener=open_source, **changes):
    """Returns the message of the one-line SettingError that opening the data raises."""
    config = settings(dataset, train_split=split or "train", **changes)
    with pytest.raises(SettingError) as caught:
        opener(config, split) if opener is open_source else opener(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Digits


def test_digits_are_those_of_scikit_learn_in_two_splits():
    train, test = (open_source(settings("digits"), split) for split in ("train", ""))
    assert (train.num_examples, test.num_examples) == (1297, 500)
    assert test.name == "digits/test"
    assert train.images.shape == (1297, 32, 32, 3) and train.images.dtype == np.uint8
    assert train.class_names == tuple("0123456789")
    np.testing.assert_array_equal(train.labels[:5], [0, 1, 2, 3, 4])
    # enlarged four times: the mean over each 4×4 block stays near the original pixel
    from sklearn.datasets import load_digits

    blocks = train.images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4)) / 255
    assert np.corrcoef(blocks.ravel(), load_digits().images[:1297].ravel())[0, 1] > 0.98


def test_digits_have_no_other_split():
    message = refusal("digits", "validation")
    assert message == "--train_split=validation: digits has only train, test"


# Folders


@pytest.fixture
def folder(tmp_path):
    """Ten JPEGs of each of two classes."""
    for label in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / "pets" / label / f"{i}.jpg", picture(i))
    return tmp_path / "pets"


def test_without_split_folders_every_fifth_image_is_held_out(folder):
    train, test, whole = (open_source(settings(f"folder:{folder}"), split) for split in ("train", "", "all"))
    assert isinstance(train, FileSource)
    assert train.class_names == test.class_names == ("cat", "dog")
    assert [pathlib.Path(path).name for path in test.paths] == ["4.jpg", "9.jpg"] * 2
    np.testing.assert_array_equal(test.labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(np.bincount(train.labels), [8, 8])
    assert set(train.paths) | set(test.paths) == set(whole.paths)
    assert not set(train.paths) & set(test.paths)


@pytest.mark.parametrize("evaluation", ["test", "validation", "val"])
def test_split_folders_are_the_splits(tmp_path, evaluation):
    for split, count in (("train", 3), (evaluation, 2)):
        for label in ("a", "b"):
            for i in range(count):
                save(tmp_path / split / label / f"{i}.png", picture(i))
    config = settings(f"folder:{tmp_path}")
    train, test = open_source(config, "train"), open_source(config, "")
    assert (train.num_examples, test.num_examples) == (6, 4)
    assert all(pathlib.Path(path).parts[-3] == evaluation for path in test.paths)
    np.testing.assert_array_equal(test.labels, [0, 0, 1, 1])


def test_files_that_are_left_out_are_counted_by_reason(tmp_path, folder):
    save(folder / "loose.jpg", picture(0))
    for name in ("cat/notes.txt", "dog/deep/NOTES.TXT", "cat/drawing.svg", "README", ".DS_Store", "cat/._0.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not an image")
    (folder / ".hidden").mkdir()
    (folder / "cat" / "link").symlink_to("..")
    os.mkfifo(folder / "cat" / "pipe.png")
    skipped = {
        "image beside the class folders": 1,
        "not a supported image format (.txt)": 2,
        "not a supported image format (.svg)": 1,
        "not a supported image format (no suffix)": 1,
        "hidden or system file": 2,
        "hidden or system folder": 1,
        "link to a folder that is already listed": 1,
        "not a regular file": 1,
    }
    for split, count in (("train", 16), ("test", 4), ("all", 20)):
        source = open_source(settings(f"folder:{folder}"), split)
        assert source.num_examples == count and source.skipped == skipped
        assert source.subset(np.array([0, 1])).skipped == skipped
    os.rename(folder, tmp_path / "train")
    (tmp_path / "notes.txt").write_text("not an image")
    save(tmp_path / "beside.png", picture(0))
    source = open_source(settings(f"folder:{tmp_path}"), "train")
    more = {"image beside the split folders": 1, "not a supported image format (.txt)": 3}
    assert source.num_examples == 20 and source.skipped == skipped | more
    assert open_source(settings("digits"), "train").skipped == {}


def test_a_folder_without_class_folders_is_unlabelled(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.png", picture(i))
    source = open_source(settings(f"folder:{tmp_path}"), "train")
    assert source.num_examples == 3 and source.labels is None and source.class_names == ()
    assert "--dataset=folder:" in refusal(f"folder:{tmp_path}", opener=open_labelled, mode="finetune")
    assert "no images are held out for test" in refusal(f"folder:{tmp_path}", "test")


# file name, PIL mode: each decodes to the same pixels as with PIL
FORMATS = {
    "plain.jpg": "RGB",
    "grey.JPG": "L",
    "cmyk.jpeg": "CMYK",
    "plain.png": "RGB",
    "grey.PNG": "L",
    "alpha.png": "RGBA",
    "grey alpha.png": "LA",
    "palette.png": "P",
    "bits.png": "1",
    "plain.bmp": "RGB",
    "grey.bmp": "L",
    "palette.BMP": "P",
    "bits.bmp": "1",
    "palette.gif": "P",
    "plain.webp": "RGB",
    "grün, 雪.Gif": "L",
}


def test_every_format_and_name_is_read(tmp_path):
    for i, (name, mode) in enumerate(FORMATS.items()):
        save(tmp_path / "a class" / name, picture(i, 6 + i, 11), mode)
    (tmp_path / "a class" / "notes.txt").write_text("not an image")
    (tmp_path / "a class" / "._plain.jpg").write_text("macOS writes such files beside others")
    (tmp_path / ".hidden").mkdir()
    source = open_source(settings(f"folder:{tmp_path}"), "all")
    assert sorted(pathlib.Path(path).name for path in source.paths) == sorted(FORMATS)
    images = {path: decoding.decode(pathlib.Path(path).read_bytes()).numpy() for path in source.paths}
    for path, image in images.items():
        expected = np.asarray(Image.open(path).convert("RGB"))
        # JPEG decoders differ by a few grey levels where colour is upsampled
        lossy = path.lower().endswith(("jpg", "jpeg"))
        np.testing.assert_allclose(image, expected, atol=8 if lossy else 0, err_msg=path)
    batch = next(iter(evaluation_input(source, len(FORMATS), 16)))
    assert batch["weights"].numpy().sum() == len(FORMATS) and not source.corrupt


def test_links_to_files_and_class_folders_are_followed(tmp_path, folder):
    (tmp_path / "linked" / "cat").mkdir(parents=True)
    (tmp_path / "linked" / "cat" / "one.jpg").symlink_to(folder / "cat" / "0.jpg")
    (tmp_path / "linked" / "dog").symlink_to(folder / "dog")
    source = open_source(settings(f"folder:{tmp_path / 'linked'}"), "all")
    np.testing.assert_array_equal(np.bincount(source.labels), [1, 10])


def test_class_names_can_be_shown(tmp_path):
    save(tmp_path / "class" / "a.png", picture(0))
    os.rename(tmp_path / "class", os.fsencode(tmp_path) + b"/caf\xe9")
    assert open_source(settings(f"folder:{tmp_path}"), "all").class_names == ("caf\ufffd",)


def test_names_that_are_not_utf8_are_read(tmp_path):
    save(tmp_path / "plain.png", picture(0))
    os.rename(tmp_path / "plain.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
    source = open_source(settings(f"folder:{tmp_path}"), "train")
    (batch,) = evaluation_input(source, 1, 16)
    assert batch["weights"].numpy() == 1


def test_a_home_directory_is_found(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_source(settings("folder:~/pets"), "all").num_examples == 20
    assert "there is no folder" in refusal("folder:~nobody-of-this-name/pets")


@pytest.mark.parametrize("dataset", ["folder:gs://bucket/pets", "npz:gs://bucket/pets.npz"])
def test_buckets_are_refused(dataset):
    assert refusal(dataset).startswith(f"--dataset={dataset}: must be a local or mounted path")


def test_folders_that_are_refused(tmp_path, folder):
    assert refusal(f"folder:{tmp_path}/none") == (
        f"--dataset=folder:{tmp_path}/none: there is no folder {tmp_path}/none"
    )
    (folder / "empty").mkdir()
    assert refusal(f"folder:{folder}").startswith(f"--dataset=folder:{folder}: class empty has no images; remove its")
    (tmp_path / "bare").mkdir()
    assert "has no .jpg" in refusal(f"folder:{tmp_path}/bare")
    assert "--eval_split=val: " in str(refusal_of_evaluation(f"folder:{folder}", "val"))
    for name in ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png"):
        save(tmp_path / "unequal" / name, picture(0))
    assert "test and train have different class folders" in refusal(f"folder:{tmp_path}/unequal", "test")


def refusal_of_evaluation(dataset, split):
    config = settings(dataset, eval_split=split)
    with pytest.raises(SettingError) as caught:
        open_source(config, config.eval_split)
    return caught.value


def test_too_few_images_to_hold_some_out(tmp_path):
    for i in range(4):
        save(tmp_path / "a" / f"{i}.png", picture(i))
    assert open_source(settings(f"folder:{tmp_path}"), "train").num_examples == 4
    assert refusal(f"folder:{tmp_path}", "test").startswith(f"--dataset=folder:{tmp_path}: too few images")


# Arrays in a file


def archive(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


COLOUR = np.stack([picture(i, 5, 6) for i in range(7)])
LABELS = np.arange(7) % 3


@pytest.mark.parametrize(
    "stored, expected",
    [
        (COLOUR, COLOUR),
        (COLOUR[..., 0], COLOUR[..., :1].repeat(3, axis=-1)),
        (COLOUR[..., :1], COLOUR[..., :1].repeat(3, axis=-1)),
        ((COLOUR / 255).astype(np.float32), COLOUR),
        (COLOUR[..., 0] / 255, COLOUR[..., :1].repeat(3, axis=-1)),
        (np.maximum(COLOUR / 255 - 0.001, 0), COLOUR),
        (np.concatenate([COLOUR, np.full_like(COLOUR[..., :1], 255)], axis=-1), COLOUR),
        (np.concatenate([COLOUR, np.zeros_like(COLOUR[..., :1])], axis=-1), np.full_like(COLOUR, 255)),
    ],
    ids=["rgb", "grey", "grey with channel", "float32", "float64 grey", "to be rounded", "opaque", "transparent"],
)
def test_an_archive_of_arrays(tmp_path, stored, expected):
    dataset = archive(tmp_path / "some.npz", x_train=stored, y_train=LABELS[:, None], x_test=stored[:2])
    source, test = open_source(settings(dataset), "train"), open_source(settings(dataset), "")
    assert isinstance(source, ArraySource) and source.name == "some/train"
    assert source.images.dtype == np.uint8 and source.labels.dtype == np.int32
    np.testing.assert_array_equal(source.images, expected)
    np.testing.assert_array_equal(source.labels, LABELS)
    assert source.class_names == ("0", "1", "2")
    assert test.labels is None and test.class_names == () and test.num_examples == 2


def test_both_splits_of_an_archive_have_the_same_classes(tmp_path):
    dataset = archive(tmp_path / "a.npz", x_train=COLOUR, y_train=LABELS, x_test=COLOUR, y_test=np.full(7, 5))
    assert open_source(settings(dataset), "train").class_names == open_source(settings(dataset), "").class_names
    assert len(open_source(settings(dataset), "train").class_names) == 6


NOT_A_NUMBER = np.where(np.arange(7)[:, None, None] == 3, np.nan, COLOUR[..., 0] / 255)


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"x_train": COLOUR, "y_train": LABELS[:5]}, "y_train has 5 labels for 7 images"),
        ({"x_train": COLOUR, "y_train": LABELS - 1}, "y_train must be whole numbers from 0"),
        ({"x_train": COLOUR, "y_train": LABELS + 10**9}, "y_train must be whole numbers from 0"),
        ({"x_train": COLOUR, "y_train": LABELS / 2}, "y_train must be whole numbers from 0"),
        ({"x_train": COLOUR, "y_train": np.array(["a"] * 7)}, "y_train must be whole numbers from 0"),
        ({"x_train": COLOUR, "y_train": LABELS, "x_test": COLOUR, "y_test": LABELS - 1}, "y_test must be whole"),
        ({"x_train": COLOUR.astype(object)}, "cannot be read (x_train has Python objects; save numbers"),
        ({"x_train": COLOUR, "y_train": LABELS.astype(object)}, "cannot be read (y_train has Python objects"),
        ({"x_train": NOT_A_NUMBER}, "must be finite and in [0, 1]"),
        ({"x_train": COLOUR.astype(np.float32)}, "must be finite and in [0, 1]"),
        ({"x_train": COLOUR / -255}, "must be finite and in [0, 1]"),
        ({"x_train": COLOUR.astype(np.int64)}, "must be uint8, uint16 or floats in [0, 1], not int64"),
        ({"x_train": np.array([["a", "b"]] * 7)[..., None]}, "must be uint8, uint16 or floats"),
        ({"x_train": COLOUR[0, 0]}, "images must be [n, height, width]"),
        ({"x_train": COLOUR[..., :2]}, "images must be [n, height, width]"),
        ({"x_train": COLOUR[:0]}, "images must be [n, height, width]"),
        ({"x_train": COLOUR[:, :0] / 255}, "images must be [n, height, width]"),
        ({"x_test": COLOUR}, "--train_split=train: "),
        ({"images": COLOUR}, "has no array x_train, but images"),
    ],
)
def test_archives_that_are_refused(tmp_path, arrays, reason):
    message = refusal(archive(tmp_path / "bad.npz", **arrays))
    assert reason in message and message.startswith(("--dataset=npz:", "--train_split="))


def test_files_that_are_no_archives_are_refused(tmp_path):
    assert "there is no file" in refusal(f"npz:{tmp_path}/none.npz")
    (tmp_path / "text.npz").write_text("not a zip file\nat all")
    assert "text.npz is no npz file" in refusal(f"npz:{tmp_path}/text.npz")
    np.save(tmp_path / "one.npy", COLOUR)
    assert "one.npy is a single NumPy array, not npz" in refusal(f"npz:{tmp_path}/one.npy")
    whole = pathlib.Path(archive(tmp_path / "whole.npz", x_train=COLOUR).removeprefix("npz:")).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(f"npz:{tmp_path}/half.npz")


# Fashion-MNIST as Debian packages it


def test_debians_idx_files(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "DEBIAN_FASHION_MNIST", tmp_path)
    images, labels = np.stack([picture(i, 28, 28, 0) for i in range(4)]), np.array([9, 0, 2, 2], np.uint8)
    for stem, count in (("train", 4), ("t10k", 2)):
        header = struct.pack(">4i", 0x803, count, 28, 28)
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images[:count].tobytes()))
        header = struct.pack(">2i", 0x801, count)
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels[:count].tobytes()))
    train, test = (open_source(settings("fashion_mnist"), split) for split in ("train", ""))
    np.testing.assert_array_equal(train.images, images[..., None].repeat(3, axis=-1))
    np.testing.assert_array_equal(train.labels, [9, 0, 2, 2])
    assert train.class_names == test.class_names
    assert train.class_names == (
        "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
    )  # fmt: skip
    np.testing.assert_array_equal(test.images, train.images[:2])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(b"not gzip")
    assert "--dataset=fashion_mnist: cannot be read" in refusal("fashion_mnist")
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "--dataset=fashion_mnist: cannot be read" in refusal("fashion_mnist")


# TFDS


class TinyBuilder(tfds.core.GeneratorBasedBuilder):
    """Data sets for these tests; a subclass defines the features and the example at an index."""

    VERSION = tfds.core.Version("1.0.0")
    SPLITS = {"train": range(30), "test": range(30, 36)}  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(self.features()))

    def _split_generators(self, download_manager):
        return {split: self._generate_examples(indices) for split, indices in self.SPLITS.items()}

    def _generate_examples(self, indices):
        for i in indices:
            yield i, self.example(i)


class TinySquares(TinyBuilder):
    """Small PNGs of one size."""

    def features(self):
        return {"image": tfds.features.Image(shape=(6, 6, 1)), "label": tfds.features.ClassLabel(names=["even", "odd"])}

    def example(self, i):
        return {"image": picture(i, 6, 6, 1), "label": i % 2}


class TinyUnlabelled(TinySquares):
    """Images of one size, some without a label, like STL-10."""

    SPLITS = {"train": range(30), "unlabelled": range(30, 36)}  # noqa: RUF012

    def example(self, i):
        return {"image": picture(i, 6, 6, 1), "label": i % 2 if i < 30 else -1}


class TinyPhotos(TinyBuilder):
    """JPEGs of several sizes, in four files."""

    def features(self):
        image = tfds.features.Image(encoding_format="jpeg")
        return {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}

    def example(self, i):
        return {"image": picture(i, 8 + i % 3, 10), "label": i % 3}


class TinyCounts(TinyBuilder):
    """Labels that are not classes."""

    def features(self):
        return {"image": tfds.features.Image(), "label": np.int64}

    def example(self, i):
        return {"image": picture(i, 8 + i % 2), "label": i}


class TinyWords(TinyBuilder):
    """No images."""

    def features(self):
        return {"text": tfds.features.Text()}

    def example(self, i):
        return {"text": str(i)}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    place = tmp_path_factory.mktemp("tfds")
    config = tfds.download.DownloadConfig(num_shards=4)
    for builder in (TinySquares, TinyUnlabelled, TinyPhotos, TinyCounts, TinyWords):
        builder(data_dir=str(place)).download_and_prepare(download_config=config)
    return str(place)


def test_small_images_of_one_size_go_into_memory(data_dir):
    source = open_source(settings("tiny_squares", data_dir=data_dir), "train")
    assert isinstance(source, ArraySource) and source.class_names == ("even", "odd")
    drawn = {i: picture(i, 6, 6, 1).repeat(3, axis=-1) for i in range(30)}
    order = [next(i for i, image in drawn.items() if np.array_equal(image, row)) for row in source.images]
    assert sorted(order) == list(range(30))
    np.testing.assert_array_equal(source.labels, np.array(order) % 2)


def test_a_split_without_any_label_has_no_classes(data_dir):
    opened = {
        split: open_source(settings("tiny_unlabelled", data_dir=data_dir), split) for split in TinyUnlabelled.SPLITS
    }
    assert [source.num_examples for source in opened.values()] == [30, 6]
    assert opened["train"].class_names == ("even", "odd") and opened["train"].labels is not None
    assert opened["unlabelled"].class_names == () and opened["unlabelled"].labels is None


def test_images_of_several_sizes_are_streamed(data_dir):
    source = open_source(settings("tiny_photos", data_dir=data_dir), "")
    assert isinstance(source, RecordSource) and source.name == "tiny_photos/test"
    assert source.num_examples == 6 and len(source.class_names) == 3
    read = [(decoding.decode(image).shape[0], int(label)) for image, label in source.stream()]
    assert sorted(read) == [(8, 0), (8, 0), (9, 1), (9, 1), (10, 2), (10, 2)]


def test_subsets_of_streamed_images_need_no_labels_and_nest(data_dir):
    source = open_source(settings("tiny_photos", data_dir=data_dir), "")
    some = source.subset(np.array([1, 3, 4, 5]))
    nested = some.subset(np.array([0, 2]))
    whole = [image.numpy() for image, _ in source.stream()]
    assert [image.numpy() for image, _ in nested.stream()] == [whole[1], whole[4]] and nested.num_examples == 2


def test_large_data_are_streamed(data_dir, monkeypatch):
    monkeypatch.setattr(records, "IN_MEMORY_BYTES", 1000)
    assert isinstance(open_source(settings("tiny_squares", data_dir=data_dir), "train"), RecordSource)


def test_tfds_expressions_are_splits(data_dir):
    count = {
        split: open_source(settings("tiny_photos", data_dir=data_dir), split).num_examples
        for split in ("train[:20%]", "train[20%:]", "train+test")
    }
    assert count == {"train[:20%]": 6, "train[20%:]": 24, "train+test": 36}


@pytest.mark.parametrize(
    "split, reason",
    [
        ("nosuch", "tiny_photos has only "),
        ("train[:abc]", "not a split of TFDS"),
        ("nosuch[:10%]", "not a split of TFDS"),
        ("train[:0%]", "has no images"),
    ],
)
def test_splits_that_tfds_does_not_know_are_refused(data_dir, split, reason):
    message = refusal("tiny_photos", split, data_dir=data_dir)
    assert message.startswith(f"--train_split={split}: {reason}")


@pytest.mark.parametrize("dataset", ["nosuchdata", "tiny_photos:9.9.9", "tiny_photos/nosuchconfig", "not a name", ""])
def test_names_that_tfds_does_not_know_are_refused(data_dir, dataset):
    assert refusal(dataset, data_dir=data_dir).startswith(f"--dataset={dataset}: TFDS has no such data set")


def test_tfds_data_without_images_or_classes(data_dir):
    needed = "image: Image, label: ClassLabel"
    message = refusal("tiny_words", data_dir=data_dir)
    assert message == f"--dataset=tiny_words: needs the features {needed}, but has text: Text"
    assert open_source(settings("tiny_counts", data_dir=data_dir), "train").class_names == ()
    message = refusal("tiny_counts", opener=open_labelled, mode="supervised", data_dir=data_dir)
    assert message.startswith("--dataset=tiny_counts: has no labels, which supervised needs (no labels: label is ")
    assert message.endswith(f", needed are {needed})")


def test_data_that_cannot_be_prepared_are_refused(tmp_path):
    class TinyFailure(TinyPhotos):
        def example(self, i):
            raise OSError("No space left on device\nwhich is a pity")

    message = refusal("tiny_failure", data_dir=str(tmp_path))
    assert message.startswith("--dataset=tiny_failure: could not be prepared in ")
    assert not list(tmp_path.rglob("*.tfrecord*"))


# Label subsets


def balanced_labels():
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [50, 100, 30])).astype(np.int32)


@pytest.mark.parametrize("per_class", [1, 5, 30])
def test_a_number_of_labels_per_class(per_class):
    labels = balanced_labels()
    chosen = label_subset(labels, per_class, 1.0, seed=0)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [per_class] * 3)
    assert len(set(chosen)) == len(chosen) and (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, label_subset(labels, per_class, 1.0, seed=0))


@pytest.mark.parametrize("fraction, counts", [(0.1, [5, 10, 3]), (0.01, [1, 1, 1]), (0.5, [25, 50, 15])])
def test_a_share_of_the_labels_of_each_class(fraction, counts):
    labels = balanced_labels()
    np.testing.assert_array_equal(np.bincount(labels[label_subset(labels, 0, fraction, seed=3)]), counts)


def test_larger_subsets_contain_smaller_ones_and_seeds_differ():
    labels = balanced_labels()
    by_number = [set(label_subset(labels, n, 1.0, seed=1)) for n in (1, 2, 10, 30)]
    by_share = [set(label_subset(labels, 0, f, seed=1)) for f in (0.02, 0.1, 0.3, 1.0)]
    for nested in (by_number, by_share):
        assert all(small < large for small, large in itertools.pairwise(nested))
    assert by_number[2] != set(label_subset(labels, 10, 1.0, seed=2))


def test_unknown_labels_are_never_chosen():
    labels = np.array([0, -1, 1, -1, 0, 1])
    np.testing.assert_array_equal(label_subset(labels, 2, 1.0, seed=0), [0, 2, 4, 5])


def test_a_class_with_too_few_images_is_refused(tmp_path):
    dataset = archive(tmp_path / "a.npz", x_train=COLOUR, y_train=LABELS)
    message = refusal(dataset, opener=open_labelled, mode="finetune", labels_per_class=3)
    assert message == "--labels_per_class=3: class 1 has only 2 images; use at most as many, or --label_fraction"


@pytest.mark.parametrize("kind", ["array", "files", "records"])
def test_a_label_subset_of_each_source(kind, folder, data_dir):
    dataset = {"array": "digits", "files": f"folder:{folder}", "records": "tiny_photos"}[kind]
    config = settings(dataset, data_dir=data_dir, mode="finetune", labels_per_class=4, seed=1)
    whole, subset = open_source(config, "train"), open_labelled(config)
    masked = open_labelled(config, keep_unlabelled=True)
    classes = len(whole.class_names)
    assert subset.num_examples == 4 * classes and masked.num_examples == whole.num_examples
    np.testing.assert_array_equal(np.bincount(subset.labels), [4] * classes)
    np.testing.assert_array_equal(np.bincount(masked.labels + 1)[1:], [4] * classes)

    def examples(source):
        batches = evaluation_input(source, source.num_examples, 8)
        (batch,) = batches.as_numpy_iterator()
        return batch["images"], batch["labels"]

    images, labels = examples(subset)
    all_images, all_labels = examples(whole)
    masked_images, masked_labels = examples(masked)
    known = masked_labels >= 0
    np.testing.assert_array_equal(masked_images, all_images)
    np.testing.assert_array_equal(masked_labels[known], all_labels[known])
    np.testing.assert_array_equal(images, all_images[known])  # the same images, with their own labels
    np.testing.assert_array_equal(labels, all_labels[known])


def test_all_labels_are_the_source_itself():
    assert open_labelled(settings("digits", mode="finetune")).num_examples == 1297


# Corrupt images, counted


def test_a_corrupt_file_is_logged_and_counted_once(caplog):
    source = FileSource("some", ("a.jpg", "b.jpg", "c.jpg", "d.jpg"), None, (), max_corrupt_share=0.25)
    assert source.corrupt == set()
    source.check_corrupt()
    source.report_corrupt(1)
    source.report_corrupt(1)
    source.check_corrupt()
    assert [record.getMessage() for record in caplog.records] == ["corrupt image b.jpg (1 so far), skipped"]
    source.report_corrupt(3)
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0\.25: 2 of 4 images of some are corrupt, .*d\.jpg$"):
        source.check_corrupt()


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    fraction=st.floats(0.001, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_label_subset_is_balanced_and_the_same_each_time(counts, fraction, seed):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    chosen = label_subset(labels, 0, fraction, seed)
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [max(1, round(fraction * n)) for n in counts])
    np.testing.assert_array_equal(chosen, label_subset(labels, 0, fraction, seed))
    balanced = label_subset(labels, min(counts), 1, seed)
    assert (np.bincount(labels[balanced]) == min(counts)).all() and len(set(balanced)) == len(balanced)
    assert set(label_subset(labels, 1, 1, seed)) <= set(balanced)
