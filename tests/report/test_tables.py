"""Results as people read them."""

import numpy as np
from example_runs import EFFICIENCY

from simclrv2_tf.report import facts, format_table


def test_table_for_the_terminal():
    result = {
        "mode": "semi_supervised",
        "table": EFFICIENCY,
        "knn_top1": 0.9604,
        "linear_top1": None,
        "seconds": 4321.5,
    }
    assert format_table(result).splitlines() == [
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
    lines = [line.split("  ") for line in format_table(single).splitlines()]
    assert [(line[0].strip(), line[-1].strip()) for line in lines] == [
        ("mode", "pretrain"),
        ("steps", "62,500"),
        ("time", "1 min 15 s"),
        ("kNN top-1", "–"),  # noqa: RUF001
        ("eval top-1", "50.0 %"),
    ]
    assert format_table({}) == ""
    assert max(map(len, format_table({"corrupt_images": list(range(1000))}).splitlines())) < 230


def test_facts_leave_out_what_is_missing():
    config = {"dataset": "digits", "resolved": {"train_images": 1297, "revision": "", "versions": "Keras 3"}}
    assert facts(config) == {"data": "digits", "images": "1,297 to train on", "versions": "Keras 3"}
    assert facts({"resolved": {"train_images": "many"}}) == {}
