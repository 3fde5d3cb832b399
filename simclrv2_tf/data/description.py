"""Description of a run's data for its summary, and warnings about their classes."""

import functools
import logging

import numpy as np

from simclrv2_tf.data.listing import describe_skipped, list_names
from simclrv2_tf.data.sources import Source
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
        config: the settings; fewer than two images of a class are no mistake if ``labels_per_class`` says so.
        source: the training images.
        test: the evaluation images, if there are any.
    """
    for split in (source, test):
        if split is None or not split.class_names or split.labels is None:
            continue
        empty = _names_of(split, count_labels(split) == 0)
        if split is source and empty == [split.class_names[0]]:
            _warn_once(f"the labels of {split.name} start at 1: class 0 ({empty[0]}) has no images")
        elif empty:
            _warn_once(f"{split.name} has no images of {list_names(empty)}")
    if not source.class_names or source.labels is None:
        return
    if len(source.class_names) == 1:
        _warn_once(
            f"{source.name} has one class only, {source.class_names[0]}: accuracies will be 100 %; sort the images "
            "into one folder per class, or leave out the labels"
        )
    single = _names_of(source, count_labels(source) == 1)
    if single and config.labels_per_class != 1 and config.label_fraction == 1:
        _warn_once(f"{source.name} has only one image of {list_names(single)}")


@functools.cache  # the stages of one process have the same data
def _warn_once(message: str) -> None:
    log.warning("%s", message)


def _names_of(source: Source, chosen: np.ndarray) -> list[str]:
    return [source.class_names[number] for number in np.flatnonzero(chosen)]


def count_labels(source: Source) -> np.ndarray:
    """Counts the labelled images of each class, int64 ``[classes]``; the labels must have been read."""
    return np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
