"""``--mode=predict``: a table and a page about unlabelled images; errors if they cannot be predicted."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import saved_runs
import tensorflow as tf
from PIL import Image

from simclrv2_tf import cli, load_run, modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes import predict
from simclrv2_tf.modes.resolve import resolve_config

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")

NAMES = ("wren", "robin", "crow", "<b>owl", "jay", "rook")


@pytest.fixture(autouse=True)
def without_graphs(request):
    """Tracing takes longer than these few images."""
    tf.config.run_functions_eagerly("replicas" not in request.fixturenames)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict")
    saved_runs.save_run(place / "run", NAMES)
    saved_runs.save_images(place / "photos", [f"deep/{i}.png" for i in range(3)] + [f"{i}.png" for i in range(6)], 12)
    return place


def settings(run, **changes):
    return {"mode": "predict", "checkpoint": str(run / "run"), "images": str(run / "photos")} | changes


def test_every_image_is_in_the_table_and_the_least_sure_on_the_page(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "SHOWN_IMAGES", 4)
    result = modes.run(settings(run, model_dir=str(tmp_path / "out")))
    with (tmp_path / "out/predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "probability"] + [
        f"{n}_{k}" for k in range(2, 6) for n in ("class", "probability")
    ]
    files = sorted((run / "photos").rglob("*.png"), key=lambda path: path.parts)
    assert [row["path"] for row in rows] == list(map(str, files)) and result["images"] == 9
    names, probabilities = load_run(run / "run").predict_images(files)
    assert [row["class"] for row in rows] == names
    np.testing.assert_allclose([float(row["probability"]) for row in rows], probabilities.max(axis=1), rtol=1e-4)
    page = (tmp_path / "out/predictions.html").read_text()
    least_sure = np.argsort(probabilities.max(axis=1))[:4]
    positions = [page.index(f">{files[i]}<") for i in least_sure]
    assert positions == sorted(positions) and page.count("<img ") == 4 and "<b>" not in page
    out = capsys.readouterr().out
    assert "9 of " in out and str(tmp_path / "out/predictions.html") in out and result["corrupt_images"] == []


@pytest.mark.parametrize("kind", ["parquet", pytest.param("jsonl", marks=pytest.mark.slow)])
def test_other_formats_in_the_directory_of_the_run(kind, run):
    result = modes.run(settings(run, format=kind, images=f"{run}/photos/0.png,{run}/photos/deep/*"))
    path = run / f"run/predictions.{kind}"
    assert result["path"] == str(path) and (run / "run/predictions.html").is_file()
    rows = pq.read_table(path).to_pylist() if kind == "parquet" else list(map(json.loads, path.open(encoding="utf-8")))
    assert [row["path"].removeprefix(f"{run}/photos/") for row in rows] == [
        "0.png",
        "deep/0.png",
        "deep/1.png",
        "deep/2.png",
    ]
    assert {row["class"] for row in rows} <= set(NAMES)


@pytest.fixture
def corrupt(run, tmp_path):
    """Returns the command line for a folder of three images and two corrupt files, and the paths of the latter."""
    saved_runs.save_images(tmp_path / "in", [f"{i}.png" for i in range(3)])
    files = [tmp_path / "in/broken.jpg", tmp_path / "in/empty.png"]
    for file, content in zip(files, (b"not an image", b""), strict=True):
        file.write_bytes(content)
    flags = settings(run, images=f"{tmp_path}/in", model_dir=f"{tmp_path}/out")
    return ["run.py", *(f"--{name}={value}" for name, value in flags.items())], list(map(str, files))


def error_of(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(command)
    assert exit.value.code == 2 and not (tmp_path / "out").exists()
    return capsys.readouterr().err


def test_corrupt_files_are_named_and_the_others_predicted(corrupt, tmp_path, capsys, caplog):
    command, files = corrupt
    cli.main(command)
    line = f"corrupt images  2, without a class in the table: {', '.join(files)}\n"
    assert line in capsys.readouterr().out
    table = (tmp_path / "out/predictions.csv").read_text()
    page = (tmp_path / "out/predictions.html").read_text()
    assert len(table.splitlines()) == 1 + 5 and page.count("<img ") == 3
    for file in files:
        assert f"corrupt image {file} " in caplog.text and f"\n{file},,,," in table and f"<li>{file}</li>" in page


def test_a_bound_on_corrupt_files_holds_if_it_is_given(corrupt, tmp_path, capsys):
    command, _ = corrupt
    error = error_of([*command, "--max_corrupt_share=0.3"], tmp_path, capsys)
    assert "--max_corrupt_share=0.3: 2 of 5 images of" in error


def test_without_a_readable_image_there_is_no_prediction(corrupt, tmp_path, capsys):
    command, files = corrupt
    images = ",".join(files)
    error = error_of([*command, f"--images={images}"], tmp_path, capsys)
    expected = f"--images={images}: none of the 2 files can be read as an image, for example {files[0]}; give images of"
    assert expected in error


def test_several_replicas_predict_the_same(run, tmp_path, replicas):
    """Nine images, of which one is corrupt, in batches of four on two replicas."""
    saved_runs.save_images(tmp_path / "in", [f"{i}.png" for i in range(9)])
    (tmp_path / "in/4.png").write_bytes(b"not an image")
    tables = []
    for strategy in (replicas(2), replicas(1)):
        config = resolve_config(settings(run, images=f"{tmp_path}/in", model_dir=str(tmp_path), max_corrupt_share=0.5))
        predict.predict(config, strategy)
        with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
            tables.append(list(csv.DictReader(file)))
    for row, expected in zip(*tables, strict=True):
        assert (row["path"], row["class"]) == (expected["path"], expected["class"])
        assert row["probability"] == "" or float(row["probability"]) == pytest.approx(
            float(expected["probability"]), rel=1e-4
        )
    assert tables[0][4]["class"] == ""


def test_images_are_read_with_the_bits_of_the_run(run, tmp_path):
    """12 of 16 bits, as written by microscopes and X-ray detectors, beside the same image in 8 bits."""
    saved_runs.save_run(tmp_path / "run", NAMES, image_bits=12)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8))
    (tmp_path / "in").mkdir()
    Image.fromarray(np.rint(pixels * 4095 / 255).astype(np.uint16)).save(tmp_path / "in/12.png")
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "in/8.png")
    modes.run(settings(run, checkpoint=f"{tmp_path}/run", images=f"{tmp_path}/in", model_dir=str(tmp_path)))
    with (tmp_path / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["class"] == rows[1]["class"]
    assert float(rows[0]["probability"]) == pytest.approx(float(rows[1]["probability"]), rel=1e-3)
    _, probabilities = load_run(tmp_path / "run").predict_images([tmp_path / "in/12.png"])
    assert probabilities.max() == pytest.approx(float(rows[0]["probability"]), rel=1e-3)


def test_what_cannot_be_predicted_is_refused_and_nothing_is_written(run, tmp_path):
    saved_runs.save_run(tmp_path / "pretrained", (), mode="pretrain")
    out = {"model_dir": str(tmp_path / "out")}
    with pytest.raises(
        SettingError, match=r"^--checkpoint=.*pretrained: has no classifier; train one first, with --mode=f"
    ):
        modes.run(settings(run, checkpoint=str(tmp_path / "pretrained")) | out)
    with pytest.raises(SettingError, match=r"^--images=nowhere: there is no such file or folder"):
        modes.run(settings(run, images="nowhere") | out)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_old_table(run, tmp_path, file_size_limit):
    modes.run(settings(run, model_dir=str(tmp_path)))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with file_size_limit(100), pytest.raises(SettingError, match=r"^--model_dir=.* cannot be written"):
        modes.run(settings(run, images=f"{run}/photos/deep", model_dir=str(tmp_path)))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
