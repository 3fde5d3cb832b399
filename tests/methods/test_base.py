"""Method: one step on any number of replicas, several steps per call, XLA, mixed precision; subclasses of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow.python.distribute import mirrored_run, mirrored_strategy

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput, evaluation_input
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs
from simclrv2_tf.methods.inference import collect, distribute
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import BatchNorm
from simclrv2_tf.runs.checkpoints import Checkpoints


class Agreement(Method):
    """A minimal method: the projections of the two views of an image must agree."""

    num_views = 2
    train_metrics = ("loss", "scale")

    def forward(self, batch: Batch) -> Outputs:
        views = tf.unstack(self.make_views(batch), axis=1)
        projections = [self(view, training=True)["proj_head_output"] for view in views]
        return {"projections": tf.stack(projections, axis=1)}  # [b, 2, d]

    def objective(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, Logs]:
        first, second = tf.unstack(outputs["projections"], axis=1)
        return tf.reduce_mean((first - second) ** 2), {"scale": tf.reduce_mean(first**2)}


class PredictedAgreement(Agreement):
    """Has an additional layer between the projections of the first and the second views."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        layers = [keras.layers.Dense(5, name="dense"), BatchNorm(name="batch_norm")]
        self.predictor = keras.Sequential([keras.Input((5,)), *layers], name="predictor")

    def forward(self, batch: Batch) -> Outputs:
        first, second = tf.unstack(super().forward(batch)["projections"], axis=1)
        return {"projections": tf.stack([self.predictor(first, training=True), second], axis=1)}

    def parts(self) -> dict[str, keras.layers.Layer]:
        return super().parts() | {"predictor": self.predictor}

    @property
    def trained_variables(self) -> list[keras.Variable]:
        return super().trained_variables + self.predictor.trainable_variables


def agreement(method: type[Agreement] = Agreement, seed: int = 0, **settings) -> Agreement:
    return tiny.compiled(method(tiny.network(classes=0, seed=seed), tiny.VIEWS), "momentum", **settings)


class TestSubclass:
    def test_fit_and_run_steps_give_the_same_numbers(self):
        by_fit, by_steps, model = agreement(), agreement(), agreement()
        before = tiny.numbers(by_fit.network.variables)
        logs = tiny.fit(by_fit, tiny.dataset(0, 3))
        assert logs[0]["loss"] == pytest.approx(float(model.objective(model.forward(tiny.batch(0)), {})[0]), rel=1e-5)
        means = by_steps.run_steps(iter(tiny.dataset(0, 3)), 3)
        expected = {name: np.mean([step[name] for step in logs]) for name in ("loss", "scale")}
        assert {name: float(means[name]) for name in expected} == pytest.approx(expected, rel=1e-6)
        assert (int(means["bad_steps"]), int(means["first_bad_step"])) == (0, -1)
        after = tiny.numbers(by_fit.network.variables)
        assert tiny.moved(before, after) == set(before)
        assert not tiny.moved(after, tiny.numbers(by_steps.network.variables))

    def test_checkpoint_holds_an_additional_layer(self, tmp_path):
        saved, restored = agreement(PredictedAgreement), agreement(PredictedAgreement, seed=1)
        tiny.run_eagerly(saved, tiny.dataset(0, 1))
        expected = tiny.numbers(saved.predictor.variables)
        assert len(expected) == 6 and tiny.moved(expected, tiny.numbers(restored.predictor.variables)) == set(expected)
        Checkpoints(tmp_path, saved).save(1)
        assert Checkpoints(tmp_path, restored).restore() == 1
        assert not tiny.moved(expected, tiny.numbers(restored.predictor.variables))

    def test_bad_step_is_rolled_back_in_an_additional_layer(self):
        """Its weights, and the moving statistics of its batch norm."""
        model = agreement(PredictedAgreement, skip_bad_steps=True)
        before = tiny.numbers(model.predictor.variables)
        good = tiny.dataset(0, 1)
        bad = good.map(lambda batch: batch | {"views": batch["views"] * np.nan})
        logs = model.run_steps(iter(bad.concatenate(good)), 1)
        assert int(logs["bad_steps"]) == 1
        assert not tiny.moved(before, tiny.numbers(model.predictor.variables))
        model.run_steps(iter(good), 1)
        assert tiny.moved(before, tiny.numbers(model.predictor.variables)) == set(before)

    def test_micro_batch_moves_the_statistics_of_an_additional_layer(self):
        tiny.use_float64()
        results = []
        for micro_batch in (0, tiny.BATCH):
            model = agreement(PredictedAgreement)
            model.micro_batch = micro_batch
            tiny.run_eagerly(model, tiny.dataset(0, 2))
            results.append(tiny.numbers(model.predictor.variables))
        tiny.assert_close(results[1], results[0], rtol=1e-9)

    def test_config_holds_the_arguments_of_all_constructors(self):
        config = SimCLR(tiny.network(), tiny.VIEWS, 0.3, weight_decay=0.1).get_config()
        assert {name: config[name] for name in ("temperature", "weight_decay", "micro_batch", "name")} == {
            "temperature": 0.3,
            "weight_decay": 0.1,
            "micro_batch": 0,
            "name": "simclr",
        }


@pytest.mark.parametrize("count", [2, 4])
def test_keras_optimizers_sum_gradients_over_replicas(count, replicas):
    """``Method.scale_loss`` relies on it."""
    strategy = replicas(count)
    with strategy.scope():
        weight = keras.Variable(np.zeros([2], "float32"))
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build([weight])

    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.fill([2], tf.cast(replica + 1, tf.float32))], [weight])

    tf.function(lambda: strategy.run(step), autograph=False)()
    np.testing.assert_array_equal(weight.numpy(), [-sum(range(1, count + 1))] * 2)
    assert optimizer.iterations.numpy() == 1


def simclr(strategy: tf.distribute.Strategy | None = None, **settings) -> SimCLR:
    with (strategy or tf.distribute.get_strategy()).scope():
        return tiny.compiled(SimCLR(tiny.network(), tiny.VIEWS, 0.5, weight_decay=1e-3), **settings)


def trained(
    model: SimCLR, train: Callable = tiny.fit, steps: int = 3
) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    logs = train(model, tiny.dataset(0, steps, unlabelled=[0, 1, 2]))
    return logs, tiny.numbers(model.network.variables + model.optimizer.variables)


@pytest.mark.parametrize(
    ("count", "steps_per_execution"),
    [pytest.param(2, 1, marks=pytest.mark.slow), (2, 3), pytest.param(4, 1, marks=pytest.mark.slow)],
)
def test_fit_on_replicas_equals_one_device(count, steps_per_execution, replicas):
    """Compares losses, weights, statistics and momenta; the unlabelled rows are all on the first replica."""
    tiny.use_float64()
    strategy = replicas(count)
    one_logs, one = trained(simclr(), tiny.run_eagerly)
    model = simclr(strategy, steps_per_execution=steps_per_execution)
    logs, many = trained(model)
    expected = [
        {name: np.mean([step[name] for step in one_logs[start : start + steps_per_execution]]) for name in one_logs[0]}
        for start in range(0, len(one_logs), steps_per_execution)
    ]
    for ours, mean in zip(logs, expected, strict=True):
        assert ours == pytest.approx(mean, rel=1e-6)  # logs are float32
    tiny.assert_close(many, one, rtol=1e-8)
    for variable in [*model.trained_variables, *model.optimizer.variables]:
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, many[variable.path])


class Counter(Method):
    """Its metrics are the number of the step and the share of this replica's rows that are above 10."""

    train_metrics = ("number", "above")

    def __init__(self):
        super().__init__(tiny.network(), tiny.VIEWS)
        self.steps = self.add_weight(shape=(), initializer="zeros", trainable=False, aggregation="only_first_replica")
        self.traces = 0

    @property
    def trained_variables(self) -> list[keras.Variable]:
        return []

    def train_step(self, batch: Batch) -> Logs:
        self.traces += 1
        self.steps.assign(self.steps.value + 1)
        return {"number": tf.identity(self.steps.value), "above": tf.reduce_mean(tf.cast(batch["x"] > 10, tf.float32))}


def counter(strategy: tf.distribute.Strategy, steps_per_execution: int = 3) -> Counter:
    with strategy.scope():
        model = Counter()
        model.compile(jit_compile=False, steps_per_execution=steps_per_execution)
    return model


def rows(steps: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors({"x": tf.constant([0, 20, 20, 20])}).repeat(steps)


@pytest.mark.parametrize("count", [1, 2])
def test_logs_are_means_over_the_steps_of_a_call_and_over_replicas(count, replicas):
    model = counter(replicas(count) if count > 1 else tf.distribute.get_strategy())
    logs = tiny.fit(model, rows(6))
    assert logs == [{"number": 2.0, "above": 0.75}, {"number": 5.0, "above": 0.75}]


@pytest.mark.parametrize("count", [1, 2])
def test_second_fit_does_not_trace_again(count, replicas):
    """Neither does another number of steps per call."""
    model = counter(replicas(count) if count > 1 else tf.distribute.get_strategy())
    tiny.fit(model, rows(6))
    traces = model.traces
    tiny.fit(model, rows(6))
    model.steps_per_execution = 2
    assert tiny.fit(model, rows(2)) == [{"number": 13.5, "above": 0.75}]
    assert model.traces == traces


def test_one_step_per_call_by_default():
    model = counter(tf.distribute.get_strategy(), steps_per_execution=1)
    assert [logs["number"] for logs in tiny.fit(model, rows(3))] == [1, 2, 3]


def test_xla_equals_no_xla():
    tiny.use_float64()
    one_logs, one = trained(simclr(), tiny.run_eagerly)
    logs, compiled = trained(simclr(jit_compile=True, steps_per_execution=3))
    expected = {name: np.mean([step[name] for step in one_logs]) for name in one_logs[0]}
    assert logs == [pytest.approx(expected, rel=1e-6)]
    tiny.assert_close(compiled, one, rtol=1e-8)


@pytest.mark.parametrize("skip_bad_steps", [False, True])
def test_collectives_are_inside_the_compiled_step_on_several_gpus(skip_bad_steps, replicas, monkeypatch):
    """One all-reduce of all gradients, two per batch norm. Traced but not compiled: XLA has no collectives on CPUs."""
    for module in (mirrored_run, mirrored_strategy):
        monkeypatch.setattr(module, "_is_gpu_device", lambda device: True)
    strategy = replicas(2)
    with strategy.scope():
        network = tiny.network()
        model = SimCLR(network, tiny.VIEWS, memory_size=20, ema_decay=0.9)
        tiny.compiled(model, jit_compile=True, skip_bad_steps=skip_bad_steps)
    iterator = iter(strategy.experimental_distribute_dataset(tiny.dataset(0, 1)))
    traced = model._make_run_steps().get_concrete_function(iterator, tf.constant(1))
    counts = [
        sum(node.op == "CollectiveReduceV2" for node in function.node_def)
        for function in traced.graph.as_graph_def().library.function
        if function.attr["_XlaMustCompile"].b
    ]
    norms = sum(isinstance(layer, BatchNorm) for layer in network._flatten_layers())
    embeddings, similarities, keys, labelled, metrics, gradients = 1, 1, 1, 2, 1, 1
    others = embeddings + similarities + keys + labelled + metrics + gradients
    assert counts == [2 * norms + norms + others] * 2  # the memory's network runs forward only


def test_average_local_statistics_averages_unsynchronized_batch_norms_over_replicas(replicas):
    """Before they are saved or used for evaluation, as each replica has its own."""
    strategy = replicas(2)
    model = simclr(strategy)
    local = model.network.encoder.get_layer("batch_norm")
    local.synchronized = False
    tiny.fit(model, tiny.dataset(0, 1))
    values = lambda variable: np.stack(strategy.experimental_local_results(variable.value))  # noqa: E731
    before = {v.path: values(v) for v in model.network.variables}
    model.average_local_statistics()
    for variable in model.network.variables:
        first, second = before[variable.path]
        after = values(variable)
        if variable is local.moving_mean or variable is local.moving_variance:
            assert np.abs(first - second).min() > 0
            np.testing.assert_allclose(after, [(first + second) / 2] * 2, rtol=1e-6)
        else:
            np.testing.assert_array_equal(after, before[variable.path])


class TestMixedPrecision:
    @pytest.mark.parametrize(
        ("policy", "count"),
        [("mixed_bfloat16", 1), pytest.param("mixed_bfloat16", 2, marks=pytest.mark.slow), ("mixed_float16", 1)],
    )
    def test_learns_about_as_float32_does(self, policy, count, replicas):
        batches = tiny.dataset(0, 1).repeat(4)
        wide = tiny.run_eagerly(simclr(), batches)
        keras.config.set_dtype_policy(policy)
        model = simclr(replicas(count) if count > 1 else None)
        if policy == "mixed_float16":
            model.optimizer.dynamic_scale.assign(64)  # which it would reach by halving
        logs = tiny.fit(model, batches)
        assert [ours["loss"] for ours in logs] == pytest.approx([theirs["loss"] for theirs in wide], rel=0.05)
        assert logs[-1]["contrastive_loss"] < 0.9 * logs[0]["contrastive_loss"]
        assert {variable.dtype for variable in model.network.variables} == {"float32"}

    def test_lars_is_recognised_inside_its_loss_scaling_wrapper(self):
        """Otherwise the loss would decay what LARS decays already."""
        keras.config.set_dtype_policy("mixed_float16")
        model = simclr()
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert penalised_variables(model) == [model.network.classifier.dense.kernel]

    def test_float16_skips_a_step_that_overflows(self):
        keras.config.set_dtype_policy("mixed_float16")
        model = simclr()
        model.optimizer.dynamic_scale.assign(1e30)
        before = tiny.numbers(model.trained_variables)
        logs = model.run_steps(iter(tiny.dataset(0, 1)), 1)
        assert int(logs["bad_steps"]) == 0  # not an error of the run
        assert not tiny.moved(before, tiny.numbers(model.trained_variables))
        assert float(model.optimizer.dynamic_scale) == pytest.approx(0.5e30)
        model.optimizer.dynamic_scale.assign(64)
        model.run_steps(iter(tiny.dataset(0, 1)), 1)
        assert tiny.moved(before, tiny.numbers(model.trained_variables)) == set(before)

    def test_float16_on_several_replicas_raises(self, replicas):
        keras.config.set_dtype_policy("mixed_float16")
        with pytest.raises(SettingError, match=r"--mixed_precision=float16.*bfloat16"):
            simclr(replicas(2))


@pytest.mark.parametrize("count", [1, 2])
def test_images_that_reside_on_the_device_give_the_same_step(count, replicas):
    """On one replica, batches are also copied ahead of their step to another device."""
    images = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), "uint8")
    source = ArraySource("test", images, np.arange(12, dtype="int32") % tiny.CLASSES, tuple("abc"))
    plain = TrainingInput(source, tiny.BATCH, 2, ViewSettings.crop_and_flip(tiny.SIZE), seed=0)
    strategy = replicas(count) if count > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        resident = dataclasses.replace(plain, resident=tf.Variable(images.reshape(12, -1)))
    results = []
    for data in (plain, resident):
        with strategy.scope():
            model = Agreement(tiny.network(classes=0, mode="linear"), data.settings)
            tiny.compiled(model, "momentum")
        model.complete_batch = data.completed
        device = "CPU:1" if data is resident else ""
        iterator = iter(distribute(strategy, tiny.BATCH, lambda part, data=data: data.of(part).batches(0, 3), device))
        logs = {name: float(value) for name, value in model.run_steps(iterator, 3).items()}
        results.append((logs, tiny.numbers(model.network.variables)))
        with pytest.raises(tf.errors.OutOfRangeError):
            model.run_steps(iterator, 1)
    (plain_logs, expected), (logs, actual) = results
    assert logs == plain_logs
    tiny.assert_close(actual, expected, rtol=0)


class TestCollect:
    @pytest.mark.parametrize("count", [1, 2])
    def test_returns_every_image_once_in_order(self, count, replicas):
        """Nine images in batches of four, without the padding of the last batch."""
        model = simclr(replicas(count) if count > 1 else None)
        images = np.random.default_rng(0).integers(0, 256, (9, tiny.SIZE, tiny.SIZE, 3), "uint8")
        source = ArraySource("test", np.array(images), np.arange(9, dtype="int32"), tuple("abcdefghi"))
        make_batches = lambda part: evaluation_input(source, 4, tiny.SIZE, part=part)  # noqa: E731
        outputs = collect(model, make_batches, 4, ("final_avg_pool", "logits_sup"))
        assert outputs.keys() == {"final_avg_pool", "logits_sup", "labels", "rows"}
        np.testing.assert_array_equal(outputs["rows"], np.arange(9))
        np.testing.assert_array_equal(outputs["labels"], np.arange(9))
        expected = model.network(images.astype("float32") / 255, training=False)
        for name in ("final_avg_pool", "logits_sup"):
            np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-6)

    def test_uses_the_weights_after_training(self):
        model, batch = simclr(), tiny.batch(0)
        data = {"images": batch["views"][:, 0], "labels": batch["labels"], "weights": np.ones(tiny.BATCH, "float32")}
        batches = tf.data.Dataset.from_tensors(data)
        before = collect(model, lambda _: batches, tiny.BATCH, ("proj_head_output",))["proj_head_output"]
        trained(model, tiny.run_eagerly, steps=2)
        after = collect(model, lambda _: batches, tiny.BATCH, ("proj_head_output",))["proj_head_output"]
        expected = model(data["images"], training=False)["proj_head_output"]
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(before, after)
