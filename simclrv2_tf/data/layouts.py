"""Layouts: the splits of a data set, and the classes and splits that the sub-folders of a folder stand for."""

import collections
import os
import pathlib

import numpy as np

from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
EVALUATION_SPLITS = ("validation", "test", "val")  # in this order, as ImageNet's test split has no labels


class NoSuchSplitError(SettingError):
    """The data set exists, the split does not."""


def choose_split(config: Config, split: str, available: tuple[str, ...]) -> str:
    """Returns the requested split, or for "" the first evaluation split there is.

    Raises:
        NoSuchSplitError: naming the flag, if the split is not available.
    """
    if not split:
        split = next((name for name in EVALUATION_SPLITS if name in available), EVALUATION_SPLITS[0])
    if split not in available:
        raise split_error(config, split, f"{config.dataset} has only {', '.join(available) or 'no splits'}")
    return split


def split_error(config: Config, split: str, reason: str) -> NoSuchSplitError:
    """Returns the error about a split, naming its flag."""
    flag = "train_split" if split == config.train_split else "eval_split"
    return NoSuchSplitError(f"--{flag}={split}: {reason}")


def open_folder(config: Config, folder: pathlib.Path, split: str) -> FileSource:
    """Opens a split of a folder of images.

    Sub-folders named ``train`` and ``test`` (or ``validation``, ``val``) are the splits. Without ``train``, every fifth
    image of each class is held out for ``test``, and ``all`` is everything. Inside a split each sub-folder is a class;
    without sub-folders the images have no labels.

    Args:
        config: the settings; of them ``dataset``, ``cache_dataset``, ``max_corrupt_share``.
        folder: the folder.
        split: the split; "" for the evaluation split.

    Returns:
        The images of the split. Its ``skipped`` counts what was left out of the whole folder.

    Raises:
        SettingError: if there is no such folder or split, or a class has no images.
    """
    where = f"--dataset={config.dataset}"
    if not folder.is_dir():
        raise SettingError(f"{where}: there is no folder {folder}")
    own_splits = tuple(name for name in ("train", *EVALUATION_SPLITS) if (folder / name).is_dir())
    skipped: collections.Counter[str] = collections.Counter()
    if "train" in own_splits:
        strays = [name for name in _subfolders(folder) if name not in own_splits]
        if strays:
            raise SettingError(f"{where}: beside the split train there is {strays[0]}; a class cannot be named train")
        split = choose_split(config, split, own_splits)
        _count_loose_files(folder, "beside the split folders", skipped)
        paths, labels, class_names = _list_images(folder / split, where, skipped)
        if labels is not None and class_names != _class_names(folder / "train"):
            raise SettingError(f"{where}: {split} and train have different class folders")
    else:
        split = choose_split(config, split, ("train", "test", "all"))
        paths, labels, class_names = _list_images(folder, where, skipped)
        rows = _rows_of_split(split, labels, len(paths))
        if not len(rows):
            raise NoSuchSplitError(f"{where}: too few images, or no class folders, to hold some out for {split}")
        paths, labels = [paths[row] for row in rows], None if labels is None else labels[rows]
    name, limit = f"{folder.name}/{split}", config.max_corrupt_share
    source = FileSource(name, tuple(paths), labels, class_names, max_corrupt_share=limit, skipped=dict(skipped))
    return source.cached() if config.cache_dataset else source


def _rows_of_split(split: str, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Returns the indices of the images in ``train``, ``test`` or ``all`` of a folder without splits of its own."""
    held_out = np.zeros(count, bool)
    for label in np.unique(labels) if labels is not None else []:
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    return np.flatnonzero({"train": ~held_out, "test": held_out, "all": held_out | True}[split])


def _subfolders(folder: pathlib.Path) -> list[str]:
    """Returns the sorted names of the sub-folders, links included, hidden ones not."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))


def _is_folder(entry: os.DirEntry) -> bool:
    # without a system call, except for links
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry))


def _class_names(folder: pathlib.Path) -> tuple[str, ...]:
    # bytes that are not UTF-8 could not be printed
    return tuple(os.fsencode(name).decode(errors="replace") for name in _subfolders(folder))


def _list_images(
    folder: pathlib.Path, where: str, skipped: collections.Counter[str]
) -> tuple[list[str], np.ndarray | None, tuple[str, ...]]:
    """Returns sorted image files, and labels and class names from the sub-folders; counts what it leaves out."""
    class_folders = _subfolders(folder)
    if not class_folders:
        paths = _walk(folder, skipped)
        if not paths:
            raise SettingError(f"{where}: {folder} has no {', '.join(IMAGE_SUFFIXES)} images")
        return paths, None, ()
    _count_loose_files(folder, "beside the class folders", skipped)
    paths, labels = [], []
    for label, name in enumerate(class_folders):
        of_class = _walk(folder / name, skipped)
        if not of_class:
            raise SettingError(f"{where}: class {name} has no images")
        paths += of_class
        labels += [label] * len(of_class)
    return paths, np.array(labels, np.int32), _class_names(folder)


def _walk(folder: pathlib.Path, skipped: collections.Counter[str]) -> list[str]:
    """Returns the images in a folder and its sub-folders, sorted; links to other folders are not followed."""
    paths, pending = [], [str(folder)]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except PermissionError:
            skipped["unreadable folder"] += 1
            continue
        with entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif reason := _reason_to_skip(entry):
                    skipped[reason] += 1
                else:
                    paths.append(entry.path)
    return sorted(paths, key=lambda path: path.split(os.sep))


def _reason_to_skip(entry: os.DirEntry) -> str:
    """Returns why a file is not an image to read, "" if it is one."""
    if _is_folder(entry):
        return "link to a folder"
    if entry.name.startswith("."):
        return "hidden file"
    if not entry.name.lower().endswith(IMAGE_SUFFIXES):
        return f"not a supported image format ({os.path.splitext(entry.name)[1].lower() or 'no suffix'})"
    if entry.is_file(follow_symlinks=False) or os.path.isfile(entry):
        return ""
    is_broken_link = entry.is_symlink() and not os.path.exists(entry)  # an image that counts as corrupt when it is read
    return "" if is_broken_link else "not a regular file"


def _count_loose_files(folder: pathlib.Path, place: str, skipped: collections.Counter[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not _is_folder(entry):
                skipped[_reason_to_skip(entry) or f"image {place}"] += 1
            elif entry.name.startswith("."):
                skipped["hidden folder"] += 1
