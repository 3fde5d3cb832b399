"""Trains every method for twenty steps on any devices, to compare the numbers."""

import os
import pathlib

import keras
import numpy as np
import tensorflow as tf
import tiny

from simclrv2_tf.data.input import Part, evaluation_input
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.distributed.devices import choose_strategy
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.inference import collect, distribute
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.settings.config import Config

STEPS, CALL, BATCH = 20, 4, 24
IMAGES = 31  # the last batch of an evaluation is short, and some replicas have no image of it
KINDS = ("pretrain", "finetune", "distill")
Numbers = dict[str, np.ndarray]


def build(kind: str) -> Method:
    network = tiny.network(tap=1 if kind == "finetune" else 0)
    if kind == "pretrain":
        memory = {"memory_size": 2 * BATCH + 7, "ema_decay": 0.9}
        return tiny.compiled(SimCLR(network, tiny.VIEWS, 0.5, weight_decay=1e-3, **memory))
    if kind == "finetune":
        return tiny.compiled(ClassificationModel(network, tiny.VIEWS, weight_decay=1e-3), "momentum")
    return tiny.compiled(Distiller(network, tiny.network(seed=1), tiny.VIEWS, 0.5, 0.5, weight_decay=1e-3))


def train(kind: str, strategy: tf.distribute.Strategy, precision: str = "float64") -> Numbers:
    """Returns the metrics of each call, the final variables, and features and logits of an evaluation."""
    keras.config.set_floatx(precision)
    keras.config.set_dtype_policy(precision)
    with strategy.scope():
        model = build(kind)
    # One replica has no labels in any batch; others have some.
    unlabelled = () if kind == "finetune" else range(BATCH // 3)
    views = 2 if kind == "pretrain" else 1
    batches = tiny.dataset(0, STEPS, num_views=views, size=BATCH, unlabelled=unlabelled)

    def of(part: Part) -> tf.data.Dataset:
        first, end = part.rows(BATCH)
        return batches.map(lambda batch: {name: rows[first:end] for name, rows in batch.items()})

    iterator = iter(distribute(strategy, BATCH, of))
    logs = [model.run_steps(iterator, CALL) for _ in range(STEPS // CALL)]
    metrics = {name: np.array([call[name] for call in logs]) for name in model.train_metrics}
    memory = getattr(model, "memory", None)
    variables = [*model.network.variables, *model.optimizer.variables, *(memory.variables if memory else [])]
    return metrics | tiny.numbers(variables) | evaluate(model)


def evaluate(model: Method) -> Numbers:
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, tiny.SIZE, tiny.SIZE, 3), "uint8")
    source = ArraySource("test", images, np.arange(IMAGES, dtype="int32"), ("class",))
    outputs = collect(
        model,
        lambda part: evaluation_input(source, BATCH, tiny.SIZE, part=part),
        BATCH,
        ("final_avg_pool", "logits_sup"),
    )
    return {f"evaluated/{name}": values for name, values in outputs.items()}


def work(environment: dict[str, str], folder: pathlib.Path, index: int, precision: str = "float64") -> None:
    """Runs in the process of one worker; writes ``KIND-INDEX.npz``."""
    os.environ |= environment
    strategy = choose_strategy(Config(train_batch_size=BATCH, eval_batch_size=BATCH))
    for kind in KINDS:
        np.savez(folder / f"{kind}-{index}.npz", **train(kind, strategy, precision))
