"""The figures as Vega-Lite specifications (https://vega.github.io/vega-lite): one for the page and the PNG file alike.

Each says in its ``description`` what is to be seen, for those who do not see it, and in the tooltips of its first layer
what hovering tells. Text and lines take the page's own colour, light or dark. Colours are those of Okabe and Ito
(2008), which colour-blind readers tell apart, and never the only sign.
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

from simclrv2_tf.files import write_atomically
from simclrv2_tf.report.tables import ACCURACY, Row, labels_order, number, short, words

Spec = dict[str, Any]

BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#8c8c8c"
COLOURS = [BLUE, "#E69F00", "#009E73", VERMILLION, "#CC79A7", "#56B4E9", GREY]
SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"]
DASHES = [[1, 0], [6, 3], [2, 2], [8, 3, 2, 3]]
INK = "currentColor"
CONFIG = {
    "font": "sans-serif",
    "view": {"stroke": None},
    "title": {"anchor": "start", "fontSize": 14, "color": INK, "offset": 12},
    "axis": {
        **{f"{part}Color": INK for part in ("domain", "grid", "label", "tick", "title")},
        **{"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "gridOpacity": 0.15},
    },
    "legend": {"labelColor": INK, "labelFontSize": 12, "orient": "bottom", "title": None, "columns": 2},
    "range": {"category": COLOURS, "symbol": SHAPES},
    "text": {"color": INK},
}
WIDTH, TILE = 480, 76  # pixels of a figure and of a picture in it
SHARP = 128  # pixels a side of the embedded pictures: what a tile needs on a fine screen
LEGEND_CLASSES, CELL_CLASSES, CONFUSED_CLASSES = 20, 12, 30

# The panels of the curves: figure, name of its axis, which columns.
PANELS = (
    ("curve_loss", "loss", re.compile(r"loss$")),
    ("curve_accuracy", "accuracy", ACCURACY),
    ("curve_learning_rate", "learning rate", re.compile(r"^learning_rate$")),
    ("curve_speed", "images / s", re.compile(r"^images_per_second$")),
    ("curve_entropy", "entropy (nats)", re.compile(r"entropy$")),
)


def write(spec: Spec, path: pathlib.Path) -> None:
    """The figure as ``path`` with the suffixes ``.vl.json`` and ``.png``, each replaced as a whole."""
    import vl_convert  # here: only a run that draws needs its memory

    path.parent.mkdir(parents=True, exist_ok=True)
    png = vl_convert.vegalite_to_png(spec, scale=2)
    for suffix, content in ((".vl.json", json.dumps(spec).encode()), (".png", png)):
        write_atomically(path.with_name(path.name + suffix), content)


def data_url(image: ArrayLike, side: int = SHARP) -> str:
    """An image ``[h, w, 3]`` (uint8, or floats in [0, 1]) of ``side`` pixels at most; small pixels are enlarged."""
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = (np.nan_to_num(image).clip(0, 1) * 255).round().astype(np.uint8)
    factor = max(1, side // max(image.shape[:2]))
    picture = Image.fromarray(image.repeat(factor, axis=0).repeat(factor, axis=1))
    picture.thumbnail((side, side))
    kind, options = ("PNG", {}) if factor > 1 else ("WEBP", {"quality": 85})
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _figure(title: str, description: str, values: list[Row], layers: list[Spec], **rest: Any) -> Spec:
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": textwrap.wrap(title, 60),
        "description": description,
        "width": WIDTH,
        "data": {"values": values},
        "layer": layers,
        "config": CONFIG,
        **rest,
    }


def _channel(field: str, title: str | None = None, kind: str = "quantitative", **rest: Any) -> Spec:
    return {"field": field, "type": kind, "title": title, **rest}


def _lines(title: str, description: str, values: list[Row], x: Spec, y: Spec, series: Spec) -> Spec:
    """Lines through points, of which the one next to the pointer shows its values."""
    names = list(dict.fromkeys(row[series["field"]] for row in values))
    columns = max(1, min(3, 60 // max(map(len, names))))
    legend = {"title": None, "symbolType": "stroke", "columns": columns, "labelLimit": 300}
    sign = {**series, "legend": legend if names != [y["title"]] else None}
    encoding = {
        "x": x,
        "y": y,
        "color": {**sign, "scale": {"domain": names}},
        "strokeDash": {**sign, "scale": {"domain": names, "range": DASHES}},
    }
    tooltip = [{k: v for k, v in channel.items() if k not in ("axis", "scale", "sort")} for channel in (x, series, y)]
    near = {"name": "near", "select": {"type": "point", "nearest": True, "on": "pointerover", "clear": "pointerout"}}
    shown = {"condition": {"param": "near", "empty": False, "value": 1}, "value": 0.6 if len(values) <= 60 else 0}
    points = {"mark": {"type": "point", "filled": True, "size": 50}, "params": [near]}
    points["encoding"] = {"opacity": shown, "tooltip": tooltip, "strokeDash": {"value": [1, 0]}}
    return _figure(title, description, values, [points, {"mark": "line"}], encoding=encoding, height=220)


def curves(runs: Mapping[str, Sequence[Mapping[str, str]]]) -> dict[str, Spec]:
    """Metrics against the step, a figure for each kind; lines for each run and metric.

    Args:
        runs: the rows of a ``metrics.csv`` by the name of the run; cells that are not numbers are left out.
    """
    found: dict[str, list[Row]] = collections.defaultdict(list)
    for run, rows in runs.items():
        for name in dict.fromkeys(name for row in rows for name in row if name):
            series = words(name) if len(runs) == 1 else f"{short(run, 30)}: {words(name)}"
            points = [(number(row.get("step")), number(row.get(name))) for row in rows]
            known = [{"step": s, "series": series, "value": v} for s, v in points if np.isfinite([s, v]).all()]
            for figure, _, pattern in PANELS:
                if pattern.search(name) and len(known) > 1:  # a single point is no curve
                    found[figure] += known
    specs = {}
    for figure, label, pattern in PANELS:
        values = found[figure]
        if not values:
            continue
        style = ".1%" if pattern is ACCURACY else ",.4~r"
        y = _channel("value", label, format=style, scale={"zero": False})
        y["axis"] = {"format": ".0%" if pattern is ACCURACY else ",~r", "tickCount": 5}
        x = _channel("step", "step", format=",.0f", axis={"format": ",d", "tickCount": 5})
        ends = {row["series"]: row["value"] for row in values}
        starts = {row["series"]: row["value"] for row in reversed(values)}
        told = [f"{name} from {starts[name]:.4g} to {ends[name]:.4g}" for name in ends]
        title = f"{label[0].upper()}{label[1:]}, up to step {max(row['step'] for row in values):,.0f}"
        specs[figure] = _lines(title, f"{title}: {'; '.join(told)}.", values, x, y, _channel("series", "of", "nominal"))
    return specs


def label_efficiency(runs: Mapping[str, Sequence[Row]]) -> Spec | None:
    """Top-1 against labels per class: supervised, fine-tuned, distilled; None if there is no number.

    Args:
        runs: the ``table`` of a semi-supervised ``result.json`` by the name of the run; cells may be missing.
    """
    values = [
        {
            "labels": str(row.get("labels_per_class")),
            "series": words(key) if len(runs) == 1 else f"{short(run, 30)}: {words(key)}",
            "top1": number(row.get(key)),
        }
        for run, table in runs.items()
        for key in ("supervised_top1", "finetune_top1", "distill_top1")
        for row in table
    ]
    values = [row for row in values if math.isfinite(row["top1"])]
    if not values:
        return None
    order = sorted({row["labels"] for row in values}, key=labels_order)
    told = [f"{row['series']} with {row['labels']}: {row['top1']:.1%}" for row in values]
    x = _channel("labels", "labels per class", "ordinal", sort=order, axis={"labelAngle": 0, "labelLimit": 60})
    y = _channel("top1", "top-1", format=".1%", scale={"zero": False}, axis={"format": ".0%", "tickCount": 6})
    title = "Accuracy by number of labels"
    return _lines(title, f"{title}. {'; '.join(told)}.", values, x, y, _channel("series", "of", "nominal"))


def embedding(
    points: ArrayLike, labels: Sequence[int], class_names: Sequence[str], method: str, images: Sequence[str] = ()
) -> Spec:
    """A point for each row of ``points [n, 2]``; colour and shape say the class, hovering shows the image.

    Beyond 20 classes the most frequent 20 have a colour, the others are grey.

    Args:
        points: float ``[n, 2]``.
        labels: ``[n]``; −1: unknown.
        class_names: by label.
        method: what made two dimensions of the features.
        images: data URLs ``[n]``, or none.
    """
    names, labels = _names(class_names), [int(label) for label in labels]
    frequent = {label for label, _ in collections.Counter(labels).most_common(LEGEND_CLASSES) if label >= 0}
    classes = sorted(set(labels))
    kinds = [names[i] for i in classes if i in frequent]
    others = [f"{len(classes) - len(kinds):,} others" if min(classes) >= 0 else "unlabelled"] * (
        len(classes) > len(kinds)
    )
    values = [
        {
            "x": float(x),
            "y": float(y),
            "class": names[label] if label >= 0 else "unlabelled",
            "kind": names[label] if label in frequent else others[0],
        }
        for (x, y), label in zip(np.asarray(points), labels, strict=True)
    ]
    for row, image in zip(values, images, strict=False):
        row["image"] = image
    title = f"Features of {len(values):,} images in two dimensions ({method})"
    told = f"{title}, {len(classes):,} classes: {', '.join(kinds + others)}."
    axis = {"axis": {"ticks": False, "labels": False, "grid": False, "domain": False}, "scale": {"zero": False}}
    scale = {"domain": kinds + others, "range": [COLOURS[i % len(COLOURS)] for i in range(len(kinds))] + [GREY]}
    legend = {"columns": 4 if max(map(len, kinds + others)) < 10 else 2, "symbolLimit": 0, "labelLimit": 140}
    kind = _channel("kind", None, "nominal", legend={**legend, "symbolOpacity": 1, "symbolSize": 60})
    encoding = {
        "x": _channel("x", "first dimension", **axis),
        "y": _channel("y", "second dimension", **axis),
        "color": {**kind, "scale": scale},
        "shape": {**kind, "scale": {"domain": kinds + others}},
        "tooltip": [_channel("class", "class", "nominal")]
        + [_channel("image", "image", "nominal")] * bool(len(images)),
    }
    mark = {"type": "point", "filled": True, "opacity": 0.75, "size": float(np.clip(20000 / len(values), 15, 50))}
    return _figure(title, told, values, [{"mark": mark | {"aria": False}, "encoding": encoding}], height=400)


def confusion(matrix: ArrayLike, class_names: Sequence[str]) -> Spec:
    """Counts ``[classes, classes]``, the true class by row; of many classes those that are most often confused."""
    matrix, names = np.asarray(matrix), _names(class_names)
    mistakes = matrix - np.diag(np.diag(matrix))
    title = f"Confusion: {np.trace(matrix) / max(matrix.sum(), 1):.1%} of {matrix.sum():,} images are right"
    told = title
    if mistakes.any():
        true, said = np.unravel_index(mistakes.argmax(), matrix.shape)
        told += f"; most often wrong: {names[true]} taken for {names[said]}, {mistakes[true, said]:,} times"
    busiest = np.argsort(-(mistakes.sum(axis=0) + mistakes.sum(axis=1)), kind="stable")[:CONFUSED_CLASSES]
    if len(matrix) > len(busiest):
        title += f"; the {len(busiest)} of {len(matrix):,} classes that are confused most"
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    kept = np.sort(busiest)
    values = [
        {"true": names[i], "said": names[j], "images": int(matrix[i, j]), "share": float(shares[i, j])}
        for i in kept
        for j in kept
    ]
    order, small = [names[i] for i in kept], len(kept) <= CELL_CLASSES
    tooltip = [_channel("true", "is", "nominal"), _channel("said", "taken for", "nominal")]
    tooltip += [_channel("images", "images", format=","), _channel("share", "of the class", format=".1%")]
    upright = max(map(len, order)) <= 3
    encoding = {
        "x": _channel("said", "predicted class", "nominal", sort=order),
        "y": _channel("true", "true class", "nominal", sort=order),
        "tooltip": tooltip,
    }
    for channel, angle in (("x", 0 if upright else -90), ("y", 0)):
        encoding[channel]["axis"] = {"labelLimit": 90, "labelAngle": angle, "ticks": False, "domain": False}
    # Opacity, not colour, so that an empty cell is the page's own colour.
    shade = _channel("share", scale={"type": "sqrt", "domain": [0, 1], "range": [0, 1]}, legend=None)
    cells = {"mark": {"type": "rect", "color": BLUE}, "encoding": {"fillOpacity": shade}}
    counts = {
        "transform": [{"filter": "datum.images > 0"}],
        "mark": {"type": "text", "fontSize": 11, "aria": False},
        "encoding": {
            "text": _channel("images", format=","),
            "color": {"condition": {"test": "datum.share > 0.3", "value": "white"}, "value": INK},
        },
    }
    return _figure(title, f"{told}.", values, [cells] + [counts] * small, encoding=encoding, height=360)


def pictures(title: str, description: str, tiles: list[Row], columns: int, tooltip: Mapping[str, str]) -> Spec:
    """Images in rows.

    Args:
        title: above them.
        description: what is to be seen.
        tiles: of each the data URL ``image``, where it lies (``x``, ``y``, in tiles), a ``caption`` of one or two
            lines, what the tooltip tells, and ``right`` if a frame is to say whether it is.
        columns: tiles that fit into a row.
        tooltip: titles of the tooltip's fields.
    """
    lines = 1 + max((tile["caption"].count("\n") for tile in tiles if tile["caption"]), default=-1)
    rows, high = 1 + max((tile["y"] for tile in tiles), default=-1), TILE + 8 + 14 * lines
    place = {"axis": None, "type": "quantitative"}
    right = {"test": "datum.right"}
    encoding = {
        "x": {"field": "x", "scale": {"domain": [-0.5, columns - 0.5], "nice": False}, **place},
        "y": {
            "field": "y",
            "scale": {"domain": [-0.5 * TILE / high, max(rows, 0) - 0.5 * TILE / high], "reverse": True, "nice": False},
            **place,
        },
        "tooltip": [_channel(field, name, "nominal") for field, name in tooltip.items()],
    }
    layers = [
        {"mark": {"type": "image", "width": TILE - 4, "height": TILE - 4}, "encoding": {"url": {"field": "image"}}},
        {
            "transform": [{"filter": "isValid(datum.right)"}],
            "mark": {"type": "square", "filled": False, "size": (TILE - 4) ** 2, "strokeWidth": 3, "opacity": 1},
            "encoding": {
                "color": {"condition": {**right, "value": BLUE}, "value": VERMILLION},
                "strokeDash": {"condition": {**right, "value": [1, 0]}, "value": [5, 3]},
            },
        },
        {
            "mark": {
                "type": "text",
                "baseline": "top",
                "dy": TILE / 2 + 1,
                "limit": TILE - 2,
                "lineBreak": "\n",
                "fontSize": 12,
            },
            "encoding": {"text": {"field": "caption", "type": "nominal"}},
        },
    ]
    size = {"width": columns * TILE, "height": max(rows, 0) * high}
    return _figure(title, description, tiles, layers, encoding=encoding, usermeta={"fixed": True}) | size


def _names(class_names: Sequence[str]) -> list[str]:
    """The names on one line each, told apart by their number where two are the same."""
    names = [short(name, 60) or "class" for name in class_names]
    seen = collections.Counter(names)
    return [name if seen[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
