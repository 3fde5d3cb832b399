"""The mode that runs all three steps beside what they are to be compared with."""

import gc
from typing import Any

from simclrv2_tf.data.catalog import open_labelled
from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.modes import build
from simclrv2_tf.modes.resolve import Result, Strategy, cap_batch_size, finished_result, resolve_config
from simclrv2_tf.modes.setup import environment
from simclrv2_tf.modes.train import classify, pretrain
from simclrv2_tf.report import cell, format_table, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings import merge as precedence
from simclrv2_tf.settings.config import STAGES, Config
from simclrv2_tf.settings.recipes import RECIPES


def semi_supervised(explicit: dict[str, Any], strategy: Strategy) -> Result:
    """All three steps, and what they are to be compared with, each in a sub-directory of the model directory."""
    if explicit.get("recipe", "auto") == "auto" and explicit.get("dataset") in RECIPES:
        explicit = explicit | {"recipe": explicit["dataset"]}  # named: what it says of a stage wins over the parent's
    config = precedence.resolve(explicit)
    model_dir = build.model_dir(config)
    counts = _label_counts(explicit, config)
    _check_stages(explicit, counts)

    seconds = []

    def stage(name: str, number: str | int = "", **settings: Any) -> Result:
        folder = model_dir / (f"{name}_{number}" if number != "" else name)
        of_stage = explicit | {"model_dir": str(folder)} | settings
        function = pretrain if name == "pretrain" else classify
        gc.collect()  # the model and the images of the stage before, which the device need not hold beside this one's
        settled = cap_batch_size(resolve_config(of_stage, name), strategy)
        result = finished_result(settled) or function(settled, strategy)
        seconds.append(result["seconds"])
        return result

    pretrained = stage("pretrain", checkpoint="")
    start = {"checkpoint": str(model_dir / "pretrain")}
    linear = stage("linear_eval", labels_per_class=0, label_fraction=1.0, **start)
    table = []
    for number, labels in counts.items():
        row: Result = {"labels_per_class": number}
        row |= stage("supervised", number, checkpoint="", **labels)
        row |= stage("finetune", number, **start, **labels)
        row |= stage("distill", number, teacher=str(model_dir / f"finetune_{number}"), **start, **labels)
        kept = ("labels_per_class", "supervised_top1", "finetune_top1", "distill_top1")
        table.append({name: row[name] for name in kept})
    result = {
        "mode": "semi_supervised",
        "seed": config.seed,
        "table": table,
        "linear_top1": linear["linear_top1"],
        "knn_top1": pretrained.get("knn_top1"),
        "online_top1": pretrained.get("online_top1"),
        "seconds": round(sum(seconds), 1),
    }
    run_dir = RunDirectory(build.output_dir(model_dir, strategy))
    run_dir.write_config(config, environment())
    run_dir.write_result(result)
    found = {"time": cell("seconds", result["seconds"])}
    if config.report and is_chief(strategy):
        found["report"] = str(write_report(model_dir))
    print(f"\n{format_table(result)}\n\n{box('semi-supervised: done', found)}", flush=True)
    return result


def _check_stages(explicit: dict[str, Any], counts: dict[str | int, dict[str, Any]]) -> None:
    """Refuses a bad setting of a late stage, or labels that are not there, before the first stage starts."""
    for labels in counts.values():
        for name in STAGES:
            later = {} if name == "supervised" else {"checkpoint": "pretrain", "teacher": "finetune"}
            settled = precedence.resolve(explicit | labels | later, name)
            if name == "supervised":
                open_labelled(settled)


def _label_counts(explicit: dict[str, Any], config: Config) -> dict[str | int, dict[str, Any]]:
    """The rows of the table: what is asked for, or the recipe's numbers, or all labels."""
    if config.labels_per_class:
        return {config.labels_per_class: {"labels_per_class": config.labels_per_class}}
    if config.label_fraction < 1:
        return {f"{100 * config.label_fraction:g}%": {"label_fraction": config.label_fraction}}
    recipe = precedence.find(explicit)
    counts = recipe.label_counts if recipe is not None else ()
    return {n: {"labels_per_class": n} for n in counts} or {"all": {}}
