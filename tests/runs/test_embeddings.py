"""Files of features: both formats hold the same features, labels, file names and class names."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.runs.embeddings import Embedded, write_npz, write_parquet


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


FEATURES = np.arange(6, dtype=np.float32).reshape(3, 2)
PATHS = ("/a/Straße/1.png", "/a/b/broken.png", "/a/b/2.png", "/a/b/\udcff.png")


def embedded_files(split, labels, class_names):
    source = FileSource(f"folder/{split}", PATHS, None, class_names)
    return Embedded(source, FEATURES, np.array(labels, np.int32), np.array([0, 2, 3]))  # without the broken one


def test_npz(tmp_path):
    write_npz([embedded_files("train", [0, 1, -1], ("Straße", "b"))], tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        assert set(arrays) == {"class_names", "x_train", "y_train", "path_train"}
        assert arrays["path_train"].tolist() == ["/a/Straße/1.png", "/a/b/2.png", "/a/b/\\xff.png"]
        assert arrays["class_names"].tolist() == ["Straße", "b"] and arrays["y_train"].tolist() == [0, 1, -1]
        np.testing.assert_array_equal(arrays["x_train"], FEATURES)


def test_parquet(tmp_path):
    images = ArraySource("digits/test", np.zeros((3, 2, 2, 3), np.uint8), None, ())
    files = embedded_files("train", [0, 1, -1], ("Straße", "b"))
    splits = [files, Embedded(images, FEATURES + 6, np.full(3, -1, np.int32), np.arange(3))]
    write_parquet(splits, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").to_pydict() == {
        "split": ["train"] * 3 + ["test"] * 3,
        "path": ["/a/Straße/1.png", "/a/b/2.png", "/a/b/\\xff.png", None, None, None],
        "label": [0, 1, None, None, None, None],
        "class": ["Straße", "b", None, None, None, None],
        "features": np.concatenate([FEATURES, FEATURES + 6]).tolist(),
    }
