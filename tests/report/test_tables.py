"""Text form of results and summaries."""

import numpy as np
from example_runs import EFFICIENCY

from simclrv2_tf.report import format_table, run_summary


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
        "5                      67.3%       90.4%      91.0%",
        "20                     87.3%       93.1%          –",  # noqa: RUF001
        "all                    98.4%       98.6%          –",  # noqa: RUF001
        "",
        "kNN top-1                96.0%",
        "linear evaluation top-1      –",  # noqa: RUF001
    ]
    single = {"mode": "pretrain", "steps": 62500, "seconds": 75, "knn_top1": float("nan"), "eval_top1": np.float32(0.5)}
    single |= {"labels": 1250, "corrupt_images": []}
    lines = [line.split("  ") for line in format_table(single).splitlines()]
    assert [(line[0].strip(), line[-1].strip()) for line in lines] == [
        ("kNN top-1", "–"),  # noqa: RUF001
        ("eval top-1", "50.0%"),
        ("labels per class", "1,250"),
    ]
    assert format_table({}) == ""
    assert format_table({"corrupt_images": ["a.jpg"] * 1000}) == "corrupt images  1,000"
    assert max(map(len, format_table({"other": list(range(1000))}).splitlines())) < 230


def test_the_summary_skips_missing_settings():
    config = {"dataset": "digits", "resolved": {"train_images": 1297, "revision": "", "versions": "Keras 3"}}
    assert run_summary(config) == {"data": "digits", "images": "1,297 to train on", "versions": "Keras 3"}
    assert run_summary({"resolved": {"train_images": "many"}}) == {} == run_summary({"resolved": "damaged"})


def test_the_summary_describes_any_encoder_and_the_recipe():
    resolved = {"parameters": 7510, "trained_parameters": 7000}
    config = {"recipe": "auto", "resnet_depth": 18, "width_multiplier": 0.25, "image_size": 16, "resolved": resolved}
    network = "ResNet-18 x0.25, 16 px, 7,510 parameters, 7,000 trained"
    assert run_summary(config) == {"network": network}  # "auto" names no recipe
    resolved |= {"encoder_description": "ConvNet {4}", "recipe": "digits: the data set of that name has one"}
    network = "ConvNet {4}, 16 px, 7,510 parameters, 7,000 trained"
    assert run_summary(config) == {"recipe": resolved["recipe"], "network": network}
    del config["resnet_depth"], config["width_multiplier"]
    assert run_summary(config)["network"] == network


def test_a_damaged_table_is_skipped():
    for table in ("text", 5, {"a": 1}, ["text", None]):
        assert format_table({"table": table, "labels": 3}) == "labels per class      3"
