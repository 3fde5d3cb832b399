"""Tests the paper's claims on small real data: runs a grid, writes a JSON line per run, and draws the results page.

``python benchmarks/paper_claims.py run --study=digits --minutes=25`` runs what ``paper_claims.jsonl`` does not have yet
and starts no new run after that many minutes; the same command resumes. ``python benchmarks/paper_claims.py draw``
writes the tables of ``docs/results.md`` and its figures from the lines there are.
"""

import argparse
import dataclasses
import datetime
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import page  # noqa: E402

Settings = dict[str, Any]
Line = dict[str, Any]  # one result
RESULTS = ROOT / "benchmarks" / "paper_claims.jsonl"
NETWORK_NAMES = {  # in the tables, where they are not those of the grid
    "head of 2": "head of 2 layers",
    "head of 4": "head of 4 layers",
    "memory": "memory, decay 0.999",
    "near memory": "memory, decay 0.97",
    "short memory": "memory, decay 0.97, a quarter of the rows",
    "random": "untrained",
}
RANDOM = dict(learning_rate=0.0, train_steps=50)  # for batch norm's moving statistics, which start at 0 and 1


@dataclasses.dataclass(frozen=True)
class Study:
    """A data set and the networks that are compared on it.

    Attributes:
        title: what was run, in words.
        common: settings of every run.
        networks: settings by name; ``base`` is the one that the others are compared with, ``half`` the small student.
        labels: numbers of labels a class; 0: all.
        student_epochs: of distilling into a small network from scratch.
        stages: settings of single stages.
    """

    title: str
    common: Settings
    networks: dict[str, Settings]
    labels: tuple[int, ...]
    student_epochs: int
    stages: dict[str, Settings] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


def networks(width: float, memory: int) -> dict[str, Settings]:
    """The networks of a study around a ResNet-18 of this width."""
    base = {"resnet_depth": 18, "width_multiplier": width}
    return {
        "base": base,
        "half": base | {"width_multiplier": width / 2},
        "double": base | {"width_multiplier": width * 2},
        "head of 2": base | {"num_proj_layers": 2},
        "head of 4": base | {"num_proj_layers": 4},
        "memory": base | {"memory_size": memory},
        "near memory": base | {"memory_size": memory, "ema_decay": 0.97},
        "short memory": base | {"memory_size": memory // 4, "ema_decay": 0.97},
        "random": base,
    }


# The recipe of the digits takes torchvision's crops and initialization now, and other settings for them; this study has
# those of the official code.
OFFICIAL = {
    "conv_init": "lecun_normal",
    "crop_sampler": "tensorflow",
    "resize_method": "bicubic",
    "eval_resize": "bicubic",
    "crop_area_min": 0.6,
}
STUDIES = {
    "digits": Study(
        "scikit-learn's 1,797 digits at 16 px, ResNet-18 at a quarter of its width, 60 epochs of pretraining",
        {"recipe": "digits"} | OFFICIAL,
        networks(0.25, 1024),
        (1, 2, 5, 10, 0),
        student_epochs=60,
        stages={"linear_eval": {"train_steps": 100, "checkpoint_steps": 100}, "supervised": {"learning_rate": 0.04}},
    ),
    "fashion_mnist": Study(
        "Fashion-MNIST at 16 px, ResNet-18 at a quarter of its width, 15 epochs of pretraining",
        {"recipe": "fashion_mnist"},
        {k: v for k, v in networks(0.25, 8192).items() if k in ("base", "half", "head of 2", "memory", "random")},
        (1, 10, 60, 600, 0),
        student_epochs=10,
    ),
    "fashion_mnist_32px": Study(
        "Fashion-MNIST at 32 px, full ResNet-18, 100 epochs of pretraining; meant for a GPU",
        {"recipe": "fashion_mnist_32px"},
        networks(1.0, 16384) | {"ResNet-50": {"resnet_depth": 50}, "SK": {"resnet_depth": 50, "sk_ratio": 0.0625}},
        (1, 10, 60, 600, 0),
        student_epochs=100,
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: what its line is known by, and its settings."""

    key: dict[str, Any]
    settings: Settings

    @property
    def name(self) -> str:
        """Its directory below that of all runs."""
        return "-".join(str(part).replace(" ", "_") for part in self.key.values() if part != "")


def jobs(name: str, seed: int) -> Iterator[Job]:
    """The runs of a study with one seed, each after those that it starts from; those on the most labels last."""
    study, pretrained = STUDIES[name], {}

    def job(network: str, stage: str, labels: int | str = "", variant: str = "", **settings: Any) -> Job:
        key = dict(study=name, network=network, seed=seed, stage=stage, labels=labels, variant=variant)
        return Job(key, study.common | study.stages.get(stage, {}) | {"mode": stage, "seed": seed} | settings)

    for network, settings in study.networks.items():
        untrained = RANDOM if network == "random" else {}
        pretrained[network] = job(network, "pretrain", **settings | untrained)
        yield pretrained[network]
        yield job(network, "linear_eval", checkpoint=pretrained[network])
    for labels in study.labels:
        some = {"labels_per_class": labels}
        for network in study.networks:
            start = {"checkpoint": pretrained[network]}
            for tap in {"base": (0, 1, 2), "random": ()}.get(network, (1,)):
                tuned = job(network, "finetune", labels, f"layer {tap}", **start, **some, ft_proj_selector=tap)
                yield tuned
                if network == "base" and tap == 1:
                    teacher = {"teacher": tuned}
                    yield job(network, "distill", labels, "itself", **start, **teacher)
                    length = {"train_epochs": study.student_epochs}
                    yield job(network, "distill", labels, "half", **teacher, **study.networks["half"], **length)
            if network in ("base", "half", "double"):
                yield job(network, "supervised", labels, **study.networks[network], **some)


def run(name: str, folder: pathlib.Path, minutes: float, seeds: list[int], results: pathlib.Path = RESULTS) -> None:
    """Runs the jobs of a study that have no line yet."""
    from simclrv2_tf import modes
    from simclrv2_tf.modes.setup import environment

    end, done = time.monotonic() + 60 * minutes, [known(line) for line in page.read_lines(results)]
    if not any(key["stage"] == "pixels" and key["study"] == name for key in done):
        page.append_line(results, pixels(name))
    for seed in seeds or STUDIES[name].seeds:
        for job in jobs(name, seed):
            if job.key in done:
                continue
            if time.monotonic() > end:
                print("Time is up; the same command goes on.")
                return
            others = {k: str(folder / v.name) if isinstance(v, Job) else v for k, v in job.settings.items()}
            result = modes.run(others | {"model_dir": str(folder / job.name), "report": False})
            found = {k: v for k, v in result.items() if k.endswith("_top1")}
            where = environment()
            device = where["device"] if where["device"] != "CPU" else page.machine()
            origin = {"date": str(datetime.date.today()), "device": device, "revision": where["revision"]}
            page.append_line(results, job.key | found | {"seconds": result["seconds"]} | origin)


def known(line: Line) -> dict[str, Any]:
    """What a line is known by."""
    return {k: line[k] for k in ("study", "network", "seed", "stage", "labels", "variant")}


def pixels(name: str) -> Line:
    """kNN on the raw pixels: what is there before any network."""
    import numpy as np

    from simclrv2_tf import metrics as evaluation
    from simclrv2_tf.data.catalog import open_source
    from simclrv2_tf.settings.merge import resolve

    config = resolve(STUDIES[name].common)
    train, test = (open_source(config, split) for split in ("train", "test"))
    rows = [source.images.reshape(len(source.images), -1).astype(np.float32) / 255 for source in (train, test)]
    accuracy = evaluation.knn_accuracy(rows[0], train.labels, rows[1], test.labels)
    key = dict(study=name, network="", seed=0, stage="pixels", labels="", variant="")
    return key | {"knn_top1": accuracy, "seconds": 0.0, "date": str(datetime.date.today())}


# The page. A column is what its lines have in common; a claim compares two of them, seed by seed.

Column = dict[str, Any]


def column(network: str, stage: str, variant: str = "") -> Column:
    """The lines of one column of a table."""
    return {"network": network, "stage": stage, "variant": variant}


SUPERVISED, TUNED = column("base", "supervised"), column("base", "finetune", "layer 1")
ITSELF, SMALL = column("base", "distill", "itself"), column("base", "distill", "half")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of the paper, with the columns that show it and the pairs whose difference decides."""

    name: str
    text: str
    columns: dict[str, Column]
    pairs: tuple[tuple[str, str], ...]


CLAIMS = (
    Claim(
        "few_labels",
        "With few labels, pretraining and fine-tuning beat training from scratch",
        {"supervised": SUPERVISED, "fine-tuned": TUNED, "distilled": ITSELF},
        (("fine-tuned", "supervised"), ("distilled", "supervised")),
    ),
    Claim(
        "bigger",
        "The fewer the labels, the more a bigger network helps",
        {
            "half the width": column("half", "finetune", "layer 1"),
            "base": TUNED,
            "double": column("double", "finetune", "layer 1"),
            "half, supervised": column("half", "supervised"),
            "base, supervised": SUPERVISED,
            "double, supervised": column("double", "supervised"),
        },
        (
            ("base", "half the width"),
            ("double", "half the width"),
            ("base, supervised", "half, supervised"),
            ("double, supervised", "half, supervised"),
        ),
    ),
    Claim(
        "middle_layer",
        "Fine-tuning from a middle layer of the projection head helps with few labels",
        {f"from layer {tap}": column("base", "finetune", f"layer {tap}") for tap in (0, 1, 2)},
        (("from layer 1", "from layer 0"), ("from layer 2", "from layer 0")),
    ),
    Claim(
        "deeper_head",
        "A deeper projection head helps (fine-tuned from its first layer)",
        {
            "2 layers": column("head of 2", "finetune", "layer 1"),
            "3 layers": TUNED,
            "4 layers": column("head of 4", "finetune", "layer 1"),
        },
        (("3 layers", "2 layers"), ("4 layers", "2 layers")),
    ),
    Claim(
        "distillation",
        "Distillation on the unlabelled images improves the network, and compresses it into a smaller one",
        {
            "teacher": TUNED,
            "self-distilled": ITSELF,
            "half the width, fine-tuned": column("half", "finetune", "layer 1"),
            "half the width, distilled": SMALL,
        },
        (("self-distilled", "teacher"), ("half the width, distilled", "half the width, fine-tuned")),
    ),
    Claim(
        "memory",
        "A memory of additional negatives helps a little",
        {
            "without": TUNED,
            "decay 0.999": column("memory", "finetune", "layer 1"),
            "decay 0.97": column("near memory", "finetune", "layer 1"),
            "decay 0.97, a quarter of the rows": column("short memory", "finetune", "layer 1"),
        },
        (("decay 0.999", "without"), ("decay 0.97", "without"), ("decay 0.97, a quarter of the rows", "without")),
    ),
)


def values(lines: list[Line], labels: int | str, chosen: Column) -> dict[int, float]:
    """Per cent by seed."""
    stage = chosen["stage"]
    metric = {"linear_eval": "linear", "pretrain": "knn", "pixels": "knn"}.get(stage, stage) + "_top1"
    found = {line["seed"]: line for line in lines if chosen.items() <= line.items() and line["labels"] == labels}
    return {seed: 100 * line[metric] for seed, line in found.items() if metric in line}


def in_words(numbers: list[float], sign: str = "") -> str:
    """Mean ± standard deviation; how many, if not three."""
    if not numbers:
        return "not run"
    mean = format(statistics.mean(numbers), f"{sign}.1f")
    if len(numbers) == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ± {statistics.stdev(numbers):.1f}" + ("" if len(numbers) == 3 else f" ({len(numbers)} seeds)")


def difference(lines: list[Line], labels: int, better: Column, than: Column) -> list[float]:
    """Points that one column is above another, seed by seed."""
    ours, theirs = values(lines, labels, better), values(lines, labels, than)
    return [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]


def verdict(numbers: list[float]) -> str:
    """Whether a difference stands out of the seeds' spread."""
    if len(numbers) < 2:
        return "open"
    mean, spread = statistics.mean(numbers), statistics.stdev(numbers)
    return "yes" if mean > spread else "no" if mean < -spread else "open"


def claim_table(claim: Claim, lines: list[Line], counts: tuple[int, ...]) -> str:
    """One table: a row for each number of labels, with what the pairs say of it; "" if no pair was run."""
    columns = {name: chosen for name, chosen in claim.columns.items() if any(values(lines, n, chosen) for n in counts)}
    pairs = [pair for pair in claim.pairs if set(pair) <= columns.keys()]
    if not pairs:
        return ""
    heads, *rows = accuracies(columns, lines, counts)
    for better, than in pairs:
        heads.append(f"{better} - {than}")
        for labels, row in zip(counts, rows, strict=True):
            found = difference(lines, labels, columns[better], columns[than])
            row.append(f"{in_words(found, '+')}: {verdict(found)}" if found else "not run")
    return page.markdown([heads, *rows])


def accuracies(columns: dict[str, Column], lines: list[Line], counts: tuple[int, ...]) -> list[list[str]]:
    """The columns' names, then a row for each number of labels."""
    rows = [["labels per class", *columns]]
    for labels in counts:
        cells = [in_words(list(values(lines, labels, chosen).values())) for chosen in columns.values()]
        rows.append([str(labels or "all"), *cells])
    return rows


def floor_table(lines: list[Line], names: list[str]) -> str:
    """Linear evaluation and kNN of every network, above what untrained ones and pixels give."""
    rows = [["features", "linear evaluation", "kNN"]]
    for name in names:
        linear, knn = (
            in_words(list(values(lines, "", column(name, stage)).values())) for stage in ("linear_eval", "pretrain")
        )
        if (linear, knn) != ("not run", "not run"):
            rows.append([NETWORK_NAMES.get(name, name), linear, knn])
    found = list(values(lines, "", column("", "pixels")).values())
    return page.markdown([*rows, ["raw pixels", "", f"{found[0]:.1f}"]] if found else rows)


def chart(claim: Claim, lines: list[Line], counts: tuple[int, ...]) -> dict[str, Any] | None:
    """The columns of a claim against the labels, with the seeds' spread; None where one number was run alone."""
    from simclrv2_tf.report import charts

    points = [
        {"labels": str(labels or "all"), "series": name, "top1": value}
        for name, chosen in claim.columns.items()
        for labels in counts
        for value in values(lines, labels, chosen).values()
    ]
    if len({point["labels"] for point in points}) < 2:
        return None
    order = [str(labels or "all") for labels in counts]
    series = {"field": "series", "type": "nominal", "sort": list(claim.columns)}
    encoding = {
        "x": {
            "field": "labels",
            "type": "ordinal",
            "sort": order,
            "title": "labels per class",
            "axis": {"labelAngle": 0},
            "scale": {"paddingInner": 0.7},
        },
        "xOffset": series,  # or the bars would hide each other
        "color": series,
        "y": {"field": "top1", "type": "quantitative", "title": "test top-1, %", "scale": {"zero": False}},
    }
    mean = {"y": encoding["y"] | {"aggregate": "mean"}}
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "title": claim.text,
        "width": charts.WIDTH,
        "height": 240,
        "background": "white",
        "data": {"values": points},
        "encoding": encoding,
        "layer": [
            {"mark": {"type": "errorbar", "extent": "stdev", "ticks": {"size": 6}}},
            {"mark": {"type": "line", "point": True}, "encoding": mean},
        ],
        "config": charts.CONFIG,
    }


def draw(results: pathlib.Path = RESULTS, root: pathlib.Path = ROOT) -> None:
    """Writes the tables of ``docs/results.md`` and its figures."""
    import vl_convert

    docs, all_lines = root / "docs", page.read_lines(results)
    (docs / "figures").mkdir(exist_ok=True)
    parts = []
    for name, study in STUDIES.items():
        lines = [line for line in all_lines if line["study"] == name]
        parts.append(f"### {study.title}\n")
        if not lines:
            parts.append(f"Not run: `python benchmarks/paper_claims.py run --study={name}`.\n")
            continue
        parts += [_origin(name, lines), floor_table(lines, list(study.networks)), ""]
        for claim in CLAIMS:
            table = claim_table(claim, lines, study.labels)
            parts += [f"**{claim.text}.**\n", (table or "Not run.") + "\n"]
            if table and (spec := chart(claim, lines, study.labels)):
                figure = f"figures/{name}_{claim.name}.png"
                (docs / figure).write_bytes(vl_convert.vegalite_to_png(spec, scale=1.5))
                parts.append(f"![{claim.text}: chart of the table, with the standard deviation over seeds]({figure})\n")
    page.write(docs.absolute() / "results.md", "results", "\n".join(parts))


def _origin(name: str, lines: list[Line]) -> str:
    devices = sorted({line["device"] for line in lines if "device" in line})
    dates = sorted({line["date"] for line in lines})
    hours = sum(line["seconds"] for line in lines) / 3600
    dated = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return (
        f"`python benchmarks/paper_claims.py run --study={name}`; {', '.join(devices)}, {dated}; {len(lines):,} runs, "
        f"{hours:.1f} hours on a shared machine.\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "draw"])
    parser.add_argument("--study", choices=list(STUDIES), default="digits")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin nothing new after so many")
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument("--runs", type=pathlib.Path, default=ROOT / "runs" / "claims", help="where their files go")
    options = parser.parse_args()
    if options.what == "run":
        run(options.study, options.runs, options.minutes, options.seeds)
    draw()
