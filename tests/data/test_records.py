"""TFDS data sets: required features, the splits by their usual names, subsets."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.records import RecordSource
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


class OddDeep(Odd):
    """Images that use 12 of 16 bits, in memory; the classes are synset ids of ImageNet."""

    FEATURES = F.FeaturesDict(
        {
            "image": F.Image(shape=(4, 4, 1), dtype=np.uint16),
            "label": F.ClassLabel(names=["n01440764", "n02123045"]),
        }
    )
    EXAMPLE = {"image": np.linspace(0, 4095, 16).astype(np.uint16).reshape(4, 4, 1), "label": 1}  # noqa: RUF012


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


class OddSizes(Odd):
    FEATURES = F.FeaturesDict({"image": F.Image(shape=(None, None, 3)), "label": F.ClassLabel(num_classes=2)})


def test_the_fingerprint_of_records_changes_with_a_byte_of_their_files(tmp_path):
    config = Config(dataset="odd_sizes", data_dir=str(tmp_path))
    fingerprints = [open_source(config, split).fingerprint for split in ("train", "train", "train+val", "val")]
    assert fingerprints[0] == fingerprints[1] and len(set(fingerprints)) == 3
    (file,) = tmp_path.rglob("*-train.*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert [open_source(config, split).fingerprint == fingerprints[0] for split in ("train", "val")] == [False, False]
    assert open_source(config, "val").fingerprint == fingerprints[3]
    file.unlink()
    with pytest.raises(SettingError, match=rf"^--dataset=odd_sizes: cannot be read from {tmp_path}"):
        _ = open_source(config, "train").fingerprint


def test_a_subset_is_in_file_order_with_its_own_labels():
    labels = np.array([0, 1, 2, 3, 4], np.int32)
    source = RecordSource("x/train", None, "train", 5, tuple("abcde"), labels=labels)
    subset = source.subset(np.array([4, 0, 3]))
    assert (subset.num_examples, subset.labels.tolist()) == (3, [0, 3, 4])
    assert subset.keep.tolist() == [True, False, False, True, True]
    smaller = subset.subset(np.array([2, 1]))
    assert (smaller.labels.tolist(), smaller.keep.tolist()) == ([3, 4], [False, False, False, True, True])
    assert source.sample(2).labels.tolist() == [0, 1]


def test_images_of_16_bits_in_memory_are_scaled_and_synset_ids_become_names(data_dir, caplog):
    config = Config(dataset="odd_deep", data_dir=data_dir)
    source = open_source(config.replace(image_bits=12), "train")
    assert source.images.shape == (2, 4, 4, 3) and source.images.max() == 255 and not caplog.text
    assert source.class_names == ("tench", "tabby")
    assert open_source(config, "train").images.max() == 15 and "--image_bits=12 uses the whole range" in caplog.text
