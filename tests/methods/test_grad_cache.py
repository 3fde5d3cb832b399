"""Pretraining in micro-batches: the gradients of the whole batch, where batch norm lets them be."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import BatchNorm, BatchNormSettings
from simclrv2_tf.models.resnet import BlockGroup


def simclr(micro_batch: int, optimizer: str = "lars", frozen: bool = False, memory: int = 0, **how) -> SimCLR:
    """With batch norms frozen at some statistics if asked, and nothing of an image depends on the others."""
    network = tiny.network(make_encoder=how.pop("make_encoder", tiny.encoder))
    if frozen:
        for layer in network._flatten_layers():
            if isinstance(layer, BatchNorm):
                layer.trainable = False
                layer.moving_mean.assign(0.1 * tf.ones_like(layer.moving_mean))
                layer.moving_variance.assign(0.5 * tf.ones_like(layer.moving_variance))
    views = ViewSettings(tiny.SIZE, color_jitter_strength=0.5)
    settings = {"memory_size": memory, "ema_decay": 0.9, "micro_batch": micro_batch}
    model = SimCLR(network, views, 0.5, weight_decay=1e-3, **settings)
    return tiny.compiled(model, optimizer, **how)


def trained(model: SimCLR, batches: tf.data.Dataset) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    logs = tiny.fit(model, batches)
    variables = model.network.variables + model.optimizer.variables + (model.memory.variables if model.memory else [])
    return logs, tiny.numbers(variables)


def assert_same(ours, plain, rtol: float = 1e-9) -> None:
    for logs, expected in zip(ours[0], plain[0], strict=True):
        assert logs == pytest.approx(expected, rel=1e-6)  # logs are float32
    tiny.assert_close(ours[1], plain[1], rtol)


@pytest.mark.parametrize(("optimizer", "micro_batches"), [("lars", [1, 2, 8]), ("momentum", [2])])
def test_equals_the_plain_step_with_frozen_batch_norm(optimizer, micro_batches):
    """Losses, weights, momenta and the memory's average and queue; some labels are unknown."""
    tiny.use_float64()
    batches = tiny.dataset(0, 3, unlabelled=[0, 1, 5])
    plain = trained(simclr(0, optimizer, frozen=True, memory=20), batches)
    for micro_batch in micro_batches:
        assert_same(trained(simclr(micro_batch, optimizer, frozen=True, memory=20), batches), plain)


def test_the_views_are_those_of_the_whole_batch():
    """Crops, flips, colours and all, from the draws of the batch."""
    tiny.use_float64()
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), "uint8")
    source = ArraySource("test", images, np.zeros(20, "int32"), ("a", "b", "c"))
    models = [simclr(micro_batch, frozen=True) for micro_batch in (0, 2)]
    plain, ours = (trained(m, TrainingInput(source, tiny.BATCH, 2, m.views, 0).batches(0, 2)) for m in models)
    assert_same(ours, plain)


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_micro_batch_is_the_plain_step(xla):
    """With its batch norms, and their moving statistics, as they are."""
    tiny.use_float64()
    batches = tiny.dataset(0, 2)
    assert_same(trained(simclr(tiny.BATCH, jit_compile=xla), batches), trained(simclr(0), batches), rtol=1e-8)


@pytest.mark.parametrize("xla", [False, True])
def test_batch_norm_sees_a_micro_batch(xla):
    """Gradients through the statistics of each; moving statistics move once, by the mean of all."""
    tiny.use_float64()
    batch, halves = tiny.batch(0), [slice(0, 4), slice(4, 8)]
    ours = simclr(4, jit_compile=xla)
    tiny.fit(ours, tiny.dataset(0, 1))

    model = simclr(0)
    start, moved = tiny.numbers(model.network.variables), []
    with tf.GradientTape() as tape:
        outputs = []
        for half in halves:
            tiny.assign(model.network.non_trainable_variables, start)
            outputs.append(model.forward({"views": batch["views"][half]}))
            moved.append(tiny.numbers(model.network.non_trainable_variables))
        outputs = {name: tf.concat([output[name] for output in outputs], axis=0) for name in outputs[0]}
        loss, _ = model.objective(outputs, {"labels": tf.constant(batch["labels"])})
        scaled = model.scale_loss(loss)
    gradients = tape.gradient(scaled, [variable.value for variable in model.trained_variables])
    model.optimizer.apply(gradients, model.trained_variables)
    means = {path: (moved[0][path] + moved[1][path]) / 2 for path in moved[0]}
    assert all(not np.allclose(moved[0][path], moved[1][path]) for path in means)
    tiny.assign(model.network.non_trainable_variables, means)
    tiny.assert_close(tiny.numbers(ours.network.variables), tiny.numbers(model.network.variables), rtol=1e-9)


def residual_encoder(remat: bool) -> keras.Model:
    block = {"batch_norm": BatchNormSettings(), "bottleneck": False, "sk_ratio": 0.0, "se_ratio": 0.0}
    layers = [BlockGroup(6, 1, 2, block, remat, name="blocks"), keras.layers.GlobalAveragePooling2D(name="pool")]
    return keras.Sequential([keras.Input((tiny.SIZE, tiny.SIZE, 3)), *layers], name="encoder")


@pytest.mark.parametrize(
    ("default_steps_per_execution", "remat"),
    [(2, True), *(pytest.param(*how, marks=pytest.mark.slow) for how in [(2, False), (1, True)])],
)
def test_replicas_share_a_micro_batch(default_steps_per_execution, remat, replicas):
    """Two replicas with two images each at a time are one device with those four, rematerialised or not."""
    tiny.use_float64()
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # replica 0 has images 0 to 3
    batches = tiny.dataset(0, 2, unlabelled=[0, 1])
    with (strategy := replicas(2)).scope():
        model = simclr(2, steps_per_execution=default_steps_per_execution, make_encoder=lambda: residual_encoder(remat))
    logs, two = trained(model, batches)
    plain = simclr(4, make_encoder=lambda: residual_encoder(False))
    one_logs, one = trained(plain, batches.map(lambda batch: {k: tf.gather(v, order) for k, v in batch.items()}))
    means = {name: np.mean([step[name] for step in one_logs]) for name in one_logs[0]}
    assert {name: np.mean([step[name] for step in logs]) for name in means} == pytest.approx(means, rel=1e-6)
    tiny.assert_close(two, one, rtol=1e-8)
    for variable in model.trained_variables:
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, two[variable.path])


def test_memory_on_replicas(replicas):
    tiny.use_float64()
    batches = tiny.dataset(0, 2)
    with replicas(2).scope():
        model = simclr(2, frozen=True, memory=20)
    assert_same(trained(model, batches), trained(simclr(0, frozen=True, memory=20), batches))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    logs = []
    for micro_batch in (0, 2):
        model = simclr(micro_batch, frozen=True)
        if policy == "mixed_float16":
            model.optimizer.dynamic_scale.assign(64)
        logs.append(tiny.fit(model, tiny.dataset(0, 1).repeat(4)))
    for ours, plain in zip(*logs, strict=True):
        assert ours == pytest.approx(plain, rel=0.01)
    assert logs[0][-1]["loss"] < logs[0][0]["loss"]


def test_no_activations_of_the_whole_batch():
    """In the compiled step: the first convolution's output is there for 4 of the 16 views."""
    widths = {}
    for micro_batch in (0, 2):
        step = tf.function(simclr(micro_batch).train_step, jit_compile=True, autograph=False)
        batch = {name: tf.constant(value) for name, value in tiny.batch(0).items()}
        program = step.experimental_get_compiler_ir(batch)(stage="optimized_hlo")
        widths[micro_batch] = max(int(rows) for rows in re.findall(r"f32\[(\d+),3,3,6\]", program))
    assert widths == {0: 2 * tiny.BATCH, 2: 4}


def test_seeds_of_dropout_move_on():
    def encoder() -> keras.Model:
        inner = tiny.encoder()
        return keras.Sequential([*inner.layers, keras.layers.Dropout(0.5, seed=3)], name="encoder")

    model = simclr(2, make_encoder=encoder)
    seeds = [variable for variable in model.network.non_trainable_variables if "int" in variable.dtype]
    before = [seed.numpy() for seed in seeds]
    tiny.fit(model, tiny.dataset(0, 1))
    assert len(seeds) == 1 and not np.array_equal(before[0], seeds[0].numpy())


def test_unequal_micro_batches_are_refused():
    with pytest.raises(ValueError, match="micro-batches of 3 images do not divide the 8 images"):
        simclr(3).train_step({name: tf.constant(value) for name, value in tiny.batch(0).items()})
