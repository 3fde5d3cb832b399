"""The lines about the data in the summary of a run, and the warnings about its classes."""

import numpy as np
import pytest

from simclrv2_tf import errors
from simclrv2_tf.data.description import (
    describe_data,
    describe_split,
    warn_about_classes,
    warn_about_shared_images,
)
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.settings.config import Config


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


@pytest.fixture(autouse=True)
def fresh_warnings():
    errors.warn_once.cache_clear()


def source(labels, names=("ant", "bee", "cat"), name="toy/train", **options):
    labels = np.array(labels, np.int32)
    return ArraySource(name, np.zeros([len(labels), 2, 2, 3], np.uint8), labels, names, **options)


def warnings(caplog, *arguments, **settings):
    warn_about_classes(Config(**settings), *arguments)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([0, 0, 1, 1, 2, 2], "6 labelled (2 per class)"),
        ([0, 0, 0, 1, 2, 2], "6 labelled (1 to 3 per class)"),
        ([0, -1, 1, -1, 2], "3 labelled (1 per class), 2 unlabelled"),
        ([0, 1], "2 labelled (0 to 1 per class)"),
    ],
)
def test_images_are_counted_per_class(labels, text):
    assert describe_split(source(labels)) == text


def test_images_without_labels_and_labels_that_are_not_read_yet():
    unlabelled = FileSource("toy/train", tuple("abc"), None, ())
    assert describe_split(unlabelled) == "3 unlabelled"
    unread = FileSource("toy/train", tuple("abc"), None, ("ant", "bee"))
    assert describe_split(unread) == "3 images; a pass over the data would tell how many per class"


def test_all_lines():
    skipped = {"hidden or system file": 1200, "not a supported image format (.svg)": 3}
    names = tuple(f"class {i}" for i in range(12))
    images = FileSource(
        "a/train", tuple("abcd"), np.arange(4), names, skipped=skipped, notes=("splits: train = Train",)
    )
    test = source(range(12), names, "a/test", notes=("splits: train = Train", "entered b"))
    assert describe_data(images, test) == {
        "classes": "12: " + ", ".join(names[:10]) + " and 2 more",
        "train split": "a/train: 4 labelled (0 to 1 per class)",
        "eval split": "a/test: 12 labelled (1 per class)",
        "read as": "splits: train = Train; entered b",
        "left out": "1,200 x hidden or system file, 3 x not a supported image format (.svg)",
    }


def test_lines_without_labels_and_evaluation():
    unlabelled = FileSource("toy/train", tuple("abc"), None, ())
    assert describe_data(unlabelled, None) == {
        "classes": "none: no labels",
        "train split": "toy/train: 3 unlabelled",
        "eval split": "none with labels",
    }


def test_what_is_left_out_of_the_evaluation_is_listed_if_it_differs():
    images, test = (FileSource("a/x", ("a",), None, (), skipped={"hidden or system file": count}) for count in (1, 2))
    assert describe_data(images, images).get("left out of eval") is None
    assert describe_data(images, test)["left out of eval"] == "2 x hidden or system file"


def test_sound_classes_give_no_warning(caplog):
    assert warnings(caplog, source([0, 0, 1, 1, 2, 2]), source([0, 1, 2], name="toy/test")) == []
    assert warnings(caplog, FileSource("a", ("a",), None, ()), None) == []


def test_a_single_class(caplog):
    (message,) = warnings(caplog, source([0, 0], ("ant",)), None)
    assert message.startswith("toy/train has one class only, ant: accuracies will be 100 %; sort the images into one ")


def test_classes_with_a_single_image(caplog):
    images = source([0, 0, 1, 2])
    for _ in range(2):  # it is logged once
        assert warnings(caplog, images, None) == ["toy/train has only one image of bee, cat"]
    caplog.clear()
    errors.warn_once.cache_clear()
    assert warnings(caplog, images, None, labels_per_class=1) == []
    assert warnings(caplog, images, None, label_fraction=0.1) == []


def test_labels_that_start_at_1(caplog):
    (message,) = warnings(caplog, source([1, 1, 2, 2]), None)
    assert message == "the labels of toy/train start at 1: class 0 (ant) has no images"


def test_classes_without_images(caplog):
    messages = warnings(caplog, source([0, 0, 2, 2, -1]), source([1, 2], name="toy/test"))
    assert messages == ["toy/train has no images of bee", "toy/test has no images of ant"]


def shared(caplog, trained, tested):
    """Returns the warnings about sources of these files, or of arrays with these splits."""
    images = [
        source([0], name=f"toy/{each}") if isinstance(each, str) else FileSource(f"toy/{i}", each, None, ())
        for i, each in enumerate((trained, tested))
    ]
    warn_about_shared_images(*images)
    return [record.getMessage() for record in caplog.records]


def test_files_that_are_trained_on_and_evaluated_on(tmp_path, caplog):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    trained, tested = ([f"{tmp_path}/{name}" for name in names] for names in (("a/1", "a/2", "b/3"), ("link/2", "b/4")))
    assert shared(caplog, tuple(trained), tuple(tested)) == [
        "1 of 2 images of toy/1 are also trained on, in toy/0: the accuracy on new images is probably lower"
    ]


def test_other_files_give_no_warning(caplog):
    assert shared(caplog, ("a/1", "b/2"), ("a/2", "b/1")) == []
    warn_about_shared_images(source([0]), None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("trained", "tested", "is_warned_of"),
    [
        ("train", "test", False),
        ("train+test", "test", True),
        ("train", "train", True),
        ("train", "train[90%:]", True),
        ("train[:90%]", "train", True),
        ("train[:90%]", "train[90%:]", False),
    ],
)
def test_splits_that_are_trained_on_and_evaluated_on(trained, tested, is_warned_of, caplog):
    message = f"images of toy/{tested} are also trained on, in toy/{trained}: the accuracy on new images is "
    assert [text.startswith(message) for text in shared(caplog, trained, tested)] == [True] * is_warned_of
