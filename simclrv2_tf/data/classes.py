"""Class names: matches the classes of a data set with those of a run, and names the classes of ImageNet."""

import dataclasses
import functools
import json
import logging
import pathlib
import unicodedata
from collections.abc import Sequence

import numpy as np

from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError

log = logging.getLogger(__name__)

IMAGENET_FILE = pathlib.Path(__file__).with_name("imagenet_classes.json")
SHOWN_NAMES = 10  # class names listed in a message


def numbered_classes(count: int) -> tuple[str, ...]:
    """Returns the names of classes that have only numbers: "0", "1" and so on."""
    return tuple(map(str, range(count)))


@functools.cache
def imagenet_classes() -> dict[str, str]:
    """Returns the names of the 1,000 classes of ImageNet (ILSVRC 2012) by synset id, in the order of the ids."""
    return json.loads(IMAGENET_FILE.read_text(encoding="utf-8"))["names"]


def readable_classes(source: Source) -> Source:
    """Returns the source with ImageNet's class names in place of the synset ids that TFDS and folders have.

    It is unchanged if one of its classes is not a synset id of ImageNet.
    """
    names = imagenet_classes()
    if not source.class_names or not all(name in names for name in source.class_names):
        return source
    note = "synset ids replaced by the class names of ImageNet"
    class_names = tuple(names[synset] for synset in source.class_names)
    return dataclasses.replace(source, class_names=class_names, notes=(*source.notes, note))


def align_labels(source: Source | None, class_names: Sequence[str], flag: str) -> Source | None:
    """Renumbers the labels of a source in the order of a run's classes.

    Classes are matched by name, whatever their order and case; a synset id of ImageNet equals the name of the class.
    The source may lack some of the run's classes. Numbers instead of names, on either side, are matched as they are.
    Differences between the two lists of classes are logged.

    Args:
        source: images with labels; None, or a source without classes, is returned unchanged.
        class_names: the run's, by number; empty if it has no classifier.
        flag: the setting that names the run, with its value, for the messages.

    Returns:
        The source with the run's numbers and names; for records, all labels are read first.

    Raises:
        SettingError: if the run lacks a class of the source, or numbers are to be matched and the counts differ.
    """
    own = () if source is None else tuple(source.class_names)
    if not own or not class_names or own == tuple(class_names):
        return source
    if _are_numbers(own) or _are_numbers(class_names):
        return _align_by_number(source, class_names, flag)
    numbers = match_classes(own, class_names)
    if numbers is None:
        raise _other_classes(source, class_names, flag)
    differences = {
        "fewer": len(own) < len(class_names),
        "in another order": numbers != sorted(numbers),
        "spelled differently": any(class_names[i] != name for i, name in zip(numbers, own, strict=True)),
    }
    difference = " and ".join(text for text, applies in differences.items() if applies)
    log.warning("%s: labels of %s are matched by class name, as its classes are %s", flag, source.name, difference)
    if source.labels is None:
        source = source.with_labels()
    labels = np.array([*numbers, -1], np.int32)[source.labels]  # label −1 stays
    return dataclasses.replace(source, labels=labels, class_names=tuple(class_names))


def match_classes(names: Sequence[str], class_names: Sequence[str]) -> list[int] | None:
    """Returns the positions of ``names`` in ``class_names``; None if one of them is not there, or ambiguous.

    Numbers are not names: they match only if all are equal.
    """
    if _are_numbers(names) or _are_numbers(class_names):
        return list(range(len(names))) if tuple(names) == tuple(class_names) else None
    for key in (_key, str):  # case-sensitive if classes differ only in case
        positions = {key(name): position for position, name in enumerate(class_names)}
        if len(positions) == len(class_names) and len(set(map(key, names))) == len(names):
            matched = [positions.get(key(name)) for name in names]
            return None if None in matched else matched
    return None


def _key(name: str) -> str:
    """Returns the normalized name, by which names are compared: macOS stores accents as separate characters."""
    return unicodedata.normalize("NFC", imagenet_classes().get(name, name)).casefold()


def _are_numbers(names: Sequence[str]) -> bool:
    return tuple(names) == numbered_classes(len(names))


def _align_by_number(source: Source, class_names: Sequence[str], flag: str) -> Source:
    own = source.class_names
    if len(own) != len(class_names):
        raise SettingError(f"{flag}: has {len(class_names)} classes, but {source.name} has {len(own)}")
    named, names = ("the run", class_names) if _are_numbers(own) else (source.name, own)
    log.warning(
        "%s: classes of %s are matched by number, as only %s has names: 0 is %s, %d is %s",
        flag,
        source.name,
        named,
        _one_line(names[0]),
        len(names) - 1,
        _one_line(names[-1]),
    )
    return dataclasses.replace(source, class_names=tuple(names))


def _other_classes(source: Source, class_names: Sequence[str], flag: str) -> SettingError:
    theirs, own = set(map(_key, class_names)), set(map(_key, source.class_names))
    return SettingError(
        f"{flag}: has the classes {_listed(class_names, own)}; "
        f"{source.name} has {_listed(source.class_names, theirs)}; "
        "name the classes of the data as in the run, or train a classifier on them (--mode=finetune or linear_eval)"
    )


def _listed(names: Sequence[str], others: set[str]) -> str:
    """Lists at most ten names, first those that the other side lacks."""
    first = sorted(names, key=lambda name: _key(name) in others)[:SHOWN_NAMES]
    more = f", … ({len(names):,} in all)" if len(names) > len(first) else ""
    return ", ".join(map(_one_line, first)) + more


def _one_line(name: str) -> str:
    return " ".join(name.split())
