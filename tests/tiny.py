"""Small models and batches that the tests of this folder share."""

from collections.abc import Iterable

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
    """For comparisons of several steps: batch norm over a few rows amplifies the rounding of float32 at each."""
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")


def encoder() -> keras.Sequential:
    """Two convolutions with batch norm: traced and run in a moment."""
    layers = []
    for index in range(2):
        layers += [
            keras.layers.Conv2D(6, 3, strides=2, use_bias=False, name=f"conv{index}"),
            BatchNorm(name=f"batch_norm{index}"),
            keras.layers.ReLU(name=f"relu{index}"),
        ]
    layers.append(keras.layers.GlobalAveragePooling2D(name="pool"))
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="encoder")


def resnet() -> ResNet:
    return ResNet(10, 0.0625, stem="cifar", name="encoder")


def network(
    classes: int = CLASSES, tap: int = 0, make_encoder=encoder, zero_init: bool = False, seed: int = 0, **head
) -> Network:
    """A built network with seeded weights and a head of 3 layers and 5 outputs.

    Every gamma is 1: at 0, as the last ones of a residual block start, no gradient would reach the block.
    """
    keras.utils.set_random_seed(seed)
    projection_head = ProjectionHead(name="projection_head", **{"out_dim": 5, **head})
    made = Network(make_encoder(), projection_head, classes, tap, zero_init, name="network")
    made.build()
    for variable in made.trainable_variables:
        if variable.name == "gamma":
            variable.assign(tf.ones_like(variable))
    return made


def compiled(model: Method, optimizer: str = "lars", rate: float = 0.1, decay: float = 1e-3, **how):
    """The model as ``setup.compile_method`` leaves it."""
    model.compile(optimizer=build_optimizer(optimizer, rate, 0.9, decay), **{"jit_compile": False, **how})
    return model


def batch(step: int, num_views: int = 2, size: int = BATCH, unlabelled: Iterable[int] = ()) -> dict[str, np.ndarray]:
    """The batch of a step: views that are already made, and labels, −1 in the rows ``unlabelled``."""
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, size).astype("int32")
    labels[list(unlabelled)] = -1
    colours, noise = rng.random((size, 1, 1, 1, 3)), rng.random((size, num_views, SIZE, SIZE, 3))
    return {"views": ((2 * colours + noise) / 3).astype(keras.config.floatx()), "labels": labels}


def dataset(first: int, count: int, **kwargs) -> tf.data.Dataset:
    """The batches of steps ``first … first + count − 1``."""
    batches = [batch(step, **kwargs) for step in range(first, first + count)]
    stacked = {name: np.stack([one[name] for one in batches]) for name in batches[0]}
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return tf.data.Dataset.from_tensor_slices(stacked).with_options(options)


class Logs(keras.callbacks.Callback):
    """Keeps the logs of every call of the train function."""

    def __init__(self):
        super().__init__()
        self.calls: list[dict[str, float]] = []

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.calls.append({name: float(value) for name, value in logs.items()})


def fit(model: Method, batches: tf.data.Dataset) -> list[dict[str, float]]:
    """Trains on the batches once; returns the logs of every call."""
    logs = Logs()
    model.fit(batches, verbose=0, shuffle=False, callbacks=[logs])
    return logs.calls


def numbers(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Values by path."""
    return {variable.path: np.array(variable) for variable in variables}


def assign(variables: Iterable[keras.Variable], values: dict[str, np.ndarray]) -> None:
    """Gives variables the values of their paths."""
    for variable in variables:
        variable.assign(values[variable.path])


def moved(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    """Paths of what differs."""
    return {path for path, value in before.items() if not np.array_equal(value, after[path])}


def assert_close(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float) -> None:
    """Every variable, relative to its greatest number."""
    assert actual.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_allclose(
            actual[path], value, rtol=0, atol=rtol * max(np.abs(value).max(), 1e-3), err_msg=path
        )
