"""Pages are complete, safe and ordered; in a browser every figure is drawn and shows its values."""

import base64
import hashlib
import html.parser
import json
import re
import shutil

import example_runs as runs
import numpy as np
import pytest
from browser import Browser, needs_chromium

from simclrv2_tf.errors import SettingError
from simclrv2_tf.report import write_comparison, write_predictions, write_preview, write_report


class Page(html.parser.HTMLParser):
    """Parsed page; fails if an element is not closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.headings, self.open, self.text, self.specs = [], [], [], [], []
        self.captions, self.code = [], []
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
        if self.tags and self.open and self.open[-1] == "script":
            if self.tags[-1][1].get("type") == "application/json":
                self.specs.append(json.loads(data))
            else:
                self.code.append(data)
            return
        self.text.append(data)
        if self.open and self.open[-1] == "figcaption":
            self.captions.append(data)
        if self.open and re.fullmatch(r"h\d", self.open[-1]):
            self.headings.append((int(self.open[-1][1]), data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    root = runs.semi_supervised(tmp_path_factory.mktemp("runs") / "run <b>")
    assert write_report(root) == root / "report.html"
    return root


@pytest.fixture(scope="module")
def page(model_dir):
    return Page((model_dir / "report.html").read_text(encoding="utf-8"))


def test_a_report_is_complete_safe_and_ordered(page):
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs["href"] for attrs in page.all("a")]
    assert len(links) == 5 and {link.removeprefix("#") for link in links} <= set(ids)
    assert not page.all("link") and not page.all("b") and not page.all("img")
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]

    scripts = page.all("script")
    assert [attrs for attrs in scripts if "type" not in attrs] == [{}]  # Vega-Lite and the call that draws the figures
    # Label efficiency, the curves of each stage, the figures of pretraining.
    assert len(page.specs) == len(scripts) - 1 == 1 + 5 * 4 + 5
    for spec in page.specs:
        assert len(spec["description"]) > 10

    levels = [level for level, _ in page.headings]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels)) <= 1
    stages = [text for level, text in page.headings if level == 2 and text not in ("Results", "Settings")]
    assert stages == ["pretrain", "supervised_5", "finetune_5", "finetune_20", "distill_all"]
    assert page.tags.index(("caption", {})) < [tag for tag, _ in page.tags].index("figure")
    assert len(page.all("caption")) == len(page.all("table")) >= 7
    regions = [attrs for attrs in page.all("div") if attrs.get("role") == "region"]
    assert len(regions) == len(page.all("table"))  # each scrolls by keyboard and has a name
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in regions)
    text = " ".join(page.text)
    for part in (
        "87.3%",
        "96.0%",
        "run <b>",
        "<img src=http://evil.example/x>",
        "resolved: steps",
        "1,000 images/s",
    ):
        assert part in text


def test_tooltip_values_are_also_in_a_table(page):
    text = " ".join(page.text)
    assert "contrastive accuracy" in text and "75.0%" in text and "2.25" in text


def test_recall_per_class_is_beside_the_confusion_matrix(page):
    captions = [attrs["aria-label"] for attrs in page.all("div") if attrs.get("role") == "region"]
    assert captions.count("Recall per class, worst first") == 1  # from the only stage with a confusion matrix
    assert "most often taken for" in page.text


def test_a_page_makes_no_requests(page):
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "style"):
            assert attrs.get(name, "#").startswith("#")
    style = page.text[page.text.index(next(text for text in page.text if ":root" in text))]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme:dark" in style
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert re.fullmatch(
        "default-src 'none';img-src data:;style-src 'unsafe-inline';script-src 'sha256-[A-Za-z0-9+/]{43}='", policy
    )
    (script,) = page.code
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy and "\r" not in script


def test_a_page_fits_into_an_email(model_dir):
    assert (model_dir / "report.html").stat().st_size < 5e6


def test_report_of_an_empty_run(tmp_path):
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert not page.specs and not page.all("table")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(FileNotFoundError, match="absent"):
        write_report(tmp_path / "absent")


DAMAGED = {
    "result.json": b'{"mode": "pre',
    "config.json": b"[1]",
    "metrics.csv": b"\xff\xfe\x00",
    "figures/views.vl.json": b'{"layer": [], "data": {}}',
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named_and_no_page_written(name, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / name).write_bytes(DAMAGED[name])
    for flag, write in (
        ("model_dir", lambda: write_report(tmp_path)),
        ("compare", lambda: write_comparison([tmp_path, tmp_path / "other"], tmp_path / "page.html")),
    ):
        with pytest.raises(SettingError, match=rf"^--{flag}={tmp_path}: {name} is damaged \(.*\); .*restore it$"):
            write()
    assert not list(tmp_path.glob("*.html"))


@pytest.fixture(scope="module")
def comparison(model_dir, tmp_path_factory):
    other = tmp_path_factory.mktemp("others") / "run <b>"
    shutil.copytree(model_dir, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"seed": 1}))
    return write_comparison([model_dir, other], other.parent / "comparison.html")


def test_a_comparison_shows_runs_side_by_side(comparison, model_dir):
    page = Page(comparison.read_text(encoding="utf-8"))
    head, first, *_ = re.findall(r"<tr>(.*?)</tr>", comparison.read_text(encoding="utf-8").partition("that differ")[2])
    assert re.findall(r">([^<]+)<", first) == ["seed", "0", "1"]  # equal settings are left out
    assert len(set(re.findall(r">([^<]+)<", head))) == 3
    assert len(page.specs) == 1 and "run &lt;b&gt;" in head  # label efficiency of both
    stages = [model_dir / "pretrain", model_dir / "finetune_5"]
    page = Page(write_comparison(stages, comparison).read_text(encoding="utf-8"))
    assert len(page.specs) == 4 + 5  # joint curves, and the figures of the one run that has its own


def test_run_names_are_escaped_in_captions(model_dir, tmp_path):
    names = ["<b>bold", "<i>italic"]
    compared = [shutil.copytree(model_dir / "pretrain", tmp_path / name) for name in names]
    page = Page(write_comparison(compared, tmp_path / "page.html").read_text(encoding="utf-8"))
    assert not page.all("b") and not page.all("i")
    assert len(page.captions) == 4 + 2 * 5
    for name in names:
        assert sum(caption.startswith(f"{name}: ") for caption in page.captions) == 5


def test_many_compared_embeddings_have_no_thumbnails(model_dir, tmp_path):
    compared = [shutil.copytree(model_dir / "pretrain", tmp_path / str(i)) for i in range(5)]
    for count in (4, 5):
        page = Page(write_comparison(compared[:count], tmp_path / "page.html").read_text(encoding="utf-8"))
        embeddings = [spec for spec in page.specs if spec["description"].startswith("Features of")]
        assert len(embeddings) == count
        for spec in embeddings:
            assert all(("image" in row) is (count == 4) for row in spec["data"]["values"])


def test_a_preview_is_complete_and_safe(model_dir, tmp_path):
    spec = json.loads((model_dir / "pretrain/figures/views.vl.json").read_text())
    figures = {"views": spec | {"title": "<b>views"}}
    config = {"mode": "pretrain", "dataset": "<b>data"}
    path = write_preview(tmp_path, config, {"time": "<b>1 s"}, figures)
    assert path == tmp_path / "preview.html" and (tmp_path / "preview/views.png").is_file()
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.all("b") and {"<b>data", "<b>1 s", "<b>views"} <= set(page.text)
    assert [text for _, text in page.headings] == ["SimCLRv2: preview of pretrain", "Estimate", "Images"]


LONG = "/photos/" + "a_long_folder_name_" * 5 + "/" + "IMG_2026" * 15 + ".jpg"


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    images, _ = runs.digits()
    names = runs.HOSTILE
    classes = [[(name, 0.5), (names[(i + 1) % len(names)], 0.25)] for i, name in enumerate(names)]
    rows = [
        (f"<i>{i}{LONG}", image, of_image) for i, (image, of_image) in enumerate(zip(images, classes, strict=False))
    ]
    counts = [(name, 1200, 0.5) for name in names]
    path = tmp_path_factory.mktemp("predictions") / "predictions.html"
    return write_predictions(path, {"run": LONG, "images": "<b>12"}, counts, rows, [LONG])


def test_predictions_are_complete_and_safe(predictions):
    page = Page(predictions.read_text(encoding="utf-8"))
    assert not page.all("b") and not page.all("i") and not page.all("script")
    images = page.all("img")
    assert len(images) == len(runs.HOSTILE) and all(re.match("data:image/(png|webp);base64,", i["src"]) for i in images)
    assert "1,200" in page.text and "50.0%" in page.text and "25.0%" in page.text and page.text.count(LONG) == 2
    assert f"<i>0{LONG}" in page.text
    assert [level for level, _ in page.headings] == [1, 2, 2]
    policy = next(attrs["content"] for attrs in page.all("meta") if "http-equiv" in attrs)
    assert policy.startswith("default-src 'none';img-src data:;")


def test_predictions_without_a_readable_image(tmp_path):
    page = Page(write_predictions(tmp_path / "x.html", {}, [], [], ["a.jpg"]).read_text(encoding="utf-8"))
    assert not page.all("img") and not page.all("table") and "a.jpg" in page.text


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@needs_chromium
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_every_figure_is_drawn_without_errors(browser, model_dir, comparison, width, dark):
    for path in (model_dir / "report.html", comparison):
        browser.open(path, width, dark)
        drawn, charts, page_width = browser.evaluate(
            "[document.querySelectorAll('.chart svg').length, document.querySelectorAll('.chart').length,"
            " document.documentElement.scrollWidth]"
        )
        assert drawn == charts > 5 and page_width <= width
        labelled = browser.evaluate(
            "[...document.querySelectorAll('.chart svg')].every(svg => svg.closest('[aria-label]')"
            " || svg.querySelector('[aria-label]'))"
        )
        assert labelled
        ink = browser.evaluate("getComputedStyle(document.querySelector('.chart svg .role-axis-label text')).fill")
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) is dark
    assert not browser.problems


OUTSIDE = """[...document.querySelectorAll('th, td, dt, dd, li, p, figcaption, h1, h2, h3, img, svg')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map(e => e.textContent.slice(0, 60))"""


@needs_chromium
def test_nothing_is_outside_of_a_phone_screen(browser, model_dir, comparison, predictions, tmp_path):
    root = shutil.copytree(model_dir, tmp_path / "long")
    result = json.loads((root / "result.json").read_text())
    (root / "result.json").write_text(json.dumps(result | {"corrupt_images": [LONG, LONG], "path": LONG}))
    for path in (write_report(root), comparison, predictions):
        browser.open(path, 390)
        browser.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true })")
        assert browser.evaluate(OUTSIDE) == [] and browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert not browser.problems


@needs_chromium
@pytest.mark.parametrize("width", [360, 1440])
def test_tooltips_show_values_and_images(browser, model_dir, width):
    browser.open(model_dir / "report.html", width)
    assert "2.25" in hover(browser, "loss, up", ".mark-symbol path:last-of-type")
    assert "<img" in hover(browser, "Features of", ".mark-symbol path")
    assert "predicted class" in hover(browser, "Confusion", ".mark-rect path")
    assert "confidence" in hover(browser, "confident mistakes", ".mark-image image")
    assert not browser.problems


def hover(browser, title, mark):
    """Returns the tooltip of the first such mark in the figure with that title."""
    place = browser.evaluate(
        f"""(() => {{
          const figure = [...document.querySelectorAll('figure')].find(
            f => f.querySelector('figcaption').textContent.toLowerCase().includes({json.dumps(title.lower())}));
          const mark = figure.querySelector({json.dumps(mark)});
          mark.scrollIntoView({{block: 'center'}});
          const box = mark.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()"""
    )
    browser.hover(1, 1)
    browser.hover(*place)
    return browser.evaluate("(document.querySelector('#vg-tooltip-element.visible') || {innerHTML: ''}).innerHTML")
