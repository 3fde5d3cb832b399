"""NaN guard: a step whose loss or gradient is not finite is reported, or skipped without a trace."""

from collections.abc import Iterable

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.methods.base import Batch, Logs, Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.simclr import SimCLR


class InfiniteGradient(ClassificationModel):
    """Has a finite loss; the gradient of one kernel is not finite in steps whose labels are all 0."""

    def train_step(self, batch: Batch) -> Logs:
        kernel = self.network.classifier.dense.kernel.value
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            distance = tf.reduce_sum(tf.square(kernel - tf.stop_gradient(kernel)))
            bad = tf.reduce_all(batch["labels"] == 0)
            loss = tf.where(bad, tf.sqrt(distance), 0.0) + tf.reduce_sum(tf.square(kernel)) * tf.cast(~bad, "float32")
        self.optimizer.apply([tape.gradient(loss, kernel)], [self.network.classifier.dense.kernel])
        return {"loss": loss, "train_top1": tf.zeros([])}


def simclr(strategy: tf.distribute.Strategy | None = None, **settings) -> SimCLR:
    with (strategy or tf.distribute.get_strategy()).scope():
        network = tiny.network(mode="linear")
        return tiny.compiled(SimCLR(network, tiny.VIEWS, 0.5, memory_size=20, ema_decay=0.9), **settings)


def iterator(model: Method, steps: int, bad: Iterable[int], first: int = 0):
    """Returns an iterator over batches; the ``bad`` ones contain a view of NaN."""

    def with_nan(index: tf.Tensor, batch: Batch) -> Batch:
        nan = tf.fill(tf.shape(batch["views"])[1:], np.nan)[None]
        views = tf.concat([batch["views"][:-1], nan], axis=0)
        return batch | {"views": tf.where(tf.reduce_any(index == list(bad)), views, batch["views"])}

    data = tiny.dataset(first, steps).enumerate().map(with_nan)
    return iter(model.distribute_strategy.experimental_distribute_dataset(data))


def state(model: Method) -> dict[str, np.ndarray]:
    slots = [variable for variable in model.optimizer.variables if variable.name != "iteration"]
    return tiny.numbers([*model.network.variables, *slots, *model.memory.variables])


def test_bad_steps_of_a_call_are_counted_and_the_first_is_reported():
    model = simclr()
    logs = model.run_steps(iterator(model, 3, []), 3)
    assert (int(logs["bad_steps"]), int(logs["first_bad_step"])) == (0, -1)
    logs = model.run_steps(iterator(model, 4, [1]), 4)
    assert int(logs["first_bad_step"]) == 1 and int(logs["bad_steps"]) == 3  # its weights make later steps bad
    assert not np.isfinite(float(logs["loss"]))


@pytest.mark.parametrize(
    ("optimizer", "jit_compile"),
    [("lars", False), ("lars", True), ("momentum", False), ("adam", False), ("adamw", False)],
)
def test_skipped_step_changes_only_the_step_count(optimizer, jit_compile):
    model = simclr(optimizer=optimizer, jit_compile=jit_compile, skip_bad_steps=True)
    model.run_steps(iterator(model, 1, []), 1)
    before = state(model)
    logs = model.run_steps(iterator(model, 2, [0, 1]), 2)
    assert int(logs["bad_steps"]) == 2 and int(model.optimizer.iterations) == 3
    assert not tiny.moved(before, state(model))
    logs = model.run_steps(iterator(model, 2, [0], first=1), 2)
    assert int(logs["bad_steps"]) == 1 and np.isfinite(float(logs["loss"])) and float(logs["loss"]) > 1
    assert tiny.moved(before, state(model)) >= {variable.path for variable in model.trained_variables}
    assert all(np.isfinite(value).all() for value in state(model).values())


def test_good_steps_are_the_same_with_and_without_skipping():
    states = []
    for skip in (False, True):
        keras.backend.clear_session()
        model = simclr(skip_bad_steps=skip)
        for batch in tiny.dataset(0, 3):
            model.guarded_step(batch)
        states.append(state(model))
    assert not tiny.moved(*states)


def test_bad_step_of_one_replica_is_skipped_on_all(replicas):
    strategy = replicas(2)
    model = simclr(strategy, skip_bad_steps=True)
    before = state(model)
    logs = model.run_steps(iterator(model, 2, [0, 1]), 2)  # the NaN is in the second replica's half
    assert int(logs["bad_steps"]) == 2
    for variable in [*model.network.variables, *model.memory.variables]:
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, before[variable.path])


@pytest.mark.parametrize("skip", [False, True])
def test_infinite_gradient_of_a_finite_loss_is_a_bad_step(skip):
    model = tiny.compiled(InfiniteGradient(tiny.network(), tiny.VIEWS), "momentum", skip_bad_steps=skip)
    data = tiny.dataset(0, 3).enumerate().map(lambda i, b: b | {"labels": b["labels"] * tf.cast(i != 1, tf.int32)})
    logs = model.run_steps(iter(data), 3)
    assert int(logs["first_bad_step"]) == 1
    assert int(logs["bad_steps"]) == (1 if skip else 2)
    assert np.isfinite(model.network.classifier.dense.kernel.numpy()).all() == skip
