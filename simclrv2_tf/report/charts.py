"""Figures as Vega-Lite specifications (https://vega.github.io/vega-lite), used for both the page and the PNG file.

The static part of each kind of figure is a file in ``specs/``; the functions add data, texts and scales. Each figure
has a ``description`` for screen readers and a tooltip. Text and lines take the colour of the page, light or dark.
Colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart; none is the only sign of anything.
"""

import base64
import collections
import io
import json
import math
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from simclrv2_tf.errors import shorten
from simclrv2_tf.files import refuse_link, write_atomically
from simclrv2_tf.report.tables import ACCURACY, Row, labels_sort_key, metric_name, parse_number

Spec = dict[str, Any]

SPECS = pathlib.Path(__file__).parent / "specs"
CONFIG = json.loads((SPECS / "theme.json").read_text())
COLOURS, GREY = CONFIG["range"]["category"], "#8c8c8c"
WIDTH, TILE = 480, 76  # px, of a figure and of an image in it (whose size image_grid.json repeats)
IMAGE_SIDE = 128  # px stored per image: enough for a tile on a high-resolution screen
LEGEND_CLASSES, COUNTED_CLASSES, CONFUSED_CLASSES = 20, 12, 30

# The curves: figure, title of its y axis, columns of metrics.csv.
PANELS = (
    ("curve_loss", "loss", re.compile(r"loss$")),
    ("curve_accuracy", "accuracy", ACCURACY),
    ("curve_rankme", "RankMe (effective rank)", re.compile(r"^rankme$")),
    ("curve_learning_rate", "learning rate", re.compile(r"^learning_rate$")),
    ("curve_speed", "images/s", re.compile(r"^images_per_second$")),
    ("curve_entropy", "entropy (nats)", re.compile(r"entropy$")),
)


def write(spec: Spec, path: pathlib.Path) -> None:
    """Writes the specification of a figure to ``path`` with the suffix ``.vl.json``, atomically.

    Raises:
        ValueError: if the folder is a link.
    """
    refuse_link(path.parent)
    write_atomically(path.with_name(f"{path.name}.vl.json"), json.dumps(spec))


def draw(spec: Spec, path: pathlib.Path) -> None:
    """Draws a figure as ``path`` with the suffix ``.png``, atomically.

    A run draws at its end alone: drawing takes longer than `write`, and ``vl_convert`` needs more memory for each of
    the first thousand pictures, and for more values.

    Raises:
        ValueError: if Vega-Lite rejects the specification, or the folder is a link.
    """
    import vl_convert  # imported here, as only runs that draw need its memory

    refuse_link(path.parent)
    write_atomically(path.with_name(f"{path.name}.png"), vl_convert.vegalite_to_png(spec, scale=2))


def data_url(image: ArrayLike, side: int = IMAGE_SIDE) -> str:
    """Encodes an image ``[h, w, 3]`` (uint8, or floats in [0, 1]) of at most ``side`` px; enlarges small ones."""
    array = np.asarray(image)
    if array.dtype != np.uint8:
        array = (np.nan_to_num(array).clip(0, 1) * 255).round().astype(np.uint8)
    factor = max(1, side // max(array.shape[:2]))  # a whole number, so that pixels stay sharp
    picture = Image.fromarray(array.repeat(factor, axis=0).repeat(factor, axis=1))
    picture.thumbnail((side, side))
    kind, options = ("PNG", {}) if factor > 1 else ("WEBP", {"quality": 85})
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _figure(kind: str, title: str, description: str, values: list[Row]) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": textwrap.wrap(title, 60),
        "description": description,
        "width": WIDTH,
        "data": {"values": values},
        **json.loads((SPECS / f"{kind}.json").read_text()),
        "config": CONFIG,
    }


def _channel(field: str, title: str, kind: str = "quantitative", **rest: Any) -> Spec:
    return {"field": field, "type": kind, "title": title, **rest}


def _lines(title: str, description: str, values: list[Row], x: Spec, y: Spec) -> Spec:
    """Draws a line per ``series`` of the values; the point nearest to the pointer shows its tooltip."""
    spec = _figure("lines", title, description, values)
    names = list(dict.fromkeys(row["series"] for row in values))
    columns = max(1, min(3, 60 // max(map(len, names))))
    legend = {"title": None, "symbolType": "stroke", "columns": columns, "labelLimit": 300}
    for channel in ("color", "strokeDash"):
        spec["encoding"][channel]["scale"]["domain"] = names
        spec["encoding"][channel]["legend"] = legend if names != [y["title"]] else None
    spec["encoding"] |= {"x": x, "y": y}
    points = spec["layer"][0]["encoding"]
    points["opacity"]["value"] = 0.6 if len(values) <= 60 else 0
    channels = (x, _channel("series", "series", "nominal"), y)
    points["tooltip"] = [{k: v for k, v in c.items() if k not in ("axis", "scale", "sort")} for c in channels]
    return spec


def _series_name(run: str, key: str, num_runs: int) -> str:
    return metric_name(key) if num_runs == 1 else f"{shorten(run, 30)}: {metric_name(key)}"


def _curve(rows: Sequence[Mapping[str, str]], key: str) -> list[tuple[float, float]]:
    """Returns the finite (step, value) points of a metric; none if there are fewer than two."""
    points = [(parse_number(row.get("step")), parse_number(row.get(key))) for row in rows]
    points = [point for point in points if np.isfinite(point).all()]
    return points if len(points) > 1 else []


def curves(runs: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, Spec]:
    """Draws metrics against the step: a figure per kind of metric, a line per run and metric.

    Args:
        runs: the rows of ``metrics.csv`` by run name; cells that are not numbers are skipped.
    """
    specs = {}
    for figure, label, pattern in PANELS:
        values: list[dict[str, Any]] = [
            {"step": step, "series": _series_name(run, key, len(runs)), "value": value}
            for run, rows in runs.items()
            for key in dict.fromkeys(key for row in rows for key in row if key and pattern.search(key))
            for step, value in _curve(rows, key)
        ]
        if not values:
            continue
        first = {row["series"]: row["value"] for row in reversed(values)}
        last = {row["series"]: row["value"] for row in values}
        changes = "; ".join(f"{name} from {first[name]:.4g} to {last[name]:.4g}" for name in last)
        title = f"{label[0].upper()}{label[1:]}, up to step {max(row['step'] for row in values):,.0f}"
        number, tick = (".1%", ".0%") if pattern is ACCURACY else (",.4~r", ",~r")
        x = _channel("step", "step", format=",.0f", axis={"format": ",d", "tickCount": 5})
        y = _channel("value", label, format=number, scale={"zero": False}, axis={"format": tick, "tickCount": 5})
        specs[figure] = _lines(title, f"{title}: {changes}.", values, x, y)
    return specs


def label_efficiency(runs: Mapping[str, Sequence[Row]]) -> Spec | None:
    """Draws top-1 against labels per class: supervised, fine-tuned, distilled; None if there are no numbers.

    Args:
        runs: the ``table`` of a semi-supervised ``result.json`` by run name; cells may be missing.
    """
    values = [
        {"labels": str(row.get("labels_per_class")), "series": _series_name(run, key, len(runs)), "top1": top1}
        for run, table in runs.items()
        for key in ("supervised_top1", "frozen_top1", "finetune_top1", "distill_top1")
        for row in table
        if math.isfinite(top1 := parse_number(row.get(key)))
    ]
    if not values:
        return None
    order = sorted({row["labels"] for row in values}, key=labels_sort_key)
    accuracies = "; ".join(f"{row['series']} with {row['labels']}: {row['top1']:.1%}" for row in values)
    x = _channel("labels", "labels per class", "ordinal", sort=order, axis={"labelAngle": 0, "labelLimit": 60})
    y = _channel("top1", "top-1", format=".1%", scale={"zero": False}, axis={"format": ".0%", "tickCount": 6})
    title = "Accuracy by number of labels"
    return _lines(title, f"{title}. {accuracies}.", values, x, y)


def embedding(
    points: ArrayLike, labels: Sequence[int], class_names: Sequence[str], method: str, images: Sequence[str] = ()
) -> Spec:
    """Draws features in 2-D: classes by colour and shape, images in the tooltip.

    The 20 most frequent classes have a colour; the others are grey.

    Args:
        points: float ``[n, 2]``.
        labels: class indices ``[n]``; −1: unknown.
        class_names: names by class index.
        method: name of the projection, for the title.
        images: data URLs ``[n]``, or none.
    """
    names = [*_unique_names(class_names), "unlabelled"]  # the last one is that of label −1
    counts = collections.Counter(map(int, labels))
    frequent = sorted(label for label, _ in counts.most_common(LEGEND_CLASSES) if label >= 0)
    groups, colours = [names[label] for label in frequent], [COLOURS[i % len(COLOURS)] for i in range(len(frequent))]
    num_others = len(counts) - len(frequent)
    if num_others:
        groups.append("unlabelled" if -1 in counts else f"{num_others:,} others")
        colours.append(GREY)
    values = [
        {"x": float(x), "y": float(y), "class": names[i], "group": names[i] if i in frequent else groups[-1]}
        for (x, y), i in zip(np.asarray(points), map(int, labels), strict=True)
    ]
    for row, image in zip(values, images, strict=False):
        row["image"] = image
    title = f"Features of {len(values):,} images in 2-D ({method})"
    spec = _figure("embedding", title, f"{title}, {len(counts):,} classes: {', '.join(groups)}.", values)
    encoding = spec["encoding"]
    columns = 4 if max(map(len, groups)) < 10 else 2
    legend = {"columns": columns, "symbolLimit": 0, "labelLimit": 140, "symbolOpacity": 1, "symbolSize": 60}
    encoding["color"] |= {"legend": legend, "scale": {"domain": groups, "range": colours}}
    encoding["shape"] |= {"legend": legend, "scale": {"domain": groups}}
    if not len(images):
        del encoding["tooltip"][1]
    spec["layer"][0]["mark"]["size"] = float(np.clip(20000 / len(values), 15, 50))
    return spec


def confusion(matrix: ArrayLike, class_names: Sequence[str]) -> Spec:
    """Draws a confusion matrix ``[classes, classes]`` of counts, the true class by row.

    Beyond 30 classes it shows those that are confused most often. ``usermeta`` has a table of the recall per class.
    """
    matrix, names = np.asarray(matrix), _unique_names(class_names)
    mistakes = matrix - np.diag(np.diag(matrix))
    title = f"Confusion matrix: {np.trace(matrix) / max(matrix.sum(), 1):.1%} of {matrix.sum():,} images correct"
    description = title
    if mistakes.any():
        i, j = np.unravel_index(mistakes.argmax(), matrix.shape)
        description += f"; most frequent mistake: {names[i]} predicted as {names[j]}, {mistakes[i, j]:,} times"
    confused = np.argsort(-(mistakes.sum(axis=0) + mistakes.sum(axis=1)), kind="stable")[:CONFUSED_CLASSES]
    if len(matrix) > len(confused):
        title += f"; the {len(confused)} of {len(matrix):,} classes confused most often"
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = np.sort(confused)
    values = [
        {"true": names[i], "predicted": names[j], "images": int(matrix[i, j]), "share": float(shares[i, j])}
        for i in shown
        for j in shown
    ]
    spec = _figure("confusion", title, f"{description}.", values)
    x, y = spec["encoding"]["x"], spec["encoding"]["y"]
    x["sort"] = y["sort"] = [names[i] for i in shown]
    if max(map(len, x["sort"])) <= 3:
        x["axis"]["labelAngle"] = 0
    if len(shown) > COUNTED_CLASSES:
        del spec["layer"][1]  # the counts
    return spec | {"usermeta": {"recall": _recall_table(matrix, names)}}


def _recall_table(matrix: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    """Returns recall, number of images and most frequent mistake of the 30 classes of lowest recall, after a header."""
    counts, mistakes = matrix.sum(axis=1), matrix - np.diag(np.diag(matrix))
    recall = np.diag(matrix) / np.maximum(counts, 1)
    worst = [i for i in np.argsort(recall, kind="stable") if counts[i]][:CONFUSED_CLASSES]
    wrong = {i: names[mistakes[i].argmax()] if mistakes[i].any() else "" for i in worst}
    rows = [[names[i], f"{recall[i]:.1%}", f"{counts[i]:,.0f}", wrong[i]] for i in worst]
    return [["true class", "recall", "images", "most often taken for"], *rows]


def image_grid(title: str, description: str, tiles: list[Row], columns: float, tooltip: Mapping[str, str]) -> Spec:
    """Draws images in rows, with captions and frames.

    Args:
        title: title of the figure.
        description: its content in words.
        tiles: per image its data URL ``image``, its place (``x``, ``y``, in tiles), a ``caption`` of at most two lines,
            the fields of the tooltip, and optionally ``correct``: a solid frame if true, a dashed one if false.
        columns: tiles per row.
        tooltip: titles of the tooltip's fields.
    """
    spec = _figure("image_grid", title, description, tiles)
    rows = 1 + max((tile["y"] for tile in tiles), default=-1)
    lines = max((1 + tile["caption"].count("\n") for tile in tiles if tile["caption"]), default=0)
    height = TILE + 8 + 14 * lines  # px per row
    top = -0.5 * TILE / height
    spec["encoding"]["x"]["scale"]["domain"] = [-0.5, columns - 0.5]
    spec["encoding"]["y"]["scale"]["domain"] = [top, rows + top]
    spec["encoding"]["tooltip"] = [_channel(field, name, "nominal") for field, name in tooltip.items()]
    return spec | {"width": columns * TILE, "height": rows * height}


def _unique_names(class_names: Sequence[str]) -> list[str]:
    """Puts class names on one line each and appends the class index to equal ones."""
    names = [shorten(name, 60) or "class" for name in class_names]
    counts = collections.Counter(names)
    return [name if counts[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
