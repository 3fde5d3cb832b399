"""Where images come from: arrays, files in folders, TFDS records; and which of their labels may be used.

A source knows how many images it has, their classes and labels, and hands out images; order, crops and batches are
``input.py``'s. ``open_source`` finds the one that ``--dataset`` names.
"""

import dataclasses
import functools
import gzip
import hashlib
import logging
import os
import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
EVALUATION_SPLITS = ("validation", "test", "val")  # ImageNet's test split has no labels
# TFDS data sets whose images are all of one size are held in memory up to this many bytes.
IN_MEMORY_BYTES = 4 * 2**30
MAX_CLASSES = 100_000  # what a label may name; a greater one is a mistake
SHUFFLE_BUFFER = 8192  # encoded images
DEBIAN_FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


class NoSuchSplitError(SettingError):
    """The data set is there, the split is not."""


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """Images of one size, in memory.

    Attributes:
        images: uint8 ``[n, height, width, 3]``.
        labels: int32 ``[n]``; None if unlabelled.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    @property
    def resident_images(self):
        return self.images

    @property
    def corrupt(self):
        return set()

    def check_corrupt(self):
        pass

    @property
    def num_examples(self) -> int:
        """Images in the source."""
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """Tells by which pixels and labels a run goes on."""
        return _fingerprint(self.num_examples, self.images, self.labels, *self.class_names)

    def mask_labels_except(self, indices: np.ndarray) -> "ArraySource":
        """All images, of which only those at ``indices`` keep their label; the others get −1."""
        return dataclasses.replace(self, labels=_labels_at(self.labels, indices))

    def subset(self, indices: np.ndarray) -> "ArraySource":
        """The images at ``indices``, in that order."""
        return dataclasses.replace(self, images=self.images[indices], labels=_some(self.labels, indices))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodedSource:
    """Images that are decoded when they are needed, of which some may turn out corrupt.

    Attributes:
        max_corrupt_share: how many may, of all.
        corrupt: the names of those that could not be decoded.
    """

    max_corrupt_share: float = 1.0
    corrupt: set[str] = dataclasses.field(default_factory=set, compare=False)

    resident_images = None

    def report_corrupt(self, image: int | bytes) -> None:
        """Counts and logs an image that could not be decoded, once.

        Args:
            image: a file's index; of records, which have no name, the bytes.
        """
        if (name := self._name_of(image)) not in self.corrupt:
            self.corrupt.add(name)
            log.warning("corrupt image %s (%d so far), skipped", name, len(self.corrupt))

    def check_corrupt(self) -> None:
        """Raises SettingError if more than ``max_corrupt_share`` of the images turned out corrupt."""
        if len(self.corrupt) > self.max_corrupt_share * self.num_examples:
            raise SettingError(
                f"--max_corrupt_share={self.max_corrupt_share}: {len(self.corrupt)} of {self.num_examples} images of "
                f"{self.name} are corrupt, the last one {sorted(self.corrupt)[-1]}"
            )


@dataclasses.dataclass(frozen=True)
class FileSource(EncodedSource):
    """Image files, decoded when they are needed.

    Attributes:
        paths: one an image.
        labels: int32 ``[n]``; None if unlabelled.
        encoded: the files' bytes, where they are kept in memory.
    """

    name: str
    paths: tuple[str, ...]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    encoded: np.ndarray | None = None

    def _name_of(self, image: int) -> str:
        return self.paths[image]

    @property
    def num_examples(self) -> int:
        """Files in the source."""
        return len(self.paths)

    @property
    def fingerprint(self) -> str:
        """Tells by which names, sizes and labels of files a run goes on, wherever their folder is."""
        root = os.path.commonpath(self.paths)
        sizes = [os.path.getsize(path) if os.path.exists(path) else 0 for path in self.paths]
        names = (f"{os.path.relpath(path, root)} {size}" for path, size in zip(self.paths, sizes, strict=True))
        return _fingerprint(self.num_examples, self.labels, *names, *self.class_names)

    def mask_labels_except(self, indices: np.ndarray) -> "FileSource":
        """All files, of which only those at ``indices`` keep their label; the others get −1."""
        return dataclasses.replace(self, labels=_labels_at(self.labels, indices))

    def subset(self, indices: np.ndarray) -> "FileSource":
        """The files at ``indices``, in that order."""
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[i] for i in indices),
            labels=_some(self.labels, indices),
            encoded=_some(self.encoded, indices),
        )

    def cached(self) -> "FileSource":
        """The same source with every file's bytes in memory."""
        return dataclasses.replace(self, encoded=np.array([_bytes_of(path) for path in self.paths], dtype=object))


@dataclasses.dataclass(frozen=True)
class RecordSource(EncodedSource):
    """Encoded images that can only be read in sequence (TFDS), with the official shuffling: files, then a buffer."""

    name: str
    builder: object
    split: str
    num_examples: int
    class_names: tuple[str, ...]
    cache: bool = False
    keep: np.ndarray | None = None  # of each record in file order, whether it is in the label subset
    labels: np.ndarray | None = None  # where they were read or changed; the records' own otherwise

    @property
    def fingerprint(self) -> str:
        """Tells by which version of the data set and which labels a run goes on."""
        return _fingerprint(self.num_examples, self.builder.info.full_name, self.split, self.keep, self.labels)

    @functools.cached_property
    def _in_order(self) -> tf.data.Dataset:
        """``(encoded image, label)`` of every kept record in file order; made once, as the cache belongs to it."""
        with tf.init_scope():  # not in the graph of the epoch that happens to ask first
            data = self._read(None)
            if self.keep is not None:
                kept = tf.constant(self.keep)
                data = data.enumerate().filter(lambda i, _: kept[i]).map(lambda _, example: example)
            if self.labels is not None:
                labels = tf.constant(self.labels)
                data = data.enumerate().map(lambda i, example: (example[0], labels[i]))
            return data.cache() if self.cache else data

    def _read(self, file_seed: tf.Tensor | None) -> tf.data.Dataset:
        import tensorflow_datasets as tfds

        data = self.builder.as_dataset(
            split=self.split,
            decoders={"image": tfds.decode.SkipDecoding()},
            shuffle_files=file_seed is not None,
            read_config=tfds.ReadConfig(try_autocache=False, shuffle_seed=file_seed),
        )
        return data.map(lambda example: (example["image"], tf.cast(example.get("label", -1), tf.int32)))

    def stream(self, seed: tf.Tensor | None = None) -> tf.data.Dataset:
        """One epoch of ``(encoded image, label)``, in file order or shuffled by ``seed``, an int64 scalar.

        Shuffled is the order of the files, except where a label subset or the cache counts on it, and then a buffer.
        """
        if seed is None:
            return self._in_order
        whole = self.keep is None and self.labels is None and not self.cache
        data = self._read(seed) if whole else self._in_order
        return data.shuffle(min(self.num_examples, SHUFFLE_BUFFER), seed=seed, reshuffle_each_iteration=False)

    def mask_labels_except(self, indices: np.ndarray) -> "RecordSource":
        """All records, of which only those at ``indices`` of the file order keep their label; the others get −1."""
        return dataclasses.replace(self, labels=_labels_at(self.labels, indices))

    def subset(self, indices: np.ndarray) -> "RecordSource":
        """The records at ``indices`` of the file order."""
        keep = np.zeros(self.num_examples, bool) if self.keep is None else np.zeros_like(self.keep)
        keep[indices if self.keep is None else np.flatnonzero(self.keep)[indices]] = True
        labels = _some(self.labels, np.unique(indices))
        return dataclasses.replace(self, keep=keep, labels=labels, num_examples=int(keep.sum()))

    def _name_of(self, image: bytes) -> str:
        return f"{self.name} {hashlib.blake2b(image, digest_size=8).hexdigest()}, {len(image)} bytes"

    def with_labels(self) -> "RecordSource":
        """Reads every label once (the images stay encoded), which a label subset needs."""
        labels = [int(label) for _, label in self.stream().prefetch(64)]
        return dataclasses.replace(self, labels=np.array(labels, np.int32))


Source = ArraySource | FileSource | RecordSource


def _bytes_of(path: str) -> bytes:
    """Nothing where the file cannot be read: it is then found corrupt as any other."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""


def _some(values: np.ndarray | None, indices: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[indices]


def _fingerprint(num_examples: int, *parts: np.ndarray | str | None) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        if isinstance(part, str):
            digest.update(os.fsencode(part) + b"\0")
        elif part is not None:
            digest.update(np.ascontiguousarray(part))
    return f"{num_examples} ({digest.hexdigest()})"


def _labels_at(labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    kept = np.full_like(labels, -1)
    kept[indices] = labels[indices]
    return kept


def open_labelled(config: Config, *, keep_unlabelled: bool = False) -> Source:
    """The training images whose labels the settings allow to use: ``labels_per_class``, ``label_fraction``, ``seed``.

    Args:
        config: the settings.
        keep_unlabelled: keep the other images too, with label −1.

    Raises:
        SettingError: as ``open_source``; or there are no labels, or too few of a class.
    """
    source = open_source(config, config.train_split)
    if not source.class_names:
        raise SettingError(f"--dataset={config.dataset}: has no labels, which {config.mode} needs")
    if not config.labels_per_class and config.label_fraction == 1:
        return source
    if isinstance(source, RecordSource):
        source = source.with_labels()
    chosen = label_subset(source.labels, config.labels_per_class, config.label_fraction, config.seed)
    return source.mask_labels_except(chosen) if keep_unlabelled else source.subset(chosen)


def open_source(config: Config, split: str) -> Source:
    """The images that ``--dataset`` names.

    Args:
        config: of it ``dataset``, ``data_dir``, ``cache_dataset``, ``max_corrupt_share``.
        split: its split; "" for the data set's own evaluation split.

    Raises:
        SettingError: naming ``--dataset`` or the split, if there is no such data.
    """
    kind, _, place = config.dataset.partition(":")
    if "://" in place:
        raise SettingError(f"--dataset={config.dataset}: must be a local or mounted path (TFDS reads buckets)")
    path = pathlib.Path(os.path.expanduser(place))
    if config.dataset == "digits":
        return _digits(config, split)
    if kind == "npz":
        return _npz(config, path, split)
    if kind == "folder":
        return _folder(config, path, split)
    if config.dataset == "fashion_mnist" and not config.data_dir and DEBIAN_FASHION_MNIST.is_dir():
        return _idx(config, DEBIAN_FASHION_MNIST, split)
    return _tfds(config, split)


def label_subset(labels: np.ndarray, per_class: int, fraction: float, seed: int) -> np.ndarray:
    """A class-balanced choice of labelled images (paper §3: 1 % and 10 % subsets).

    A larger subset of the same seed contains the smaller one.

    Args:
        labels: int ``[n]``; −1: unknown, never chosen.
        per_class: images a class; 0: use ``fraction``.
        fraction: share of each class, rounded to the nearest number, at least one.
        seed: chooses among them.

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


def _choose_split(config: Config, wanted: str, available: tuple[str, ...]) -> str:
    """``wanted``, or the first evaluation split there is; SettingError naming the flag."""
    if not wanted:
        for split in EVALUATION_SPLITS:
            if split in available:
                return split
        wanted = EVALUATION_SPLITS[0]
    if wanted not in available:
        raise _split_error(config, wanted, f"{config.dataset} has only {', '.join(available) or 'no splits'}")
    return wanted


def _split_error(config: Config, split: str, why: str) -> SettingError:
    flag = "train_split" if split == config.train_split else "eval_split"
    return NoSuchSplitError(f"--{flag}={split}: {why}")


def _as_images(array: np.ndarray, where: str) -> np.ndarray:
    """Grey or RGB, uint8 or floats in [0, 1], as uint8 ``[n, h, w, 3]``."""
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or not array.size:
        raise SettingError(f"{where}: images must be [n, height, width], [..., 1] or [..., 3], not {array.shape}")
    if np.issubdtype(array.dtype, np.floating):
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise SettingError(f"{where}: floating-point images must be finite and in [0, 1]")
        array = np.rint(array * 255)
    elif array.dtype != np.uint8:
        raise SettingError(f"{where}: images must be uint8 or floats in [0, 1], not {array.dtype}")
    array = array.astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _digits(config: Config, split: str) -> ArraySource:
    """scikit-learn's 1,797 handwritten digits, 8×8, enlarged to 32×32: the first 1,297 to train on, 500 to test on."""
    from sklearn.datasets import load_digits

    split = _choose_split(config, split, ("train", "test"))
    data = load_digits()
    rows = slice(0, 1297) if split == "train" else slice(1297, None)
    small = np.repeat(data.images[rows, ..., None] / 16, 3, axis=-1).astype(np.float32)
    large = np.clip(tf.image.resize(small, (32, 32), "bicubic").numpy(), 0, 1)
    labels = data.target[rows].astype(np.int32)
    return ArraySource(f"digits/{split}", _as_images(large, "digits"), labels, tuple("0123456789"))


def _npz(config: Config, path: pathlib.Path, split: str) -> ArraySource:
    where = f"--dataset={config.dataset}"
    if not path.is_file():
        raise SettingError(f"{where}: there is no file {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            available = tuple(name[2:] for name in arrays.files if name.startswith("x_"))
            split = _choose_split(config, split, available)
            images = arrays[f"x_{split}"]
            labels = {s: arrays[f"y_{s}"].reshape(-1) for s in available if f"y_{s}" in arrays.files}
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(f"{where}: cannot be read ({first_line(error)})") from None
    images = _as_images(images, f"{where}: x_{split}")
    name = f"{path.stem}/{split}"
    if split not in labels:
        return ArraySource(name, images, None, ())
    for s, of_split in labels.items():  # of all, as a class may be missing from one
        whole = np.issubdtype(of_split.dtype, np.integer) and of_split.size
        if not whole or of_split.min() < 0 or of_split.max() >= MAX_CLASSES:
            raise SettingError(f"{where}: y_{s} must be whole numbers from 0 to {MAX_CLASSES - 1}")
    if len(labels[split]) != len(images):
        raise SettingError(f"{where}: y_{split} has {len(labels[split])} labels for {len(images)} images")
    classes = 1 + max(int(of_split.max()) for of_split in labels.values())
    return ArraySource(name, images, labels[split].astype(np.int32), tuple(str(i) for i in range(classes)))


def _idx(config: Config, folder: pathlib.Path, split: str) -> ArraySource:
    """The gzipped IDX files of MNIST's kin, as Debian packages them."""
    split = _choose_split(config, split, ("train", "test"))
    stem = {"train": "train", "test": "t10k"}[split]
    try:
        images, labels = (
            np.frombuffer(gzip.decompress((folder / f"{stem}-{kind}-ubyte.gz").read_bytes()), np.uint8, offset=header)
            for kind, header in (("images-idx3", 16), ("labels-idx1", 8))
        )
        images = images.reshape(len(labels), 28, 28)
    except (OSError, EOFError, ValueError) as error:
        raise SettingError(f"--dataset=fashion_mnist: cannot be read from {folder} ({first_line(error)})") from None
    names = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
    return ArraySource(f"fashion_mnist/{split}", _as_images(images, "idx"), labels.astype(np.int32), names)


def _folder(config: Config, folder: pathlib.Path, split: str) -> FileSource:
    """Class sub-folders of images, or images without classes.

    ``train`` and ``test`` (or ``validation``) sub-folders are the splits; without them every fifth image of each class
    is held out for ``test``, and ``all`` is everything.
    """
    where = f"--dataset={config.dataset}"
    if not folder.is_dir():
        raise SettingError(f"{where}: there is no folder {folder}")
    own_splits = tuple(s for s in ("train", *EVALUATION_SPLITS) if (folder / s).is_dir())
    strays = [p.name for p in folder.iterdir() if p.is_dir() and p.name not in own_splits and p.name[0] != "."]
    if "train" in own_splits and strays:
        raise SettingError(f"{where}: beside the split train there is {strays[0]}; a class cannot be named train")
    if "train" in own_splits:
        split = _choose_split(config, split, own_splits)
        paths, labels, names = _list_images(folder / split, where)
        if labels is not None and names != _list_images(folder / "train", where)[2]:
            raise SettingError(f"{where}: {split} and train have different class folders")
        keep = np.arange(len(paths))
    else:
        split = _choose_split(config, split, ("train", "test", "all"))
        paths, labels, names = _list_images(folder, where)
        held_out = np.zeros(len(paths), bool)
        for label in np.unique(labels) if labels is not None else []:
            held_out[np.flatnonzero(labels == label)[4::5]] = True
        keep = np.flatnonzero({"train": ~held_out, "test": held_out, "all": held_out | True}[split])
        if not len(keep):
            raise NoSuchSplitError(f"{where}: too few images, or no class folders, to hold some out for {split}")
    source = FileSource(
        f"{folder.name}/{split}",
        tuple(str(paths[i]) for i in keep),
        None if labels is None else labels[keep],
        names,
        max_corrupt_share=config.max_corrupt_share,
    )
    return source.cached() if config.cache_dataset else source


def _list_images(folder: pathlib.Path, where: str) -> tuple[list[pathlib.Path], np.ndarray | None, tuple[str, ...]]:
    """Sorted image files; labels and class names from the sub-folders."""

    def images_in(place: pathlib.Path) -> list[pathlib.Path]:
        found = (path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != ".")
        # broken links too, to be counted as corrupt
        return sorted(path for path in found if path.is_file() or (path.is_symlink() and not path.exists()))

    class_folders = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not class_folders:
        paths = images_in(folder)
        if not paths:
            raise SettingError(f"{where}: {folder} has no {', '.join(IMAGE_SUFFIXES)} images")
        return paths, None, ()
    paths, labels = [], []
    for label, class_folder in enumerate(class_folders):
        found = images_in(class_folder)
        if not found:
            raise SettingError(f"{where}: class {class_folder.name} has no images")
        paths += found
        labels += [label] * len(found)
    # what is not UTF-8 in a name could not be shown
    return (
        paths,
        np.array(labels, np.int32),
        tuple(os.fsencode(path.name).decode(errors="replace") for path in class_folders),
    )


def _tfds(config: Config, split: str) -> Source:
    """Any TFDS data set: into memory where its images are small and of one size, else streamed."""
    import tensorflow_datasets as tfds

    where = f"--dataset={config.dataset}"
    try:
        builder = tfds.builder(config.dataset, data_dir=config.data_dir or None)
    except Exception as error:  # TFDS raises many kinds for a name it does not know
        hint = f"; for a folder of images say folder:{config.dataset}" if os.path.isdir(config.dataset) else ""
        raise SettingError(f"{where}: TFDS has no such data set ({first_line(error)}){hint}") from None
    if "image" not in builder.info.features:
        raise SettingError(f"{where}: has no feature named image")
    try:
        builder.download_and_prepare()
    except Exception as error:  # no network, no disk, manual download needed: all the user's to mend
        raise SettingError(f"{where}: could not be prepared in {builder.data_dir} ({first_line(error)})") from None
    available = tuple(builder.info.splits)
    if not set(split) & set("[+"):  # else one of TFDS's expressions, such as train[:90%]
        split = _choose_split(config, split, available)
    try:
        num_examples = builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise _split_error(config, split, f"not a split of TFDS ({first_line(error)})") from None
    if not num_examples:
        raise _split_error(config, split, "has no images")
    label = dict(builder.info.features.items()).get("label")
    names = tuple(label.names) if isinstance(label, tfds.features.ClassLabel) else ()
    shape = builder.info.features["image"].shape
    if None not in shape and num_examples * int(np.prod(shape)) <= IN_MEMORY_BYTES:
        try:
            data = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1))
        except tf.errors.OpError as error:
            raise SettingError(f"{where}: cannot be read from {builder.data_dir} ({first_line(error)})") from None
        labels = data["label"].astype(np.int32) if names else None
        if names and (labels < 0).all():  # as of STL-10's unlabelled split
            labels, names = None, ()
        return ArraySource(f"{config.dataset}/{split}", _as_images(data["image"], where), labels, names)
    return RecordSource(
        f"{config.dataset}/{split}",
        builder,
        split,
        num_examples,
        names,
        cache=config.cache_dataset,
        max_corrupt_share=config.max_corrupt_share,
    )
