"""Arrays in an npz file: the names that are understood, and what is refused with a next step."""

import h5py
import numpy as np
import pytest
import scipy.io

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


@pytest.fixture
def archive(tmp_path):
    def save(**arrays):
        np.savez(tmp_path / "some.npz", **arrays)
        return Config(dataset=f"npz:{tmp_path}/some.npz")

    return save


def refusal(config, split="train", **options):
    with pytest.raises(SettingError) as caught:
        open_source(config, split, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"--dataset={config.dataset}: ")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("x_{}", "y_{}"),  # Keras
        ("{}_images", "{}_labels"),  # MedMNIST
        ("X_{}", "y_{}"),  # scikit-learn
        ("{}_x", "{}_y"),
        ("images_{}", "labels_{}"),
    ],
)
def test_usual_names_of_arrays_are_understood(images, labels, archive):
    arrays = {}
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        arrays |= {images.format(split): IMAGES[:count], labels.format(split): LABELS[:count, None]}
    config = archive(**arrays, meta=np.zeros(3))
    source, test = open_source(config, "train"), open_source(config, "test")
    np.testing.assert_array_equal(source.images, IMAGES)
    assert source.labels.tolist() == LABELS.tolist() and test.labels.tolist() == [0, 1, 2, 0]
    assert open_source(config, "").name == "some/val" == open_source(config, "validation").name
    name = images.format("train")
    assert source.notes == (() if name == "x_train" else (f"{name} = x_train",))


def test_splits_may_have_any_name(archive):
    assert open_source(archive(x_odd=IMAGES), "odd").name == "some/odd"


class TestUnlabelled:
    def test_it_joins_the_images_to_train_on(self, archive):
        config = archive(x_train=IMAGES[:4], y_train=LABELS[:4], x_unlabelled=IMAGES[4:])
        source = open_source(config, "train", with_unlabelled=True)
        np.testing.assert_array_equal(source.images, IMAGES)
        assert source.labels.tolist() == [0, 1, 2, 0, -1, -1] and source.class_names == ("0", "1", "2")
        assert source.name == "some/train+unlabelled" and source.notes == ("train and unlabelled together",)
        assert open_source(config, "train").num_examples == 4 == open_labelled(config).num_examples

    def test_it_is_used_alone_if_there_is_no_train(self, archive):
        source = open_source(archive(x_unlabeled=IMAGES), "train", with_unlabelled=True)
        assert source.num_examples == 6 and source.labels is None and source.class_names == ()

    def test_images_of_another_size_are_refused(self, archive):
        message = refusal(archive(x_train=IMAGES, x_unlabelled=IMAGES[:, 1:]), with_unlabelled=True)
        assert message.startswith("images of one size are needed, not x_train (5, 4), x_unlabelled (4, 4); resize them")


def test_all_is_every_split_but_the_unlabelled_one(archive):
    arrays = {"x_train": IMAGES[:3], "y_train": LABELS[:3], "x_test": IMAGES[3:], "y_test": LABELS[3:]}
    source = open_source(archive(**arrays, x_unlabelled=IMAGES), "all")
    np.testing.assert_array_equal(source.images, IMAGES)
    assert source.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"images": IMAGES, "labels": LABELS},
            "has no array x_train, but images, labels; name its arrays x_train, y_train, x_test, y_test",
        ),
        ({}, "has no array x_train, but nothing; name its arrays "),
        ({"x_train": IMAGES, "train_images": IMAGES}, "both x_train and train_images are arrays of train; remove one"),
        (
            {"x_train": IMAGES, "y_train": LABELS + 1},
            "the labels start at 1, but must start at 0; subtract 1 from y_tr",
        ),
        ({"x_train": IMAGES, "y_train": np.eye(6)}, "y_train must be one label per image, not (6, 6); for one-hot "),
        ({"x_train": IMAGES, "y_train": LABELS - 1}, "y_train must be whole numbers from 0 to 99999; images without a"),
        ({"x_test": IMAGES}, "--train_split=train: npz:"),
    ],
)
def test_archives_are_refused_with_the_next_step(arrays, message, archive):
    assert refusal(archive(**arrays)).startswith(message)


def test_labels_that_start_at_1_in_one_split_alone_are_accepted(archive):
    config = archive(x_train=IMAGES, y_train=LABELS % 2 + 1, x_test=IMAGES, y_test=LABELS)
    assert open_source(config, "train").class_names == ("0", "1", "2")


def test_files_of_other_types_are_named_with_the_way_to_convert_them(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = IMAGES
    scipy.io.savemat(tmp_path / "b.mat", {"x": IMAGES})
    (tmp_path / "c.csv").write_text("pixel0,pixel1,label\n0,1,2\n")
    np.save(tmp_path / "d.npy", IMAGES)
    (tmp_path / "e.npz").write_bytes(b"PAR1....")
    expected = {
        "a.h5": ("an HDF5 file", 'f = h5py.File("a.h5"); np.savez("a.npz", x_train=f["…"], y_train=f["…"])'),
        "b.mat": ("a MATLAB file", 'f = scipy.io.loadmat("b.mat"); np.savez("b.npz", '),
        "c.csv": ("a table of text", 'f = pandas.read_csv("c.csv"); np.savez("c.npz", '),
        "d.npy": ("a single NumPy array", 'f = {"x": np.load("d.npy"), "y": np.load("…")}; np.savez("d.npz", '),
        "e.npz": ("a Parquet file", 'f = pandas.read_parquet("e.npz"); '),
    }
    for name, (kind, code) in expected.items():
        message = refusal(Config(dataset=f"npz:{tmp_path}/{name}"))
        assert message.startswith(f"{name} is {kind}, not npz; convert it in Python: {code}")
