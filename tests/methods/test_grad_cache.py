"""Micro-batches: gradients equal those of the whole batch, except for the effect of batch norm."""

import re
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import BatchNorm, BatchNormSettings, Network
from simclrv2_tf.models.resnet import BlockGroup

VIEWS = ViewSettings(tiny.SIZE, color_jitter_strength=0.5)


def build_network(frozen: bool, **settings) -> Network:
    """Builds the model; with ``frozen`` batch norms, the outputs of an image do not depend on other images."""
    network = tiny.network(**settings)
    for layer in network._flatten_layers():
        if frozen and isinstance(layer, BatchNorm | keras.layers.BatchNormalization):
            layer.trainable = False
            layer.moving_mean.assign(0.1 * tf.ones_like(layer.moving_mean))
            layer.moving_variance.assign(0.5 * tf.ones_like(layer.moving_variance))
    return network


def simclr(
    micro_batch: int,
    optimizer: str = "lars",
    frozen: bool = False,
    memory: int = 0,
    network: dict | None = None,
    **settings,
) -> SimCLR:
    memory_settings = {"memory_size": memory, "ema_decay": 0.9}
    network = build_network(frozen, **(network or {}))
    model = SimCLR(network, VIEWS, 0.5, weight_decay=1e-3, micro_batch=micro_batch, **memory_settings)
    return tiny.compiled(model, optimizer, **settings)


def classification(micro_batch: int, frozen: bool = False) -> ClassificationModel:
    model = ClassificationModel(build_network(frozen, tap=1), VIEWS, weight_decay=1e-3, micro_batch=micro_batch)
    return tiny.compiled(model, "momentum")


def distiller(micro_batch: int, frozen: bool = False) -> Distiller:
    student, teacher = build_network(frozen), tiny.network(seed=1)
    return tiny.compiled(Distiller(student, teacher, VIEWS, 0.5, alpha=0.5, micro_batch=micro_batch))


def simclr_of_keras_layers(micro_batch: int, frozen: bool = False) -> SimCLR:
    return simclr(micro_batch, frozen=frozen, network={"make_encoder": tiny.keras_encoder})


def trained(
    model: Method, batches: tf.data.Dataset, train: Callable = tiny.run_eagerly
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    """Returns the logs of every step and all variables afterwards."""
    logs = train(model, batches)
    variables = [*model.optimizer.variables, *(v for part in model.parts().values() for v in part.variables)]
    return logs, tiny.numbers(variables)


def assert_same(ours, plain, rtol: float = 1e-9) -> None:
    for logs, expected in zip(ours[0], plain[0], strict=True):
        assert logs == pytest.approx(expected, rel=1e-6)  # logs are float32
    tiny.assert_close(ours[1], plain[1], rtol)


@pytest.mark.parametrize(("optimizer", "micro_batches"), [("lars", [1, 2, 8]), ("momentum", [2])])
def test_step_equals_the_plain_step_if_batch_norm_is_frozen(optimizer, micro_batches):
    """Compares losses, weights, momenta and the memory's average and queue; some labels are unknown."""
    tiny.use_float64()
    batches = tiny.dataset(0, 3, unlabelled=[0, 1, 5])
    plain = trained(simclr(0, optimizer, frozen=True, memory=20), batches)
    for micro_batch in micro_batches:
        train = tiny.fit if (optimizer, micro_batch) == ("lars", 2) else tiny.run_eagerly
        assert_same(trained(simclr(micro_batch, optimizer, frozen=True, memory=20), batches, train), plain)


@pytest.mark.parametrize("build", [classification, distiller, simclr_of_keras_layers])
def test_step_of_other_methods_and_encoders_equals_the_plain_step(build):
    """With one micro-batch as it is, with several if batch norm is frozen; in a traced step too."""
    tiny.use_float64()
    num_views = 2 if build is simclr_of_keras_layers else 1
    batches = tiny.dataset(0, 2, num_views=num_views, unlabelled=[] if build is classification else [0, 5])
    assert_same(trained(build(tiny.BATCH), batches), trained(build(0), batches))
    plain = trained(build(0, frozen=True), batches)
    assert_same(trained(build(1, frozen=True), batches), plain)
    assert_same(trained(build(4, frozen=True), batches, tiny.fit), plain)


def test_views_equal_those_of_the_whole_batch():
    """Crops, flips and colours are made from the random numbers of the batch."""
    tiny.use_float64()
    images = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), "uint8")
    source = ArraySource("test", images, np.zeros(20, "int32"), ("a", "b", "c"))
    models = [simclr(micro_batch, frozen=True) for micro_batch in (0, 4)]
    plain, ours = (trained(m, TrainingInput(source, tiny.BATCH, 2, m.views, 0).batches(0, 2)) for m in models)
    assert_same(ours, plain)


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_one_micro_batch_equals_the_plain_step(xla):
    """Batch norms are in training mode; their moving statistics are compared too."""
    tiny.use_float64()
    batches = tiny.dataset(0, 2)
    ours = trained(simclr(tiny.BATCH, jit_compile=xla), batches, tiny.fit)
    assert_same(ours, trained(simclr(0), batches), rtol=1e-8)


@pytest.mark.parametrize("xla", [pytest.param(False, marks=pytest.mark.slow), True])
def test_batch_norm_normalises_over_a_micro_batch(xla):
    """Gradients flow through the statistics of each; moving statistics are updated once, by the mean of all."""
    tiny.use_float64()
    batch, halves = tiny.batch(0), [slice(0, 4), slice(4, 8)]
    ours = simclr(4, jit_compile=xla)
    tiny.fit(ours, tiny.dataset(0, 1))

    model = simclr(0)
    start, statistics = tiny.numbers(model.network.variables), []
    with tf.GradientTape() as tape:
        outputs = []
        for half in halves:
            tiny.assign(model.network.non_trainable_variables, start)
            outputs.append(model.forward({"views": batch["views"][half]}))
            statistics.append(tiny.numbers(model.network.non_trainable_variables))
        outputs = {name: tf.concat([output[name] for output in outputs], axis=0) for name in outputs[0]}
        loss, _ = model.objective(outputs, {"labels": tf.constant(batch["labels"])})
        scaled = model.scale_loss(loss)
    gradients = tape.gradient(scaled, [variable.value for variable in model.trained_variables])
    model.optimizer.apply(gradients, model.trained_variables)
    first, second = statistics
    assert all(not np.allclose(first[path], second[path]) for path in first)
    tiny.assign(model.network.non_trainable_variables, {path: (first[path] + second[path]) / 2 for path in first})
    tiny.assert_close(tiny.numbers(ours.network.variables), tiny.numbers(model.network.variables), rtol=1e-9)


def residual_encoder(remat: bool) -> keras.Model:
    block = {"batch_norm": BatchNormSettings(), "bottleneck": False, "sk_ratio": 0.0, "se_ratio": 0.0}
    layers = [BlockGroup(6, 1, 2, block, remat, name="blocks"), keras.layers.GlobalAveragePooling2D(name="pool")]
    return keras.Sequential([keras.Input((tiny.SIZE, tiny.SIZE, 3)), *layers], name="encoder")


@pytest.mark.parametrize(
    ("steps_per_execution", "remat"),
    [(2, True), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(2, False), (1, True)])],
)
def test_replicas_share_a_micro_batch(steps_per_execution, remat, replicas):
    """Two replicas with two images each at a time equal one device with those four, with and without remat."""
    tiny.use_float64()
    order = [0, 1, 4, 5, 2, 3, 6, 7]  # replica 0 has images 0 to 3
    batches = tiny.dataset(0, 2, unlabelled=[0, 1])
    network = {"mode": "none", "make_encoder": lambda: residual_encoder(remat)}
    with (strategy := replicas(2)).scope():
        model = simclr(2, steps_per_execution=steps_per_execution, network=network)
    logs, two = trained(model, batches, tiny.fit)
    plain = simclr(4, network=network | {"make_encoder": lambda: residual_encoder(False)})
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
        model = simclr(2, frozen=True, memory=20, network={"mode": "linear"})
    plain = simclr(0, frozen=True, memory=20, network={"mode": "linear"})
    assert_same(trained(model, batches, tiny.fit), trained(plain, batches))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    logs = []
    for micro_batch in (0, 2):
        model = simclr(micro_batch, frozen=True)
        if policy == "mixed_float16":
            model.optimizer.dynamic_scale.assign(64)
        logs.append(tiny.run_eagerly(model, tiny.dataset(0, 1).repeat(4)))
    for ours, plain in zip(*logs, strict=True):
        assert ours == pytest.approx(plain, rel=0.01)
    assert logs[0][-1]["loss"] < logs[0][0]["loss"]


def test_activations_of_the_whole_batch_are_never_in_memory():
    """In the compiled step, the output of the convolution exists for 4 of the 16 views."""
    num_rows = {}
    for micro_batch in (0, 2):
        model = simclr(micro_batch, network={"classes": 0, "mode": "linear"})
        step = tf.function(model.train_step, jit_compile=True, autograph=False)
        batch = {name: tf.constant(value) for name, value in tiny.batch(0).items()}
        program = step.experimental_get_compiler_ir(batch)(stage="optimized_hlo")
        num_rows[micro_batch] = max(int(rows) for rows in re.findall(r"f32\[(\d+),3,3,6\]", program))
    assert num_rows == {0: 2 * tiny.BATCH, 2: 4}


def test_seeds_of_dropout_advance():
    def encoder() -> keras.Model:
        return keras.Sequential([*tiny.encoder().layers, keras.layers.Dropout(0.5, seed=3)], name="encoder")

    model = simclr(2, network={"make_encoder": encoder})
    seeds = [variable for variable in model.network.non_trainable_variables if "int" in variable.dtype]
    before = [seed.numpy() for seed in seeds]
    tiny.fit(model, tiny.dataset(0, 1))
    assert len(seeds) == 1 and not np.array_equal(before[0], seeds[0].numpy())


def test_unequal_micro_batches_raise():
    with pytest.raises(ValueError, match="micro-batches of 3 images do not divide the 8 images"):
        simclr(3).train_step({name: tf.constant(value) for name, value in tiny.batch(0).items()})
