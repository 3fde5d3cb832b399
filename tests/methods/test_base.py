"""That a model trains the same on any number of them, however its step is run."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from tensorflow.python.distribute import mirrored_run, mirrored_strategy

from simclrv2_tf.data.input import TrainingInput, evaluation_batches
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Batch, Logs, Method
from simclrv2_tf.methods.inference import collect, distribute
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import BatchNorm


@pytest.mark.parametrize("count", [2, 4])
def test_keras_optimizers_sum_gradients_over_replicas(count, replicas):
    """Training steps divide their loss by the number of replicas on the strength of this."""
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


def simclr(strategy: tf.distribute.Strategy | None = None, **how) -> SimCLR:
    with (strategy or tf.distribute.get_strategy()).scope():
        return tiny.compiled(SimCLR(tiny.network(), tiny.VIEWS, 0.5, weight_decay=1e-3), **how)


def trained(model: SimCLR, steps: int = 3) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    logs = tiny.fit(model, tiny.dataset(0, steps, unlabelled=[0, 1, 2]))
    return logs, tiny.numbers(model.network.variables + model.optimizer.variables)


@pytest.mark.parametrize(
    ("count", "default_steps_per_execution"),
    [pytest.param(2, 1, marks=pytest.mark.slow), (2, 3), pytest.param(4, 1, marks=pytest.mark.slow)],
)
def test_fit_on_replicas_equals_one_device(count, default_steps_per_execution, replicas):
    """Losses, weights, statistics and momenta, in float64; the unlabelled rows are all on the first replica."""
    tiny.use_float64()
    strategy = replicas(count)
    one_logs, one = trained(simclr())
    model = simclr(strategy, steps_per_execution=default_steps_per_execution)
    logs, many = trained(model)
    expected = [
        {
            name: np.mean([call[name] for call in one_logs[start : start + default_steps_per_execution]])
            for name in one_logs[0]
        }
        for start in range(0, len(one_logs), default_steps_per_execution)
    ]
    for ours, mean in zip(logs, expected, strict=True):
        assert ours == pytest.approx(mean, rel=1e-6)  # logs are float32
    tiny.assert_close(many, one, rtol=1e-8)
    for variable in [*model.trained_variables, *model.optimizer.variables]:
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, many[variable.path])


class Counter(Method):
    """Its metrics: the step's number, and the share of the batch's rows on this replica that are above 10."""

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


def count_steps(strategy: tf.distribute.Strategy, default_steps_per_execution: int = 3, **how) -> Counter:
    with strategy.scope():
        model = Counter()
        model.compile(jit_compile=how.pop("jit_compile", False), steps_per_execution=default_steps_per_execution, **how)
    return model


def rows(steps: int) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensors({"x": tf.constant([0, 20, 20, 20])}).repeat(steps)


@pytest.mark.parametrize("count", [1, 2])
def test_logs_are_means_over_the_calls_steps_and_over_replicas(count, replicas):
    model = count_steps(replicas(count) if count > 1 else tf.distribute.get_strategy())
    logs = tiny.fit(model, rows(6))
    assert logs == [{"number": 2.0, "above": 0.75}, {"number": 5.0, "above": 0.75}]


@pytest.mark.parametrize("count", [1, 2])
def test_a_later_fit_traces_nothing(count, replicas):
    """Training in intervals must not compile the step anew, nor with another number of steps a call."""
    model = count_steps(replicas(count) if count > 1 else tf.distribute.get_strategy())
    tiny.fit(model, rows(6))
    traces = model.traces
    tiny.fit(model, rows(6))
    model.steps_per_execution = 2
    assert tiny.fit(model, rows(2)) == [{"number": 13.5, "above": 0.75}]
    assert model.traces == traces


def test_a_step_runs_on_the_steps_it_is_given():
    model = count_steps(tf.distribute.get_strategy(), default_steps_per_execution=1)
    assert [logs["number"] for logs in tiny.fit(model, rows(3))] == [1, 2, 3]


def test_xla_equals_no_xla():
    tiny.use_float64()
    one_logs, one = trained(simclr())
    logs, compiled = trained(simclr(jit_compile=True, steps_per_execution=3))
    expected = {name: np.mean([call[name] for call in one_logs]) for name in one_logs[0]}
    assert logs == [pytest.approx(expected, rel=1e-6)]
    tiny.assert_close(compiled, one, rtol=1e-8)


@pytest.mark.parametrize("skip_bad_steps", [False, True])
def test_xla_on_several_gpus_has_the_collectives_inside_the_step(skip_bad_steps, replicas, monkeypatch):
    """Traced, not compiled: XLA has no collectives on CPUs. One message for all gradients, two for each batch norm."""
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
    assert counts == [2 * norms + norms + others] * 2  # the memory's network only runs forward


def test_replicas_with_statistics_of_their_own_agree_on_the_mean(replicas):
    """Before they are saved or evaluated: else a resumed run, or another replica, would see others."""
    strategy = replicas(2)
    model = simclr(strategy)
    local = model.network.encoder.get_layer("batch_norm0")
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
        wide = tiny.fit(simclr(), batches)
        keras.config.set_dtype_policy(policy)
        model = simclr(replicas(count) if count > 1 else None)
        if policy == "mixed_float16":
            model.optimizer.dynamic_scale.assign(64)  # where it would arrive by halving
        logs = tiny.fit(model, batches)
        assert [ours["loss"] for ours in logs] == pytest.approx([theirs["loss"] for theirs in wide], rel=0.05)
        assert logs[-1]["contrastive_loss"] < 0.9 * logs[0]["contrastive_loss"]
        assert {variable.dtype for variable in model.network.variables} == {"float32"}

    def test_lars_is_known_in_its_loss_scaling_wrapper(self):
        """Else the loss would decay all that LARS decays already."""
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
        assert int(logs["bad_steps"]) == 0  # no fault of the run
        assert not tiny.moved(before, tiny.numbers(model.trained_variables))
        assert float(model.optimizer.dynamic_scale) == pytest.approx(0.5e30)
        model.optimizer.dynamic_scale.assign(64)
        tiny.fit(model, tiny.dataset(0, 1))
        assert tiny.moved(before, tiny.numbers(model.trained_variables)) == set(before)

    def test_float16_on_replicas_is_refused(self, replicas):
        keras.config.set_dtype_policy("mixed_float16")
        with pytest.raises(SettingError, match=r"--mixed_precision=float16.*bfloat16"):
            simclr(replicas(2))


@pytest.mark.parametrize("count", [1, 2])
def test_the_step_finds_its_images_where_they_are_resident(count, replicas):
    """On one device the batches are also copied ahead of their step, to another one."""
    images = np.random.default_rng(0).integers(0, 256, (12, 10, 10, 3), "uint8")
    source = ArraySource("test", images, np.arange(12, dtype="int32") % tiny.CLASSES, tuple("abc"))
    plain = TrainingInput(source, tiny.BATCH, 2, tiny.VIEWS, seed=0)
    strategy = replicas(count) if count > 1 else tf.distribute.get_strategy()
    with strategy.scope():
        resident = dataclasses.replace(plain, resident=tf.Variable(images.reshape(12, -1)))
    found = []
    for data in (plain, resident):
        model = simclr(strategy)
        model.complete_batch = data.completed
        copying = "CPU:1" if data is resident else ""
        iterator = iter(distribute(strategy, tiny.BATCH, lambda part, data=data: data.of(part).batches(0, 3), copying))
        logs = {name: float(value) for name, value in model.run_steps(iterator, 3).items()}
        found.append((logs, tiny.numbers(model.network.variables)))
        with pytest.raises(tf.errors.OutOfRangeError):
            model.run_steps(iterator, 1)
    assert found[0][0] == found[1][0]
    tiny.assert_close(found[1][1], found[0][1], rtol=0)


class TestCollect:
    @pytest.mark.parametrize("count", [1, 2])
    def test_every_image_once_in_order(self, count, replicas):
        """Nine images in batches of four: the padding of the last batch is left out."""
        model = simclr(replicas(count) if count > 1 else None)
        images = np.random.default_rng(0).integers(0, 256, (9, tiny.SIZE, tiny.SIZE, 3), "uint8")
        source = ArraySource("test", np.array(images), np.arange(9, dtype="int32"), tuple("abcdefghi"))
        found = collect(
            model, lambda part: evaluation_batches(source, 4, tiny.SIZE, part=part), 4, ("final_avg_pool", "logits_sup")
        )
        assert found.keys() == {"final_avg_pool", "logits_sup", "labels"}
        np.testing.assert_array_equal(found["labels"], np.arange(9))
        expected = model.network(images.astype("float32") / 255, training=False)
        for name in ("final_avg_pool", "logits_sup"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)

    def test_sees_what_training_has_changed(self):
        model, batch = simclr(), tiny.batch(0)
        data = {"images": batch["views"][:, 0], "labels": batch["labels"], "weights": np.ones(tiny.BATCH, "float32")}
        batches = tf.data.Dataset.from_tensors(data)
        before = collect(model, lambda _: batches, tiny.BATCH, ("proj_head_output",))["proj_head_output"]
        trained(model, steps=2)
        after = collect(model, lambda _: batches, tiny.BATCH, ("proj_head_output",))["proj_head_output"]
        expected = model(data["images"], training=False)["proj_head_output"]
        np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-6)
        assert not np.allclose(before, after)
