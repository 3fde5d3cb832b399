"""Training modes: pretrain, finetune, linear_eval, supervised, distill."""

import pathlib
import time

import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.description import describe_data, warn_about_classes
from simclrv2_tf.modes.measure import compute_features, compute_logits, knn_features, knn_subset, top_k
from simclrv2_tf.modes.quality import FeatureQuality
from simclrv2_tf.modes.resolve import Result, changed
from simclrv2_tf.modes.setup import build_run, load_callbacks, resolved_settings
from simclrv2_tf.report import format_accuracies, format_value, run_summary, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.report.pictures import Pictures, example_views, write_projector
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.loop import train as run_loop
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config


def train(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Trains one network: builds the run, trains it to its last step, evaluates it and writes its report.

    Returns:
        The content of ``result.json``.
    """
    run = build_run(config, strategy)
    evaluation = EVALUATIONS.get(config.mode, ClassifierEvaluation)(run, _build_pictures(run, strategy))
    callbacks = load_callbacks(config)
    model_dir = pathlib.Path(config.run_dir)
    run_dir = RunDirectory(writable_dir(model_dir, strategy))
    with run_dir.locked():
        resolved = resolved_settings(run, strategy)
        changed(config, model_dir, resolved)
        run_dir.write_config(config, resolved)
        warn_about_classes(config, run.data.source, run.test)
        summary = run_summary(vars(config) | {"resolved": resolved}) | describe_data(run.data.source, run.test)
        print("\n" + box(f"{config.mode}: {run_dir.model_dir}", summary), flush=True)
        started = time.perf_counter()
        evaluation.draw_inputs()
        step = run_loop(run, run_dir, evaluation.metrics, callbacks)
        result = {"mode": config.mode, "steps": step, "labels": _num_labels(config), **evaluation.result(run_dir)}
        result["seconds"] = round(time.perf_counter() - started, 1)
        result["corrupt_images"] = sorted(run.data.source.corrupt | (run.test.corrupt if run.test else set()))
        run_dir.write_result(result)
        if config.report:
            write_report(run_dir.model_dir)
        print(box(f"{config.mode}: done", _summarize(result, run_dir.model_dir)), flush=True)
    return result


class Evaluation:
    """Metrics and figures of a run.

    Args:
        run: the run.
        pictures: draws its figures; None for a run without a report.
    """

    def __init__(self, run: Run, pictures: Pictures | None):
        self.run, self.pictures = run, pictures

    def draw_inputs(self) -> None:
        """Draws the views that the run trains on."""
        if self.pictures is not None:
            self.pictures.draw_views(self.run.data)

    def metrics(self) -> dict[str, float]:
        """Computes the columns of ``metrics.csv`` that an interval ends with."""
        raise NotImplementedError

    def result(self, run_dir: RunDirectory) -> Result:
        """Computes the final numbers."""
        raise NotImplementedError


class FeatureEvaluation(Evaluation):
    """Evaluates pretraining: the classifier beside the encoder, kNN on the features, their quality without labels."""

    probe: FeatureQuality | None = None

    def metrics(self) -> dict[str, float]:
        run = self.run
        if self.pictures is not None and run.test is not None:
            self.pictures.draw_embedding(compute_features(run.method, run.config, self.pictures.sample))
        return self._online_top1() | self._quality()

    def result(self, run_dir: RunDirectory) -> Result:
        run, result = self.run, self._online_top1() | self._quality()
        if run.test is None or not run.data.source.class_names:
            return result
        train_images = knn_subset(run.data.source)
        train_features = knn_features(run.method, run.config, train_images)
        test_features = compute_features(run.method, run.config, run.test)
        result["knn_top1"] = metrics.knn_accuracy(*train_features, *test_features)
        if self.pictures is not None:
            self.pictures.draw_neighbours(train_images, train_features, test_features)
            write_projector(self.pictures, compute_features(run.method, run.config, self.pictures.sample))
            run_dir.write_images("views", np.concatenate(example_views(run.data)), run.plan.total_steps)
        return result

    def _quality(self) -> dict[str, float]:
        run = self.run
        if run.held_out is None:
            return {}
        if self.probe is None:
            self.probe = FeatureQuality(run.method, run.config, run.data, run.held_out)
        return self.probe.measure()

    def _online_top1(self) -> dict[str, float]:
        run = self.run
        if run.method.network.classifier is None or run.test is None:
            return {}
        return {"online_top1": top_k(*compute_logits(run.method, run.config, run.test))["top1"]}


class ClassifierEvaluation(Evaluation):
    """Evaluates training with labels or a teacher: top-1, and top-5 if there are more than five classes."""

    def metrics(self) -> dict[str, float]:
        return {f"eval_{name}": value for name, value in self._accuracies().items() if name == "top1"}

    def result(self, run_dir: RunDirectory) -> Result:
        prefix = "linear" if self.run.config.mode == "linear_eval" else self.run.config.mode
        return {f"{prefix}_{name}": value for name, value in self._accuracies().items()}

    def _accuracies(self) -> dict[str, float]:
        if self.run.test is None:
            return {}
        logits, labels = compute_logits(self.run.method, self.run.config, self.run.test)
        if self.pictures is not None:
            self.pictures.draw_classification(logits, labels)
        return top_k(logits, labels)


EVALUATIONS: dict[str, type[Evaluation]] = {"pretrain": FeatureEvaluation}


def _build_pictures(run: Run, strategy: tf.distribute.Strategy) -> Pictures | None:
    """Returns what draws the figures of a run; None without a report."""
    config = run.config
    if not config.report:
        return None
    return Pictures(writable_dir(pathlib.Path(config.run_dir), strategy), run.test, config.image_size)


def _summarize(result: Result, model_dir: pathlib.Path) -> dict[str, str]:
    """Returns the lines of the summary box at the end."""
    lines = format_accuracies(result) | {"time": format_value("seconds", result["seconds"])}
    if result["corrupt_images"]:
        lines["corrupt images"] = f"{len(result['corrupt_images']):,} skipped, listed in result.json"
    page = model_dir / "report.html"
    return lines | ({"report": str(page)} if page.is_file() else {})


def _num_labels(config: Config) -> str | int:
    """Returns how many labels a run had: a number per class, a percentage, or all."""
    if config.mode == "pretrain":
        return 0
    if config.labels_per_class:
        return config.labels_per_class
    return "all" if config.label_fraction == 1 else f"{100 * config.label_fraction:g} %"
