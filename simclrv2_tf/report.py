"""What people look at: the figures of a run and ``report.html``, one page that needs nothing else.

A run's model directory holds ``config.json`` (settings, and under ``resolved`` what followed from them),
``metrics.csv`` (rows of ``step`` and any of the metrics, empty cells allowed), ``result.json`` (the final numbers) and
``figures/*.png``. A semi-supervised run has a sub-directory of the same kind for each of its stages. Every piece may be
missing. Accuracies are fractions; one above 1 can only be a percentage and is shown as that.

Each figure carries its title and a description in its PNG metadata; the page uses the latter as alternative text.
Colours are those of Okabe and Ito (2008), which colour-blind readers tell apart, and never the only sign.
"""

import base64
import collections
import contextlib
import csv
import datetime
import functools
import html
import importlib.metadata
import json
import math
import numbers
import os
import pathlib
import platform
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager, patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray
from PIL import Image, UnidentifiedImageError

PathLike = str | os.PathLike[str]

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILLION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
_CYCLE = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK)
_MARKERS = "osD^vPp*"
_LINES = ("-", "--", "-.", ":")

_WIDTH, _DPI = 4.8, 200  # inches: narrow, so that the text is still read where a phone shrinks the figure
_TITLE_CHARACTERS = 44
_MAX_PAIRS, _MAX_QUERIES, _MAX_NEIGHBOURS, _MAX_MISTAKES = 24, 10, 5, 12
_LEGEND_CLASSES, _CELL_CLASSES, _MAX_TICKS = 20, 12, 20

_HALO = (patheffects.withStroke(linewidth=3, foreground="white"),)
_PLATE = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}

_ACCURACY = re.compile(r"((^|_)top\d|accuracy|agreement)$")
# The panels of the training curves: axis label, which columns.
_PANELS = (
    ("loss", re.compile(r"loss$")),
    ("accuracy (%)", _ACCURACY),
    ("entropy (nats)", re.compile(r"entropy$")),
    ("learning rate", re.compile(r"^learning_rate$")),
    ("images / s", re.compile(r"^images_per_second$")),
)
_WORDS = {
    "labels_per_class": "labels per class",
    "supervised_top1": "supervised",
    "finetune_top1": "fine-tuned",
    "distill_top1": "distilled",
    "linear_top1": "linear evaluation top-1",
    "images_per_second": "images / s",
    "seconds": "time",
}
_STAGES = ("pretrain", "linear_eval", "supervised", "finetune", "distill")


# --------------------------------------------------------------------------------------------------------- figures


@functools.cache
def _fonts() -> list[str]:
    """DejaVu Sans, and after it what this machine has for scripts DejaVu lacks."""
    installed = sorted(set(font_manager.get_font_names()))
    return ["DejaVu Sans", *(name for name in installed if re.search(r"CJK|Devanagari|Bengali|Thai", name))]


@functools.cache
def _glyphs() -> frozenset[int]:
    """The code points that the fonts of the figures can write."""
    fonts = (font_manager.get_font(font_manager.findfont(name)) for name in _fonts())
    return frozenset(code for font in fonts for code in font.get_charmap())


@contextlib.contextmanager
def _figure(path: PathLike, height: float, title: str, description: str) -> Iterator[Figure]:
    """A figure ``height`` inches tall, written to ``path`` with a rename when the block ends without an error."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = textwrap.wrap(title, _TITLE_CHARACTERS)
    style = {
        "font.family": _fonts(),
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid.axis": "y",
        "grid.color": "#dddddd",
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(_WIDTH, height + 0.22 * len(lines)), dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(_plain("\n".join(lines)), x=0.02, ha="left", fontsize=12, fontweight="bold")
        yield figure
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            canvas.print_png(temporary, metadata={"Title": title, "Description": description})
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _short(text: Any, longest: int) -> str:
    """``text`` on one line of at most ``longest`` characters."""
    text = " ".join(str(text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _plain(text: str) -> str:
    """``text`` for Matplotlib, with no part of it taken for a formula."""
    return text.replace("$", r"\$")


def _name(class_names: Sequence[str], label: int) -> str:
    return str(class_names[label]) if 0 <= label < len(class_names) else str(label)


def _tag(class_names: Sequence[str], label: int, longest: int = 16) -> str:
    """A class name as it fits into a figure; the class's number if no font here can write the name."""
    name = _short(_name(class_names, label), longest)
    return _plain(name if _glyphs().issuperset(map(ord, name)) else f"class {label}")


def _words(key: str) -> str:
    """``knn_top1`` as people say it."""
    spoken = re.sub(r"_top(\d)$", r" top-\1", key).replace("_", " ")
    return _WORDS.get(key, re.sub(r"\bknn\b", "kNN", spoken))


def _percent(values: ArrayLike) -> NDArray[np.float64]:
    """Accuracies in percent, from fractions."""
    return 100 * np.asarray(values, np.float64)


def _images(images: ArrayLike, name: str, ndim: int) -> NDArray[np.float32]:
    """Images as float32 in [0, 1], three channels; raises ValueError that names the argument."""
    array = np.asarray(images)
    if array.ndim != ndim or array.size == 0 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{name} must be non-empty images of {ndim} dimensions, got shape {array.shape}")
    array = array.astype(np.float32) / (255 if array.dtype == np.uint8 else 1)
    array = np.nan_to_num(array, nan=0, posinf=1, neginf=0).clip(0, 1)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def _same_length(**arguments: Any) -> None:
    lengths = {name: len(value) for name, value in arguments.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError("lengths differ: " + ", ".join(f"{name} {length}" for name, length in lengths.items()))


def _gallery(figure: Figure, columns: float, rows: float) -> Axes:
    """Bare axes for tiles of one unit a side, the origin at the top left."""
    axes = figure.add_subplot()
    axes.set(xlim=(0, columns), ylim=(rows, 0), aspect="equal", anchor="NW")
    axes.set_axis_off()
    return axes


def _tile(axes: Axes, image: NDArray[np.float32], x: float, y: float, side: float = 1.0) -> None:
    axes.imshow(image, extent=(x, x + side, y + side, y), vmin=0, vmax=1)


def _read_metrics(metrics_csv: PathLike) -> dict[str, NDArray[np.float64]]:
    """The columns of a metrics file, sorted by step; empty or unreadable cells are NaN."""

    def number(text: str | None) -> float:
        try:
            return float(text or "nan")
        except ValueError:
            return math.nan

    with open(metrics_csv, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        rows = [{name: number(row[name]) for name in reader.fieldnames or ()} for row in reader]
    rows = sorted((row for row in rows if math.isfinite(row.get("step", math.nan))), key=lambda row: row["step"])
    return {name: np.array([row[name] for row in rows]) for name in (rows[0] if rows else {})}


def draw_curves(metrics_csv: PathLike, path: PathLike) -> pathlib.Path:
    """Training curves against the step: loss, accuracies, entropy, learning rate and speed, one panel each.

    Raises:
      ValueError: the file holds no metric to draw.
    """
    metrics = _read_metrics(metrics_csv)
    panels = []
    for label, pattern in _PANELS:
        names = [name for name, values in metrics.items() if pattern.search(name) and np.isfinite(values).any()]
        if names:
            scaled = _percent if pattern is _ACCURACY else lambda values: values
            panels.append((label, {name: scaled(metrics[name]) for name in names}))
    if not panels:
        raise ValueError(f"{metrics_csv} holds no metrics to draw")
    steps = metrics["step"]
    ends = []
    for label, series in panels:
        for name, values in series.items():
            known = values[np.isfinite(values)]
            ends.append(f"{_words(name)}{' (%)' * ('%' in label)} from {known[0]:.4g} to {known[-1]:.4g}")
    title = f"Training, up to step {steps[-1]:,.0f}"
    # Legends lie above their panel, two names a line, and take their room from the figure.
    legend_lines = [math.ceil(len(series) / 2) * _needs_legend(label, series) for label, series in panels]
    height = 1.45 * len(panels) + 0.2 * sum(legend_lines) + 0.4
    with _figure(path, height, title, f"{title}: {'; '.join(ends)}.") as figure:
        ratios = [1.45 + 0.2 * lines for lines in legend_lines]
        grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        for axes, (label, series) in zip(grid, panels, strict=True):
            _draw_panel(axes, steps, label, series)
        grid[-1].set_xlabel("step")
        grid[-1].xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
        grid[-1].xaxis.set_major_formatter("{x:,.0f}")
        figure.align_ylabels()
    return pathlib.Path(path)


def _needs_legend(label: str, series: dict[str, NDArray[np.float64]]) -> bool:
    return [_words(name) for name in series] != [label]


def _draw_panel(axes: Axes, steps: NDArray[np.float64], label: str, series: dict[str, NDArray[np.float64]]) -> None:
    for i, (name, values) in enumerate(series.items()):
        known = np.isfinite(values)
        axes.plot(
            steps[known],
            values[known],
            color=_CYCLE[i % len(_CYCLE)],
            linestyle=_LINES[i % len(_LINES)],
            marker=_MARKERS[i % len(_MARKERS)] if known.sum() <= 25 else None,
            markersize=4,
            linewidth=1.6,
            label=_words(name),
        )
    axes.set_ylabel(label)
    axes.grid(True, axis="y")
    axes.yaxis.set_major_locator(ticker.MaxNLocator(4))
    if axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter("{x:,.0f}")
    if _needs_legend(label, series):
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=2,
            frameon=False,
            fontsize=10,
            borderpad=0,
            handlelength=2.6,
        )


def draw_views(views: ArrayLike, path: PathLike) -> pathlib.Path:
    """Pairs of augmented views [n, 2, S, S, 3], floats in [0, 1] or uint8: two crops of an image side by side."""
    views = _images(views, "views", 5)
    if views.shape[1] != 2:
        raise ValueError(f"views must hold two views of each image, got shape {views.shape}")
    shown = views[:_MAX_PAIRS]
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    title = f"What the network sees: {len(shown)} pair{'s' * (len(shown) > 1)} of views"
    description = f"{title}, two of an image side by side, augmented as in training, {views.shape[2]} pixels a side."
    pair = 2.2  # two tiles and the gap to the next pair
    with _figure(path, _WIDTH / 6.5 * 1.12 * rows + 0.1, title, description) as figure:
        axes = _gallery(figure, 3 * pair - 0.2, rows * 1.12)
        for i, (first, second) in enumerate(shown):
            x, y = i % columns * pair, i // columns * 1.12
            _tile(axes, first, x, y)
            _tile(axes, second, x + 1, y)
            axes.add_patch(Rectangle((x, y), 2, 1, fill=False, edgecolor="#888888", linewidth=0.8))
    return pathlib.Path(path)


def draw_neighbours(
    queries: ArrayLike,
    neighbours: ArrayLike,
    query_labels: Sequence[int],
    neighbour_labels: Sequence[Sequence[int]],
    class_names: Sequence[str],
    path: PathLike,
) -> pathlib.Path:
    """Queries [q, S, S, 3], a row each, and their neighbours [q, k, S, S, 3], the nearest first.

    A solid frame and ✓ say that a neighbour is of the query's class, a dashed one and ✗ that it is not.
    """
    queries, neighbours = _images(queries, "queries", 4), _images(neighbours, "neighbours", 5)
    _same_length(queries=queries, neighbours=neighbours, query_labels=query_labels, neighbour_labels=neighbour_labels)
    rows, columns = min(len(queries), _MAX_QUERIES), min(neighbours.shape[1], _MAX_NEIGHBOURS)
    same = np.asarray(neighbour_labels)[:rows, :columns] == np.asarray(query_labels)[:rows, None]
    title = f"Nearest neighbours: {same.sum()} of {same.size} are of the query's class"
    description = f"{title}. Each row is a query followed by its {columns} nearest images, ticked or crossed."
    with _figure(path, _WIDTH / 6.25 * 1.3 * rows + 0.1, title, description) as figure:
        axes = _gallery(figure, 1.25 + _MAX_NEIGHBOURS, rows * 1.3)
        for row in range(rows):
            y = row * 1.3
            _tile(axes, queries[row], 0, y)
            axes.text(0.5, y + 1.03, _tag(class_names, query_labels[row], 11), ha="center", va="top", size=9)
            for column in range(columns):
                x, right = 1.25 + column, bool(same[row, column])
                _tile(axes, neighbours[row, column], x + 0.05, y + 0.05, 0.9)
                _mark(axes, x, y, right)
                if not right:
                    name = _tag(class_names, neighbour_labels[row][column], 10)
                    axes.text(x + 0.5, y + 1.03, name, ha="center", va="top", size=9)
    return pathlib.Path(path)


def _mark(axes: Axes, x: float, y: float, right: bool) -> None:
    """Frames the tile at (x, y) and puts ✓ or ✗ in its corner."""
    color, style = (BLUE, "-") if right else (VERMILLION, (0, (3, 1.5)))
    frame = Rectangle((x + 0.05, y + 0.05), 0.9, 0.9, fill=False, edgecolor=color, linestyle=style, linewidth=2.2)
    axes.add_patch(frame)
    badge = {"boxstyle": "circle,pad=0.12", "facecolor": color, "edgecolor": "white", "linewidth": 0.8}
    symbol = "✓" if right else "✗"
    axes.text(x + 0.86, y + 0.14, symbol, color="white", size=8, ha="center", va="center", bbox=badge, weight="bold")


def draw_embedding(
    features_2d: ArrayLike, labels: Sequence[int], class_names: Sequence[str], path: PathLike
) -> pathlib.Path:
    """A point for each row of ``features_2d`` [n, 2]; colour and symbol say the class.

    Beyond 20 classes only the most frequent 20 get their own, the others are grey.
    """
    points, labels = np.asarray(features_2d, np.float64), np.asarray(labels)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"features_2d must be non-empty of shape [n, 2], got {points.shape}")
    _same_length(features_2d=points, labels=labels)
    frequent = [label for label, _ in collections.Counter(labels.tolist()).most_common(_LEGEND_CLASSES)]
    classes = len(np.unique(labels))
    title = f"Features of {len(points):,} images in two dimensions"
    kinds = f"{classes:,} classes" if classes > 1 else "one class"
    description = f"{title}, {kinds}: {', '.join(_name(class_names, label) for label in sorted(frequent))}."
    tags = {label: _tag(class_names, label) for label in frequent}
    columns = int(np.clip(44 // (max(map(len, tags.values())) + 5), 1, 4))
    legend_rows = math.ceil((len(frequent) + (classes > len(frequent))) / columns)
    with _figure(path, 4.4 + 0.22 * legend_rows, title, description) as figure:
        axes = figure.add_subplot()
        size = float(np.clip(16000 / len(points), 6, 30))
        rest = ~np.isin(labels, frequent)
        if rest.any():
            others = f"{classes - len(frequent):,} others"
            axes.scatter(*points[rest].T, s=size, c="#bbbbbb", marker=".", linewidths=0, label=others)
        for i, label in enumerate(sorted(frequent)):
            color, hollow = _CYCLE[i % len(_CYCLE)], i // len(_CYCLE) % 2  # a colour's second class is hollow
            style = {"marker": _MARKERS[i % len(_MARKERS)], "edgecolors": color, "linewidths": 0.7}
            style["facecolors"] = "none" if hollow else color
            axes.scatter(*points[labels == label].T, s=size, alpha=0.8, label=tags[label], **style)
        axes.set(xlabel="first dimension", ylabel="second dimension", xticks=[], yticks=[])
        legend = figure.legend(
            loc="outside lower left", ncols=columns, frameon=False, fontsize=10, handletextpad=0.2, columnspacing=1
        )
        for handle in legend.legend_handles:
            handle.set(sizes=[36], alpha=1)
    return pathlib.Path(path)


def draw_confusion(matrix: ArrayLike, class_names: Sequence[str], path: PathLike) -> pathlib.Path:
    """A confusion matrix [classes, classes] of counts, true class by row; each row is shaded by its shares."""
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"matrix must be square and not empty, got shape {matrix.shape}")
    classes, total = len(matrix), matrix.sum()
    title = f"Confusion: {100 * np.trace(matrix) / max(total, 1):.1f} % of {total:,} images are right"
    mistakes = matrix - np.diag(np.diag(matrix))
    if mistakes.any():
        true, said = np.unravel_index(mistakes.argmax(), matrix.shape)
        pair = f"{_short(_name(class_names, true), 24)} taken for {_short(_name(class_names, said), 24)}"
        title += f"; most often wrong: {pair}, {mistakes[true, said]:,} times"
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    ticks = np.unique(np.linspace(0, classes - 1, min(classes, _MAX_TICKS)).round().astype(int))
    # Where not every class has a tick, numbers say more than names.
    names = [_tag(class_names, tick, 12) if len(ticks) == classes else str(tick) for tick in ticks]
    block = math.ceil(classes / 200)  # a pixel of the picture is the strongest of block × block cells
    pooled = (
        np.pad(shares, (0, -classes % block)).reshape(math.ceil(classes / block), block, -1, block).max(axis=(1, 3))
    )
    edge = len(pooled) * block - 0.5
    with _figure(path, 4.9, title, f"{title}.") as figure:
        axes = figure.add_subplot()
        image = axes.imshow(
            pooled,
            cmap="Blues",
            norm=PowerNorm(0.5, 0, 100),
            interpolation="nearest",
            extent=(-0.5, edge, edge, -0.5),
        )
        axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=9)
        axes.set_yticks(ticks, names, fontsize=9)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.7, aspect=30, ticks=[0, 5, 20, 50, 100])
        bar.set_label("% of the true class", fontsize=10)
        if classes <= _CELL_CLASSES:
            for (row, column), count in np.ndenumerate(matrix):
                color = "white" if shares[row, column] > 30 else "black"
                axes.text(column, row, f"{count:,}" if count else "", ha="center", va="center", size=9, color=color)
    return pathlib.Path(path)


def _labels_order(label: Any) -> tuple[int, float]:
    """Sorts numbers, then percentages, then words such as ``all``."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(%?)\s*", str(label))
    return (1 if match[2] else 0, float(match[1])) if match else (2, 0)


def draw_label_efficiency(table: Sequence[dict[str, Any]], path: PathLike) -> pathlib.Path:
    """Top-1 (%) against labels per class: supervised from scratch, fine-tuned, distilled.

    ``table`` is that of a semi-supervised ``result.json``; cells may be missing.

    Raises:
      ValueError: the table holds no number.
    """
    table = sorted(table, key=lambda row: _labels_order(row.get("labels_per_class")))
    styles = {"supervised_top1": (BLACK, "s", "--"), "finetune_top1": (BLUE, "o", "-")}
    styles["distill_top1"] = (VERMILLION, "^", "-.")
    series = {key: _percent([_number(row.get(key)) for row in table]) for key in styles}
    series = {key: values for key, values in series.items() if np.isfinite(values).any()}
    if not series:
        raise ValueError("table holds no accuracy to draw")
    title = "Accuracy by number of labels: " + ", ".join(_words(key) for key in series)
    names = [str(row.get("labels_per_class")) for row in table]
    points = [
        f"{name} labels: " + ", ".join(f"{_words(key)} {_cell(key, values[i] / 100)}" for key, values in series.items())
        for i, name in enumerate(names)
    ]
    with _figure(path, 3.6, title, f"Top-1 by labels per class. {'; '.join(points)}.") as figure:
        axes = figure.add_subplot()
        for key, values in series.items():
            color, marker, line = styles[key]
            axes.plot(range(len(names)), values, color=color, marker=marker, linestyle=line, label=_words(key))
        low, high = np.nanmin(list(series.values())), np.nanmax(list(series.values()))
        room = max(high - low, 1.0)
        axes.set_ylim(low - 0.15 * room, min(high + 0.15 * room, max(101, high + 0.1 * room)))
        for i in range(len(names)):
            here = sorted((values[i], styles[key][0]) for key, values in series.items() if np.isfinite(values[i]))
            heights = _spread([value for value, _ in here], 0.085 * room)
            for (value, color), height in zip(here, heights, strict=True):
                axes.text(i + 0.09, height, f"{value:.1f}", color=color, va="center", size=10, path_effects=_HALO)
        axes.set_xlim(-0.3, len(names) - 0.4)
        axes.set_xticks(range(len(names)), [_plain(_short(name, 8)) for name in names])
        axes.set(xlabel="labels per class", ylabel="top-1 (%)")
        axes.grid(True, axis="y")
        figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=10, handlelength=2.6)
    return pathlib.Path(path)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """Sorted ``values`` moved apart, about their middle, so that neighbours are at least ``gap`` from each other."""
    placed = []
    for value in values:
        placed.append(max(value, placed[-1] + gap) if placed else value)
    shift = (sum(placed) - sum(values)) / max(len(placed), 1)
    return [value - shift for value in placed]


def draw_mistakes(
    images: ArrayLike,
    true: Sequence[int],
    predicted: Sequence[int],
    confidence: Sequence[float],
    class_names: Sequence[str],
    path: PathLike,
) -> pathlib.Path:
    """Wrongly classified images [n, S, S, 3] with both classes and the confidence, a probability; n may be 0."""
    _same_length(images=images, true=true, predicted=predicted, confidence=confidence)
    shown = min(len(true), _MAX_MISTAKES)
    title = f"The {shown} most confident mistakes" if shown > 1 else "The only mistake" if shown else "No mistakes"
    pairs = [
        f"{_name(class_names, true[i])} taken for {_name(class_names, predicted[i])} ({100 * confidence[i]:.0f} %)"
        for i in range(shown)
    ]
    rows, row_height = math.ceil(shown / 4), 1.45
    height = _WIDTH / 4.3 * row_height * rows + 0.2
    with _figure(path, height, title, f"{title}{': ' * bool(pairs)}{'; '.join(pairs)}.") as figure:
        axes = _gallery(figure, 4.24, max(rows * row_height, 0.2))
        for i, image in enumerate(_images(images, "images", 4)[:shown] if shown else ()):
            x, y = i % 4 * 1.08, i // 4 * row_height
            _tile(axes, image, x, y)
            said = _tag(class_names, predicted[i], 11)
            axes.text(x, y + 1.03, f"is {_tag(class_names, true[i], 11)}", va="top", size=9)
            axes.text(x, y + 1.2, f"not {said}", va="top", size=9, color=VERMILLION)
            axes.text(x + 1, y + 0.99, f"{100 * confidence[i]:.0f} %", va="bottom", ha="right", size=8, bbox=_PLATE)
    return pathlib.Path(path)


# ---------------------------------------------------------------------------------------------------------- tables


def _number(value: Any) -> float:
    return float(value) if isinstance(value, numbers.Real) and math.isfinite(value) else math.nan


def _cell(key: str, value: Any) -> str:
    """A result as people read it: accuracies in %, seconds as a duration, – for what is missing."""
    if value is None or (isinstance(value, numbers.Real) and not math.isfinite(value)):
        return "–"  # noqa: RUF001
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, numbers.Real):
        return value if isinstance(value, str) else _short(json.dumps(value, ensure_ascii=False), 60)
    if _ACCURACY.search(key):
        return f"{_percent(value):.1f} %"
    if key == "seconds":
        minutes, seconds = divmod(round(value), 60)
        if minutes >= 60:
            return f"{minutes // 60} h {minutes % 60:02} min"
        return f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
    return f"{value:,}" if isinstance(value, numbers.Integral) else f"{value:.4g}"


def _tables(result: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """(caption, rows with the header first) of the label table, if there is one, and of the other numbers."""
    tables = []
    table = sorted(result.get("table") or [], key=lambda row: _labels_order(row.get("labels_per_class")))
    if table:
        found = {key: None for row in table for key in row}
        keys = ["labels_per_class", *(key for key in _WORDS if key in found), *found]
        keys = list(dict.fromkeys(keys))
        rows = [[_cell(key, row.get(key)) for key in keys] for row in table]
        tables.append(("Top-1 accuracy by number of labels", [[_words(key) for key in keys], *rows]))
    others = {key: value for key, value in result.items() if key != "table"}
    if others:
        rows = [[_words(key), _cell(key, value)] for key, value in others.items()]
        tables.append(("Final numbers", [["what", "value"], *rows]))
    return tables


def format_table(result: dict[str, Any]) -> str:
    """The numbers of a ``result.json`` as aligned plain text for the terminal."""
    blocks = []
    for _, rows in _tables(result):
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines = (
            [lines[0], "  ".join("─" * width for width in widths), *lines[1:]] if rows[0][0] != "what" else lines[1:]
        )
        blocks.append("\n".join(line.rstrip() for line in lines))
    return "\n\n".join(blocks)


# ------------------------------------------------------------------------------------------------------------ page

_CSS = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#595959;--paper:#fff;--line:#d9d9d9;--band:#f4f4f2;--link:#00558a}
@media(prefers-color-scheme:dark){
:root{--ink:#e8e8e6;--soft:#b0b0ae;--paper:#161616;--line:#3a3a3a;--band:#212121;--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;
background:var(--paper);color:var(--ink)}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.2rem 0 .3rem}
p,.wide{overflow-wrap:anywhere}.soft{color:var(--soft)}a{color:var(--link)}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;padding:0;margin:.5rem 0}
.scroll{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.2rem 0}
th,td{text-align:right;padding:.3rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child{text-align:left}thead th{font-weight:600}tbody th{font-weight:400}
td{white-space:nowrap}
.settings :is(th,td){text-align:left;white-space:normal;overflow-wrap:anywhere}.settings th:first-child{min-width:9rem}
@media(max-width:30rem){th,td{padding:.3rem .35rem}}
details{margin:.8rem 0;background:var(--band);border-radius:.4rem;padding:.5rem .8rem}summary{cursor:pointer}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:1.5rem;align-items:start}
figure{margin:0;min-width:0}
img{display:block;width:100%;max-width:34rem;height:auto;
background:#fff;border:1px solid var(--line);border-radius:.4rem}
figcaption{color:var(--soft);font-size:.9rem;margin-top:.3rem;max-width:34rem;overflow-wrap:anywhere}
"""
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none; a line about it if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {f"{path.name} cannot be read": str(error)}
    return value if isinstance(value, dict) else {path.name: value}


def _table_html(caption: str, rows: list[list[str]], kind: str = "scroll") -> str:
    """A table whose first row is its header, in a box of its own that scrolls where the screen is narrow."""
    head, *body = [[html.escape(cell) for cell in row] for row in rows]
    header = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = [f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in body]
    caption = html.escape(caption)
    return (
        f'<div class="{kind}" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure_html(path: pathlib.Path) -> str:
    """One picture with its text, or nothing if it is not a readable PNG."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            text, (width, height) = image.text, image.size
    except (OSError, UnidentifiedImageError, SyntaxError):
        return ""
    alt = html.escape(text.get("Description", _words(path.stem)))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{alt}" width="{width}" height="{height}" loading="lazy">'
        f"<figcaption>{html.escape(path.name)}</figcaption></figure>"
    )


def _settings_html(config: dict[str, Any]) -> str:
    flat = {key: value for key, value in config.items() if not isinstance(value, dict)}
    nested = {key: value for key, value in config.items() if isinstance(value, dict)}
    flat |= {f"{group}: {key}": value for group, values in nested.items() for key, value in values.items()}
    if not flat:
        return ""
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)] for key, value in flat.items()
    ]
    table = _table_html("Settings", [["setting", "value"], *rows], "scroll settings")
    return f"<details><summary>All {len(flat)} settings</summary>{table}</details>"


def _run_html(run: pathlib.Path, heading: str) -> str:
    """The figures and settings of one run's directory, under headings of level ``heading``."""
    figures = [markup for path in _ordered_figures(run) if (markup := _figure_html(path))]
    parts = []
    if figures:
        parts += [f"<{heading}>Figures</{heading}>", f'<div class="figures">{"".join(figures)}</div>']
    settings = _settings_html(_read_json(run / "config.json"))
    if settings:
        parts += [f"<{heading}>Settings</{heading}>", settings]
    return "\n".join(parts)


def _ordered_figures(run: pathlib.Path) -> list[pathlib.Path]:
    order = ("label_efficiency", "curves", "views", "embedding", "neighbours", "confusion", "mistakes")
    paths = sorted((run / "figures").glob("*.png"))
    return sorted(paths, key=lambda path: next((i for i, name in enumerate(order) if path.stem.startswith(name)), 99))


def _stages(model_dir: pathlib.Path) -> list[pathlib.Path]:
    """The sub-directories that are runs, in the order of the method and then of their labels."""
    parts = ("config.json", "result.json", "metrics.csv", "figures")
    runs = [path for path in model_dir.iterdir() if path.is_dir() and any((path / part).exists() for part in parts)]

    def order(path: pathlib.Path) -> tuple[int, tuple[int, float], str]:
        stage = next((i for i, name in enumerate(_STAGES) if re.match(rf"{name}(_|$)", path.name)), len(_STAGES))
        return stage, _labels_order(path.name.rpartition("_")[2]), path.name

    return sorted(runs, key=order)


def _draw_from_files(run: pathlib.Path) -> None:
    """The two figures that follow from a run's files alone; left out where there is nothing to draw."""
    with contextlib.suppress(ValueError, OSError, csv.Error):
        draw_curves(run / "metrics.csv", run / "figures" / "curves.png")
    table = _read_json(run / "result.json").get("table")
    if table:
        with contextlib.suppress(ValueError):
            draw_label_efficiency(table, run / "figures" / "label_efficiency.png")


def _about(model_dir: pathlib.Path, config: dict[str, Any]) -> str:
    """What ran, when it ended and with which versions, in one sentence each."""
    shown = [f"{key}: {config[key]}" for key in ("dataset", "recipe", "seed") if config.get(key) not in (None, "")]
    ended = [path.stat().st_mtime for name in ("result.json", "metrics.csv") if (path := model_dir / name).is_file()]
    if ended:
        when = datetime.datetime.fromtimestamp(max(ended), datetime.UTC)
        shown.append(f"last written {when:%Y-%m-%d %H:%M} UTC")
    versions = [f"Python {platform.python_version()}"]
    for package in ("simclrv2-tf", "tensorflow", "keras", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    lines = [html.escape(", ".join(shown)), "Page made with " + html.escape(", ".join(versions)) + "."]
    return "".join(f'<p class="soft">{line}</p>' for line in lines if line)


def write_report(model_dir: PathLike) -> pathlib.Path:
    """Writes ``report.html`` into ``model_dir`` from what lies there, and returns its path.

    Draws ``figures/curves.png`` and ``figures/label_efficiency.png`` of the run and its stages from their files first.
    Missing pieces are left out. The page holds its pictures, loads nothing, and is replaced as a whole.

    Raises:
      FileNotFoundError: there is no such directory.
    """
    model_dir = pathlib.Path(model_dir)
    if not model_dir.is_dir():
        raise FileNotFoundError(f"no model directory {model_dir}")
    stages = _stages(model_dir)
    for run in (model_dir, *stages):
        _draw_from_files(run)
    config, result = _read_json(model_dir / "config.json"), _read_json(model_dir / "result.json")
    mode = str(result.get("mode") or config.get("mode") or "run")
    title = f"SimCLRv2: {mode.replace('_', '-')}"
    body = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(str(model_dir))}</p>", _about(model_dir, config)]
    if stages:
        links = [f'<li><a href="#stage-{i}">{html.escape(stage.name)}</a></li>' for i, stage in enumerate(stages)]
        body.append(f'<nav aria-label="Stages"><ul>{"".join(links)}</ul></nav>')
    if result:
        body += ['<h2 id="results">Results</h2>', *(_table_html(*table) for table in _tables(result))]
    body.append(_run_html(model_dir, "h2"))
    for i, stage in enumerate(stages):
        body.append(f'<section><h2 id="stage-{i}">{html.escape(stage.name)}</h2>')
        body += [_table_html(*table) for table in _tables(_read_json(stage / "result.json"))]
        body.append(_run_html(stage, "h3") + "</section>")
    page = _PAGE.format(title=html.escape(title), css=_CSS, body="\n".join(body))
    temporary = model_dir / f".report.html.{os.getpid()}.tmp"
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, model_dir / "report.html")
    return model_dir / "report.html"
