"""Description of a run's data for its summary, and warnings about its classes and splits."""

import functools
import logging
import os
from collections.abc import Iterable, Iterator

import numpy as np

from simclrv2_tf.data.listing import describe_skipped, list_names
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import warn_once
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)


def describe_data(source: Source, test: Source | None) -> dict[str, str]:
    """Describes the data of a run: classes, images of each split, how they were read and what was left out.

    Args:
        source: the training images.
        test: the evaluation images, if there are any.

    Returns:
        Lines of a summary box.
    """
    names = source.class_names
    lines = {"classes": f"{len(names):,}: {list_names(names)}" if names else "none: no labels"}
    lines["train split"] = f"{source.name}: {describe_split(source)}"
    lines["eval split"] = f"{test.name}: {describe_split(test)}" if test else "none with labels"
    notes = dict.fromkeys(source.notes + (test.notes if test else ()))
    if notes:
        lines["read as"] = "; ".join(notes)
    if source.skipped:
        lines["left out"] = describe_skipped(source.skipped)
    if test and test.skipped and test.skipped != source.skipped:
        lines["left out of eval"] = describe_skipped(test.skipped)
    return lines


def describe_split(source: Source) -> str:
    """Describes the number of images, labelled, per class and unlabelled, for example "24 labelled (8 per class)"."""
    if not source.class_names:
        return f"{source.num_examples:,} unlabelled"
    if source.labels is None:
        return f"{source.num_examples:,} images; a pass over the data would tell how many per class"
    counts = count_labels(source)
    smallest, largest = counts.min(), counts.max()
    per_class = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    unlabelled = source.num_examples - counts.sum()
    text = f"{counts.sum():,} labelled ({per_class} per class)"
    return f"{text}, {unlabelled:,} unlabelled" if unlabelled else text


def warn_about_classes(config: Config, source: Source, test: Source | None) -> None:
    """Logs, once per process, a warning for a single class, and for classes with one image or none.

    Args:
        config: the settings; no warning about classes of fewer than two images if ``labels_per_class`` asks for that.
        source: the training images.
        test: the evaluation images, if there are any.
    """
    for split in (source, test):
        if split is None or not split.class_names or split.labels is None:
            continue
        empty = _names_of(split, count_labels(split) == 0)
        if split is source and empty == [split.class_names[0]]:
            warn_once(log, f"the labels of {split.name} start at 1: class 0 ({empty[0]}) has no images")
        elif empty:
            warn_once(log, f"{split.name} has no images of {list_names(empty)}")
    if not source.class_names or source.labels is None:
        return
    if len(source.class_names) == 1:
        warn_once(
            log,
            f"{source.name} has one class only, {source.class_names[0]}: accuracies will be 100 %; sort the images "
            "into one folder per class, or leave out the labels",
        )
    single = _names_of(source, count_labels(source) == 1)
    if single and config.labels_per_class != 1 and config.label_fraction == 1:
        warn_once(log, f"{source.name} has only one image of {list_names(single)}")


def warn_about_shared_images(source: Source, test: Source | None) -> None:
    """Logs, once per process, a warning if images to evaluate on are among the training images.

    Args:
        source: the training images.
        test: the evaluation images, if there are any; of the same data set unless both are files.
    """
    if test is not None and (shared := _describe_shared(source, test)):
        warn_once(log, f"{shared} are also trained on, in {source.name}: the accuracy on new images is probably lower")


def _describe_shared(source: Source, test: Source) -> str:
    """Describes the evaluation images that are trained on; "" if there are none: files by path, others by split."""
    if source.paths is not None and test.paths is not None:
        resolve = functools.cache(os.path.realpath)  # for folders only, as ImageNet has 1.3 million files

        def files(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
            return ((resolve(folder), name) for folder, _, name in (path.rpartition(os.sep) for path in paths))

        shared = set(files(test.paths)).intersection(files(source.paths))
        return f"{len(shared):,} of {test.num_examples:,} images of {test.name}" if shared else ""
    trained, tested = (each.name.rpartition("/")[2].split("+") for each in (source, test))
    is_shared = any(_is_part(one, other) or _is_part(other, one) for one in trained for other in tested)
    return f"images of {test.name}" if is_shared else ""


def _is_part(split: str, whole: str) -> bool:
    """Returns whether a split equals another, or is a part of it, as ``train[:90%]`` of TFDS is of ``train``."""
    return whole in (split, split.partition("[")[0])


def _names_of(source: Source, chosen: np.ndarray) -> list[str]:
    return [source.class_names[number] for number in np.flatnonzero(chosen)]


def count_labels(source: Source) -> np.ndarray:
    """Counts the labelled images of each class, int64 ``[classes]``; the labels must have been read."""
    return np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
