"""Figures are drawn, reflect their data, describe it in words and accept unusual input."""

import base64
import csv
import io
import json

import example_runs as runs
import numpy as np
import pytest
from PIL import Image

from simclrv2_tf.errors import SettingError
from simclrv2_tf.report import charts, pictures


def read_png(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        array = np.asarray(image.convert("RGB"))
    assert len(np.unique(array)) > 10, "blank image"
    return array


def metrics(text=runs.METRICS):
    return list(csv.DictReader(io.StringIO(text)))


def test_figures_differ_with_their_data_and_repeat(tmp_path):
    names = [str(i) for i in range(10)]
    for folder, shift in (("a", 0), ("b", 0), ("c", 1)):
        for name, spec in runs.specs(names, shift).items():
            charts.write(spec, tmp_path / folder / name)
            charts.draw(spec, tmp_path / folder / name)
    for one in sorted((tmp_path / "a").glob("*.png")):
        same, other = tmp_path / "b" / one.name, tmp_path / "c" / one.name
        assert one.read_bytes() == same.read_bytes()
        assert read_png(one).shape != read_png(other).shape or (read_png(one) != read_png(other)).any()
        assert json.loads(one.with_suffix(".vl.json").read_text())["description"]
    assert len(list((tmp_path / "a").iterdir())) == 10  # no temporary files


@pytest.mark.parametrize("names", [runs.HOSTILE, ["one"], [f"class number {i}" for i in range(1000)]], ids=len)
def test_figures_accept_any_class_names(names, tmp_path):
    for name, spec in runs.specs(names).items():
        charts.draw(spec, tmp_path / name)
        read_png(tmp_path / f"{name}.png")


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def test_images_are_encoded_faithfully():
    """A pure colour stays that colour; values outside [0, 1] are clipped; large images are scaled down."""
    red = np.tile([7.0, 0, -3], (8, 8, 1))
    encoded = decoded(charts.data_url(red))
    assert encoded.shape == (128, 128, 3) and (encoded == [255, 0, 0]).all()
    assert charts.data_url((red.clip(0, 1) * 255).astype(np.uint8)) == charts.data_url(red)
    large = decoded(charts.data_url(np.full((300, 200, 3), 0.5)))
    assert large.shape == (128, 85, 3) and abs(large.astype(int) - 127).max() <= 2


def test_neighbours_of_the_wrong_class_differ_without_colour(tmp_path):
    images, _ = runs.digits()
    drawn = []
    for label in (0, 1):
        spec = pictures.neighbours_figure(images[:1], images[None, 1:4], [0], [[label] * 3], ["a", "b"])
        assert spec["description"].startswith(f"Nearest neighbours: {3 * (1 - label)} of 3")
        charts.draw(spec, tmp_path / str(label))
        drawn.append(read_png(tmp_path / f"{label}.png").mean(axis=2) < 128)
    assert (drawn[0] != drawn[1]).mean() > 0.005


def test_curves_skip_gaps_and_short_rows():
    specs = charts.curves({"run": metrics()})
    assert list(specs) == ["curve_loss", "curve_accuracy", "curve_learning_rate", "curve_speed"]
    assert "loss from 5.5 to 2.25" in specs["curve_loss"]["description"]
    assert [row["step"] for row in specs["curve_loss"]["data"]["values"]] == [10, 30]
    series = {row["series"] for row in specs["curve_accuracy"]["data"]["values"]}
    assert series == {"contrastive accuracy", "online top-1"}  # kNN has a single point
    legends = [specs[name]["encoding"]["color"]["legend"] for name in ("curve_loss", "curve_accuracy")]
    assert legends[0] is None and legends[1]["columns"] == 3  # no legend that repeats the title of the axis


@pytest.mark.parametrize("text", ["", "step,loss\n", "step,loss\n1,\n2,3\n", "loss\n1\n2\n", "step,other\n1,2\n2,3\n"])
def test_there_are_no_curves_without_two_points(text):
    assert charts.curves({"run": metrics(text)}) == {}


def test_curves_of_several_runs_are_named_by_run():
    spec = charts.curves({"a": metrics(), "b": metrics()})["curve_loss"]
    assert {row["series"] for row in spec["data"]["values"]} == {"a: loss", "b: loss"}


def test_label_efficiency_orders_labels_and_skips_gaps():
    table = [*runs.EFFICIENCY, {"labels_per_class": "1%", "supervised_top1": 0.5}]
    spec = charts.label_efficiency({"run": table})
    assert spec["encoding"]["x"]["sort"] == ["5", "20", "1%", "all"]
    assert "fine-tuned with 5: 90.4%" in spec["description"] and "distilled with 20" not in spec["description"]
    assert charts.label_efficiency({"run": [{"labels_per_class": 5}]}) is None


def test_confusion_names_the_worst_pair():
    spec = charts.confusion([[8, 2], [5, 5]], ["cat", "dog"])
    description = "Confusion matrix: 65.0% of 20 images correct; most frequent mistake: dog predicted as cat, 5 times."
    assert spec["description"] == description
    cells = {(row["true"], row["predicted"]): row["share"] for row in spec["data"]["values"]}
    assert cells == {("cat", "cat"): 0.8, ("cat", "dog"): 0.2, ("dog", "cat"): 0.5, ("dog", "dog"): 0.5}


def test_confusion_of_many_classes_shows_the_most_confused():
    matrix = np.eye(1000, dtype=int) * 9
    matrix[500, 700] = 4
    spec = charts.confusion(matrix, [f"c{i}" for i in range(1000)])
    assert len(spec["data"]["values"]) == 900 and "30 of 1,000" in " ".join(spec["title"])
    assert {"c500", "c700"} <= {row["true"] for row in spec["data"]["values"]}


def test_recall_per_class_is_listed_worst_first():
    spec = charts.confusion([[8, 2, 0], [4, 5, 1], [0, 0, 0]], ["cat", "dog", "owl"])
    header, *rows = spec["usermeta"]["recall"]
    assert header == ["true class", "recall", "images", "most often taken for"]
    assert rows == [["dog", "50.0%", "10", "cat"], ["cat", "80.0%", "10", "dog"]]  # there is no owl
    rows = charts.confusion(np.eye(50, dtype=int) * 3, list(map(str, range(50))))["usermeta"]["recall"]
    assert len(rows) == 1 + 30 and rows[1] == ["0", "100.0%", "3", ""]


def test_equal_class_names_are_numbered():
    names = {row["true"] for row in charts.confusion(np.eye(3), ["crane", "crane", "ship"])["data"]["values"]}
    assert names == {"crane (0)", "crane (1)", "ship"}


def test_embedding_greys_rare_and_unlabelled_classes(tmp_path):
    labels = [label for label in range(25) for _ in range(25 - label)]
    points = np.random.default_rng(0).normal(size=(len(labels), 2))
    spec = charts.embedding(points, labels, [f"c{i}" for i in range(25)], "PCA")
    assert {row["group"] for row in spec["data"]["values"]} == {f"c{i}" for i in range(20)} | {"5 others"}
    spec = charts.embedding(points[:3], [-1, -1, 0], ["a"], "PCA")
    assert {row["class"] for row in spec["data"]["values"]} == {"unlabelled", "a"}
    assert [channel["field"] for channel in spec["encoding"]["tooltip"]] == ["class"]  # there are no images
    charts.draw(spec, tmp_path / "embedding")


def test_no_mistakes_are_drawn_too(tmp_path):
    spec = pictures.mistakes_figure(np.zeros((0, 8, 8, 3)), [], [], [], [])
    assert spec["description"] == "No mistakes."
    charts.draw(spec, tmp_path / "mistakes")
    read_png(tmp_path / "mistakes.png")


def test_a_failed_drawing_leaves_the_old_figure(tmp_path):
    charts.draw(charts.confusion(np.eye(2), "ab"), tmp_path / "figure")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        charts.draw({"layer": [{"mark": "nonsense"}]}, tmp_path / "figure")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_of_figures_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "figures").symlink_to(tmp_path / "outside")
    for write in (charts.write, charts.draw):
        with pytest.raises(SettingError, match="figures is a link"):
            write({}, tmp_path / "figures/curve_loss")
    assert not list((tmp_path / "outside").iterdir())
