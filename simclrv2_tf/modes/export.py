"""Exchange of networks with other programs: export, import_checkpoint."""

import pathlib

import tensorflow as tf

from simclrv2_tf.modes.resolve import Result, changed
from simclrv2_tf.modes.setup import build_network, load_trained
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import find_checkpoint, save_network, step_of
from simclrv2_tf.runs.export import check_onnx_packages, save_onnx, save_saved_model, save_tf1_checkpoint
from simclrv2_tf.runs.run_dir import RunDirectory, writable_dir
from simclrv2_tf.settings.config import Config


def export(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Exports the network of a run to ``MODEL_DIR/FORMAT`` or ``MODEL_DIR/model.onnx``."""
    if config.format == "onnx":
        check_onnx_packages()
    plain = config.replace(jit_compile="false", mixed_precision="float32", remat=False)
    network, size = load_trained(plain, strategy).network, config.image_size
    path = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy)).model_dir / config.output_format
    if config.format == "tf1_checkpoint":
        save_tf1_checkpoint(network, step_of(find_checkpoint(config.checkpoint)), path)
        print(f"{path}: for the official code's --checkpoint, or tf.compat.v1.train.Saver")
    elif config.format == "onnx":
        path = path.with_name("model.onnx")
        save_onnx(network, size, path)
        print(f"{path}: images float32 [n, {size}, {size}, 3] in [0, 1] to every endpoint")
    else:
        save_saved_model(network, size, path, config.eval_resize)
        print(f"{path}: signatures serve (uint8 images of any size) and train ({size} px)")
    return {"mode": "export", "path": str(path)}


def import_checkpoint(config: Config, strategy: tf.distribute.Strategy) -> Result:
    """Converts a checkpoint of google-research/simclr into a model directory for all other modes."""
    checkpoint = official.read(config.checkpoint, config.ft_proj_selector)
    with strategy.scope():
        network = build_network(config, strategy, checkpoint.num_classes, config.ft_proj_selector)
    report = official.load(network, checkpoint)
    resolved = {"num_classes": checkpoint.num_classes, "class_names": [], "head_input": config.ft_proj_selector}
    run_dir = RunDirectory(writable_dir(pathlib.Path(config.run_dir), strategy))
    with run_dir.locked():
        changed(config, run_dir.model_dir)
        run_dir.write_config(config, resolved | {"imported": report.splitlines()})
        save_network(network, run_dir.model_dir, checkpoint.step)
    print(f"{report}\n{run_dir.model_dir}: for --checkpoint, and --teacher if it has classes")
    return {"mode": config.mode, "checkpoint": checkpoint.path, "step": checkpoint.step, "report": report}
