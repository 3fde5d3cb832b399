"""Text form of a run's numbers: metric names, formatted values, and the tables of the page and the terminal."""

import contextlib
import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import shorten

Row = dict[str, Any]

# Entries of a result.json that are not metrics: the page shows them elsewhere.
NO_METRICS = ("mode", "seed", "steps", "table", "runs", "verdicts")
ACCURACY = re.compile(r"((^|_)top\d|accuracy|agreement)$")
METRIC_NAMES = {
    "labels_per_class": "labels per class",
    "labels": "labels per class",
    "supervised_top1": "supervised",
    "frozen_top1": "linear classifier",
    "finetune_top1": "fine-tuned",
    "distill_top1": "distilled",
    "finetune_top5": "fine-tuned top-5",
    "distill_top5": "distilled top-5",
    "linear_top1": "linear evaluation top-1",
    "linear_top5": "linear evaluation top-5",
    "val_contrastive_accuracy": "held-out contrastive accuracy",
    "rankme": "RankMe",
    "images_per_second": "images/s",
    "seconds": "time",
}
# Lines of the summary at the start of a run: templates for the content of config.json.
SUMMARY = {
    "data": "{dataset}",
    "recipe": "{recipe}",
    "images": "{train_images:,} to train on",
    "network": "{encoder_description}, {image_size} px, {parameters:,} parameters, {trained_parameters:,} trained",
    "training": "{steps:,} steps of {train_batch_size:,} images, {optimizer}, peak learning rate "
    "{peak_learning_rate:.4g}, {warmup_steps:,} warm-up steps",
    "device": "{device}, {replicas} replica(s), {dtype_policy}, XLA {xla}",
    "replicas": "{strategy}, {batch_per_replica:,} images per replica",
    "versions": "{versions}",
    "revision": "{revision}",
}
RESNET = "ResNet-{resnet_depth} x{width_multiplier:g}"  # default of ``encoder_description``
MISSING = "–"  # noqa: RUF001


def run_summary(config: Mapping[str, Any]) -> dict[str, str]:
    """Summarises a run from the content of its ``config.json``; leaves out the lines whose settings are missing."""
    resolved = config.get("resolved")
    values = {**config, "recipe": ""}  # the setting may be "auto"; only the resolved recipe is a name
    values |= resolved if isinstance(resolved, dict) else {}
    if isinstance(values.get("xla"), bool):
        values["xla"] = "on" if values["xla"] else "off"
    summary = {}
    with contextlib.suppress(KeyError, ValueError, TypeError):
        values.setdefault("encoder_description", RESNET.format(**values))
    for name, template in SUMMARY.items():
        with contextlib.suppress(KeyError, ValueError, TypeError):
            summary[name] = template.format(**values)
    return {name: text for name, text in summary.items() if text}


def metric_name(key: str) -> str:
    """Returns the readable name of a metric: ``knn_top1`` becomes "kNN top-1"."""
    name = re.sub(r"_top(\d)$", r" top-\1", key).replace("_", " ")
    return METRIC_NAMES.get(key, re.sub(r"\bknn\b", "kNN", name))


def parse_number(value: object) -> float:
    """Converts a number or its text to a float; NaN if it is neither, or not finite."""
    try:
        parsed = float(value) if isinstance(value, numbers.Real | str) else math.nan
    except ValueError:
        return math.nan
    return parsed if math.isfinite(parsed) else math.nan


def labels_sort_key(labels: object) -> tuple[int, float]:
    """Sorts numbers of labels first, then percentages, then words such as ``all``."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(%?)\s*", str(labels))
    return (1 if match[2] else 0, parse_number(match[1])) if match else (2, 0)


def format_duration(seconds: float) -> str:
    """Formats a duration, for example "4 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def format_value(key: str, value: object) -> str:
    """Formats the value of a result or setting: accuracies in %, seconds as a duration, missing ones as a dash."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return value if isinstance(value, str) else shorten(json.dumps(value, ensure_ascii=False), 200)
    if ACCURACY.search(key):
        return f"{value:.1%}"
    if key == "seconds":
        return format_duration(float(value))
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"


def format_accuracies(result: Mapping[str, Any]) -> dict[str, str]:
    """Selects the accuracies of a result and formats their names and values."""
    return {metric_name(key): format_value(key, value) for key, value in result.items() if ACCURACY.search(key)}


def label_rows(result: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of a semi-supervised result's table, by number of labels; none if there is no such table."""
    table = result.get("table")
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    return sorted(rows, key=lambda row: labels_sort_key(row.get("labels_per_class")))


def final_metrics(result: Mapping[str, Any]) -> dict[str, object]:
    """Selects the metrics of a ``result.json``, with the numbers of labels and of corrupt images if there are any."""
    corrupt = result.get("corrupt_images")
    counts = {"corrupt_images": len(corrupt) if isinstance(corrupt, list) else 0, "labels": result.get("labels")}
    metrics = {key: value for key, value in result.items() if key not in (*NO_METRICS, *counts)}
    return metrics | {key: value for key, value in counts.items() if value}


def result_tables(result: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Returns tables of a ``result.json`` by caption, header first: accuracies by number of labels, single metrics."""
    tables = {}
    if rows := label_rows(result):
        present = {key: None for row in rows for key in row}
        keys = list(dict.fromkeys(["labels_per_class", *(key for key in METRIC_NAMES if key in present), *present]))
        body = [[format_value(key, row.get(key)) for key in keys] for row in rows]
        tables["Top-1 accuracy by number of labels"] = [[metric_name(key) for key in keys], *body]
    if verdicts := _texts(result.get("verdicts")):
        tables["What pays"] = [["verdict"], *([text] for text in verdicts)]
    singles = {key: value for key, value in final_metrics(result).items() if key != "seconds"}  # shown with the run
    metrics = [[metric_name(key), format_value(key, value)] for key, value in singles.items()]
    if metrics:
        tables["Final metrics"] = [["metric", "value"], *metrics]
    return tables


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def format_table(result: Mapping[str, Any]) -> str:
    """Formats a ``result.json`` as aligned plain text."""
    blocks = []
    for header, *body in result_tables(result).values():
        widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
        rows = body if header[0] == "metric" else [header, ["─" * width for width in widths], *body]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
