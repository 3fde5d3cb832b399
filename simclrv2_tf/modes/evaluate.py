"""Evaluation modes of a trained network: evaluate, embed."""

import json
import pathlib

import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.files import replacing, write_atomically
from simclrv2_tf.modes.measure import (
    check_classes,
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
from simclrv2_tf.runs.embeddings import Embedded, write_npz, write_parquet
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config

WRITERS = {"npz": write_npz, "parquet": write_parquet}


def evaluate(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Computes top-1 and top-5 of a run's classifier on the evaluation split; kNN if training images have labels."""
    source, test = open_source(config, config.train_split), evaluation_source(config)
    model = load_trained(config, strategy)
    check_classes(test, model.network.num_classes, f"--checkpoint={config.checkpoint}")
    result: Result = {"mode": "evaluate", "checkpoint": config.checkpoint, "eval_images": test.num_examples}
    if model.network.classifier is not None:
        result |= top_k(*compute_logits(model, config, test))
    if source.class_names:
        train_features = knn_features(model, config, knn_subset(source))
        result["knn_top1"] = metrics.knn_accuracy(*train_features, *compute_features(model, config, test))
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    write_atomically(run_dir.model_dir / "evaluation.json", json.dumps(result, indent=1))
    print(box(f"evaluate: {config.checkpoint}", format_accuracies(result)))
    return result


def embed(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Writes the features of both splits to ``embeddings.npz`` or ``.parquet``."""
    sources = [open_source(config, config.train_split), evaluation_source(config)]
    model = load_trained(config, strategy)
    splits = [Embedded(source, *compute_features(model, config, source)) for source in sources if source is not None]
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    path = run_dir.model_dir / f"embeddings.{config.output_format}"
    with replacing(path) as unfinished:
        WRITERS[config.output_format](splits, unfinished)
    print(f"{path}: " + ", ".join(f"{split.name} {split.features.shape}" for split in splits))
    return {"mode": "embed", "path": str(path)}
