"""Figures are drawn, differ with their data and survive hard input; the page is whole, safe and in order."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from simclrv2_tf import report

HOSTILE = ["<script>alert(1)</script>", 'quote" onload="x', "$x$ & $y$", "猫", "two\nlines", "Straße", "🐶", "é" * 200]
HOSTILE += ["", r"$\frac$"]  # the latter is a formula that Matplotlib cannot read
EFFICIENCY = [
    {"labels_per_class": "all", "supervised_top1": 0.984, "finetune_top1": 0.986},
    {"labels_per_class": 20, "supervised_top1": 0.8734, "finetune_top1": 0.931, "distill_top1": None},
    {"labels_per_class": 5, "supervised_top1": 0.673, "finetune_top1": 0.9044, "distill_top1": 0.91},
]
METRICS = """step,epoch,loss,contrastive_accuracy,learning_rate,online_top1,knn_top1,note
10,1,5.5,0.25,0.1,0.3,,x
20,2,nan,0.5,0.2,0.4,0.5,
30,3,2.25,0.75,0.1,0.5
"""


@pytest.fixture(scope="module")
def digits():
    """Images [n, 8, 8, 3] in [0, 1] and labels [n]."""
    images, labels = load_digits(return_X_y=True)
    return np.repeat(images.reshape(-1, 8, 8, 1) / 16, 3, axis=-1).astype(np.float32)[:300], labels[:300]


@pytest.fixture
def metrics_csv(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    return path


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        array = np.asarray(image.convert("RGB"))
    assert array.shape[1] == 960
    assert len(np.unique(array)) > 10, "a blank picture"
    assert (array[:, :3] == 255).all(axis=-1).mean() > 0.9, "something is cut at the left edge"
    return array


def description(path) -> str:
    with Image.open(path) as image:
        return image.text["Description"]


def draw_all(digits, names, folder, shift=0):
    """Every figure of classes; ``shift`` changes their data."""
    images, labels = digits[0][shift:][:250], digits[1][shift:][:250]
    matrix = np.eye(len(names), dtype=int) * 5 + np.arange(len(names)) * (shift + 1) % 3
    points = images.reshape(len(images), -1)[:, 60:62]
    labels = labels % len(names)
    near, near_labels = images[:20].reshape(4, 5, 8, 8, 3), labels[:20].reshape(4, 5)
    return [
        report.draw_views(images[:12].reshape(6, 2, 8, 8, 3), folder / "views.png"),
        report.draw_neighbours(images[20:24], near, labels[20:24], near_labels, names, folder / "neighbours.png"),
        report.draw_embedding(points, labels, names, folder / "embedding.png"),
        report.draw_confusion(matrix, names, folder / "confusion.png"),
        report.draw_mistakes(images[:6], labels[:6], labels[6:12], np.full(6, 0.9), names, folder / "mistakes.png"),
    ]


def test_figures_differ_with_their_data_and_repeat(digits, tmp_path):
    names = [str(i) for i in range(10)]
    first, again = draw_all(digits, names, tmp_path / "a"), draw_all(digits, names, tmp_path / "b")
    other = draw_all(digits, names, tmp_path / "c", shift=1)
    for one, same, different in zip(first, again, other, strict=True):
        assert one.read_bytes() == same.read_bytes()
        pixels_one, pixels_different = pixels(one), pixels(different)
        assert pixels_one.shape != pixels_different.shape or (pixels_one != pixels_different).any()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == sorted(path.name for path in first)


@pytest.mark.parametrize("names", [HOSTILE, ["one"], [f"class number {i}" for i in range(1000)]], ids=len)
@pytest.mark.filterwarnings("error")
def test_figures_take_any_class_names(digits, names, tmp_path):
    for path in draw_all(digits, names, tmp_path):
        pixels(path)


def test_names_no_font_can_write_are_numbered():
    assert report._tag(["Straße", "\U0010fffd"], 0) == "Straße"
    assert report._tag(["Straße", "\U0010fffd"], 1) == "class 1"
    assert report._tag(["a very long name indeed"], 0, longest=8) == "a very …"


def test_views_are_shown_as_they_are(tmp_path, caplog):
    """A pure colour stays that colour, uint8 and one channel are understood, and values outside [0, 1] are clipped."""
    red = np.tile([7.0, 0, -3], (1, 2, 8, 8, 1))
    assert (pixels(report.draw_views(red, tmp_path / "a.png")) == [255, 0, 0]).all(axis=-1).mean() > 0.1
    same = (red.clip(0, 1) * 255).astype(np.uint8)
    assert report.draw_views(same, tmp_path / "b.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert not caplog.records  # Matplotlib complains of values outside [0, 1]
    grey = np.full((1, 2, 8, 8, 1), 0.5)
    shown = pixels(report.draw_views(grey, tmp_path / "c.png"))
    assert (np.ptp(shown, axis=-1) == 0).all() and (abs(shown.astype(int) - 127) <= 1).mean() > 0.1


def test_neighbours_tell_right_from_wrong_by_shape_too(digits, tmp_path):
    images = digits[0]
    drawn = []
    for label in (0, 1):
        path = tmp_path / f"{label}.png"
        report.draw_neighbours(images[:1], images[None, 1:4], [0], [[label] * 3], ["a", "b"], path)
        with Image.open(path) as image:
            drawn.append(np.asarray(image.convert("L")) < 128)
    assert description(tmp_path / "0.png").startswith("Nearest neighbours: 3 of 3")
    assert description(tmp_path / "1.png").startswith("Nearest neighbours: 0 of 3")
    assert (drawn[0] != drawn[1]).mean() > 0.005


def test_curves_read_gaps_and_short_rows(metrics_csv, tmp_path):
    path = report.draw_curves(metrics_csv, tmp_path / "figures" / "curves.png")
    pixels(path)
    text = description(path)
    for part in ("up to step 30", "loss from 5.5 to 2.25", "contrastive accuracy (%) from 25 to 75", "kNN top-1 (%)"):
        assert part in text
    assert "note" not in text


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,loss\n1,\n", "loss\n1\n", "step,other\n1,2\n"])
def test_curves_of_nothing_are_refused(text, tmp_path):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match="no metrics"):
        report.draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_label_efficiency_orders_labels_and_skips_gaps(tmp_path):
    table = [*EFFICIENCY, {"labels_per_class": "1%", "supervised_top1": np.float32(0.5)}]
    path = report.draw_label_efficiency(table, tmp_path / "label_efficiency.png")
    pixels(path)
    assert re.findall(r"(\S+) labels:", description(path)) == ["5", "20", "1%", "all"]
    assert "5 labels: supervised 67.3 %, fine-tuned 90.4 %, distilled 91.0 %" in description(path)
    assert "1% labels: supervised 50.0 %, fine-tuned –" in description(path)  # noqa: RUF001
    with pytest.raises(ValueError, match="no accuracy"):
        report.draw_label_efficiency([{"labels_per_class": 5}], path)


def test_close_values_are_written_apart():
    assert report._spread([1.0, 5.0], 1.0) == [1.0, 5.0]
    placed = report._spread([1.0, 1.1, 1.2], 1.0)
    assert np.diff(placed).min() >= 1 - 1e-9 and np.mean(placed) == pytest.approx(1.1)


def test_confusion_names_the_worst_pair(tmp_path):
    path = report.draw_confusion([[8, 2], [5, 5]], ["cat", "dog"], tmp_path / "confusion.png")
    assert (
        description(path) == "Confusion: 65.0 % of 20 images are right; most often wrong: dog taken for cat, 5 times."
    )
    pixels(report.draw_confusion(np.zeros((3, 3), int), "abc", path))


def test_no_mistakes_is_a_picture_too(tmp_path):
    path = report.draw_mistakes(np.zeros((0, 8, 8, 3)), [], [], [], [], tmp_path / "mistakes.png")
    pixels(path)
    assert description(path) == "No mistakes."


@pytest.mark.parametrize(
    ("draw", "name"),
    [
        (lambda path: report.draw_views(np.zeros((0, 2, 8, 8, 3)), path), "views"),
        (lambda path: report.draw_views(np.zeros((4, 3, 8, 8, 3)), path), "views"),
        (lambda path: report.draw_embedding(np.zeros((3, 2)), [0, 1], "ab", path), "labels 2"),
        (lambda path: report.draw_embedding(np.zeros((3, 3)), [0, 1, 1], "ab", path), "features_2d"),
        (lambda path: report.draw_confusion(np.zeros((2, 3)), "ab", path), "matrix"),
        (lambda path: report.draw_mistakes(np.zeros((2, 8, 8, 3)), [0, 1], [1], [1, 1], "ab", path), "predicted 1"),
    ],
)
def test_bad_arrays_are_refused_by_name(draw, name, tmp_path):
    with pytest.raises(ValueError, match=name):
        draw(tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def test_a_failed_drawing_leaves_the_old_figure(tmp_path):
    path = report.draw_confusion([[1]], ["a"], tmp_path / "figure.png")
    before = path.read_bytes()
    with pytest.raises(RuntimeError), report._figure(path, 1, "title", "text"):
        raise RuntimeError
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]


def test_table_for_the_terminal():
    result = {
        "mode": "semi_supervised",
        "table": EFFICIENCY,
        "knn_top1": 0.9604,
        "linear_top1": None,
        "seconds": 4321.5,
    }
    assert report.format_table(result).splitlines() == [
        "labels per class  supervised  fine-tuned  distilled",
        "────────────────  ──────────  ──────────  ─────────",
        "5                     67.3 %      90.4 %     91.0 %",
        "20                    87.3 %      93.1 %          –",  # noqa: RUF001
        "all                   98.4 %      98.6 %          –",  # noqa: RUF001
        "",
        "mode                     semi_supervised",
        "kNN top-1                         96.0 %",
        "linear evaluation top-1                –",  # noqa: RUF001
        "time                          1 h 12 min",
    ]
    single = {"mode": "pretrain", "steps": 62500, "seconds": 75, "knn_top1": float("nan"), "eval_top1": np.float32(0.5)}
    lines = [line.split("  ") for line in report.format_table(single).splitlines()]
    assert [(line[0].strip(), line[-1].strip()) for line in lines] == [
        ("mode", "pretrain"),
        ("steps", "62,500"),
        ("time", "1 min 15 s"),
        ("kNN top-1", "–"),  # noqa: RUF001
        ("eval top-1", "50.0 %"),
    ]
    assert report.format_table({}) == ""
    assert len(report.format_table({"corrupt_images": list(range(1000))})) < 90


class Page(html.parser.HTMLParser):
    """What the tests ask of a page; every element must be closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.headings, self.open, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)
        if self.open and re.fullmatch(r"h\d", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def model_dir(digits, tmp_path):
    """A semi-supervised run with three stages, hostile names and a broken picture."""
    root = tmp_path / "run <b>"
    for stage in ("supervised_5", "finetune_20", "finetune_5", "pretrain", "distill_all"):
        (root / stage).mkdir(parents=True)
        (root / stage / "metrics.csv").write_text(METRICS)
        (root / stage / "result.json").write_text(json.dumps({"mode": stage, "steps": 30, "eval_top1": 0.5004}))
    (root / "checkpoints").mkdir()
    draw_all(digits, HOSTILE, root / "pretrain" / "figures")
    (root / "pretrain" / "figures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    config = {"mode": "semi_supervised", "dataset": "<img src=http://evil.example/x>", "resolved": {"steps": 625}}
    (root / "config.json").write_text(json.dumps(config))
    (root / "result.json").write_text(json.dumps({"mode": "semi_supervised", "table": EFFICIENCY, "knn_top1": 0.9604}))
    return root


def test_page_is_whole_safe_and_in_order(model_dir):
    path = report.write_report(model_dir)
    assert path == model_dir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert len(links) == 5 and {link.removeprefix("#") for link in links} <= set(ids)
    assert not page.all("script") and not page.all("link") and not page.all("b")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]

    images = page.all("img")
    assert len(images) == 1 + 5 + 5  # label efficiency, a curve a stage, five figures of the pretraining
    for attrs in images:
        assert len(attrs["alt"]) > 10
        kind, data = attrs["src"].split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert image.format == "PNG" and str(image.width) == attrs["width"]
    assert any("<script>alert(1)</script>" in attrs["alt"] for attrs in images)  # as text, in an attribute

    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    stages = [text for level, text in page.headings if level == 2 and text not in ("Results", "Figures", "Settings")]
    assert stages == ["pretrain", "supervised_5", "finetune_5", "finetune_20", "distill_all"]
    assert page.tags.index(("caption", {})) < [tag for tag, _ in page.tags].index("img")
    assert len(page.all("caption")) == len(page.all("table")) >= 7
    text = " ".join(page.text)
    for part in ("87.3 %", "96.0 %", "run <b>", "<img src=http://evil.example/x>", "resolved: steps", "keras"):
        assert part in text


def test_page_asks_the_network_for_nothing(model_dir):
    page = Page(report.write_report(model_dir).read_text(encoding="utf-8"))
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "style"):
            assert re.match(r"data:image/png;base64,|#", attrs.get(name, "#"))
    style = page.text[page.text.index(next(text for text in page.text if ":root" in text))]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme:dark" in style
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy


def test_page_of_an_empty_or_broken_run(tmp_path):
    page = Page(report.write_report(tmp_path).read_text(encoding="utf-8"))
    assert not page.all("img") and not page.all("table")
    (tmp_path / "result.json").write_text('{"mode": "pre')
    (tmp_path / "config.json").write_text("[1]")
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\x00")
    page = Page(report.write_report(tmp_path).read_text(encoding="utf-8"))
    assert any("result.json cannot be read" in text for text in page.text)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "config.json",
        "metrics.csv",
        "report.html",
        "result.json",
    ]
    with pytest.raises(FileNotFoundError, match="absent"):
        report.write_report(tmp_path / "absent")
