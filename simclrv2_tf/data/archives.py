"""NumPy archives: the images and labels of each split in an npz file."""

import math
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from simclrv2_tf.data.layouts import canonical_split, choose_splits
from simclrv2_tf.data.listing import list_names
from simclrv2_tf.data.pixels import as_images
from simclrv2_tf.data.reading import host_memory
from simclrv2_tf.data.sources import MAX_CLASSES, ArraySource
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.settings.config import Config

# Prefixes and suffixes of the name of a split: x_train, X_train, train_images, images_train
IMAGE_WORDS, LABEL_WORDS = ("x", "images", "image"), ("y", "labels", "label")
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
MAX_COMPRESSION = 1032  # highest compression ratio of deflate, which NumPy uses
# First bytes of other file types: (type, code that reads it)
OTHER_TYPES = {
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file", 'f = h5py.File("{name}")'),
    b"MATLAB 7.3": ("a MATLAB 7.3 file, which is HDF5", 'f = h5py.File("{name}")'),
    b"MATLAB 5.0": ("a MATLAB file", 'f = scipy.io.loadmat("{name}")'),
    b"\x93NUMPY": ("a single NumPy array", 'f = {{"x": np.load("{name}"), "y": np.load("…")}}'),
    b"PAR1": ("a Parquet file", 'f = pandas.read_parquet("{name}")'),
}


def open_npz(config: Config, path: pathlib.Path, split: str, *, with_unlabelled: bool = False) -> ArraySource:
    """Opens a split of a NumPy archive.

    Its arrays are ``x_SPLIT`` and ``y_SPLIT``, or ``SPLIT_images`` and ``SPLIT_labels`` as in MedMNIST. A split without
    labels is unlabelled.

    Args:
        config: the settings; ``dataset`` and ``image_bits`` are used.
        path: the file.
        split: the split; "" for the evaluation split.
        with_unlabelled: add the images of the unlabelled split to those of ``train``, with label −1.

    Raises:
        SettingError: if the file, the split or its arrays cannot be used.
    """
    where = f"--dataset={config.dataset}"
    if not path.is_file():
        raise SettingError(f"{where}: there is no file {path}")
    try:
        with np.load(path, mmap_mode="r", allow_pickle=False) as arrays:  # mapped if it is a single large array
            images_of, labels_of = _arrays_of_splits(where, arrays.files)
            chosen = choose_splits(config, split, tuple(images_of), with_unlabelled=with_unlabelled)
            used = [images_of[name] for name in chosen]
            labels_used = [labels_of[name] for name in images_of if name in labels_of]
            check_sizes(arrays.zip, [*used, *labels_used], host_memory() or math.inf)
            images = [arrays[name] for name in used]
            labels = {name: arrays[labels_of[name]] for name in images_of if name in labels_of}
    except SettingError:
        raise
    except Exception as error:
        raise SettingError(f"{where}: {_other_type(path) or f'cannot be read ({first_line(error)})'}") from None
    bits = config.image_bits
    images = [as_images(x, f"{where}: {images_of[name]}", bits) for name, x in zip(chosen, images, strict=True)]
    if len({x.shape[1:] for x in images}) > 1:
        sizes = ", ".join(f"{images_of[name]} {x.shape[1:3]}" for name, x in zip(chosen, images, strict=True))
        raise SettingError(
            f"{where}: images of one size are needed, not {sizes}; resize them, or use a folder of files"
        )
    labels = _check_labels(where, labels, labels_of)
    counts = dict(zip(chosen, map(len, images), strict=True))
    for name in chosen:
        if name in labels and len(labels[name]) != counts[name]:
            raise SettingError(f"{where}: {labels_of[name]} has {len(labels[name])} labels for {counts[name]} images")
    notes = [f"{images_of[name]} = x_{name}" for name in chosen if images_of[name] != f"x_{name}"]
    notes += [f"{' and '.join(chosen)} together"] if len(chosen) > 1 else []
    name, pixels = f"{path.stem}/{'+'.join(chosen)}", images[0] if len(images) == 1 else np.concatenate(images)
    if not set(chosen) & set(labels):
        return ArraySource(name, pixels, None, (), tuple(notes))
    parts = [labels.get(name, np.full(count, -1)).astype(np.int32) for name, count in counts.items()]
    classes = 1 + max(int(of_split.max()) for of_split in labels.values())  # of all splits, as one may lack a class
    return ArraySource(name, pixels, np.concatenate(parts), tuple(map(str, range(classes))), tuple(notes))


def check_sizes(archive: zipfile.ZipFile, names: Sequence[str], max_bytes: float) -> None:
    """Checks the sizes of arrays before they are allocated.

    Args:
        archive: the open npz.
        names: names of the arrays.
        max_bytes: maximum size of all of them together.

    Raises:
        ValueError: if an array has Python objects, if its header, the archive's directory and its compressed data
            contradict each other, or if the arrays do not fit.
    """
    total = 0
    for name in names:
        member = archive.getinfo(name if name in archive.namelist() else f"{name}.npy")
        with archive.open(member) as file:
            read_header = NPY_HEADERS[np.lib.format.read_magic(file)]
            shape, _, dtype = read_header(file)
            size = file.tell() + math.prod(shape) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"{name} has Python objects; save numbers: images of one size as uint8, labels as int64")
        if size != member.file_size or size > MAX_COMPRESSION * max(member.compress_size, 1):
            raise ValueError(f"{name}: its size, {shape} {dtype}, is not that of its data; save it again")
        total += size
    if total > max_bytes:
        raise ValueError(f"its arrays need {total / 1e9:,.3g} GB of {max_bytes / 1e9:,.3g} GB; use a folder of files")


def _arrays_of_splits(where: str, names: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the names of the arrays of images and of labels by split.

    Raises:
        SettingError: if there are no images, or two arrays are the images of one split.
    """
    arrays: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for name in names:
        before, _, after = name.partition("_")
        first, _, last = name.rpartition("_")
        for of_split, words in zip(arrays, (IMAGE_WORDS, LABEL_WORDS), strict=True):
            if before.lower() in words and after and (before == words[0] or canonical_split(after)):
                split = after
            elif last.lower() in words and canonical_split(first):
                split = first
            else:
                continue
            if split in of_split:
                raise SettingError(f"{where}: both {of_split[split]} and {name} are arrays of {split}; remove one")
            of_split[split] = name
    if not arrays[0]:
        raise SettingError(
            f"{where}: has no array x_train, but {list_names(names) or 'nothing'}; name its arrays x_train, y_train, "
            "x_test, y_test"
        )
    return arrays


def _check_labels(where: str, labels: dict[str, np.ndarray], names: dict[str, str]) -> dict[str, np.ndarray]:
    """Returns the labels of each split, ``[n]``.

    Raises:
        SettingError: unless all are whole numbers that start at 0.
    """
    flat = {}
    for split, of_split in labels.items():
        if of_split.ndim > 1 and of_split.size != len(of_split):
            raise SettingError(
                f"{where}: {names[split]} must be one label per image, not {of_split.shape}; for one-hot labels save "
                ".argmax(axis=1)"
            )
        flat[split] = of_split = of_split.reshape(-1)
        is_integer = np.issubdtype(of_split.dtype, np.integer) and of_split.size
        if not is_integer or of_split.min() < 0 or of_split.max() >= MAX_CLASSES:
            raise SettingError(
                f"{where}: {names[split]} must be whole numbers from 0 to {MAX_CLASSES - 1}; images without a label "
                "belong into x_unlabelled"
            )
    if flat and min(int(of_split.min()) for of_split in flat.values()) == 1:
        arrays = list_names([names[split] for split in flat])
        raise SettingError(f"{where}: the labels start at 1, but must start at 0; subtract 1 from {arrays}")
    return flat


def _other_type(path: pathlib.Path) -> str:
    """Describes a file of another type and how to convert it; "" if it begins like an npz file."""
    with path.open("rb") as file:
        start = file.read(16)
    kind = next((kind for magic, kind in OTHER_TYPES.items() if start.startswith(magic)), None)
    if path.suffix.lower() in (".csv", ".tsv"):
        kind = "a table of text", 'f = pandas.read_csv("{name}")'
    if kind is None:  # NumPy would take it for a pickle, and suggest loading it unsafely
        is_npz = start.startswith(b"PK")
        return "" if is_npz else f"{path.name} is no npz file; write one in Python: np.savez(…, x_train=…, y_train=…)"
    code = kind[1].format(name=path.name)
    convert = f'{code}; np.savez("{path.stem}.npz", x_train=f["…"], y_train=f["…"])'
    return f"{path.name} is {kind[0]}, not npz; convert it in Python: {convert}"
