"""BatchNorm: all implementations give the same values and gradients; updates of the moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models.batch_norm import (
    BatchNorm,
    BatchNormSettings,
    fused_batch_norm,
    fused_synchronized_batch_norm,
    one_pass_batch_norm,
)

EPSILON = 1e-5
SHAPE = (12, 3, 4, 5)


def synchronized(x, gamma, beta, epsilon):
    """The form for several replicas, on one."""
    return fused_synchronized_batch_norm(x, gamma, beta, epsilon, tf.identity)


def draw(shape=SHAPE, dtype="float64"):
    """Returns input, upstream gradient, gamma and beta; the channels differ in mean and scale."""
    rng = np.random.default_rng(0)
    channels = np.arange(1, shape[-1] + 1)
    x = rng.normal(size=shape) * channels + channels
    values = x, rng.normal(size=shape), rng.uniform(0.5, 1.5, shape[-1:]), rng.normal(size=shape[-1:])
    return [tf.constant(value, dtype) for value in values]


def reference(x, dy, gamma, beta):
    """Computes two-pass batch norm in float64, and its gradients by automatic differentiation."""
    x, dy, gamma, beta = (tf.cast(value, tf.float64) for value in (x, dy, gamma, beta))
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        mean = tf.reduce_mean(x, range(x.shape.rank - 1))
        variance = tf.reduce_mean(tf.square(x - mean), range(x.shape.rank - 1))
        y = gamma * (x - mean) / tf.sqrt(variance + EPSILON) + beta
        loss = tf.reduce_sum(y * dy)
    return [y, mean, variance, *tape.gradient(loss, [x, gamma, beta])]


def value_and_gradients(normalize, x, dy, gamma, beta):
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        y, mean, variance = normalize(x, gamma, beta, EPSILON)
        loss = tf.reduce_sum(tf.cast(y * dy, gamma.dtype))
    return [y, mean, variance, *tape.gradient(loss, [x, gamma, beta])]


def relative_errors(results, expected):
    pairs = [(tf.cast(a, tf.float64).numpy(), b.numpy()) for a, b in zip(results, expected, strict=True)]
    return [np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]


@pytest.mark.parametrize("shape", [SHAPE, (24, 5)], ids=["images", "vectors"])
@pytest.mark.parametrize("xla", [False, True], ids=["", "xla"])
@pytest.mark.parametrize(
    "normalize, dtype, tolerance",
    [
        (one_pass_batch_norm, "float64", 1e-13),
        (one_pass_batch_norm, "float32", 3e-6),
        (fused_batch_norm, "float32", 3e-6),
        (synchronized, "float32", 3e-6),
    ],
    ids=["one_pass-float64", "one_pass-float32", "fused-float32", "synchronized-float32"],
)
def test_value_and_gradient_equal_the_reference(normalize, dtype, tolerance, xla, shape):
    values = draw(shape, dtype)
    compute = tf.function(lambda *values: value_and_gradients(normalize, *values), jit_compile=xla)
    assert max(relative_errors(compute(*values), reference(*values))) < tolerance


@pytest.mark.parametrize("normalize", [one_pass_batch_norm, fused_batch_norm, synchronized])
def test_bfloat16_input_keeps_float32_statistics(normalize):
    x, dy, gamma, beta = draw(dtype="float32")
    x, dy = tf.cast(x, tf.bfloat16), tf.cast(dy, tf.bfloat16)
    results = value_and_gradients(normalize, x, dy, gamma, beta)
    assert [result.dtype for result in results] == [tf.bfloat16, *[tf.float32] * 2, tf.bfloat16, *[tf.float32] * 2]
    errors = relative_errors(results, reference(x, dy, gamma, beta))
    assert max(errors[1:3]) < 1e-5  # the statistics of the rounded input
    assert max(errors) < 0.02


def test_gradient_equals_finite_differences():
    x, dy, gamma, beta = draw((6, 3))

    def loss(*inputs):
        return tf.reduce_sum(one_pass_batch_norm(*inputs, EPSILON)[0] * dy)

    theory, numeric = tf.test.compute_gradient(loss, [x, gamma, beta], delta=1e-5)
    for exact, approximate in zip(theory, numeric, strict=True):
        np.testing.assert_allclose(exact, approximate, atol=1e-8)


@pytest.mark.parametrize(
    "normalize, dtype", [(one_pass_batch_norm, "float64"), (fused_synchronized_batch_norm, "float32")]
)
def test_there_is_one_all_reduce_in_each_direction(normalize, dtype):
    shapes = []

    def sum_over_replicas(vector):
        shapes.append(vector.shape)
        return vector

    x, dy, gamma, beta = draw(dtype=dtype)
    value_and_gradients(lambda *inputs: normalize(*inputs, sum_over_replicas), x, dy, gamma, beta)
    assert shapes == [2 * SHAPE[-1] + 1, 2 * SHAPE[-1]]


def step_on_replicas(strategy, layer_settings, values, sizes):
    """Calls a layer in training mode on every replica; joins results in replica order and sums gradients."""
    x, dy, gamma, beta = values
    bounds = np.cumsum([0, *sizes])

    def shard(tensor):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tensor[
                bounds[context.replica_id_in_sync_group] : bounds[context.replica_id_in_sync_group + 1]
            ]
        )

    with strategy.scope():
        layer = BatchNorm(dtype=x.dtype.name, **layer_settings)
        layer.build(x.shape)
        layer.gamma.assign(gamma)
        layer.beta.assign(beta)

    def replica_step(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x, training=True) * dy)
        moving = [tf.identity(v.value) for v in (layer.moving_mean, layer.moving_variance)]
        return (loss, *moving, *tape.gradient(loss, [x, layer.gamma.value, layer.beta.value]))

    results = tf.function(lambda x, dy: strategy.run(replica_step, (x, dy)))(shard(x), shard(dy))
    loss, mean, variance, dx, dgamma, dbeta = map(strategy.experimental_local_results, results)
    return layer, {
        "loss": sum(loss),
        "means": mean,
        "variances": variance,
        "gradients": [tf.concat(dx, 0), sum(dgamma), sum(dbeta)],
    }


@pytest.mark.parametrize(
    "fused, dtype, tolerance",
    [(False, "float64", 1e-12), (True, "float64", 1e-12), (True, "float32", 3e-6), (False, "float32", 3e-6)],
)
@pytest.mark.parametrize("sizes", [(6, 6), (5, 7), (3, 3, 3, 3)], ids=str)
def test_replicas_equal_one_device(replicas, sizes, fused, dtype, tolerance):
    values = draw(dtype=dtype)
    y, mean, variance, *gradients = reference(*values)
    layer, result = step_on_replicas(replicas(len(sizes)), {"fused": fused}, values, sizes)
    np.testing.assert_allclose(result["loss"], tf.reduce_sum(y * tf.cast(values[1], tf.float64)), rtol=10 * tolerance)
    assert max(relative_errors(result["gradients"], gradients)) < tolerance
    for means, variances in zip(result["means"], result["variances"], strict=True):
        np.testing.assert_allclose(means, 0.1 * mean, rtol=tolerance)
        np.testing.assert_allclose(variances, 0.9 + 0.1 * variance, rtol=tolerance)
    np.testing.assert_allclose(layer.moving_variance.numpy(), 0.9 + 0.1 * variance, rtol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 3e-6)])
def test_unsynchronized_replicas_use_their_own_statistics(replicas, dtype, tolerance):
    values = draw(dtype=dtype)
    halves = [reference(*(v[half] for v in values[:2]), *values[2:]) for half in (slice(0, 6), slice(6, 12))]
    layer, result = step_on_replicas(replicas(2), {"synchronized": False}, values, (6, 6))
    gradients = [tf.concat([h[3] for h in halves], 0), halves[0][4] + halves[1][4], halves[0][5] + halves[1][5]]
    assert max(relative_errors(result["gradients"], gradients)) < tolerance
    for means, half in zip(result["means"], halves, strict=True):
        np.testing.assert_allclose(means, 0.1 * half[1], rtol=tolerance)
    # Reading them does not communicate; `Method.average_local_statistics` averages them.
    np.testing.assert_array_equal(layer.moving_mean.numpy(), result["means"][0])


def test_synchronization_costs_nothing_on_one_replica():
    def program(synchronized):
        layer = BatchNorm(synchronized=synchronized, fused=False, name="batch_norm")
        layer.build((4, 3))
        step = tf.function(lambda x: layer(x, training=True), jit_compile=True, autograph=False)
        text = step.experimental_get_compiler_ir(tf.ones([4, 3]))(stage="hlo")
        return text[text.index("ENTRY") :].partition("\n")[2]  # its first line contains a running number

    assert program(True) == program(False)
    assert program(True).count(" reduce(") == 2


def test_assigned_statistics_reach_every_replica(replicas):
    strategy = replicas(2)
    with strategy.scope():
        layer = BatchNorm()
        layer.build((None, 2))
        layer.moving_mean.assign([1.0, 2.0])
    read = tf.function(lambda: strategy.run(lambda: tf.identity(layer.moving_mean.value)))()
    for value in strategy.experimental_local_results(read):
        np.testing.assert_array_equal(value, [1.0, 2.0])


@pytest.mark.parametrize("fused", [False, True])
def test_moving_statistics_follow_the_momentum_and_are_biased(fused):
    x = draw(dtype="float32")[0]
    layer = BatchNorm(momentum=0.7, fused=fused)
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.3 * np.mean(x, (0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.7 + 0.3 * np.var(x, (0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("freeze", ["training", "trainable"])
def test_inference_uses_moving_statistics_and_keeps_them(freeze):
    x = draw(dtype="float32")[0]
    layer = BatchNorm()
    layer.build(x.shape)
    layer.trainable = freeze != "trainable"
    moving = {"mean": np.arange(5.0), "variance": np.arange(1.0, 6.0)}
    layer.moving_mean.assign(moving["mean"])
    layer.moving_variance.assign(moving["variance"])
    y = layer(x, training=freeze != "training")
    expected = (x - moving["mean"].astype("float32")) / np.sqrt(moving["variance"] + EPSILON).astype("float32")
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean, moving["mean"])
    np.testing.assert_array_equal(layer.moving_variance, moving["variance"])


def test_variance_of_equal_values_is_not_negative():
    x = tf.fill([4096, 8], 1000.1)
    y, _, variance = one_pass_batch_norm(x, tf.ones([8]), tf.zeros([8]), EPSILON)
    raw = tf.reduce_mean(x * x, 0) - tf.reduce_mean(x, 0) ** 2
    assert np.min(raw) < 0, "the test needs an input whose difference rounds below zero"
    assert np.min(variance) >= 0 and np.all(np.isfinite(y))


@pytest.mark.parametrize("normalize", [one_pass_batch_norm, fused_batch_norm, synchronized])
def test_variance_of_one_value_is_zero(normalize):
    y, mean, variance = normalize(tf.constant([[3.0, -2.0]]), tf.ones([2]), tf.constant([0.5, 1.0]), EPSILON)
    np.testing.assert_allclose(y, [[0.5, 1.0]], atol=1e-6)
    np.testing.assert_allclose(mean, [3.0, -2.0])
    np.testing.assert_array_equal(variance, [0.0, 0.0])


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "bfloat16", "mixed_float16", "float64"])
@pytest.mark.parametrize("training", [False, True])
def test_dtypes_under_every_policy(policy, training):
    layer = BatchNorm(dtype=policy)
    y = layer(np.ones((4, 2), "float32"), training=training)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert {v.dtype for v in layer.variables} == {"float64" if policy == "float64" else "float32"}


def test_arguments_determine_the_variables():
    layer = BatchNorm(center=False, gamma_initializer="zeros")
    layer.build((None, 3))
    assert [(v.name, v.trainable) for v in layer.variables] == [
        ("gamma", True),
        ("moving_mean", False),
        ("moving_variance", False),
    ]
    np.testing.assert_array_equal(layer.gamma, [0, 0, 0])


def test_configuration_round_trip():
    settings = {"momentum": 0.8, "epsilon": 1e-3, "center": False, "synchronized": False, "fused": False}
    layer = BatchNorm(gamma_initializer="zeros", **settings)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    assert {name: getattr(copy, name) for name in settings} == settings
    assert isinstance(copy.gamma_initializer, keras.initializers.Zeros)


@pytest.mark.parametrize("shape", [(None, 4, 3), (None, None)])
def test_other_shapes_raise(shape):
    with pytest.raises(ValueError, match="BatchNorm takes"):
        BatchNorm().build(shape)


def test_settings_of_none_dict_or_instance():
    assert BatchNormSettings.of(None) == BatchNormSettings()
    half = BatchNormSettings(momentum=0.5)
    assert BatchNormSettings.of({"momentum": 0.5}) == half and BatchNormSettings.of(half) is half
    with pytest.raises(TypeError):
        BatchNormSettings.of({"decay": 0.5})
