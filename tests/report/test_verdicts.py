"""Paired differences and their verdicts, with values computed by hand."""

import math

import pytest

from simclrv2_tf.report.verdicts import paired_difference, verdicts


def rows(labels, supervised, finetune, **others):
    return [
        {"labels_per_class": labels, "seed": seed, "supervised_top1": a, "finetune_top1": b}
        | {name: values[seed] for name, values in others.items()}
        for seed, (a, b) in enumerate(zip(supervised, finetune, strict=True))
    ]


def test_the_interval_is_students():
    difference = paired_difference([0.50, 0.54, 0.58], [0.40, 0.42, 0.44])  # 10, 12 and 14 points
    assert difference.mean == pytest.approx(12) and difference.pairs == 3
    assert difference.half_width == pytest.approx(4.3027 * 2 / math.sqrt(3), rel=1e-4)  # t of 2 degrees of freedom
    assert difference.is_clear and str(difference) == "12.0 ± 5.0 points"


def test_one_pair_says_nothing():
    difference = paired_difference([0.9], [0.1])
    assert difference.half_width == math.inf and not difference.is_clear
    assert verdicts(rows(5, [0.1], [0.9])) == []


def test_verdicts_name_what_pays():
    runs = rows(1, [0.40, 0.42, 0.44], [0.50, 0.54, 0.58], distill_top1=[0.51, 0.54, 0.57])
    runs += rows(20, [0.90, 0.91, 0.92], [0.85, 0.86, 0.87], distill_top1=[0.80, 0.83, 0.86])
    assert verdicts(runs) == [
        "Fine-tuning beats training from scratch by 12.0 ± 5.0 points with 1 label per class.",
        "The distilled network and its teacher do not differ clearly (+0.0 ± 2.5 points) with 1 label per class.",
        "Fine-tuning loses to training from scratch by 5.0 ± 0.0 points with 20 labels per class.",
        "The distilled network and its teacher do not differ clearly (-3.0 ± 5.0 points) with 20 labels per class.",
        "19 more labels per class bring 29.0 ± 0.0 points over 1.",
    ]


def test_frozen_features_are_a_baseline_and_gains_are_paired_by_seed():
    runs = rows(5, [0.5, 0.6], [0.6, 0.7], frozen_top1=[0.40, 0.51])
    runs += rows("all", [0.9, 0.8], [0.7, 0.6])  # seed 0 gains 10 points, seed 1 loses 10
    assert verdicts(runs)[1] == (
        "Fine-tuning beats a linear classifier on frozen features by 19.5 ± 6.4 points with 5 labels per class."
    )
    assert verdicts(runs)[-1] == "All labels bring no clear gain over 5."
