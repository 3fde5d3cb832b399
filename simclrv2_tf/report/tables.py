"""The numbers of a run as people read them: words for keys, cells, tables for the page and the terminal."""

import contextlib
import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]

ACCURACY = re.compile(r"((^|_)top\d|accuracy|agreement)$")
WORDS = {
    "labels_per_class": "labels per class",
    "supervised_top1": "supervised",
    "finetune_top1": "fine-tuned",
    "distill_top1": "distilled",
    "finetune_top5": "fine-tuned top-5",
    "distill_top5": "distilled top-5",
    "linear_top1": "linear evaluation top-1",
    "images_per_second": "images / s",
    "seconds": "time",
}
# What runs, from the content of config.json.
FACTS = {
    "data": "{dataset}",
    "images": "{train_images:,} to train on",
    "network": "ResNet-{resnet_depth} x{width_multiplier:g}, {image_size} px, {parameters:,} parameters, "
    "{trained_parameters:,} trained",
    "training": "{steps:,} steps of {train_batch_size:,} images, {optimizer}, learning rate up to "
    "{peak_learning_rate:g}, {warmup_steps:,} warm-up steps",
    "device": "{device}, {replicas} replica(s), {dtype_policy}, XLA {xla}",
    "replicas": "{strategy}, {batch_per_replica:,} images a replica",
    "versions": "{versions}",
    "revision": "{revision}",
}
NONE = "–"  # noqa: RUF001


def facts(config: Mapping[str, Any]) -> dict[str, str]:
    """What runs, in a few lines; those whose settings are missing are left out."""
    values = {**config, **(config.get("resolved") or {})}
    if isinstance(values.get("xla"), bool):
        values["xla"] = "on" if values["xla"] else "off"
    found = {}
    for name, template in FACTS.items():
        with contextlib.suppress(KeyError, ValueError, TypeError):
            found[name] = template.format(**values)
    return {name: text for name, text in found.items() if text}


def short(text: object, longest: int) -> str:
    """The text on one line of at most ``longest`` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def words(key: str) -> str:
    """``knn_top1`` as people say it."""
    spoken = re.sub(r"_top(\d)$", r" top-\1", key).replace("_", " ")
    return WORDS.get(key, re.sub(r"\bknn\b", "kNN", spoken))


def number(value: object) -> float:
    """A number, or a text that is one; else NaN."""
    try:
        found = float(value) if isinstance(value, numbers.Real | str) else math.nan
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan


def labels_order(labels: object) -> tuple[int, float]:
    """Sorts numbers, then percentages, then words such as ``all``."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(%?)\s*", str(labels))
    return (1 if match[2] else 0, number(match[1])) if match else (2, 0)


def duration(seconds: float) -> str:
    """Such as 4 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def cell(key: str, value: object) -> str:
    """A result: accuracies in %, seconds as a duration, a dash for what is missing."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return value if isinstance(value, str) else short(json.dumps(value, ensure_ascii=False), 200)
    if ACCURACY.search(key):
        return f"{100 * value:.1f} %"
    if key == "seconds":
        return duration(value)
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"


def scores(result: Mapping[str, Any]) -> dict[str, str]:
    """The accuracies of a result, in words."""
    return {words(name): cell(name, value) for name, value in result.items() if ACCURACY.search(name)}


def tables(result: Mapping[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(caption, rows with the header first) of the label table, if there is one, and of the other numbers."""
    found = []
    table = sorted(result.get("table") or [], key=lambda row: labels_order(row.get("labels_per_class")))
    if table:
        named = {key: None for row in table for key in row}
        keys = list(dict.fromkeys(["labels_per_class", *(key for key in WORDS if key in named), *named]))
        rows = [[cell(key, row.get(key)) for key in keys] for row in table]
        found.append(("Top-1 accuracy by number of labels", [[words(key) for key in keys], *rows]))
    others = [[words(key), cell(key, value)] for key, value in result.items() if key != "table"]
    if others:
        found.append(("Final numbers", [["what", "value"], *others]))
    return found


def format_table(result: Mapping[str, Any]) -> str:
    """The numbers of a ``result.json`` as aligned plain text."""
    blocks = []
    for _, (head, *body) in tables(result):
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        rows = body if head[0] == "what" else [head, ["─" * width for width in widths], *body]
        blocks.append("\n".join(_aligned(row, widths) for row in rows))
    return "\n\n".join(blocks)


def _aligned(row: list[str], widths: list[int]) -> str:
    first, *rest = zip(row, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in rest)]).rstrip()
