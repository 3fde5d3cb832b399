"""HTML pages about runs, each one file that works offline: report, comparison, preview and predictions.

A model directory holds ``config.json``, ``metrics.csv``, ``result.json`` and ``figures/*.vl.json``; that of a
semi-supervised run also has a sub-directory of the same kind per stage. Any of these may be missing or damaged. A page
embeds Vega-Lite. Its content security policy forbids every other script and every request, and the templates escape
all text, whatever a class or a directory is called.
"""

import base64
import datetime
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import median
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from simclrv2_tf.errors import ConfigVersionError, SettingError, shorten
from simclrv2_tf.files import write_atomically
from simclrv2_tf.report import charts, tables
from simclrv2_tf.schemas import read_record
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import STAGES

FIGURE_ORDER = ("label_efficiency", *(panel[0] for panel in charts.PANELS), "views", "batch", "labels", "embedding",
                "neighbours", "confusion", "mistakes")  # fmt: skip
MAX_TABLE_ROWS = 400  # limit for the table below a figure, and for the classes
MAX_RUNS_WITH_THUMBNAILS = 4  # in a comparison; the thumbnails of more embeddings would make the page too large


def write_report(model_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``report.html`` into ``model_dir``, and the figures of its ``metrics.csv`` and ``result.json``.

    Raises:
        FileNotFoundError: if the directory does not exist.
        SettingError: if one of its files is damaged or cannot be read.
    """
    model_dir = pathlib.Path(model_dir)
    if not model_dir.is_dir():
        raise FileNotFoundError(f"no model directory {model_dir}")
    stages = _stages(model_dir)
    for run in (model_dir, *stages):
        for name, spec in _metric_figures({run.name: run}, "model_dir").items():
            charts.write(spec, run / "figures" / name)
    title = f"SimCLRv2: {_read(model_dir, 'config.json', 'model_dir').get('mode', 'run')}".replace("_", "-")
    content = {"title": title, "run": _section(model_dir), "stages": list(map(_section, stages))}
    return _write_page(model_dir / "report.html", "report.html", content)


def draw_figures(model_dir: pathlib.Path) -> None:
    """Draws the figures of a run as PNG files, but not those of its stages.

    Raises:
        SettingError: if one of them is damaged or cannot be read.
    """
    for name, spec in _specs(model_dir, "model_dir").items():
        charts.draw(spec, model_dir / "figures" / name)


def write_comparison(runs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
    """Writes a page that compares model directories: final metrics, settings that differ, curves and other figures."""
    by_name = dict(zip(_unique_names(runs), runs, strict=True))
    results = [tables.final_metrics(_read(run, "result.json", "compare")) for run in by_name.values()]
    keys = dict.fromkeys(key for result in results for key in result)
    metrics = [[tables.metric_name(k), *(tables.format_value(k, result.get(k)) for result in results)] for k in keys]
    settings = _flat_settings([_read(run, "config.json", "compare") for run in by_name.values()])
    specs = {name: _specs(run, "compare") for name, run in by_name.items()}
    figures = {}
    for figure in sorted({figure for run in specs.values() for figure in run}, key=_figure_order):
        thumbnails = figure != "embedding" or len(runs) <= MAX_RUNS_WITH_THUMBNAILS
        if not figure.startswith(("curve", "label_efficiency")):  # those are drawn together
            of_runs = {f"{name}: ": run[figure] for name, run in specs.items() if figure in run}
            figures[figure] = [_figure(spec, prefix, thumbnails) for prefix, spec in of_runs.items()]
    content = {
        "title": f"SimCLRv2: comparison of {len(runs)} runs",
        "paths": runs,
        "metrics": [["metric", *by_name], *metrics],
        "settings": [["setting", *by_name], *([key, *row] for key, row in settings.items() if len(set(row)) > 1)],
        "shared_figures": [_figure(spec) for spec in _metric_figures(by_name, "compare").values()],
        "figures": figures,
    }
    return _write_page(path, "comparison.html", content)


def write_preview(
    model_dir: pathlib.Path, config: Mapping[str, Any], estimate: Mapping[str, str], figures: Mapping[str, charts.Spec]
) -> pathlib.Path:
    """Writes ``preview.html`` about a run before it starts, and its figures into ``preview/``.

    Args:
        model_dir: the model directory of the run.
        config: the future content of its ``config.json``.
        estimate: required time and memory, as text by name.
        figures: examples of its training images, by file name.
    """
    for name, spec in figures.items():
        charts.write(spec, model_dir / "preview" / name)
        charts.draw(spec, model_dir / "preview" / name)
    content = {
        "title": f"SimCLRv2: preview of {config['mode']}",
        "path": model_dir,
        "summary": tables.run_summary(config),
        "estimate": estimate,
        "figures": [_figure(spec) for spec in figures.values()],
    }
    return _write_page(model_dir / "preview.html", "preview.html", content)


CaptionedImage = tuple[str, np.ndarray, Sequence[tuple[str, str]]]


def write_predictions(
    path: pathlib.Path,
    summary: Mapping[str, str],
    counts: Sequence[tuple[str, int, float]],
    images: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, float]]]],
    corrupt: Sequence[str],
) -> pathlib.Path:
    """Writes a page about predicted images.

    Args:
        path: path of the page.
        summary: lines at the top, by name.
        counts: name, number of images and mean probability of each predicted class.
        images: path, pixels ``[h, w, 3]`` in [0, 1], and the most probable classes with their probabilities.
        corrupt: paths of the files that could not be read.
    """
    rows = [[shorten(name, 60), f"{count:,}", f"{mean:.1%}"] for name, count, mean in counts[:MAX_TABLE_ROWS]]
    captioned = [
        (file, pixels, [(shorten(name, 60), f"{probability:.1%}") for name, probability in classes])
        for file, pixels, classes in images
    ]
    content = {
        "title": "SimCLRv2: predictions",
        "summary": summary,
        "counts": [["class", "images", "mean probability"], *rows],
        "heading": "Images, the least sure first",
        "cards": _cards(captioned),
        "corrupt": corrupt,
    }
    return _write_page(path, "predictions.html", content)


def write_selection(path: pathlib.Path, summary: Mapping[str, str], images: Sequence[CaptionedImage]) -> pathlib.Path:
    """Writes a page about images that were selected.

    Args:
        path: path of the page.
        summary: lines at the top, by name.
        images: path, pixels ``[h, w, 3]`` in [0, 1], and captions with their values.
    """
    content = {
        "title": "SimCLRv2: images to label",
        "summary": summary,
        "counts": [],
        "heading": "Images, in the order of selection",
        "cards": _cards(images),
        "corrupt": [],
    }
    return _write_page(path, "predictions.html", content)


def _cards(images: Sequence[CaptionedImage]) -> list[dict[str, Any]]:
    return [{"path": file, "image": charts.data_url(pixels), "lines": lines} for file, pixels, lines in images]


def _write_page(path: pathlib.Path, template: str, content: Mapping[str, Any]) -> pathlib.Path:
    write_atomically(path, _environment().get_template(template).render(content))
    return path


@cache
def _environment() -> jinja2.Environment:
    """Returns the template environment; its globals are the page's script and its hash for the content policy."""
    import vl_convert  # imported here, as in charts

    loader = jinja2.PackageLoader("simclrv2_tf.report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # Browsers turn carriage returns into line feeds before they compute the hash.
    bundle = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its stub lacks the default
    vega = bundle.replace("\r", "\\r").replace("</script", "<\\/script")
    script = vega + loader.get_source(environment, "draw.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {"script": Markup(script), "script_hash": f"sha256-{digest}"}
    return environment


def _figure(spec: charts.Spec, prefix: str = "", thumbnails: bool = True) -> dict[str, Any]:
    """Returns the template data of a figure: caption, specification without title, and a table of its tooltips."""
    title = spec.get("title", "")
    shown = {key: value for key, value in spec.items() if key not in ("title", "$schema")} | {"background": None}
    if not spec.get("usermeta", {}).get("fixed"):
        shown["width"] = "container"
    if not thumbnails:
        rows = [{key: value for key, value in row.items() if key != "image"} for row in spec["data"]["values"]]
        shown["data"] = {"values": rows}
    caption = prefix + (title if isinstance(title, str) else " ".join(title))
    recall = shown.pop("usermeta", {}).get("recall", [])
    return {"caption": caption, "spec": shown, "rows": _tooltip_rows(spec), "recall": recall}


def _tooltip_rows(spec: charts.Spec) -> list[list[str]]:
    """Returns the values in the tooltips of a figure, header row first; empty if there are none or too many."""
    encodings = [spec.get("encoding", {}), *(layer.get("encoding", {}) for layer in spec["layer"])]
    tooltip: list[dict] = next((encoding["tooltip"] for encoding in encodings if "tooltip" in encoding), [])
    channels = {channel["field"]: channel for channel in tooltip if channel["field"] != "image"}
    values = spec["data"]["values"]
    if not channels or not 0 < len(values) <= MAX_TABLE_ROWS:
        return []

    def text(value: object, number_format: str) -> str:
        return format(value, number_format) if isinstance(value, int | float) else str(value)

    formats = {field: ".1%" if channel.get("format") == ".1%" else ",.6g" for field, channel in channels.items()}
    rows = [[text(row.get(field), number_format) for field, number_format in formats.items()] for row in values]
    return [[channel["title"] for channel in channels.values()], *rows]


def _section(run: pathlib.Path) -> dict[str, Any]:
    """Returns the template data of a model directory."""
    config, result = (_read(run, name, "model_dir") for name in ("config.json", "result.json"))
    return {
        "name": run.name,
        "path": run,
        "facts": tables.run_summary(config) | _progress(run, result),
        "tables": tables.result_tables(result),
        "figures": [_figure(spec) for spec in _specs(run, "model_dir").values()],
        "settings": [["setting", "value"], *([key, *row] for key, row in _flat_settings([config]).items())],
    }


def _progress(run: pathlib.Path, result: Mapping[str, Any]) -> dict[str, str]:
    """Returns speed, current step and times of a run."""
    facts, rows = {}, _read(run, "metrics.csv", "model_dir")
    speeds = [speed for row in rows if (speed := tables.parse_number(row.get("images_per_second"))) > 0]
    if speeds:
        facts["speed"] = f"{median(speeds):,.0f} images/s"
    if rows and not result:
        facts["progress"] = f"step {tables.parse_number(rows[-1].get('step')):,.0f}"
    if "seconds" in result:
        facts["time"] = tables.format_value("seconds", result["seconds"])
    times = [path.stat().st_mtime for name in ("result.json", "metrics.csv") if (path := run / name).is_file()]
    if times:
        facts["last updated"] = f"{datetime.datetime.fromtimestamp(max(times), datetime.UTC):%Y-%m-%d %H:%M} UTC"
    return facts


def _flat_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns settings and resolved values as text, by name: one value per config."""
    flat = []
    for config in configs:
        groups = {key: value if isinstance(value, dict) else {"": value} for key, value in config.items()}
        flat.append({f"{group}: {k}" if k else group: v for group, values in groups.items() for k, v in values.items()})
    keys = dict.fromkeys(key for settings in flat for key in settings)
    return {key: [tables.format_value("", settings.get(key, "")) for settings in flat] for key in keys}


def _metric_figures(runs: Mapping[str, pathlib.Path], flag: str) -> dict[str, charts.Spec]:
    """Returns figures of the ``result.json`` and ``metrics.csv`` of runs, by file name."""
    label_tables = {name: tables.label_rows(_read(run, "result.json", flag)) for name, run in runs.items()}
    efficiency = charts.label_efficiency({name: rows for name, rows in label_tables.items() if rows})
    curves = charts.curves({name: _read(run, "metrics.csv", flag) for name, run in runs.items()})
    return {"label_efficiency": efficiency, **curves} if efficiency else curves


def _specs(run: pathlib.Path, flag: str) -> dict[str, charts.Spec]:
    """Returns the figures of a model directory by name, in the order of the page."""
    names = {path.name.removesuffix(".vl.json"): path.name for path in (run / "figures").glob("*.vl.json")}
    specs = {name: _read(run, f"figures/{names[name]}", flag) for name in sorted(names, key=_figure_order)}
    return {name: spec for name, spec in specs.items() if spec}


def _figure_order(name: str) -> tuple[int, str]:
    return FIGURE_ORDER.index(name) if name in FIGURE_ORDER else len(FIGURE_ORDER), name


def _stages(model_dir: pathlib.Path) -> list[pathlib.Path]:
    """Returns the sub-directories that are runs, ordered by stage and number of labels."""

    def order(path: pathlib.Path) -> tuple[int, tuple[int, float], str]:
        stage = next((i for i, name in enumerate(STAGES) if re.match(rf"{name}(_|$)", path.name)), len(STAGES))
        labels = re.sub(r"_seed\d+$", "", path.name).rpartition("_")[2]
        return stage, tables.labels_sort_key(labels), path.name

    return sorted((path.parent for path in model_dir.glob("*/config.json")), key=order)


def _unique_names(runs: Sequence[pathlib.Path]) -> list[str]:
    """Returns the shortest suffixes of the paths that are distinct."""
    parts = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read(run: pathlib.Path, name: str, flag: str) -> Any:
    """Returns a record of a run, see ``schemas.read_record``; {} or [] if there is no such file."""
    content = read_record(run, name, flag)
    if content is None:
        return [] if name == "metrics.csv" else {}
    if name == "config.json":
        try:
            Config.from_content(content)
        except ConfigVersionError as error:
            raise SettingError(f"--{flag}={run}: its {error}") from None
        except ValueError as error:
            raise SettingError(f"--{flag}={run}: {name} is damaged ({error}); restore it") from None
    return content
