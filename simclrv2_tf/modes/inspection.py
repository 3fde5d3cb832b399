"""The modes that look at a trained network: its accuracy, its features, itself for others to use."""

import json
import os

import numpy as np

from simclrv2_tf import build, evaluation
from simclrv2_tf.config import Config
from simclrv2_tf.console import box
from simclrv2_tf.data.sources import FileSource, open_source
from simclrv2_tf.export import save_saved_model, save_tf1_checkpoint
from simclrv2_tf.modes.measuring import (
    check_classes,
    evaluation_source,
    features_of,
    knn_features,
    knn_source,
    logits_of,
    top_k,
)
from simclrv2_tf.modes.starting import Result, Strategy
from simclrv2_tf.report import scores
from simclrv2_tf.training.checkpoints import find, load_network, run_of, step_of
from simclrv2_tf.training.classifier import ClassificationModel
from simclrv2_tf.training.journal import Journal, write_atomically


def evaluate(config: Config, strategy: Strategy) -> Result:
    """Top-1 and top-5 of a run's classifier and kNN on its features, on the evaluation split.

    Without labels on the training split there is no kNN.
    """
    source, test = open_source(config, config.train_split), evaluation_source(config)
    model = _trained_model(config, strategy)
    check_classes(test, model.network.num_classes, f"--checkpoint={config.checkpoint}")
    result: Result = {"mode": "evaluate", "checkpoint": config.checkpoint, "eval_images": test.num_examples}
    if model.network.classifier is not None:
        result |= top_k(*logits_of(model, config, test))
    if source.class_names:
        train_features = knn_features(model, config, knn_source(source))
        result["knn_top1"] = evaluation.knn_accuracy(*train_features, *features_of(model, config, test))
    journal = Journal(build.output_dir(build.model_dir(config), strategy))
    write_atomically(journal.model_dir / "evaluation.json", json.dumps(result, indent=1))
    print(box(f"evaluate: {config.checkpoint}", scores(result)))
    return result


def embed(config: Config, strategy: Strategy) -> Result:
    """Features of both splits as ``embeddings.npz``: ``x_SPLIT [n, d]``, ``y_SPLIT [n]``, for files ``path_SPLIT``."""
    sources = [open_source(config, config.train_split), evaluation_source(config)]
    model = _trained_model(config, strategy)
    arrays: dict[str, np.ndarray] = {}
    for source in sources:
        if source is None:
            continue
        split = source.name.rpartition("/")[2]
        arrays[f"x_{split}"], arrays[f"y_{split}"] = features_of(model, config, source)
        if isinstance(source, FileSource):
            arrays[f"path_{split}"] = np.array([path for path in source.paths if path not in source.corrupt])
    path = Journal(build.output_dir(build.model_dir(config), strategy)).model_dir / "embeddings.npz"
    unfinished = path.with_name(".embeddings.tmp.npz")
    np.savez(unfinished, **arrays)
    os.replace(unfinished, path)
    print(f"{path}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items()))
    return {"mode": "embed", "path": str(path)}


def export(config: Config, strategy: Strategy) -> Result:
    """The network in ``MODEL_DIR/FORMAT``, for other programs."""
    model = _trained_model(config.replace(jit_compile="false", mixed_precision="float32", remat=False), strategy)
    path = Journal(build.output_dir(build.model_dir(config), strategy)).model_dir / config.format
    if config.format == "tf1_checkpoint":
        save_tf1_checkpoint(model.network, step_of(find(config.checkpoint)), path)
        print(f"{path}: for the official code's --checkpoint, or tf.compat.v1.train.Saver")
    else:
        save_saved_model(model.network, config.image_size, path, config.eval_resize)
        print(f"{path}: signatures serve (uint8 images of any size) and train ({config.image_size} px)")
    return {"mode": "export", "path": str(path)}


def _trained_model(config: Config, strategy: Strategy) -> ClassificationModel:
    """The network of ``--checkpoint``, to look at."""
    _, resolved = run_of(config.checkpoint)
    with strategy.scope():
        network = build.network(config, strategy, resolved["num_classes"], resolved["head_input"])
        found = load_network(network, config.checkpoint, with_classifier=bool(resolved["num_classes"]))
        model = ClassificationModel(network, build.views(config))
    print(f"{config.mode}: {found}")
    return model
