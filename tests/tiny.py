"""Small models and batches shared by the tests of methods, runs and devices."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.models import BatchNorm, Network, ProjectionHead, ResNet

SIZE, CLASSES, BATCH = 8, 3, 8
VIEWS = ViewSettings(SIZE)


def use_float64() -> None:
    """Uses float64 to compare several steps: batch norm over a few rows amplifies float32 rounding at each step."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def encoder() -> keras.Sequential:
    """Returns a convolution with batch norm, which is fast to trace and run."""
    layers = [
        keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv"),
        BatchNorm(name="batch_norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
    ]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="encoder")


def keras_encoder() -> keras.Sequential:
    """Returns the same network, built from Keras's layers only."""
    layers = [
        keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv"),
        keras.layers.BatchNormalization(momentum=0.9, name="batch_norm"),
        keras.layers.ReLU(name="relu"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
    ]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="encoder")


def resnet() -> ResNet:
    return ResNet(10, 0.0625, stem="cifar", name="encoder")


def network(
    classes: int = CLASSES,
    tap: int = 0,
    make_encoder: Callable[[], keras.Model] = encoder,
    zero_init: bool = False,
    seed: int = 0,
    **head,
) -> Network:
    """Builds a network with seeded weights and a head of 2 layers and 5 outputs.

    Every gamma is 1: the last ones of residual blocks start at 0, and no gradient would reach the blocks.
    """
    keras.utils.set_random_seed(seed)
    projection_head = ProjectionHead(name="projection_head", **{"num_layers": 2, "out_dim": 5, **head})
    network = Network(make_encoder(), projection_head, classes, tap, zero_init, name="network")
    network.build()
    for variable in network.trainable_variables:
        if variable.name == "gamma":
            variable.assign(tf.ones_like(variable))
    return network


def compiled(model: Method, optimizer: str = "lars", rate: float = 0.1, decay: float = 1e-3, **settings) -> Method:
    """Compiles a model as ``setup.compile_method`` does."""
    model.compile(optimizer=build_optimizer(optimizer, rate, 0.9, decay), **{"jit_compile": False, **settings})
    return model


def batch(step: int, num_views: int = 2, size: int = BATCH, unlabelled: Iterable[int] = ()) -> dict[str, np.ndarray]:
    """Returns the batch of a step: finished views, and labels, −1 in the rows ``unlabelled``."""
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, size).astype("int32")
    labels[list(unlabelled)] = -1
    colours, noise = rng.random((size, 1, 1, 1, 3)), rng.random((size, num_views, SIZE, SIZE, 3))
    return {"views": ((2 * colours + noise) / 3).astype(keras.config.floatx()), "labels": labels}


def dataset(first: int, count: int, **kwargs) -> tf.data.Dataset:
    """Returns the batches of steps ``first … first + count − 1``."""
    batches = [batch(step, **kwargs) for step in range(first, first + count)]
    stacked = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return tf.data.Dataset.from_tensor_slices(stacked).with_options(options)


class LogRecorder(keras.callbacks.Callback):
    """Records the logs of every call of the train function."""

    def __init__(self):
        super().__init__()
        self.calls: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.calls.append({name: float(value) for name, value in logs.items()})


def fit(model: Method, batches: tf.data.Dataset) -> list[dict[str, float]]:
    """Trains on the batches once by Keras's ``fit``; returns the logs of every call."""
    recorder = LogRecorder()
    model.fit(batches, verbose=0, shuffle=False, callbacks=[recorder])
    return recorder.calls


def run_eagerly(model: Method, batches: tf.data.Dataset) -> list[dict[str, float]]:
    """Trains on the batches once, on one replica, without tracing a graph; returns the logs of every step."""
    return [{name: float(value) for name, value in model.train_step(batch).items()} for batch in batches]


def numbers(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Returns values by path."""
    return {variable.path: np.array(variable) for variable in variables}


def assign(variables: Iterable[keras.Variable], values: dict[str, np.ndarray]) -> None:
    """Assigns values by path."""
    for variable in variables:
        variable.assign(values[variable.path])


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Returns the paths of values that differ."""
    return {path for path, value in before.items() if not np.array_equal(value, after[path])}


def assert_close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    """Compares every variable, relative to its largest absolute value."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(
            actual[path], value, rtol=0, atol=rtol * max(np.abs(value).max(), 1e-3), err_msg=path
        )
