"""Tables of predictions: all formats hold the same rows; chunks give the predictions of the whole."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import saved_runs

from simclrv2_tf import load_run
from simclrv2_tf.data.unlabelled import open_images
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs import predictions
from simclrv2_tf.runs.predictions import Predictions, predict_images, write_csv, write_jsonl, write_parquet
from simclrv2_tf.settings.config import Config

NAMES = ("wren", 'Straße, "x"', "crow")
TABLE = Predictions(
    ("a, b.png", "broken.png", "\udcff.png"),
    NAMES,
    np.array([[1, 0], [2, 0], [0, 1]], np.int32),
    np.array([[0.75, 0.125], [np.nan, np.nan], [0.1234567, 0.1]], np.float32),
)
ROWS = [
    {"path": "a, b.png", "class": NAMES[1], "probability": 0.75, "class_2": "wren", "probability_2": 0.125},
    {"path": "broken.png", "class": None, "probability": None, "class_2": None, "probability_2": None},
    {"path": "\\xff.png", "class": "wren", "probability": 0.123457, "class_2": NAMES[1], "probability_2": 0.1},
]


def test_csv(tmp_path):
    write_csv(TABLE, tmp_path / "x.csv")
    with (tmp_path / "x.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: "" if value is None else str(value) for name, value in row.items()} for row in ROWS]


def test_jsonl(tmp_path):
    write_jsonl(TABLE, tmp_path / "x.jsonl")
    lines = (tmp_path / "x.jsonl").read_text(encoding="utf-8").splitlines()
    assert list(map(json.loads, lines)) == ROWS and "Straße" in lines[0]


def test_parquet(tmp_path):
    write_parquet(TABLE, tmp_path / "x.parquet")
    rows = pq.read_table(tmp_path / "x.parquet").to_pylist()
    for row, expected in zip(rows, ROWS, strict=True):
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            assert row[name] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


def test_corrupt_files():
    assert TABLE.corrupt == ["broken.png"] and TABLE.is_read.tolist() == [True, False, True]


@pytest.mark.parametrize("chunk", [2, pytest.param(100, marks=pytest.mark.slow)])
def test_predictions_are_those_of_the_model_most_probable_first(chunk, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predictions, "CHUNK", chunk)
    saved_runs.save_run(tmp_path / "run", NAMES)
    files = saved_runs.save_images(tmp_path / "photos", [f"{i}.png" for i in range(5)])
    photos = str(tmp_path / "photos")
    files[3].write_bytes(b"not an image")
    model, source = load_run(tmp_path / "run"), open_images(Config(images=photos, max_corrupt_share=0.2))
    table = predict_images(model, source, 2, batch_size=4)
    names, probabilities = model.predict_images(files)
    assert [row["class"] or "" for row in table.rows()] == names and table.corrupt == [str(files[3])]
    expected = -np.sort(-probabilities, axis=1)[:, :2]
    np.testing.assert_allclose(table.probabilities, expected, rtol=1e-4)
    assert source.corrupt == {str(files[3])}
    assert ("4 of 5 images" in capsys.readouterr().out) is (chunk == 2)
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0.1: 1 of 5 images of .*photos are corrupt"):
        predict_images(model, open_images(Config(images=photos, max_corrupt_share=0.1)), 2, batch_size=4)
