"""Evaluation modes of a trained network: evaluate, embed."""

import json
import pathlib

import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.classes import align_labels, match_classes
from simclrv2_tf.data.description import describe_data, warn_about_shared_images
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import replacing, write_atomically
from simclrv2_tf.modes.measure import (
    EvaluatedSplit,
    compute_features,
    compute_logits,
    evaluation_source,
    knn_features,
    knn_subset,
    top_k,
)
from simclrv2_tf.modes.resolve import Result
from simclrv2_tf.modes.setup import load_trained
from simclrv2_tf.report import format_accuracies
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.checkpoints import read_run_config
from simclrv2_tf.runs.embeddings import Embedded, write_npz, write_parquet
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.runs.trained import TrainedModel
from simclrv2_tf.settings.config import Config

WRITERS = {"npz": write_npz, "parquet": write_parquet}


def evaluate(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Computes top-1 and top-5 of a run's classifier on the evaluation split; kNN if training images have labels."""
    sources = open_source(config, config.train_split), evaluation_source(config)
    model = load_trained(config, strategy)
    flag = f"--checkpoint={config.checkpoint}"
    source, test = (align_labels(each, model.class_names, flag) for each in sources)
    _print_data(config, source, test)
    if config.checkpoint:
        warn_if_trained_on(config, source, test)
    result: Result = {"mode": "evaluate", "checkpoint": config.checkpoint, "dataset": config.dataset}
    result |= {"split": test.name.rpartition("/")[2], "eval_images": test.num_examples}
    if model.network.classifier is not None:
        result |= top_k(*compute_logits(model, config, test))
    if source.class_names:
        train_features = knn_features(model, config, knn_subset(source))
        result["knn_top1"] = metrics.knn_accuracy(*train_features, *compute_features(model, config, test))
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    write_atomically(run_dir.model_dir / "evaluation.json", json.dumps(result, indent=1))
    images = {"images": f"{test.num_examples:,} of {test.name}"}
    print(box("evaluate: done", images | format_accuracies(result)))
    return result


def embed(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Writes the features of both splits to ``embeddings.npz`` or ``.parquet``."""
    source, test = open_source(config, config.train_split), evaluation_source(config)
    model = load_trained(config, strategy)
    _print_data(config, source, test)
    splits = [_embed_split(model, config, each) for each in (source, test) if each is not None]
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    path = run_dir.model_dir / f"embeddings.{config.output_format}"
    with replacing(path) as unfinished:
        WRITERS[config.output_format](splits, unfinished)
    print(f"{path}: " + ", ".join(f"{split.name} {split.features.shape}" for split in splits))
    return {"mode": "embed", "path": str(path)}


def _embed_split(model: TrainedModel, config: Config, source: Source) -> Embedded:
    """Computes the features of a split; its labels are renumbered as in the run if the run has all of its classes."""
    if match_classes(source.class_names, model.class_names) is not None:
        source = align_labels(source, model.class_names, f"--checkpoint={config.checkpoint}")
    outputs = EvaluatedSplit(model, config, source).outputs("final_avg_pool")
    return Embedded(source, outputs["final_avg_pool"], outputs["labels"], outputs["rows"])


def _print_data(config: Config, source: Source, test: Source | None) -> None:
    """Prints the box of the data, as at the start of a training run."""
    facts = {"data": config.dataset} | describe_data(source, test)
    print(box(f"{config.mode}: {config.checkpoint or config.encoder}", facts), flush=True)


def warn_if_trained_on(config: Config, source: Source, test: Source) -> None:
    """Warns if the run was trained on some of the evaluation images.

    Args:
        config: config of the evaluation.
        source: its training split, which may differ from that of the run.
        test: the evaluation images.
    """
    run, _ = read_run_config(config.checkpoint)
    if (run.dataset, run.train_split) != (config.dataset, config.train_split):
        if run.dataset == config.dataset:
            run = run.replace(data_dir=config.data_dir)
        elif test.paths is None or not run.dataset.startswith("folder:"):
            return  # images of different data sets can only be compared as files
        try:
            source = open_source(run.replace(cache_dataset=False), run.train_split)
        except SettingError:  # the images that the run was trained on may be gone
            return
    warn_about_shared_images(source, test)
