"""Classes in the summary of predictions: the most frequent first, with their mean probability; corrupt images."""

import numpy as np

from simclrv2_tf.data.sources import FileSource
from simclrv2_tf.modes import predict
from simclrv2_tf.runs.predictions import Predictions
from simclrv2_tf.settings.config import Config

PATHS = ("a.png", "b.png", "c.png", "broken.png", "d.png")
TABLE = Predictions(
    PATHS,
    ("crow", "robin", "wren"),
    np.array([[2, 0], [0, 1], [2, 1], [1, 0], [2, 0]], np.int32),
    np.array([[0.5, 0.25], [0.75, 0.25], [0.75, 0.125], [np.nan, np.nan], [1.0, 0.0]], np.float32),
)


def test_classes_are_counted():
    assert predict._counts(TABLE) == [("wren", 3, 0.75), ("crow", 1, 0.75)]


def test_the_summary_names_the_most_frequent_classes(monkeypatch):
    config, source = Config(images="photos", checkpoint="run"), FileSource("photos", PATHS, None, ())
    summary = predict._summarize(config, source, TABLE)
    assert summary == {
        "run": "run",
        "images": "5 of photos",
        "classes": "wren 3, crow 1",
        "corrupt images": "1, without a class in the table: broken.png",
    }
    monkeypatch.setattr(predict, "SHOWN_CLASSES", 1)
    assert predict._summarize(config, source, TABLE)["classes"] == "wren 3, 1 more classes"
