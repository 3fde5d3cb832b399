"""TFDS data sets: which features are needed, and the splits by their usual names."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

tfds.disable_progress_bar()
F = tfds.features
IMAGE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here uses Keras."""


class Odd(tfds.core.GeneratorBasedBuilder):
    """A data set of two examples; a subclass has other features."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES = F.FeaturesDict({"image": F.Image(shape=(4, 4, 3)), "label": F.ClassLabel(num_classes=2)})
    EXAMPLE = {"image": IMAGE, "label": 1}  # noqa: RUF012

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=self.FEATURES)

    def _split_generators(self, download_manager):
        return {split: self._generate_examples() for split in ("train", "val", "unlabeled")}

    def _generate_examples(self):
        for i in range(2):
            yield i, self.EXAMPLE


class OddSplits(Odd):
    pass


class OddVideo(Odd):
    FEATURES = F.FeaturesDict({"image": F.Video(shape=(None, 4, 4, 3)), "label": F.ClassLabel(num_classes=2)})


class OddSequence(Odd):
    FEATURES = F.FeaturesDict({"image": F.Sequence(F.Image())})


class OddDict(Odd):
    FEATURES = F.FeaturesDict({"image": {"left": F.Image(), "right": F.Image()}})


class OddTensor(Odd):
    FEATURES = F.FeaturesDict({"image": F.Tensor(shape=(4, 4, 3), dtype=np.uint8)})


class OddName(Odd):
    FEATURES = F.FeaturesDict({"picture": F.Image(), "label": F.ClassLabel(num_classes=2)})


class OddMultiLabel(Odd):
    FEATURES = F.FeaturesDict({"image": F.Image(), "label": F.Sequence(F.ClassLabel(num_classes=2))})
    EXAMPLE = {"image": IMAGE, "label": [0, 1]}  # noqa: RUF012


class OddUnlabelled(Odd):
    FEATURES = F.FeaturesDict({"image": F.Image()})
    EXAMPLE = {"image": IMAGE}  # noqa: RUF012


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("tfds"))


def refusal(dataset, data_dir, opener=lambda config: open_source(config, "train"), **settings):
    with pytest.raises(SettingError) as caught:
        opener(Config(dataset=dataset, data_dir=data_dir, **settings))
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(f"--dataset={dataset}: ")


@pytest.mark.parametrize(
    ("dataset", "actual"),
    [
        ("odd_video", "image: Video(Image), label: ClassLabel"),
        ("odd_sequence", "image: Sequence(Image)"),
        ("odd_dict", "image: FeaturesDict"),
        ("odd_tensor", "image: Tensor"),
        ("odd_name", "picture: Image, label: ClassLabel"),
    ],
)
def test_images_of_another_kind_are_refused_before_the_data_are_prepared(dataset, actual, data_dir, tmp_path):
    message = refusal(dataset, str(tmp_path))
    assert message == f"needs the features image: Image, label: ClassLabel, but has {actual}"
    assert not list(tmp_path.rglob("*.tfrecord*"))


@pytest.mark.parametrize(
    ("dataset", "actual"),
    [("odd_multi_label", "label is Sequence(ClassLabel)"), ("odd_unlabelled", "there is no label")],
)
def test_without_class_labels_the_images_are_unlabelled_and_the_summary_says_so(dataset, actual, data_dir):
    source = open_source(Config(dataset=dataset, data_dir=data_dir), "train")
    note = f"no labels: {actual}, needed are image: Image, label: ClassLabel"
    assert source.class_names == () and source.notes == (note,)
    assert [int(label) for _, label in source.stream()] == [-1, -1]
    message = refusal(dataset, data_dir, open_labelled, mode="supervised")
    assert message == f"has no labels, which supervised needs ({note})"


def test_splits_by_their_usual_names(data_dir):
    config = Config(dataset="odd_splits", data_dir=data_dir)
    names = {split: open_source(config, split).name for split in ("", "validation", "Training", "unlabelled", "all")}
    expected = {"": "val", "validation": "val", "Training": "train", "unlabelled": "unlabeled", "all": "train+val"}
    assert names == {split: f"odd_splits/{name}" for split, name in expected.items()}
    assert open_source(config, "all").num_examples == 4


def test_paths_are_answered_with_what_to_say_instead(data_dir, tmp_path):
    Odd(data_dir=str(tmp_path)).download_and_prepare()
    for path in (tmp_path, tmp_path / "odd", tmp_path / "odd/1.0.0"):
        assert refusal(str(path), "").endswith(f"; say --dataset=odd:1.0.0 --data_dir={tmp_path}")
    source = open_source(Config(dataset="odd:1.0.0", data_dir=str(tmp_path)), "train")
    assert source.num_examples == 2 and source.class_names == ("0", "1")
    (tmp_path / "a.npz").write_bytes(b"")
    assert refusal(f"{tmp_path}/a.npz", "").endswith(f"; for a file of arrays say npz:{tmp_path}/a.npz")
