"""``report.html``: a run's numbers, figures and settings, or several runs side by side, in a file that needs no other.

A model directory holds ``config.json`` (settings, and under ``resolved`` what followed from them), ``metrics.csv``,
``result.json`` and ``figures/*.vl.json``; that of a semi-supervised run also has a sub-directory of the same kind for
each stage. Every piece may be missing. The page brings Vega-Lite with it; its content policy lets it load nothing and
run nothing else, whatever a class may be called.
"""

import base64
import csv
import datetime
import hashlib
import html
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from statistics import median
from typing import Any

from simclrv2_tf.files import write_atomically
from simclrv2_tf.report import charts
from simclrv2_tf.report.tables import cell, facts, labels_order, number, tables, words
from simclrv2_tf.settings.config import STAGES

Paths = Sequence[pathlib.Path]

FIGURES = (
    "label_efficiency", *(panel[0] for panel in charts.PANELS), "views", "batch", "labels", "embedding", "neighbours",
    "confusion", "mistakes",
)  # fmt: skip
NUMBERS = 400  # rows of a figure's table at most
DRAW = """
for (const spec of document.querySelectorAll('script[type="application/json"]'))
  vegaEmbed(spec.previousElementSibling, JSON.parse(spec.textContent),
            {mode: "vega-lite", renderer: "svg", ast: true, actions: false});
"""
CSS = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#595959;--paper:#fff;--line:#d9d9d9;--band:#f4f4f2;--link:#00558a}
@media(prefers-color-scheme:dark){
:root{--ink:#e8e8e6;--soft:#b0b0ae;--paper:#161616;--line:#3a3a3a;--band:#212121;--link:#7cc4f5}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:80rem;padding:1rem;font:1rem/1.5 system-ui,sans-serif;
background:var(--paper);color:var(--ink)}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.3rem;margin:2.5rem 0 .5rem;padding-top:.5rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.2rem 0 .3rem}
p,h1,h2,h3,dd{overflow-wrap:anywhere}.soft{color:var(--soft)}a{color:var(--link)}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;list-style:none;padding:0;margin:.5rem 0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.8rem 0}
dt{color:var(--soft)}dd{margin:0}
.scroll{overflow-x:auto;margin:.8rem 0}.scroll table{white-space:nowrap}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.2rem 0}
th,td{text-align:right;padding:.3rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child{text-align:left}thead th{font-weight:600}tbody th{font-weight:400}
.settings table{white-space:normal}.settings :is(th,td){text-align:left;overflow-wrap:anywhere}
.settings th:first-child{min-width:9rem}
@media(max-width:30rem){th,td{padding:.3rem .35rem}}
details{margin:.8rem 0;background:var(--band);border-radius:.4rem;padding:.3rem .8rem}summary{cursor:pointer}
figure details{font-size:.9rem}figure .scroll{max-height:24rem;overflow-y:auto}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,26rem),1fr));gap:2rem 1.5rem;
align-items:start}
figure{margin:0;min-width:0}figcaption{font-weight:600;font-size:.95rem;margin-bottom:.5rem;overflow-wrap:anywhere}
.chart{width:100%;max-width:40rem}.chart svg{display:block;max-width:100%;height:auto}
#vg-tooltip-element{background:var(--paper);color:var(--ink);border-color:var(--line);max-width:20rem}
#vg-tooltip-element td.key{color:var(--soft)}#vg-tooltip-element img{width:6rem;image-rendering:pixelated}
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';img-src data:;style-src 'unsafe-inline';\
script-src '{code_hash}'">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<script>{code}</script>
</body>
</html>
"""


def write_report(model_dir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes ``report.html`` into ``model_dir`` from what lies there, and the figures that follow from its tables.

    Raises:
      FileNotFoundError: there is no such directory.
    """
    model_dir = pathlib.Path(model_dir)
    if not model_dir.is_dir():
        raise FileNotFoundError(f"no model directory {model_dir}")
    stages = _stages(model_dir)
    for run in (model_dir, *stages):
        _draw_tables(run)
    body = [f'<p class="soft">{html.escape(str(model_dir))}</p>', _facts(model_dir)]
    if stages:
        links = [f'<li><a href="#stage-{i}">{html.escape(stage.name)}</a></li>' for i, stage in enumerate(stages)]
        body.append(f'<nav aria-label="Stages"><ul>{"".join(links)}</ul></nav>')
    body += [_results(model_dir, "h2"), _figures(model_dir), _settings(model_dir, "h2")]
    for i, stage in enumerate(stages):
        body.append(f'<section><h2 id="stage-{i}">{html.escape(stage.name)}</h2>{_facts(stage)}')
        body.append(f"{_results(stage, '')}{_figures(stage)}{_settings(stage, 'h3')}</section>")
    mode = str(_read_json(model_dir / "config.json").get("mode", "run")).replace("_", "-")
    return write_page(model_dir / "report.html", f"SimCLRv2: {mode}", body)


def write_comparison(runs: Paths, path: pathlib.Path) -> pathlib.Path:
    """Writes a page about several model directories side by side: numbers, other settings, curves, figures."""
    names = _tell_apart(runs)
    results = {name: _read_json(run / "result.json") for name, run in zip(names, runs, strict=True)}
    configs = {name: _read_json(run / "config.json") for name, run in zip(names, runs, strict=True)}
    keys = dict.fromkeys(key for result in results.values() for key in result if key != "table")
    numbers = [[words(key), *(cell(key, result.get(key)) for result in results.values())] for key in keys]
    settings = [[key, *values] for key, values in _flat(configs).items() if len(set(values)) > 1]
    drawn = _curves(dict(zip(names, runs, strict=True)))
    efficiency = charts.label_efficiency({n: r["table"] for n, r in results.items() if _is_table(r.get("table"))})
    drawn = [*([efficiency] if efficiency else []), *drawn.values()]
    body = [f"<ol>{''.join(f'<li>{html.escape(str(run))}</li>' for run in runs)}</ol>", "<h2>Results</h2>"]
    body.append(table_html("Final numbers", [["what", *names], *numbers]))
    body.append(table_html("Settings that differ", [["setting", *names], *settings], "scroll settings"))
    body.append(f"<h2>Figures</h2>{_grid(map(figure_html, drawn))}")
    light = len(runs) > 4  # else the thumbnails of many embeddings would weigh too much
    own = {figure: None for run in runs for figure in _specs(run) if not figure.startswith(("curve", "label_eff"))}
    for figure in sorted(own, key=_order):
        of_runs = [(name, _specs(run).get(figure)) for name, run in zip(names, runs, strict=True)]
        shown = [figure_html(_of(name, spec, light and figure == "embedding")) for name, spec in of_runs if spec]
        body.append(f"<h3>{html.escape(figure)}</h3>{_grid(shown)}")
    return write_page(path, f"SimCLRv2: {len(runs)} runs compared", body)


def write_preview(
    model_dir: pathlib.Path, config: Mapping[str, Any], estimate: Mapping[str, str], figures: Mapping[str, charts.Spec]
) -> pathlib.Path:
    """Writes ``preview.html`` about a run to come, and its figures into ``preview/``.

    Args:
        model_dir: where the run will live.
        config: what will be the content of its ``config.json``.
        estimate: what it will need.
        figures: what it will see.
    """
    for name, spec in figures.items():
        charts.write(spec, model_dir / "preview" / name)
    body = [f'<p class="soft">{html.escape(str(model_dir))}</p>', _facts_html(facts(config))]
    body += ["<h2>Estimate</h2>", _facts_html(estimate), "<h2>Images</h2>"]
    body.append(_grid(map(figure_html, figures.values())))
    return write_page(model_dir / "preview.html", f"SimCLRv2: before {config['mode']}", body)


def write_page(path: pathlib.Path, title: str, body: Iterable[str]) -> pathlib.Path:
    """A whole page of parts that are HTML already; the title is text."""
    code = _vega() + DRAW
    code_hash = "sha256-" + base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    text = PAGE.format(title=html.escape(title), css=CSS, body="\n".join(body), code=code, code_hash=code_hash)
    write_atomically(path, text)
    return path


@cache
def _vega() -> str:
    import vl_convert

    # Carriage returns would be read as line feeds, and the policy's hash would not fit.
    return vl_convert.javascript_bundle().replace("\r", "\\r").replace("</script", "<\\/script")


def figure_html(spec: charts.Spec) -> str:
    """A figure with what hovering tells as a table, for keyboards and screen readers."""
    shown = {key: value for key, value in spec.items() if key not in ("title", "$schema")} | {"background": None}
    if not spec.get("usermeta", {}).get("fixed"):
        shown["width"] = "container"
    data = json.dumps(shown).replace("<", "\\u003c")
    return (
        f'<figure><figcaption>{html.escape(_title(spec))}</figcaption><div class="chart"></div>'
        f'<script type="application/json">{data}</script>{_numbers(spec)}</figure>'
    )


def _of(run: str, spec: charts.Spec, without_images: bool) -> charts.Spec:
    """A figure with its run's name on it."""
    rows = spec["data"]["values"]
    if without_images:
        rows = [{key: value for key, value in row.items() if key != "image"} for row in rows]
    return spec | {"title": f"{run}: {_title(spec)}", "data": {"values": rows}}


def _title(spec: charts.Spec) -> str:
    title = spec.get("title", "")
    return title if isinstance(title, str) else " ".join(title)


def _numbers(spec: charts.Spec) -> str:
    encodings = [spec.get("encoding", {}), *(layer.get("encoding", {}) for layer in spec["layer"])]
    tooltip = next((encoding["tooltip"] for encoding in encodings if "tooltip" in encoding), [])
    columns = {channel["field"]: channel for channel in tooltip if channel["field"] != "image"}
    rows = spec["data"]["values"]
    if not columns or not 0 < len(rows) <= NUMBERS:
        return ""
    head = [channel["title"] for channel in columns.values()]
    body = [[_told(row.get(field), channel) for field, channel in columns.items()] for row in rows]
    return f"<details><summary>As a table</summary>{table_html(_title(spec), [head, *body])}</details>"


def _told(value: Any, channel: charts.Spec) -> str:
    if channel.get("format") == ".1%":
        return f"{100 * value:.1f} %"
    return f"{value:,.6g}" if isinstance(value, int | float) else str(value)


def table_html(caption: str, rows: list[list[str]], kind: str = "scroll") -> str:
    """A table whose first row is its header, in a box of its own that scrolls where the screen is narrow."""
    if len(rows) < 2:
        return ""
    head, *body = [[html.escape(text) for text in row] for row in rows]
    header = "".join(f'<th scope="col">{text}</th>' for text in head)
    lines = [f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in body]
    caption = html.escape(caption)
    return (
        f'<div class="{kind}" role="region" aria-label="{caption}" tabindex="0"><table><caption>{caption}</caption>'
        f"<thead><tr>{header}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _grid(figures: Iterable[str]) -> str:
    inside = "".join(figures)
    return f'<div class="figures">{inside}</div>' if inside else ""


def _facts_html(found: Mapping[str, str]) -> str:
    """Terms and what is to be said of them."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in found.items())
    return f"<dl>{items}</dl>" if items else ""


def _facts(run: pathlib.Path) -> str:
    """What ran, how fast and how far."""
    found = facts(_read_json(run / "config.json"))
    rows = _rows(run)
    speeds = [speed for row in rows if (speed := number(row.get("images_per_second"))) > 0]
    if speeds:
        found["speed"] = f"{median(speeds):,.0f} images / s"
    result = _read_json(run / "result.json")
    if rows and not result:
        found["state"] = f"at step {number(rows[-1].get('step')):,.0f}"
    if "seconds" in result:
        found["time"] = cell("seconds", result["seconds"])
    written = [path.stat().st_mtime for name in ("result.json", "metrics.csv") if (path := run / name).is_file()]
    if written:
        found["last written"] = f"{datetime.datetime.fromtimestamp(max(written), datetime.UTC):%Y-%m-%d %H:%M} UTC"
    return _facts_html(found)


def _results(run: pathlib.Path, heading: str) -> str:
    found = "".join(table_html(*table) for table in tables(_read_json(run / "result.json")))
    return f"<{heading}>Results</{heading}>{found}" if heading and found else found


def _figures(run: pathlib.Path) -> str:
    return _grid(figure_html(spec) for spec in _specs(run).values())


def _settings(run: pathlib.Path, heading: str) -> str:
    flat = _flat({"value": _read_json(run / "config.json")})
    if not flat:
        return ""
    rows = [["setting", "value"], *([key, *values] for key, values in flat.items())]
    table = table_html("Settings", rows, "scroll settings")
    return f"<{heading}>Settings</{heading}><details><summary>All {len(flat)} settings</summary>{table}</details>"


def _flat(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Settings and what followed from them, as text, by name: one of each run."""
    flat = []
    for config in configs.values():
        nested = {group: values for group, values in config.items() if isinstance(values, dict)}
        single = {key: value for key, value in config.items() if key not in nested}
        flat.append(single | {f"{group}: {k}": v for group, values in nested.items() for k, v in values.items()})
    return {key: [cell("", one.get(key, "")) for one in flat] for key in dict.fromkeys(k for one in flat for k in one)}


def _draw_tables(run: pathlib.Path) -> None:
    """The figures that follow from a run's files alone."""
    table = _read_json(run / "result.json").get("table")
    efficiency = charts.label_efficiency({run.name: table}) if _is_table(table) else None
    for name, spec in (_curves({run.name: run}) | ({"label_efficiency": efficiency} if efficiency else {})).items():
        charts.write(spec, run / "figures" / name)


def _curves(runs: Mapping[str, pathlib.Path]) -> dict[str, charts.Spec]:
    return charts.curves({name: _rows(run) for name, run in runs.items()})


def _is_table(table: object) -> bool:
    return isinstance(table, list) and all(isinstance(row, dict) for row in table)


def _specs(run: pathlib.Path) -> dict[str, charts.Spec]:
    """The figures in a directory, in the order of interest; files that are none are left out."""
    found = {path.name.removesuffix(".vl.json"): _read_json(path) for path in (run / "figures").glob("*.vl.json")}
    whole = {name: spec for name, spec in found.items() if "layer" in spec and "data" in spec}
    return dict(sorted(whole.items(), key=lambda item: _order(item[0])))


def _order(figure: str) -> tuple[int, str]:
    return next((i for i, name in enumerate(FIGURES) if figure == name), len(FIGURES)), figure


def _stages(model_dir: pathlib.Path) -> list[pathlib.Path]:
    """The sub-directories that are runs, in the order of the method and then of their labels."""

    def order(path: pathlib.Path) -> tuple[int, tuple[int, float], str]:
        stage = next((i for i, name in enumerate(STAGES) if re.match(rf"{name}(_|$)", path.name)), len(STAGES))
        return stage, labels_order(path.name.rpartition("_")[2]), path.name

    return sorted((path.parent for path in model_dir.glob("*/config.json")), key=order)


def _tell_apart(runs: Paths) -> list[str]:
    """The shortest ends of the paths that are not the same."""
    parts = [run.resolve().parts for run in runs]
    length = 1
    while len({part[-length:] for part in parts}) < len(runs) and length < max(map(len, parts)):
        length += 1
    return ["/".join(part[-length:]) for part in parts]


def _rows(run: pathlib.Path) -> list[dict[str, str]]:
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []
    return sorted((row for row in rows if number(row.get("step")) >= 0), key=lambda row: number(row["step"]))


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none; a line about it if it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        return {f"{path.name} cannot be read": str(error)}
    return value if isinstance(value, dict) else {path.name: value}
