"""Accuracies of a network on a split: the images used, and errors."""

import numpy as np
import pytest
import tiny

from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.modes import measure
from simclrv2_tf.settings.config import Config


def source(labels, num_classes=3):
    """Returns images with these labels; the first pixel of each is its index."""
    images = np.zeros([len(labels), 2, 2, 3], np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels)) % 256
    names = tuple(map(str, range(num_classes)))
    return ArraySource("toy/train", images, np.array(labels, np.int32), names)


def indices(subset):
    return subset.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("classes", "names"), [(5, {"top1"}), (6, {"top1", "top5"})])
def test_top5_needs_more_than_five_classes(classes, names):
    logits = np.eye(classes, dtype=np.float32)
    accuracies = measure.top_k(logits, np.roll(np.arange(classes), 1))
    assert set(accuracies) == names and accuracies["top1"] == 0


class TestKnnSubset:
    def test_a_small_labelled_source_is_used_as_it_is(self):
        images = source([0, 1, 2])
        assert measure.knn_subset(images) is images

    def test_only_labelled_images_are_used(self):
        assert indices(measure.knn_subset(source([0, -1, 2, -1]))) == [0, 2]

    def test_many_images_are_a_seeded_choice_in_order(self, monkeypatch):
        monkeypatch.setattr(measure, "KNN_IMAGES", 50)
        images = source([0, 1] * 100)
        chosen = indices(measure.knn_subset(images))
        assert len(set(chosen)) == 50 and chosen == sorted(chosen) == indices(measure.knn_subset(images))
        assert chosen[-1] > 150  # not the first 50


def test_a_split_without_a_readable_image_is_refused(tmp_path):
    model = ClassificationModel(tiny.network(), tiny.VIEWS)
    (tmp_path / "broken.png").write_bytes(b"not an image")
    images = FileSource("toy/test", (str(tmp_path / "broken.png"),), None, ())
    with pytest.raises(SettingError, match=r"^--dataset=imagenet2012: no image could be read$"):
        measure.compute_features(model, Config(image_size=tiny.SIZE, eval_batch_size=2), images)
