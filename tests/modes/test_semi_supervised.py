"""The result of a semi-supervised run, computed from the results of its stages."""

from simclrv2_tf.modes.semi_supervised import summarize
from simclrv2_tf.report import format_table
from simclrv2_tf.settings.merge import SemiSupervisedConfig


def stage_results(names, **top1):
    """Returns results of stages: ``finetune_5_seed0=0.6`` becomes the result of fine-tuning on 5 labels."""
    results = {name: {"seconds": 2.0} for name in names}
    for name, value in top1.items():
        mode = name.partition("_")[0] if not name.startswith("linear") else "linear"
        results[name] = {f"{mode}_top1": value, "seconds": 10.0}
    return results


def test_one_draw_gives_its_own_accuracies():
    config = SemiSupervisedConfig(mode="semi_supervised", rows=(5,), seed=3)
    results = stage_results(["pretrain"], linear_eval=0.8, supervised_5=0.5, finetune_5=0.6, distill_5=0.7)
    results["pretrain"]["knn_top1"] = 0.75
    assert summarize(config, results) == {
        "mode": "semi_supervised", "seed": 3, "linear_top1": 0.8, "knn_top1": 0.75, "online_top1": None,
        "seconds": 42.0,
        "table": [{"labels_per_class": 5, "supervised_top1": 0.5, "finetune_top1": 0.6, "distill_top1": 0.7}],
    }  # fmt: skip


def test_several_draws_give_means_and_verdicts():
    config = SemiSupervisedConfig(mode="semi_supervised", rows=(5, "all"), draws=(0, 2))
    top1 = {"linear_eval": 0.9}
    for row, shift in (("5", 0.0), ("all", 0.2)):
        for draw, value in ((0, 0.50), (2, 0.52)):
            end = f"_{row}_seed{draw}"
            top1 |= {f"supervised{end}": value + shift, f"finetune{end}": value + shift + 0.1}
            top1 |= {f"distill{end}": value + shift + 0.1, f"linear_eval{end}": value + shift - 0.1}
    result = summarize(config, stage_results(["pretrain"], **top1))
    (five, every) = result["table"]
    assert {name: round(value, 6) for name, value in five.items()} == {
        "labels_per_class": 5, "frozen_top1": 0.41, "supervised_top1": 0.51, "finetune_top1": 0.61, "distill_top1": 0.61
    }  # fmt: skip
    assert every["labels_per_class"] == "all" and len(result["runs"]) == 4
    assert result["verdicts"][0] == (
        "Fine-tuning beats training from scratch by 10.0 ± 0.0 points with 5 labels per class."
    )
    assert result["verdicts"][-1] == "All labels bring 20.0 ± 0.0 points over 5."
    text = format_table(result)
    assert "linear classifier" in text and result["verdicts"][0] in text and "runs" not in text
