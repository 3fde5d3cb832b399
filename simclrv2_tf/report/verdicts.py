"""Verdicts about a semi-supervised run with several seeds: paired differences and their intervals, in words."""

import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

CONFIDENCE = 0.95
COMPARISONS = (  # the expected better accuracy, the worse one, and their description
    ("finetune_top1", "supervised_top1", "Fine-tuning", "training from scratch"),
    ("finetune_top1", "frozen_top1", "Fine-tuning", "a linear classifier on frozen features"),
    ("distill_top1", "finetune_top1", "The distilled network", "its teacher"),
)


class Difference(NamedTuple):
    """Mean difference of paired accuracies, in points of per cent.

    Attributes:
        mean: mean over the pairs.
        half_width: half the two-sided 95 % confidence interval (Student's t); infinite for a single pair.
        pairs: number of pairs.
    """

    mean: float
    half_width: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Returns whether the interval excludes 0."""
        return abs(self.mean) > self.half_width

    def __str__(self) -> str:
        return f"{abs(self.mean):.1f} ± {self.half_width:.1f} points"


def paired_difference(better: Sequence[float], than: Sequence[float]) -> Difference:
    """Computes the mean of ``better − than`` and its interval; accuracies from 0 to 1, paired by position."""
    from scipy.stats import t

    differences = [100 * (a - b) for a, b in zip(better, than, strict=True)]
    count = len(differences)
    if count < 2:
        return Difference(statistics.mean(differences), math.inf, count)
    error = statistics.stdev(differences) / math.sqrt(count)
    return Difference(statistics.mean(differences), float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error, count)


def verdicts(runs: Sequence[Row]) -> list[str]:
    """Describes, per number of labels, which step improves accuracy, and the gain from more labels.

    Args:
        runs: rows with ``labels_per_class``, ``seed`` and accuracies ``…_top1`` from 0 to 1.

    Returns:
        Sentences, the numbers of labels in the order of the rows.
    """
    counts = list(dict.fromkeys(row["labels_per_class"] for row in runs))
    sentences = []
    for labels in counts:
        rows = [row for row in runs if row["labels_per_class"] == labels]
        for better, than, subject, baseline in COMPARISONS:
            pairs = [(row[better], row[than]) for row in rows if None not in (row.get(better), row.get(than))]
            if len(pairs) > 1:
                difference = paired_difference(*zip(*pairs, strict=True))
                sentences.append(f"{_say(difference, subject, baseline)} {_with_labels(labels)}.")
    for fewer, more in itertools.pairwise(counts):
        sentences += _more_labels(runs, fewer, more)
    return sentences


def _say(difference: Difference, subject: str, baseline: str) -> str:
    if not difference.is_clear:
        sign = "+" if difference.mean >= 0 else "-"
        return f"{subject} and {baseline} do not differ clearly ({sign}{difference})"
    return f"{subject} {'beats' if difference.mean > 0 else 'loses to'} {baseline} by {difference}"


def _with_labels(labels: int | str) -> str:
    if labels == "all":
        return "with all labels"
    return f"with {labels} label{'' if labels == 1 else 's'} per class"


def _more_labels(runs: Sequence[Row], fewer: int | str, more: int | str) -> Iterable[str]:
    """Describes the gain from the larger number of labels for the distilled network, or for the fine-tuned one."""
    by_seed = [{row["seed"]: row for row in runs if row["labels_per_class"] == labels} for labels in (fewer, more)]
    for name in ("distill_top1", "finetune_top1"):
        pairs = [
            (by_seed[1][seed][name], row[name])
            for seed, row in by_seed[0].items()
            if None not in (row.get(name), by_seed[1].get(seed, {}).get(name))
        ]
        if len(pairs) > 1:
            difference = paired_difference(*zip(*pairs, strict=True))
            gain = f"bring {difference}" if difference.is_clear and difference.mean > 0 else "bring no clear gain"
            extra = (
                f"{more - fewer} more labels per class"
                if isinstance(more, int) and isinstance(fewer, int)
                else "All labels"
            )
            yield f"{extra} {gain} over {fewer}."
            return
