"""Description of a run's data for its summary, and warnings about their classes."""

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
    counts = _count_labels(source)
    smallest, largest = counts.min(), counts.max()
    per_class = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    unlabelled = source.num_examples - counts.sum()
    text = f"{counts.sum():,} labelled ({per_class} per class)"
    return f"{text}, {unlabelled:,} unlabelled" if unlabelled else text


def warn_about_classes(config: Config, source: Source, test: Source | None) -> None:
    """Logs a warning for a single class, for classes with fewer than two training images, and for those without any.

    Args:
        config: the settings; fewer than two images of a class are no mistake if ``labels_per_class`` says so.
        source: the training images.
        test: the evaluation images, if there are any.
    """
    for split in (source, test):
        if split is None or not split.class_names or split.labels is None:
            continue
        empty = _names_of(split, _count_labels(split) == 0)
        if split is source and empty == [split.class_names[0]]:
            log.warning("the labels of %s start at 1: class 0 (%s) has no images", split.name, empty[0])
        elif empty:
            log.warning("%s has no images of %s", split.name, list_names(empty))
    if not source.class_names or source.labels is None:
        return
    if len(source.class_names) == 1:
        log.warning(
            "%s has one class only, %s: accuracies will be 100 %%; sort the images into one folder per class, or leave "
            "out the labels",
            source.name,
            source.class_names[0],
        )
    single = _names_of(source, _count_labels(source) == 1)
    if single and config.labels_per_class != 1 and config.label_fraction == 1:
        log.warning("%s has only one image of %s", source.name, list_names(single))


def _names_of(source: Source, chosen: np.ndarray) -> list[str]:
    return [source.class_names[number] for number in np.flatnonzero(chosen)]


def _count_labels(source: Source) -> np.ndarray:
    return np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
