"""Runs all stages of semi-supervised learning, and the baselines for comparison."""

import gc
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from simclrv2_tf.distributed.agreement import agreement
from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.files import refuse_link
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, changed
from simclrv2_tf.modes.setup import environment, open_data
from simclrv2_tf.modes.train import train
from simclrv2_tf.report import draw_figures, format_table, format_value, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.report.verdicts import verdicts
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.merge import SemiSupervisedConfig, stage_name


def semi_supervised(config: SemiSupervisedConfig, strategy: Strategy) -> Result:
    """Pretrains, then evaluates, fine-tunes and distils, each in a sub-directory of the model directory.

    Raises:
        SettingError: before the first stage starts, if there are fewer labels than a stage needs.
    """
    with agreement(strategy):
        stages = {name: cap_batch_size(stage, strategy) for name, stage in config.stages.items()}
    results = {name: _run_stage(stage, stages["pretrain"], strategy) for name, stage in stages.items()}
    result = summarize(config, results)
    model_dir = pathlib.Path(config.run_dir)
    run_dir = RunDirectory(writable_dir(model_dir, strategy))
    run_dir.write_config(config, environment())
    run_dir.write_result(result)
    lines = {"time": format_value("seconds", result["seconds"])}
    if config.report and is_chief(strategy):
        lines["report"] = str(write_report(model_dir))
        draw_figures(model_dir)
    print(f"\n{format_table(result)}\n\n{box('semi-supervised: done', lines)}", flush=True)
    return result


def summarize(config: SemiSupervisedConfig, results: Mapping[str, Result]) -> Result:
    """Returns the content of ``result.json`` from the results of the stages.

    With ``--seeds`` the table has the means over the seeds, ``runs`` the accuracies of each, and ``verdicts`` the
    significance of the differences.
    """
    runs = [_accuracies(results, row, draw) for row in config.rows for draw in config.draws or (None,)]
    result = {
        "mode": "semi_supervised",
        "seed": config.seed,
        "table": [_mean([run for run in runs if run["labels_per_class"] == row]) for row in config.rows],
        "linear_top1": results["linear_eval"].get("linear_top1"),
        "knn_top1": results["pretrain"].get("knn_top1"),
        "online_top1": results["pretrain"].get("online_top1"),
        "seconds": round(sum(stage_result["seconds"] for stage_result in results.values()), 1),
    }
    return result | ({"runs": runs, "verdicts": verdicts(runs)} if config.draws else {})


def _accuracies(results: Mapping[str, Result], row: int | str, draw: int | None) -> Result:
    """Returns the accuracies of the stages for one draw of the labels."""
    accuracies = {
        f"{mode}_top1": results[stage_name(mode, row, draw)].get(f"{mode}_top1")
        for mode in ("supervised", "finetune", "distill")
    }
    if draw is None:
        return {"labels_per_class": row, **accuracies}
    frozen = results[stage_name("linear_eval", row, draw)].get("linear_top1")
    return {"labels_per_class": row, "seed": draw, "frozen_top1": frozen, **accuracies}


def _mean(runs: Sequence[Result]) -> Result:
    """Returns the mean accuracies of one number of labels."""
    row: Result = {"labels_per_class": runs[0]["labels_per_class"]}
    for name in (name for name in runs[0] if name.endswith("_top1")):
        values = [run[name] for run in runs if run[name] is not None]
        row[name] = statistics.fmean(values) if values else None
    return row


def _run_stage(config: Config, pretraining: Config, strategy: Strategy) -> Result:
    """Runs a stage, or returns its result if it is already complete.

    Raises:
        SettingError: if the images are not those that pretraining began with.
    """
    refuse_link(pathlib.Path(config.run_dir))
    gc.collect()  # frees the model and the images of the previous stage
    if config is not pretraining:
        with agreement(strategy):
            changed(pretraining, pathlib.Path(pretraining.run_dir), open_data(pretraining).fingerprints)
    return train(config, strategy)
