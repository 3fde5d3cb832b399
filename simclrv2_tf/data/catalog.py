"""Catalog: opens the data set that ``--dataset`` names, and chooses the labels that training may use."""

import gzip
import os
import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.layouts import choose_split, open_folder
from simclrv2_tf.data.records import open_tfds
from simclrv2_tf.data.sources import MAX_CLASSES, ArraySource, Source, as_images
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.settings.config import Config

DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = (
    "T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def open_source(config: Config, split: str) -> Source:
    """Opens a split of the data set that ``--dataset`` names.

    Args:
        config: the settings; of them ``dataset``, ``data_dir``, ``cache_dataset``, ``max_corrupt_share``.
        split: the split; "" for the data set's own evaluation split.

    Raises:
        SettingError: naming ``--dataset`` or the split, if there is no such data.
    """
    kind, _, place = config.dataset.partition(":")
    if "://" in place:
        raise SettingError(f"--dataset={config.dataset}: must be a local or mounted path (TFDS reads buckets)")
    path = pathlib.Path(os.path.expanduser(place))
    if config.dataset == "digits":
        return _open_digits(config, split)
    if kind == "npz":
        return _open_npz(config, path, split)
    if kind == "folder":
        return open_folder(config, path, split)
    if config.dataset == "fashion_mnist" and not config.data_dir and DEBIAN_FASHION_MNIST.is_dir():
        return _open_idx(config, DEBIAN_FASHION_MNIST, split)
    return open_tfds(config, split)


def open_labelled(config: Config, *, keep_unlabelled: bool = False) -> Source:
    """Opens the training images whose labels the settings allow to use.

    Args:
        config: the settings; of them those of `open_source`, ``labels_per_class``, ``label_fraction`` and ``seed``.
        keep_unlabelled: keep the other images too, with label −1.

    Raises:
        SettingError: like `open_source`; or if there are no labels, or too few for a class.
    """
    source = open_source(config, config.train_split)
    if not source.class_names:
        raise SettingError(f"--dataset={config.dataset}: has no labels, which {config.mode} needs")
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
        fraction: share of each class, rounded to the nearest number, at least one image.
        seed: of the random choice.

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
            raise SettingError(f"--labels_per_class={per_class}: class {label} has only {len(of_class)} images")
        chosen.append(of_class[:count])
    return np.sort(np.concatenate(chosen))


def _open_digits(config: Config, split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits of 8×8 px, enlarged to 32×32: 1,297 to train on, 500 to test on."""
    from sklearn.datasets import load_digits

    split = choose_split(config, split, ("train", "test"))
    data = load_digits()
    rows = slice(0, 1297) if split == "train" else slice(1297, None)
    small = np.repeat(data.images[rows, ..., None] / 16, 3, axis=-1).astype(np.float32)  # [n, 8, 8, 3]
    large = np.clip(tf.image.resize(small, (32, 32), "bicubic").numpy(), 0, 1)
    labels = data.target[rows].astype(np.int32)
    return ArraySource(f"digits/{split}", as_images(large, "digits"), labels, tuple("0123456789"))


def _open_npz(config: Config, path: pathlib.Path, split: str) -> ArraySource:
    """Arrays ``x_SPLIT`` and maybe ``y_SPLIT`` of a NumPy archive."""
    where = f"--dataset={config.dataset}"
    if not path.is_file():
        raise SettingError(f"{where}: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            available = tuple(name[2:] for name in arrays.files if name.startswith("x_"))
            split = choose_split(config, split, available)
            images = arrays[f"x_{split}"]
            labels = {s: arrays[f"y_{s}"].reshape(-1) for s in available if f"y_{s}" in arrays.files}
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(f"{where}: cannot be read ({first_line(error)})") from None
    images = as_images(images, f"{where}: x_{split}")
    name = f"{path.stem}/{split}"
    if split not in labels:
        return ArraySource(name, images, None, ())
    for s, of_split in labels.items():  # all splits, as a class may be missing from one
        is_integer = np.issubdtype(of_split.dtype, np.integer) and of_split.size
        if not is_integer or of_split.min() < 0 or of_split.max() >= MAX_CLASSES:
            raise SettingError(f"{where}: y_{s} must be whole numbers from 0 to {MAX_CLASSES - 1}")
    if len(labels[split]) != len(images):
        raise SettingError(f"{where}: y_{split} has {len(labels[split])} labels for {len(images)} images")
    classes = 1 + max(int(of_split.max()) for of_split in labels.values())
    return ArraySource(name, images, labels[split].astype(np.int32), tuple(str(i) for i in range(classes)))


def _open_idx(config: Config, folder: pathlib.Path, split: str) -> ArraySource:
    """Fashion-MNIST in gzipped IDX files, as Debian packages it."""
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
