"""Runs all stages of semi-supervised learning, next to the baselines that they are compared with."""

import gc
import pathlib

from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, finished_result
from simclrv2_tf.modes.setup import environment
from simclrv2_tf.modes.train import train
from simclrv2_tf.report import format_table, format_value, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.merge import SemiSupervisedConfig


def semi_supervised(config: SemiSupervisedConfig, strategy: Strategy) -> Result:
    """Pretrains, then evaluates, fine-tunes and distils, each in a sub-directory of the model directory.

    Raises:
        SettingError: before the first stage starts, if there are fewer labels than a stage needs.
    """
    stages = {name: cap_batch_size(stage, strategy) for name, stage in config.stages.items()}
    results = {name: _run_stage(stage, strategy) for name, stage in stages.items()}
    metrics = {mode: f"{mode}_top1" for mode in ("supervised", "finetune", "distill")}
    result = {
        "mode": "semi_supervised",
        "seed": config.seed,
        "table": [
            {"labels_per_class": row} | {name: results[f"{mode}_{row}"][name] for mode, name in metrics.items()}
            for row in config.rows
        ],
        "linear_top1": results["linear_eval"]["linear_top1"],
        "knn_top1": results["pretrain"].get("knn_top1"),
        "online_top1": results["pretrain"].get("online_top1"),
        "seconds": round(sum(stage_result["seconds"] for stage_result in results.values()), 1),
    }
    model_dir = pathlib.Path(config.run_dir)
    run_dir = RunDirectory(writable_dir(model_dir, strategy))
    run_dir.write_config(config, environment())
    run_dir.write_result(result)
    lines = {"time": format_value("seconds", result["seconds"])}
    if config.report and is_chief(strategy):
        lines["report"] = str(write_report(model_dir))
    print(f"\n{format_table(result)}\n\n{box('semi-supervised: done', lines)}", flush=True)
    return result


def _run_stage(config: Config, strategy: Strategy) -> Result:
    """Runs a stage, or returns its result if it is already complete."""
    gc.collect()  # frees the model and the images of the stage before
    return finished_result(config) or train(config, strategy)
