"""Arrays in an npz file: accepted names, and errors that suggest a next step."""

import io
import pickle
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import scipy.io
import tensorflow as tf

from simclrv2_tf.data import archives
from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.decoding import decode
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


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("bits", [0, 12])
def test_arrays_of_16_bits_are_read_as_files_are(channels, bits, archive):
    rng = np.random.default_rng(channels)
    stored = rng.integers(0, 2 ** (bits or 16), (3, 5, 4, channels), np.uint16)
    stored[..., 3:] = rng.integers(0, 2**16, stored[..., 3:].shape)  # opacity
    expected = [decode(tf.io.encode_png(image), bits).numpy() for image in stored]
    for array in (stored, stored.astype(">u2")):
        source = open_source(archive(x_train=array).replace(image_bits=bits), "train")
        np.testing.assert_array_equal(source.images, expected)


def test_unused_bits_are_warned_of_once_with_the_flag_that_uses_them(archive, caplog):
    config = archive(x_train=np.arange(4096, dtype=np.uint16).reshape(1, 64, 64))
    open_source(config.replace(image_bits=12), "train")
    assert not caplog.text
    assert [open_source(config, "train").images.max() for _ in range(2)] == [15, 15]
    assert [record.getMessage() for record in caplog.records] == [
        f"--dataset={config.dataset}: x_train: 16-bit images are nearly black, as their greatest value is 4095; "
        "--image_bits=12 uses the whole range"
    ]


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


def write_archive(path, shape, data, declared=0):
    """Writes an archive whose ``x_train`` has a header with this shape, these data, and a declared size."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", header.getvalue() + data)
    if declared:  # declared in the directory at the end of the archive
        content = bytearray(path.read_bytes())
        place = content.rfind(b"PK\x01\x02") + 24
        content[place : place + 4] = (len(header.getvalue()) + declared).to_bytes(4, "little")
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("shape", "declared"),
    [((10**5, 1000, 1000, 3), 0), ((10**18, 10**18, 3), 0), ((10, 1000, 1000, 3), 10 * 3 * 10**6), ((1, 9, 9), 0)],
)
def test_an_array_of_another_size_than_its_data_is_refused_before_it_is_allocated(shape, declared, tmp_path):
    write_archive(tmp_path / "a.npz", shape, bytes(1000), declared)
    tracemalloc.start()
    message = refusal(Config(dataset=f"npz:{tmp_path}/a.npz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "x_train: its size, (" in message and "is not that of its data; save it again" in message
    assert peak < 10**6


def test_arrays_larger_than_the_memory_are_refused_before_they_are_allocated(tmp_path):
    write_archive(tmp_path / "a.npz", (1000, 100, 100), bytes(10**7))
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        archives.check_sizes(archive, ["x_train"], 2 * 10**7)
        with pytest.raises(ValueError, match=r"^its arrays need 0\.01 GB of 0\.009 GB; use a folder of files$"):
            archives.check_sizes(archive, ["x_train"], 9 * 10**6)


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


@pytest.mark.parametrize(
    "content", [b"", b"images", pickle.dumps({"x_train": IMAGES})], ids=["empty", "text", "pickle"]
)
def test_a_file_of_an_unknown_type_is_refused_without_advice_to_unpickle_it(content, tmp_path):
    (tmp_path / "a.bin").write_bytes(content)
    message = refusal(Config(dataset=f"npz:{tmp_path}/a.bin"))
    assert message == "a.bin is no npz file; write one in Python: np.savez(…, x_train=…, y_train=…)"
