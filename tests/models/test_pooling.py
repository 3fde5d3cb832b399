"""The max-pool of compiled steps against TensorFlow's kernel."""

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models.pooling import max_pool


def value_and_gradient(pool, x, dy):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = pool(x)
    return y, tape.gradient(y, x, dy)


def reference(x, dy):
    return value_and_gradient(lambda x: tf.nn.max_pool2d(x, 3, 2, "SAME"), x, dy)


def draw(sides, dtype, values):
    rng = np.random.default_rng(0)
    x = values(rng, (2, *sides, 3))
    return tf.cast(x, dtype), tf.cast(rng.normal(size=(2, *(-(-side // 2) for side in sides), 3)), dtype)


def distinct(rng, shape):
    return rng.permutation(np.prod(shape)).reshape(shape) / 8 - 20


def equal(rng, shape):
    """Mostly ties, at 0 as after a ReLU and below it, where no padding may win."""
    return rng.integers(-2, 1, shape)


@pytest.mark.parametrize("xla", [False, True], ids=["", "xla"])
@pytest.mark.parametrize("values", [distinct, equal])
@pytest.mark.parametrize("sides", [(8, 8), (7, 9), (6, 5), (1, 2)], ids=str)
def test_value_and_gradient_equal_tensorflows(sides, values, xla):
    x, dy = draw(sides, "float32", values)
    compute = tf.function(lambda x, dy: value_and_gradient(max_pool, x, dy), jit_compile=xla)
    y, dx = compute(x, dy)
    expected_y, expected_dx = reference(x, dy)
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_other_dtypes(dtype):
    """A pixel gets up to four shares: they are summed in float32 and rounded once."""
    x, dy = draw((9, 8), dtype, equal)
    y, dx = value_and_gradient(max_pool, x, dy)
    assert y.dtype == dx.dtype == x.dtype
    exact_y, exact_dx = reference(tf.cast(x, tf.float32), tf.cast(dy, tf.float32))
    np.testing.assert_array_equal(tf.cast(y, tf.float32), exact_y)
    np.testing.assert_allclose(tf.cast(dx, tf.float32), tf.cast(tf.cast(exact_dx, dtype), tf.float32), atol=1e-6)


def test_sides_unknown_when_traced():
    compute = tf.function(
        lambda x, dy: value_and_gradient(max_pool, x, dy), input_signature=[tf.TensorSpec([None, None, None, 3])] * 2
    )
    for sides in ((8, 7), (5, 6)):
        x, dy = draw(sides, "float32", equal)
        for ours, theirs in zip(compute(x, dy), reference(x, dy), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_not_a_number_is_passed_on():
    """Else a broken activation would be hidden from the check of the loss."""
    x = tf.constant(np.where(np.arange(64).reshape(1, 8, 8, 1) == 27, np.nan, 1.0), tf.float32)
    assert np.isnan(max_pool(x)).any()
