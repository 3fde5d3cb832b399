"""``--mode=select``: the images to label next, from files with and without labels and from arrays."""

import csv

import numpy as np
import pytest
import saved_runs
import tensorflow as tf
from PIL import Image

from simclrv2_tf import load_run, modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.selection import select_k_center

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")


@pytest.fixture(autouse=True)
def without_graphs():
    """Tracing takes longer than these few images."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("select")
    labelled = [f"train/{name}/{i}.png" for name in ("jay", "owl") for i in range(2)]
    paths = saved_runs.save_images(place / "birds", labelled + [f"unlabelled/{i}.png" for i in range(7)])
    saved_runs.save_run(place / "run", dataset=f"folder:{place}/birds", mode="pretrain")
    return place, paths


def read_table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def settings(place, **changes):
    return {"mode": "select", "checkpoint": str(place / "run"), "select_count": 3} | changes


def test_images_without_a_label_are_selected(run, tmp_path, capsys):
    place, paths = run
    result = modes.run(settings(place, select_by="k_center", model_dir=str(tmp_path)))
    model = load_run(place / "run")
    features = model.network(saved_runs.pixels_of(paths))["final_avg_pool"].numpy()
    expected = [str(paths[i]) for i in select_k_center(features, np.arange(11) < 4, 3)]
    assert result["images"] == expected and all("unlabelled" in path for path in expected)
    assert read_table(tmp_path / "selection.csv") == [
        {"order": str(i), "image": path} for i, path in enumerate(expected, start=1)
    ]
    page = (tmp_path / "selection.html").read_text()
    assert page.count("<img ") == 3 and page.index(expected[0]) < page.index(expected[2])
    assert "7 candidates" in capsys.readouterr().out


def test_images_of_another_folder(run, tmp_path):
    place, _ = run
    others = saved_runs.save_images(tmp_path / "others", [f"{i}.png" for i in range(5)], seed=1)
    (tmp_path / "others/4.png").write_bytes(b"damaged")
    flags = {"images": str(tmp_path / "others"), "model_dir": str(tmp_path)}
    result = modes.run(settings(place, select_count=4, **flags))
    assert sorted(result["images"]) == sorted(map(str, others[:4]))


def test_if_all_images_have_labels_this_is_reported(run, tmp_path, capsys):
    place, _ = run
    archive = tmp_path / "x.npz"
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
    np.savez(archive, x_train=pixels, y_train=np.arange(6) % 2)
    result = modes.run(settings(place, dataset=f"npz:{archive}", model_dir=str(tmp_path)))
    assert len(set(result["images"])) == 3 and set(result["images"]) <= set("012345")
    assert "all images have labels; selected as if none had" in capsys.readouterr().out


def test_more_images_than_there_are_is_an_error(run, tmp_path):
    place, _ = run
    with pytest.raises(SettingError, match=r"--select_count=8: .* has only 7 candidates"):
        modes.run(settings(place, select_count=8, model_dir=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_pictures_are_those_selected(tmp_path):
    folder = tmp_path / "gray"
    folder.mkdir()
    for i, level in enumerate((10, 250)):
        Image.new("RGB", (8, 8), (level, level, level)).save(folder / f"{i}.png")
    from simclrv2_tf.modes import select

    source = select._open_candidates(select.Config(mode="select", checkpoint="x", images=str(folder)))
    cards = select._cards(source.subset(np.array([1, 0])), ["a", "b"])
    assert [round(float(pixels.mean()) * 255) for _, pixels, _ in cards] == [250, 10]
