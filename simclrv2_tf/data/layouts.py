"""Layouts: the splits of a data set, and which classes and splits the sub-folders of a folder represent."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from simclrv2_tf.data.listing import (
    IMAGE_SUFFIXES,
    LINK_BACK,
    Contents,
    Skipped,
    describe_skipped,
    list_images,
    list_names,
    printable,
    read_folder,
)
from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import read_bounded
from simclrv2_tf.schemas import JSON_OBJECT, MAX_BYTES, decode, parse_json
from simclrv2_tf.settings.config import Config

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val"),
    "test": ("test", "testing"),
    "unlabelled": ("unlabelled", "unlabeled"),
}
EVALUATION_SPLITS = ("validation", "test")  # in this order, as ImageNet's test split has no labels


class NoSuchSplitError(SettingError):
    """The data set exists, the split does not."""


def canonical_split(name: str) -> str:
    """Returns ``train``, ``validation``, ``test``, ``unlabelled`` or ``all`` for its usual names, "" for others.

    >>> canonical_split("Training_Set"), canonical_split("val"), canonical_split("cats")
    ('train', 'validation', '')
    """
    plain = name.lower().replace("-", "_").replace(" ", "_").removesuffix("_set")
    return plain if plain == "all" else next((split for split, names in SPLIT_NAMES.items() if plain in names), "")


def choose_split(config: Config, split: str, available: Sequence[str]) -> str:
    """Returns the requested split, by its own or another usual name; for "", the first available evaluation split.

    Raises:
        NoSuchSplitError: naming the flag, if the split is not available.
    """
    if split in available:
        return split
    candidates = [canonical_split(split)] if split else EVALUATION_SPLITS
    for canonical in filter(None, candidates):
        for name in available:
            if canonical_split(name) == canonical:
                return name
    reason = f"{config.dataset} has only {', '.join(available) or 'no splits'}"
    if not split:
        has_train = "train" in map(canonical_split, available)
        reason += "; --eval_split=train evaluates on the training images" if has_train else "; give one as --eval_split"
    raise split_error(config, split or EVALUATION_SPLITS[0], reason)


def choose_splits(
    config: Config, split: str, available: Sequence[str], *, with_unlabelled: bool = False
) -> tuple[str, ...]:
    """Returns the splits that a request stands for; several for ``all``, and to train without labels.

    Args:
        config: the settings, for the message.
        split: the split; "" for the evaluation split. ``all``: every split but the unlabelled one.
        available: the splits that exist.
        with_unlabelled: for ``train`` and ``all``, add the unlabelled split, or return it alone if they do not exist.

    Raises:
        NoSuchSplitError: naming the flag, if the split is not available.
    """
    unlabelled = tuple(name for name in available if canonical_split(name) == "unlabelled")
    labelled = tuple(name for name in available if name not in unlabelled)
    is_joined = with_unlabelled and unlabelled and canonical_split(split) in ("train", "all")
    if split == "all" and split not in available and labelled:
        chosen = labelled
    elif is_joined and not any(canonical_split(name) == "train" for name in labelled):
        chosen = ()
    else:
        chosen = (choose_split(config, split, available),)
    return (*chosen, *unlabelled) if is_joined else chosen


def split_error(config: Config, split: str, reason: str) -> NoSuchSplitError:
    """Returns the error about a split, naming its flag."""
    flag = "train_split" if split == config.train_split else "eval_split"
    return NoSuchSplitError(f"--{flag}={split}: {reason}")


def open_folder(config: Config, folder: pathlib.Path, split: str, *, with_unlabelled: bool = False) -> FileSource:
    """Opens a split of a folder of images; docs/own_data.md has the rules.

    Sub-folders with the usual names of splits are the splits. Without them, sub-folders are classes, every fifth image
    of each class is held out for ``test``, and ``all`` is everything. Without sub-folders the images have no labels.

    Args:
        config: the settings; ``dataset``, ``cache_dataset`` and ``max_corrupt_share`` are used.
        folder: the folder.
        split: the split; "" for the evaluation split.
        with_unlabelled: add the images of the unlabelled split to those of ``train``, with label −1.

    Returns:
        The images of the split. Its ``skipped`` counts what was left out, its ``notes`` tell how the folder was read.

    Raises:
        SettingError: if there is no such folder or split, or its meaning is unclear.
    """
    where = f"--dataset={config.dataset}"
    if not folder.is_dir():
        raise SettingError(f"{where}: there is no folder {folder}")
    try:
        reader = _Reader(config, folder)
        split_folders = reader.split_folders()
        if split_folders:
            split, images = reader.read_splits(split_folders, split, with_unlabelled)
        else:
            split, images = reader.read_held_out(split, with_unlabelled)
    except PermissionError as error:
        raise SettingError(f"{where}: {printable(error.filename)} cannot be read (no permission)") from None
    return FileSource.from_settings(
        config,
        f"{os.path.basename(os.path.abspath(folder))}/{split}",
        images.paths,
        labels=images.labels,
        class_names=images.class_names,
        skipped=dict(reader.skipped),
        notes=tuple(reader.notes),
    )


@dataclasses.dataclass(frozen=True)
class _Images:
    """Image files with labels, int32 ``[n]``, and class names; None and () if they have none."""

    paths: list[str]
    labels: np.ndarray | None
    class_names: tuple[str, ...]

    def rows(self, rows: np.ndarray) -> "_Images":
        return _Images(
            [self.paths[i] for i in rows], None if self.labels is None else self.labels[rows], self.class_names
        )


class _Reader:
    """Reads the layout of a folder; records the files it skips and the decisions it makes.

    Wrapper folders are entered: a folder that holds nothing but one folder of folders.
    """

    def __init__(self, config: Config, folder: pathlib.Path):
        self.config, self.where, self.folder = config, f"--dataset={config.dataset}", str(folder)
        self.skipped: Skipped = collections.Counter()
        self.notes: list[str] = []
        self.parents: list[str] = []  # folders that a link must not lead back to
        self.top = self._enter(self.folder, self.skipped)
        self.unlabelled = ""  # the folder of unlabelled images beside class folders

    def _enter(self, path: str, skipped: Skipped) -> Contents:
        """Returns the contents of a folder, or of the one to read if it is a wrapper."""
        contents, is_top = self._read(path, skipped), path == self.folder
        while len(contents.folders) == 1 and not contents.images:
            self.parents.append(contents.path)
            of_inner: Skipped = collections.Counter()
            inner = self._read(contents.folders[0].path, of_inner)
            is_split = is_top and canonical_split(contents.folders[0].name) in SPLIT_NAMES
            is_wrapper = inner.folders and not inner.images and not is_split
            if not is_wrapper and not (is_top and _split_entries(inner)):
                break
            contents = inner
            skipped += of_inner
        self.parents.append(contents.path)
        if contents.path != path:
            note = f"entered the only folder, {printable(os.path.relpath(contents.path, self.folder))}"
            self.notes += [note] if note not in self.notes else []
        return contents

    def _read(self, path: str, skipped: Skipped) -> Contents:
        """Reads a folder, without links that lead back to it or to one of ``parents``."""
        contents, outer, folders = read_folder(path, skipped), [*self.parents, path], []
        for entry in contents.folders:
            if entry.is_symlink() and any(os.path.samefile(entry, parent) for parent in outer):
                skipped[LINK_BACK] += 1
            else:
                folders.append(entry)
        return dataclasses.replace(contents, folders=tuple(folders))

    def split_folders(self) -> dict[str, str]:
        """Returns the paths of the split folders by canonical name; none if the folder has no splits of its own.

        Raises:
            SettingError: if other folders with images lie beside them, two stand for one split, or none is to train on.
        """
        split_paths: dict[str, str] = {}
        for split, entry in _split_entries(self.top):
            if split in split_paths:
                both = printable(f"{os.path.basename(split_paths[split])} and {entry.name}")
                raise SettingError(f"{self.where}: {both} are both names of the split {split}; rename one of them")
            split_paths[split] = entry.path
        if list(split_paths) == ["unlabelled"] and self._folders_with_images(split_paths):
            self.unlabelled = split_paths["unlabelled"]
            classes = tuple(entry for entry in self.top.folders if entry.path != self.unlabelled)
            self.top = dataclasses.replace(self.top, folders=classes)
            return {}
        if not split_paths:
            return {}
        self._check_beside_splits(split_paths)
        names = {split: os.path.basename(path) for split, path in split_paths.items()}
        self.notes.append("splits: " + ", ".join(s if s == name else f"{s} = {name}" for s, name in names.items()))
        if self.top.images:
            self.skipped["image beside the split folders"] += len(self.top.images)
        if not {"train", "unlabelled"} & set(split_paths):
            raise SettingError(
                f"{self.where}: has {' and '.join(names.values())}, but no folder named train; rename the one to train "
                f"on, or evaluate on one alone: --dataset=folder:{next(iter(split_paths.values()))} --eval_split=all"
            )
        return split_paths

    def _folders_with_images(self, split_paths: dict[str, str]) -> list[str]:
        """Returns the names of the folders with images beside the split folders."""
        strays = [entry for entry in self.top.folders if entry.path not in split_paths.values()]
        return [entry.name for entry in strays if self._list_images(entry.path, collections.Counter())]

    def _check_beside_splits(self, split_paths: dict[str, str]) -> None:
        """Raises SettingError if a folder beside the splits has images; counts it as left out otherwise."""
        with_images = self._folders_with_images(split_paths)
        splits = list_names([os.path.basename(path) for path in split_paths.values()])
        if with_images:
            raise SettingError(
                f"{self.where}: beside the split {splits} there are folders of images, {list_names(with_images)}; "
                f"move them into the folder train or elsewhere; a class cannot have the name of a split: if {splits} "
                "is one, rename it"
            )
        if num_strays := len(self.top.folders) - len(split_paths):
            self.skipped["folder without images"] += num_strays

    def read_splits(self, folders: dict[str, str], split: str, with_unlabelled: bool) -> tuple[str, _Images]:
        """Reads one or several of the split folders; labels are numbered as in ``train``."""
        chosen = choose_splits(self.config, split, tuple(folders), with_unlabelled=with_unlabelled)
        is_numbered_by_train = "train" in folders and "train" not in chosen  # otherwise by the first of them
        reference = self._class_names(folders["train"]) if is_numbered_by_train else None
        parts = []
        for name in chosen:
            if name == "unlabelled":
                parts.append(self._read_unlabelled(folders[name]))
                continue
            part = self._read_classes(self._enter(folders[name], self.skipped))
            reference = part.class_names if reference is None else reference
            parts.append(self._renumbered(part, reference, os.path.basename(folders[name])))
        if len(chosen) > 1:
            self.notes.append(f"{' and '.join(chosen)} together")
        elif chosen == ("unlabelled",) and canonical_split(split) != "unlabelled":
            self.notes.append("unlabelled alone, as there is no train")
        return "+".join(chosen), _joined(parts)

    def _renumbered(self, part: _Images, class_names: tuple[str, ...], split: str) -> _Images:
        """Returns a split with its labels numbered by the classes of ``train``, of which some may be missing."""
        if part.class_names == class_names:
            return part
        numbers = {name: number for number, name in enumerate(class_names)}
        extra = [name for name in part.class_names if name not in numbers]
        if not part.class_names:
            reason = f"{split} has no class folders, but train has {list_names(class_names)}; sort its images into them"
        elif not class_names:
            reason = (
                f"{split} has the class folders {list_names(part.class_names)}, but train has none; sort its images "
                "into such folders, or rename train to unlabelled"
            )
        elif extra:
            reason = (
                f"{split} and train have different class folders: train has no {list_names(extra)} (its classes are "
                f"{list_names(class_names)}); rename or remove them"
            )
        else:
            renumber = np.array([numbers[name] for name in part.class_names], np.int32)
            return _Images(part.paths, renumber[part.labels], class_names)
        raise SettingError(f"{self.where}: {reason}")

    def read_held_out(self, split: str, with_unlabelled: bool) -> tuple[str, _Images]:
        """Reads ``train``, ``test`` or ``all`` of a folder without splits of its own, or the unlabelled images."""
        available = ("train", "test", "all", *(["unlabelled"] if self.unlabelled else []))
        split = choose_split(self.config, split, available)
        if split == "unlabelled":
            return split, self._read_unlabelled(self.unlabelled)
        images = self._read_classes(self.top)
        if images.labels is not None:
            self._check_not_splits(images)
            self.notes.append("sub-folders are classes")
            if split != "all":
                self.notes.append("every fifth image of each class is held out for test")
        rows = _rows_of_split(split, images.labels, len(images.paths))
        if not len(rows):
            reason = f"no class folders, so no images are held out for {split}; sort them into one folder per class"
            if images.class_names:
                reason = (
                    f"too few images to hold some out for {split} (a class needs five); --eval_split=train evaluates "
                    "on the training images, --eval_split=all on all; or put images into folders named train and test"
                )
            raise NoSuchSplitError(f"{self.where}: {reason}")
        images = images.rows(rows)
        if self.unlabelled and with_unlabelled and split != "test":
            self.notes.append(f"{split} and unlabelled together")
            return f"{split}+unlabelled", _joined([images, self._read_unlabelled(self.unlabelled)])
        return split, images

    def _read_unlabelled(self, folder: str) -> _Images:
        paths = self._list_images(folder, self.skipped)
        if not paths:
            raise self._no_images(folder)
        return _Images(paths, None, ())

    def _check_not_splits(self, images: _Images) -> None:
        """Raises SettingError if all folders have the same sub-folders: they may be splits of unusual names."""
        below: dict[str, set[str]] = {}
        for path in images.paths:
            first, *rest = path[len(self.top.path) :].lstrip(os.sep).split(os.sep)
            if len(rest) < 2:  # an image directly in the folder of a class
                return
            below.setdefault(first, set()).add(rest[0])
        contents = list(below.values())
        if len(contents) > 1 and all(names == contents[0] for names in contents):
            hint = (
                "name them train, test, validation or unlabelled if they are splits, or move their images one level up"
            )
            if all(canonical_split(name) in SPLIT_NAMES for name in contents[0]):
                hint = "put the classes into the splits, as in train/CLASS"
            same = list_names(sorted(contents[0]))
            raise SettingError(f"{self.where}: {list_names(below)} have the same sub-folders, {same}; {hint}")

    def _read_classes(self, contents: Contents) -> _Images:
        """Returns the images of a split; its sub-folders are the classes, without which it has no labels."""
        of_class = {entry.name: self._list_images(entry.path, self.skipped) for entry in contents.folders}
        num_images, loose = sum(map(len, of_class.values())), list(contents.images)
        if not num_images:
            if not loose:
                raise self._no_images(contents.path)
            if of_class:
                self.skipped["folder without images"] += len(of_class)
            place = printable(os.path.relpath(contents.path, self.folder))
            self.notes.append(
                "no class folders: no labels" if place == "." else f"no class folders in {place}: no labels"
            )
            return _Images(loose, None, ())
        if empty := [name for name, paths in of_class.items() if not paths]:
            full = next(name for name, paths in of_class.items() if paths)
            raise SettingError(
                f"{self.where}: class {printable(empty[0])} has no images{self._left_out()}; remove its folder, or "
                f"give another folder, such as --dataset=folder:{printable(os.path.join(contents.path, full))}"
            )
        if loose and (len(of_class) == 1 or len(loose) >= num_images):
            raise SettingError(
                f"{self.where}: {len(loose):,} images lie loose in {printable(contents.path)}, beside {num_images:,} "
                f"in {list_names(of_class)}; move the loose images into class folders, or these folders elsewhere"
            )
        if loose:
            self.skipped["image beside the class folders"] += len(loose)
        labels = np.repeat(np.arange(len(of_class), dtype=np.int32), [len(paths) for paths in of_class.values()])
        return _Images([path for paths in of_class.values() for path in paths], labels, tuple(map(printable, of_class)))

    def _list_images(self, folder: str, skipped: Skipped) -> list[str]:
        return list_images(folder, skipped, self.parents)

    def _class_names(self, folder: str) -> tuple[str, ...]:
        """Returns the names of the classes that `_read_classes` returns for a split."""
        contents = self._enter(folder, collections.Counter())
        names = tuple(printable(entry.name) for entry in contents.folders)
        if not contents.images:
            return names
        has_classes = any(self._list_images(entry.path, collections.Counter()) for entry in contents.folders)
        return names if has_classes else ()

    def _no_images(self, folder: str) -> SettingError:
        hint = prepared_by_tfds(pathlib.Path(folder))
        hint = f"TFDS prepared it: say {hint}" if hint else "give the folder that holds the images"
        kinds = ", ".join(IMAGE_SUFFIXES)
        return SettingError(f"{self.where}: {printable(folder)} has no {kinds} images{self._left_out()}; {hint}")

    def _left_out(self) -> str:
        return f" (left out: {describe_skipped(self.skipped)})" if self.skipped else ""


def _split_entries(contents: Contents) -> list[tuple[str, os.DirEntry]]:
    """Returns the canonical names and the entries of the sub-folders that are named like splits, ``train`` first."""
    return [
        (split, entry) for split in SPLIT_NAMES for entry in contents.folders if canonical_split(entry.name) == split
    ]


def prepared_by_tfds(folder: pathlib.Path) -> str:
    """Returns the flags that open a folder prepared by TFDS; "" for any other folder."""
    for pattern in ("dataset_info.json", "*/dataset_info.json", "*/*/dataset_info.json", "*/*/*/dataset_info.json"):
        for path in sorted(folder.absolute().glob(pattern)):
            try:
                name = parse_json(decode(read_bounded(path, MAX_BYTES)), JSON_OBJECT)["name"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            parts = path.parent.parts  # DATA_DIR/NAME[/CONFIG]/VERSION
            for i in (len(parts) - 2, len(parts) - 3):
                if i > 0 and parts[i] == name:
                    data_dir = os.path.join(*parts[:i])
                    return f"--dataset={'/'.join(parts[i:-1])}:{parts[-1]} --data_dir={data_dir}"
    return ""


def _joined(parts: list[_Images]) -> _Images:
    """Concatenates splits; those without labels get −1 if others have labels."""
    class_names = next((part.class_names for part in parts if part.class_names), ())
    paths = [path for part in parts for path in part.paths]
    if not class_names:
        return _Images(paths, None, ())
    labels = [np.full(len(p.paths), -1, np.int32) if p.labels is None else p.labels for p in parts]
    return _Images(paths, np.concatenate(labels), class_names)


def _rows_of_split(split: str, labels: np.ndarray | None, count: int) -> np.ndarray:
    """Returns the indices of the images in ``train``, ``test`` or ``all`` of a folder without splits of its own."""
    held_out = np.zeros(count, bool)
    for label in np.unique(labels) if labels is not None else []:
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    return np.flatnonzero({"train": ~held_out, "test": held_out, "all": held_out | True}[split])
