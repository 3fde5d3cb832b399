"""Figures show the images that were evaluated, even if the source has corrupt ones."""

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector import ProjectorConfig

from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.report import pictures


def grey(values):
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 8, 8, 3)).copy()


def files(tmp_path, values):
    paths = []
    for i, image in enumerate(grey(values)):
        path = tmp_path / f"{i}.png"
        path.write_bytes(tf.io.encode_png(image).numpy())
        paths.append(str(path))
    return FileSource("files", tuple(paths), np.zeros(len(values), np.int32), ("a",))


@pytest.mark.parametrize("labels", [None, np.zeros(4, np.int32)], ids=["unlabelled", "labelled"])
def test_images_come_in_the_requested_order(labels):
    source = ArraySource("arrays", grey([0, 51, 102, 153]), labels, ("a",))
    found = pictures.images_at(source, np.array([3, 0, 3, 1]), 8)
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.6, 0, 0.6, 0.2], atol=1e-6)
    assert pictures.images_at(source, np.array([], int), 8).shape == (0, 8, 8, 3)


def test_corrupt_files_shift_the_numbers_of_an_evaluation(tmp_path):
    source = files(tmp_path, [0, 51, 102, 153])
    (tmp_path / "1.png").write_bytes(b"not a picture")
    source.corrupt.add(source.paths[1])  # as detected by the evaluation
    found = pictures.images_at(source, np.array([2, 1, 0]), 8)
    np.testing.assert_allclose(found[:, 0, 0, 0], [0.6, 0.4, 0], atol=1e-6)


def test_thumbnails_leave_out_corrupt_images(tmp_path):
    source = files(tmp_path, [0, 51, 102, 153])
    (tmp_path / "1.png").write_bytes(b"not a picture")
    assert len(pictures.Pictures(tmp_path, source, 8).thumbnails) == 3


def test_the_projector_reads_features_labels_and_thumbnails(tmp_path):
    """Features, labels and thumbnails have the same order, as TensorBoard expects."""
    source = ArraySource("arrays", grey([0, 51, 102, 153, 204]), np.arange(5) % 2, ("a\tb\n", "c"))
    features = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
    pictures.write_projector(pictures.Pictures(tmp_path, source, 8), (features, np.array([0, 1, 0, -1, 0])))
    folder = tmp_path / "tensorboard"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    (shown,) = config.embeddings
    np.testing.assert_allclose(np.loadtxt(folder / shown.tensor_path, delimiter="\t"), features, rtol=1e-4)
    assert (folder / shown.metadata_path).read_text().splitlines() == ["a b", "c", "a b", "?", "a b"]
    assert list(shown.sprite.single_image_dim) == [8, 8]
    sheet = np.asarray(Image.open(folder / shown.sprite.image_path))[::8, ::8, 0]
    assert sheet.tolist() == [[0, 51, 102], [153, 204, 0], [0, 0, 0]]
