"""The modes that look at a trained network: its accuracy, its features, itself for others to use."""

import json

from simclrv2_tf import metrics as evaluation
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.files import replacing, write_atomically
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.modes import build
from simclrv2_tf.modes.measure import (
    check_classes,
    compute_features,
    compute_logits,
    evaluation_source,
    knn_features,
    knn_subset,
    top_k,
)
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.report import scores
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.checkpoints import find, load_network, read_run_config, step_of
from simclrv2_tf.runs.embeddings import Embedded, write_npz, write_parquet
from simclrv2_tf.runs.export import check_onnx_packages, save_onnx, save_saved_model, save_tf1_checkpoint
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config


def evaluate(config: Config, strategy: Strategy) -> Result:
    """Top-1 and top-5 of a run's classifier and kNN on its features, on the evaluation split.

    Without labels on the training split there is no kNN.
    """
    source, test = open_source(config, config.train_split), evaluation_source(config)
    model = _trained_model(config, strategy)
    check_classes(test, model.network.num_classes, f"--checkpoint={config.checkpoint}")
    result: Result = {"mode": "evaluate", "checkpoint": config.checkpoint, "eval_images": test.num_examples}
    if model.network.classifier is not None:
        result |= top_k(*compute_logits(model, config, test))
    if source.class_names:
        train_features = knn_features(model, config, knn_subset(source))
        result["knn_top1"] = evaluation.knn_accuracy(*train_features, *compute_features(model, config, test))
    run_dir = RunDirectory(build.output_dir(build.model_dir(config), strategy))
    write_atomically(run_dir.model_dir / "evaluation.json", json.dumps(result, indent=1))
    print(box(f"evaluate: {config.checkpoint}", scores(result)))
    return result


def embed(config: Config, strategy: Strategy) -> Result:
    """Features of both splits in ``embeddings.npz`` or ``.parquet``; see ``write_npz`` and ``write_parquet``."""
    sources = [open_source(config, config.train_split), evaluation_source(config)]
    model = _trained_model(config, strategy)
    splits = [Embedded(source, *compute_features(model, config, source)) for source in sources if source is not None]
    model_dir = RunDirectory(build.output_dir(build.model_dir(config), strategy)).model_dir
    path = model_dir / f"embeddings.{config.output_format}"
    with replacing(path) as unfinished:
        {"npz": write_npz, "parquet": write_parquet}[config.output_format](splits, unfinished)
    print(f"{path}: " + ", ".join(f"{split.name} {split.features.shape}" for split in splits))
    return {"mode": "embed", "path": str(path)}


def export(config: Config, strategy: Strategy) -> Result:
    """The network in ``MODEL_DIR/FORMAT``, or ``MODEL_DIR/model.onnx``, for other programs."""
    if config.format == "onnx":
        check_onnx_packages()
    model = _trained_model(config.replace(jit_compile="false", mixed_precision="float32", remat=False), strategy)
    path = RunDirectory(build.output_dir(build.model_dir(config), strategy)).model_dir / config.output_format
    if config.format == "tf1_checkpoint":
        save_tf1_checkpoint(model.network, step_of(find(config.checkpoint)), path)
        print(f"{path}: for the official code's --checkpoint, or tf.compat.v1.train.Saver")
    elif config.format == "onnx":
        path = path.with_name("model.onnx")
        save_onnx(model.network, config.image_size, path)
        print(f"{path}: images float32 [n, {config.image_size}, {config.image_size}, 3] in [0, 1] to every endpoint")
    else:
        save_saved_model(model.network, config.image_size, path, config.eval_resize)
        print(f"{path}: signatures serve (uint8 images of any size) and train ({config.image_size} px)")
    return {"mode": "export", "path": str(path)}


def _trained_model(config: Config, strategy: Strategy) -> ClassificationModel:
    """The network of ``--checkpoint``, to look at."""
    _, resolved = read_run_config(config.checkpoint)
    with strategy.scope():
        network = build.network(config, strategy, resolved["num_classes"], resolved["head_input"])
        found = load_network(network, config.checkpoint, with_classifier=bool(resolved["num_classes"]))
        model = ClassificationModel(network, build.views(config))
    print(f"{config.mode}: {found}")
    return model
