"""Catalog: opens the data set that ``--dataset`` names, and chooses the labels that training may use."""

import gzip
import os
import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.archives import open_npz
from simclrv2_tf.data.classes import readable_classes
from simclrv2_tf.data.layouts import choose_split, open_folder
from simclrv2_tf.data.pixels import as_images
from simclrv2_tf.data.records import open_tfds
from simclrv2_tf.data.sources import ArraySource, Source
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.settings.config import Config

DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def open_source(config: Config, split: str, *, with_unlabelled: bool = False) -> Source:
    """Opens a split of the data set that ``--dataset`` names.

    Args:
        config: the settings; ``dataset``, ``data_dir``, ``cache_dataset``, and those of images and files are used.
        split: the split; "" for the data set's own evaluation split.
        with_unlabelled: for pretrain and distill, add the images of the unlabelled split of a folder or npz file to
            those of ``train``, with label −1. For TFDS use ``train+unlabelled``.

    Returns:
        The split. Synset ids of ImageNet are replaced by the names of the classes.

    Raises:
        SettingError: naming ``--dataset`` or the split, if there is no such data.
    """
    return readable_classes(_open_split(config, split, with_unlabelled))


def _open_split(config: Config, split: str, with_unlabelled: bool) -> Source:
    kind, _, place = config.dataset.partition(":")
    if "://" in place:
        raise SettingError(f"--dataset={config.dataset}: must be a local or mounted path (TFDS reads buckets)")
    path = pathlib.Path(os.path.expanduser(place))
    if config.dataset == "digits":
        return _open_digits(config, split)
    if kind == "npz":
        return open_npz(config, path, split, with_unlabelled=with_unlabelled)
    if kind == "folder":
        return open_folder(config, path, split, with_unlabelled=with_unlabelled)
    if config.dataset == "fashion_mnist" and not config.data_dir and DEBIAN_FASHION_MNIST.is_dir():
        return _open_idx(config, DEBIAN_FASHION_MNIST, split)
    return open_tfds(config, split)


def open_labelled(config: Config, *, keep_unlabelled: bool = False) -> Source:
    """Opens the training images whose labels the settings allow to use.

    Args:
        config: the settings; those of `open_source`, ``labels_per_class``, ``label_fraction`` and ``seed`` are used.
        keep_unlabelled: keep the other images too, and those of the unlabelled split, with label −1.

    Raises:
        SettingError: as `open_source`; or if there are no labels, or too few for a class.
    """
    source = open_source(config, config.train_split, with_unlabelled=keep_unlabelled)
    if not source.class_names:
        reason = f" ({'; '.join(source.notes)})" if source.notes else ""
        raise SettingError(f"--dataset={config.dataset}: has no labels, which {config.mode} needs{reason}")
    if not config.labels_per_class and config.label_fraction == 1:
        return source
    source = source.with_labels()
    chosen = label_subset(source.labels, config.labels_per_class, config.label_fraction, config.seed)
    return source.mask_labels_except(chosen) if keep_unlabelled else source.subset(chosen)


def label_subset(labels: np.ndarray, per_class: int, fraction: float, seed: int) -> np.ndarray:
    """Chooses a class-balanced subset of labelled images (paper §3: subsets of 1 % and 10 %).

    A larger subset with the same seed contains the smaller one.

    Args:
        labels: int ``[n]``; −1, unknown, is never chosen.
        per_class: images per class; 0: use ``fraction``.
        fraction: fraction of each class, rounded to the nearest number, at least one image.
        seed: seed of the random choice.

    Returns:
        Sorted indices, int64.

    Raises:
        SettingError: if a class has fewer than ``per_class`` images.
    """
    chosen = []
    for label in np.unique(labels[labels >= 0]):
        of_class = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(labels == label))
        count = per_class or max(1, round(fraction * len(of_class)))
        if count > len(of_class):
            raise SettingError(
                f"--labels_per_class={per_class}: class {label} has only {len(of_class)} images; use at most "
                "as many, or --label_fraction"
            )
        chosen.append(of_class[:count])
    return np.sort(np.concatenate(chosen))


def _open_digits(config: Config, split: str) -> ArraySource:
    """Opens scikit-learn's 1,797 handwritten digits, 8×8 px enlarged to 32×32: 1,297 for training, 500 for testing."""
    from sklearn.datasets import load_digits

    split = choose_split(config, split, ("train", "test"))
    data = load_digits()
    rows = slice(0, 1297) if split == "train" else slice(1297, None)
    small = np.repeat(data.images[rows, ..., None] / 16, 3, axis=-1).astype(np.float32)  # [n, 8, 8, 3]
    large = np.clip(tf.image.resize(small, (32, 32), "bicubic").numpy(), 0, 1)
    labels = data.target[rows].astype(np.int32)
    return ArraySource(f"digits/{split}", as_images(large, "digits"), labels, tuple("0123456789"))


def _open_idx(config: Config, folder: pathlib.Path, split: str) -> ArraySource:
    """Opens Fashion-MNIST in gzipped IDX files, as packaged by Debian."""
    split = choose_split(config, split, ("train", "test"))
    stem = {"train": "train", "test": "t10k"}[split]
    try:
        images, labels = (
            np.frombuffer(gzip.decompress((folder / f"{stem}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=header)
            for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
        )
        images = images.reshape(len(labels), 28, 28)
    except (OSError, EOFError, ValueError) as error:
        raise SettingError(f"--dataset=fashion_mnist: cannot be read from {folder} ({first_line(error)})") from None
    name, labels = f"fashion_mnist/{split}", labels.astype(np.int32)
    return ArraySource(name, as_images(images, "idx"), labels, FASHION_MNIST_CLASSES)
