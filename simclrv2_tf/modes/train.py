"""Training modes: pretrain, finetune, linear_eval, supervised, distill."""

import functools
import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.description import describe_data, warn_about_classes, warn_about_shared_images
from simclrv2_tf.distributed.agreement import agreement
from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import warn_instead
from simclrv2_tf.modes.measure import EvaluatedSplit, compute_features, knn_features, knn_subset, top_k
from simclrv2_tf.modes.quality import FeatureQuality
from simclrv2_tf.modes.resolve import Result, changed, describe_progress, finished_result
from simclrv2_tf.modes.setup import build_run, load_callbacks, open_data, resolved_settings
from simclrv2_tf.report import draw_figures, format_accuracies, format_value, run_summary, write_report
from simclrv2_tf.report.console import box
from simclrv2_tf.report.pictures import Pictures, example_views, write_projector
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.loop import train as run_loop
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.runs.run_log import run_log
from simclrv2_tf.runs.trackers import Trackers
from simclrv2_tf.settings.config import Config


def train(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Trains one network: builds the run, trains it to its last step, evaluates it and writes its report.

    A run that is already complete is neither built nor trained.

    Returns:
        The content of ``result.json``.
    """
    with agreement(strategy) as record:
        data = open_data(config)
        record |= data.fingerprints | {"--train_batch_size": str(config.train_batch_size)}
        record["progress in --model_dir"] = describe_progress(config.run_dir)
    if result := finished_result(config, data.fingerprints):
        return result
    run = build_run(config, strategy, data)
    evaluation = EVALUATIONS.get(config.mode, ClassifierEvaluation)(run, _build_pictures(run, strategy))
    callbacks = load_callbacks(config)
    model_dir = pathlib.Path(config.run_dir)
    run_dir = RunDirectory(writable_dir(model_dir, strategy))
    trackers = Trackers(config.tracker if is_chief(strategy) else "", run_dir.model_dir)
    with run_dir.locked(), run_log(run_dir.model_dir), trackers:
        resolved = resolved_settings(run, strategy)
        changed(config, model_dir, data.fingerprints)
        run_dir.write_config(config, resolved)
        warn_about_classes(config, run.data.source, run.test)
        warn_about_shared_images(run.data.source, run.test)
        summary = run_summary(vars(config) | {"resolved": resolved}) | describe_data(run.data.source, run.test)
        print("\n" + box(f"{config.mode}: {run_dir.model_dir}", summary), flush=True)
        trackers.start(config, resolved)
        evaluation.draw_inputs()
        step = run_loop(run, run_dir, evaluation.metrics, [*callbacks, *trackers.callbacks])
        result = {"mode": config.mode, "steps": step, "labels": _num_labels(config), **evaluation.result(run_dir)}
        result["seconds"] = round(run_dir.seconds, 1)
        result["corrupt_images"] = sorted(run.data.source.corrupt | (run.test.corrupt if run.test else set()))
        run_dir.write_seconds()  # with the final evaluation, in case the run is continued
        run_dir.write_result(result)
        if config.report:
            with warn_instead():
                draw_figures(run_dir.model_dir)
                write_report(run_dir.model_dir)
        trackers.finish()
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
        self._latest: tuple[int, dict[str, float]] | None = None  # the step and its numbers

    @functools.cached_property
    def test(self) -> EvaluatedSplit:
        """The labelled evaluation images, which must exist."""
        return EvaluatedSplit(self.run.method, self.run.config, self.run.test, self.run.config.eval_steps)

    def draw_inputs(self) -> None:
        """Draws the views that the run trains on."""
        if self.pictures is not None:
            self.pictures.draw_views(self.run.data)

    def measure(self) -> dict[str, float]:
        """Measures the current weights, and writes the figures that show them."""
        raise NotImplementedError

    def measured(self) -> dict[str, float]:
        """Returns the numbers of ``measure``; those of the last interval serve the result, too."""
        step = int(self.run.method.optimizer.iterations)
        if self._latest is None or self._latest[0] != step:
            self._latest = step, self.measure()
        return self._latest[1]

    def metrics(self) -> dict[str, float]:
        """Returns the evaluation columns of ``metrics.csv`` at the end of an interval."""
        return self.measured()

    def result(self, run_dir: RunDirectory) -> Result:
        """Returns the final numbers."""
        raise NotImplementedError


class FeatureEvaluation(Evaluation):
    """Evaluates pretraining: the classifier beside the encoder, kNN on the features, their quality without labels."""

    @functools.cached_property
    def probe(self) -> FeatureQuality:
        """Measures the held-out images, which must exist."""
        return FeatureQuality(self.run.method, self.run.config, self.run.data, self.run.held_out)

    @functools.cached_property
    def sample(self) -> EvaluatedSplit:
        """The images of the embedding."""
        return EvaluatedSplit(self.run.method, self.run.config, self.pictures.sample)

    def measure(self) -> dict[str, float]:
        if self.pictures is not None and self.run.test is not None:
            self.pictures.draw_embedding(self.sample.features())
        return self._online_top1() | self._quality()

    def result(self, run_dir: RunDirectory) -> Result:
        run, result = self.run, dict(self.measured())
        if run.test is None or not run.data.source.class_names:
            return result
        train_images = knn_subset(run.data.source)
        train_features = knn_features(run.method, run.config, train_images)
        test_features = compute_features(run.method, run.config, run.test)
        result["knn_top1"] = metrics.knn_accuracy(*train_features, *test_features)
        if self.pictures is not None:
            self.pictures.draw_neighbours(train_images, train_features, test_features)
            write_projector(self.pictures, self.sample.features())
            run_dir.write_images("views", np.concatenate(example_views(run.data)), run.plan.total_steps)
        return result

    def _quality(self) -> dict[str, float]:
        return {} if self.run.held_out is None else self.probe.measure()

    def _online_top1(self) -> dict[str, float]:
        run = self.run
        if run.method.network.classifier is None or run.test is None:
            return {}
        return {"online_top1": top_k(*self.test.logits())["top1"]}


class ClassifierEvaluation(Evaluation):
    """Evaluates training with labels or a teacher: top-1, and top-5 if there are more than five classes."""

    def measure(self) -> dict[str, float]:
        if self.run.test is None:
            return {}
        logits, labels = self.test.logits()
        if self.pictures is not None:
            self.pictures.draw_classification(logits, labels)
        return top_k(logits, labels)

    def metrics(self) -> dict[str, float]:
        return {f"eval_{name}": value for name, value in self.measured().items() if name == "top1"}

    def result(self, run_dir: RunDirectory) -> Result:
        prefix = "linear" if self.run.config.mode == "linear_eval" else self.run.config.mode
        return {f"{prefix}_{name}": value for name, value in self.measured().items()}


EVALUATIONS: dict[str, type[Evaluation]] = {"pretrain": FeatureEvaluation}


def _build_pictures(run: Run, strategy: tf.distribute.Strategy) -> Pictures | None:
    """Returns the object that draws the figures of a run; None without a report."""
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
