"""Model directories with random weights, and image files, for tests that start from a run."""

import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from PIL import Image

from simclrv2_tf.models import Network
from simclrv2_tf.runs.checkpoints import save_network
from simclrv2_tf.runs.networks import build_network
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

TINY = {
    "mode": "supervised",
    "dataset": "digits",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "proj_out_dim": 4,
    "eval_batch_size": 4,
}


# Settings of a training run of a few steps on the digits.
TOY = {
    "dataset": "digits",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "conv_init": "lecun_normal",  # after four steps, kNN reads its features better
    "train_batch_size": 50,
    "train_steps": 4,
    "checkpoint_steps": 2,
    "eval_batch_size": 250,
    "labels_per_class": 5,
}


def save_run(model_dir: pathlib.Path, class_names: Sequence[str] = (), **settings) -> Network:
    """Writes a model directory of a run with these classes; returns its network."""
    config = Config(**TINY | settings | {"model_dir": str(model_dir)})
    network = build_network(config, tf.distribute.get_strategy(), len(class_names))
    rng = np.random.default_rng(1)
    for variable in network.variables:
        is_positive = variable.name in ("gamma", "moving_variance")
        values = rng.uniform(0.5, 1, variable.shape) if is_positive else rng.normal(0, 0.3, variable.shape)
        variable.assign(values)
    if network.classifier is not None:  # so that each class is predicted for some images
        size, dense = config.image_size, network.classifier.dense
        images = rng.random((50, size, size, 3)) * rng.random((50, 1, 1, 1))
        logits = network(tf.constant(images, tf.float32))["logits_sup"].numpy()
        scale = 2 / logits.std(axis=0)
        dense.kernel.assign(dense.kernel * scale)
        dense.bias.assign((dense.bias - logits.mean(axis=0)) * scale)
    resolved = {"num_classes": len(class_names), "class_names": list(class_names), "head_input": 0}
    RunDirectory(model_dir).write_config(config, resolved)
    save_network(network, model_dir, 1)
    return network


def save_images(folder: pathlib.Path, names: Iterable[str], size: int = 8, seed: int = 0) -> list[pathlib.Path]:
    """Writes PNG files of random pixels, each with a different brightness; returns their paths."""
    rng, paths = np.random.default_rng(seed), []
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (size, size, 3)) * rng.random()
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        paths.append(path)
    return paths


def pixels_of(paths: Iterable[pathlib.Path]) -> np.ndarray:
    """Returns images as evaluated if they have the size of the network: float32 ``[n, h, w, 3]`` in [0, 1]."""
    return np.stack([np.asarray(Image.open(path), np.float32) / 255 for path in paths])
