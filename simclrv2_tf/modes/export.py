"""Modes that exchange networks with other programs: export, import_checkpoint."""

import logging
import pathlib

import tensorflow as tf

from simclrv2_tf.files import is_plain
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.modes.resolve import Result, changed
from simclrv2_tf.modes.setup import build_network, build_views
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import save_network, step_of
from simclrv2_tf.runs.export import check_onnx_packages, save_litert, save_onnx, save_tf1_checkpoint
from simclrv2_tf.runs.networks import load_model
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.runs.saved_model import save_saved_model
from simclrv2_tf.runs.trackers import Trackers
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

# By format: the function that writes it, the file name in the run's directory, and how to use it.
WRITERS = {
    "saved_model": (
        save_saved_model,
        "saved_model",
        "signatures serving_default (uint8), serve_float, serve_encoded (JPEG, PNG), endpoints, views, train",
    ),
    "litert": (save_litert, "model.tflite", "images float32 [1, {size}, {size}, 3] in [0, 1]"),
    "onnx": (save_onnx, "model.onnx", "images float32 [n, {size}, {size}, 3] in [0, 1] to every endpoint"),
}


def export(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Exports the network of a run into its directory, under the names of ``WRITERS`` or to ``tf1_checkpoint``."""
    if config.format == "onnx":
        check_onnx_packages()
    plain = config.replace(jit_compile="false", mixed_precision="float32", remat=False)
    views = build_views(plain, ClassificationModel)
    model, checkpoint_path = load_model(plain, views, tf.distribute.get_strategy())  # variables outside any strategy
    network = model.network
    print(f"export: {checkpoint_path}")
    model_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy)).model_dir
    trackers = Trackers(config.tracker, model_dir)
    if config.output_format == "tf1_checkpoint":
        path = model_dir / "tf1_checkpoint"
        save_tf1_checkpoint(network, step_of(checkpoint_path) if config.checkpoint else 0, path)
        print(f"{path}: for the official code's --checkpoint, or tf.compat.v1.train.Saver")
    else:
        write, name, usage = WRITERS[config.output_format]
        path, size = model_dir / name, config.image_size
        bits = {"image_bits": config.image_bits} if write is save_saved_model else {}  # others do not decode files
        write(network, size, path, config.eval_resize, model.class_names, **bits)
        classes = f"{network.num_classes} classes" if network.num_classes else "features only, no classifier"
        print(f"{path}: {classes}; {usage.format(size=size)}")
    with trackers:
        trackers.add_model(path)
    if path.is_dir() and not is_plain(str(path)):
        log.warning("%s: TensorFlow reads *?[\\ in paths as patterns; move it before you load it", path)
    return {"mode": "export", "path": str(path)}


def import_checkpoint(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Converts a checkpoint of google-research/simclr into a model directory for all other modes."""
    checkpoint = official.read(config.checkpoint, config.ft_proj_selector)
    with strategy.scope():
        network = build_network(config, strategy, checkpoint.num_classes, config.ft_proj_selector)
    report = official.load(network, checkpoint)
    resolved = {
        "num_classes": checkpoint.num_classes,
        "class_names": list(checkpoint.class_names),
        "head_input": config.ft_proj_selector,
    }
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    with run_dir.locked():
        changed(config, run_dir.model_dir)
        run_dir.write_config(config, resolved | {"imported": report.splitlines()})
        save_network(network, run_dir.model_dir, checkpoint.step)
    print(f"{report}\n{run_dir.model_dir}: for --checkpoint, and --teacher if it has classes")
    return {"mode": config.mode, "checkpoint": checkpoint.path, "step": checkpoint.step, "report": report}
