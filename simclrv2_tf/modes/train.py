"""The modes that train a network: each of the three steps, and their neighbours."""

import importlib.util
import pathlib
import time
from collections.abc import Callable

import numpy as np

from simclrv2_tf import metrics as evaluation
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes import build
from simclrv2_tf.modes.costs import format_memory_estimate
from simclrv2_tf.modes.measure import (
    compute_features,
    compute_logits,
    knn_features,
    knn_subset,
    top_k,
)
from simclrv2_tf.modes.resolve import Result, Strategy, changed
from simclrv2_tf.modes.setup import Run, build_run, resolved_settings
from simclrv2_tf.report import cell, facts, scores, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.report.pictures import Pictures, example_views, write_projector
from simclrv2_tf.runs.loop import train
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

PREFIX = {"finetune": "finetune", "linear_eval": "linear", "supervised": "supervised", "distill": "distill"}


def pretrain(config: Config, strategy: Strategy) -> Result:
    """Step 1: contrastive pretraining without labels (labels only train the classifier beside it)."""
    run = build_run(config, strategy)
    model, test, source = run.model, run.test, run.data.source
    pictures = _pictures(config, strategy, test)

    def online_top1() -> dict[str, float]:
        if model.network.classifier is None or test is None:
            return {}
        return {"online_top1": top_k(*compute_logits(model, config, test))["top1"]}

    def evaluate() -> dict[str, float]:
        if pictures is not None and test is not None:
            pictures.draw_embedding(compute_features(model, config, pictures.sample))
        return online_top1()

    def results(run_dir: RunDirectory) -> Result:
        found = online_top1()
        if test is not None and source.class_names:
            neighbours = knn_subset(source)
            features = [knn_features(model, config, neighbours), compute_features(model, config, test)]
            found["knn_top1"] = evaluation.knn_accuracy(*features[0], *features[1])
            if pictures is not None:
                pictures.draw_neighbours(neighbours, *features)
                write_projector(pictures, compute_features(model, config, pictures.sample))
                run_dir.write_images("views", np.concatenate(example_views(run.data)), run.plan.total_steps)
        return found

    return _train_and_report(config, strategy, run, evaluate, results, pictures)


def classify(config: Config, strategy: Strategy) -> Result:
    """Fine-tuning and distillation; and their neighbours, linear evaluation and training from scratch."""
    run, prefix = build_run(config, strategy), PREFIX[config.mode]
    model, test = run.model, run.test
    pictures = _pictures(config, strategy, test)

    def accuracies() -> dict[str, float]:
        if test is None:
            return {}
        logits, labels = compute_logits(model, config, test)
        if pictures is not None:
            pictures.draw_classification(logits, labels)
        return top_k(logits, labels)

    def evaluate() -> dict[str, float]:
        return {f"eval_{name}": value for name, value in accuracies().items() if name == "top1"}

    def results(run_dir: RunDirectory) -> Result:
        return {f"{prefix}_{name}": value for name, value in accuracies().items()}

    return _train_and_report(config, strategy, run, evaluate, results, pictures)


def _pictures(config: Config, strategy: Strategy, test: Source | None) -> Pictures | None:
    """The figures of a run that is to have some; SettingError if they cannot be drawn."""
    if not config.report:
        return None
    if config.embedding == "umap" and importlib.util.find_spec("umap") is None:
        raise SettingError("--embedding=umap: needs pip install umap-learn")
    return Pictures(build.output_dir(build.model_dir(config), strategy), test, config.image_size, config.embedding)


def _train_and_report(
    config: Config,
    strategy: Strategy,
    run: Run,
    evaluate: Callable[[], dict[str, float]],
    results: Callable[[RunDirectory], Result],
    pictures: Pictures | None,
) -> Result:
    """The common course of every training mode."""
    model, data, plan = run.model, run.data, run.plan
    resolved = resolved_settings(config, strategy, run)
    model_dir = build.model_dir(config)
    run_dir = RunDirectory(build.output_dir(model_dir, strategy))

    def refresh() -> None:
        if pictures is not None:
            write_report(run_dir.model_dir)

    with run_dir.locked():
        changed(config, model_dir, resolved)
        run_dir.write_config(config, resolved)
        memory = {
            "memory": format_memory_estimate(model.network, config, strategy.num_replicas_in_sync, data.resident_bytes)
        }
        found = facts(vars(config) | {"resolved": resolved}) | memory
        print("\n" + box(f"{config.mode}: {run_dir.model_dir}", found), flush=True)
        started = time.perf_counter()
        if pictures is not None:
            pictures.draw_views(data)
        train(model, data, plan, run_dir, config, evaluate, refresh)
        result = {"mode": config.mode, "steps": plan.total_steps, "labels": _labels_of(config), **results(run_dir)}
        result["seconds"] = round(time.perf_counter() - started, 1)
        encoded = [source for source in (data.source, run.test) if source is not None and source.images is None]
        if encoded:
            result["corrupt_images"] = sorted(set().union(*(source.corrupt for source in encoded)))
        run_dir.write_result(result)
        refresh()
        print(box(f"{config.mode}: done", _told(result, run_dir.model_dir)), flush=True)
    return result


def _told(result: Result, model_dir: pathlib.Path) -> dict[str, str]:
    """What the end of a run says."""
    told = scores(result) | {"time": cell("seconds", result["seconds"])}
    if result.get("corrupt_images"):
        told["corrupt images"] = f"{len(result['corrupt_images']):,} skipped, named in result.json"
    page = model_dir / "report.html"
    return told | ({"report": str(page)} if page.is_file() else {})


def _labels_of(config: Config) -> str | int:
    """How many labels a run had: a number a class, a percentage, or all."""
    if config.mode == "pretrain":
        return 0
    if config.labels_per_class:
        return config.labels_per_class
    return "all" if config.label_fraction == 1 else f"{100 * config.label_fraction:g} %"
