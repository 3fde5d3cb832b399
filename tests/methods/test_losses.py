"""Losses against the official code's recorded numbers, the formula row by row, and plain NumPy."""

import doctest

import keras
import numpy as np
import pytest
import tensorflow as tf
from contrastive import (
    RECORDED,
    ROUNDING,
    SINGLE,
    TWO_REPLICAS,
    assert_equal,
    by_definition,
    check_recorded_on_one_device,
    check_recorded_on_two_replicas,
    on_replicas,
    random_rows,
    settings,
    with_gradient,
)

from simclrv2_tf.methods import losses
from simclrv2_tf.methods.losses import NTXent, distillation_loss, l2_penalty, supervised_loss


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", SINGLE)
def test_recorded_on_one_device(tag, dtype, parity):
    check_recorded_on_one_device(tag, dtype, parity)


@pytest.mark.parametrize("tag", TWO_REPLICAS)
def test_recorded_on_two_replicas(tag, replicas, parity):
    check_recorded_on_two_replicas(tag, replicas(2), parity)


@pytest.mark.parametrize("normalize", [True, False])
def test_four_replicas_equal_one_device(normalize, replicas, parity):
    hidden = random_rows(4, 2, 3, 5)  # replica, view, image, feature
    shares = on_replicas(replicas(4), hidden.reshape(4, 6, 5), 0.3, normalize)
    whole = with_gradient(tf.constant(hidden.transpose(1, 0, 2, 3).reshape(24, 5)), 0.3, normalize)
    title = "NT-Xent, 4 replicas against one device"
    for name, share, value in zip(("loss", "accuracy", "entropy"), shares, whole, strict=False):
        parity(f"{title}: {name}", share.mean(), value, 1e-12, "float64", of="each")
    gradient = shares[3].reshape(4, 2, 3, 5).transpose(1, 0, 2, 3).reshape(24, 5)
    parity(f"{title}: gradient", gradient, whole[3], 1e-12, "float64")


@pytest.mark.parametrize("normalize", [True, False])
def test_queue_of_negatives(normalize):
    hidden, queue = tf.constant(random_rows(8, 6)), tf.constant(random_rows(9, 6, seed=2))
    result = with_gradient(hidden, 0.5, normalize, queue)
    assert_equal(result, by_definition(hidden, 0.5, normalize, queue), rtol=1e-12)
    alone = with_gradient(hidden, 0.5, normalize)
    assert alone[0] < result[0]
    assert alone[1:3] == result[1:3]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("normalize", [True, False])
def test_half_precision_is_computed_in_float32(dtype, normalize):
    hidden = tf.cast(100 * random_rows(8, 16), dtype)  # its squares overflow float16
    loss, accuracy, entropy, gradient = with_gradient(hidden, 0.1, normalize)
    expected = with_gradient(tf.cast(hidden, tf.float32), 0.1, normalize)
    assert loss.dtype == tf.float32
    assert gradient.dtype == dtype
    assert np.isfinite(gradient.numpy().astype("float32")).all()
    np.testing.assert_array_equal([loss, accuracy, entropy], expected[:3])


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_stay_finite(temperature):
    hidden = random_rows(16, 8).astype("float32")
    hidden[8:] = hidden[:8]  # equal views: the positive is the best candidate
    loss, accuracy, entropy, gradient = with_gradient(tf.constant(hidden), temperature)
    assert np.isfinite([loss, entropy]).all()
    assert np.isfinite(gradient).all()
    # Cold: the positive takes all. Hot: all 15 other views are as good as one another.
    expected = (0, 1, 0) if temperature < 1 else (2 * np.log(15), 1, np.log(8))
    np.testing.assert_allclose([loss, accuracy, entropy], expected, rtol=1e-5, atol=1e-6)


def test_xla_equals_no_xla():
    hidden, queue = tf.constant(random_rows(12, 7)), tf.constant(random_rows(5, 7, seed=1))
    plain = tf.function(with_gradient)
    compiled = tf.function(with_gradient, jit_compile=True)
    for ours, other in zip(compiled(hidden, 0.2, True, queue), plain(hidden, 0.2, True, queue), strict=True):
        np.testing.assert_allclose(ours, other, rtol=1e-12, atol=1e-14)


def test_zero_rows_have_a_finite_gradient():
    loss, *_, gradient = with_gradient(tf.zeros([6, 4]), 0.1)
    np.testing.assert_allclose(loss, 2 * np.log(5), rtol=1e-6)
    assert np.isfinite(gradient).all()


class TestKerasLoss:
    @pytest.mark.parametrize("tag", SINGLE)
    def test_recorded(self, tag, parity):
        case = f"single/{tag}"
        temperature, normalize = settings(case)
        hidden = RECORDED[f"{case}/hidden"]
        loss = NTXent(temperature, hidden_norm=normalize)(np.zeros(len(hidden)), hidden)
        parity("NT-Xent as a Keras loss", loss, RECORDED[f"{case}/loss"], ROUNDING, of="each")

    def test_round_trip(self):
        loss = NTXent(0.25, hidden_norm=False, tile=2, reduction="sum")
        again = keras.losses.deserialize(keras.losses.serialize(loss))
        assert isinstance(again, NTXent)
        assert again.get_config() == loss.get_config()
        hidden = random_rows(6, 4).astype("float32")
        np.testing.assert_array_equal(again(0.0, hidden), loss(0.0, hidden))

    def test_compiles_into_a_model(self):
        model = keras.Sequential([keras.layers.Dense(4)])
        model.compile(keras.optimizers.SGD(0.5), loss=NTXent(0.5))
        history = model.fit(random_rows(8, 6), np.zeros(8), batch_size=8, epochs=5, verbose=0).history["loss"]
        assert history[-1] < history[0]

    @pytest.mark.parametrize("temperature", [0, -1])
    def test_refuses_a_temperature_not_above_zero(self, temperature):
        with pytest.raises(ValueError, match="temperature"):
            NTXent(temperature)


def test_the_example_in_the_docstring():
    assert doctest.testmod(losses, extraglobs={"tf": tf, "np": np, "keras": keras}).failed == 0


def test_supervised_loss_recorded(parity):
    logits, labels = RECORDED["sup/logits"], RECORDED["sup/labels"].argmax(axis=1)
    losses = supervised_loss(labels, logits)
    assert losses.shape == (8,)
    parity("supervised loss", tf.reduce_mean(losses), RECORDED["sup/loss"], ROUNDING, of="each")
    half = tf.cast(logits, tf.float16)
    np.testing.assert_array_equal(supervised_loss(labels, half), supervised_loss(labels, tf.cast(half, tf.float32)))


class TestDistillation:
    @pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
    def test_equation_2(self, temperature):
        student, teacher = tf.Variable(random_rows(5, 7)), tf.Variable(random_rows(5, 7, seed=1))
        softmax = lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)  # noqa: E731
        targets = softmax(teacher.numpy() / temperature)
        predicted = softmax(student.numpy() / temperature)
        with tf.GradientTape() as tape:
            losses = distillation_loss(student, teacher, temperature)
        to_student, to_teacher = tape.gradient(losses, [student, teacher])
        np.testing.assert_allclose(losses, -(targets * np.log(predicted)).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(to_student, (predicted - targets) / temperature, rtol=1e-9, atol=1e-13)
        assert to_teacher is None

    def test_half_precision_and_a_cold_teacher(self):
        logits = tf.constant([[60000.0, -60000.0, 0.0]], tf.float16)
        losses = distillation_loss(logits, logits, 0.01)
        assert losses.dtype == tf.float32
        np.testing.assert_allclose(losses, [0.0], atol=1e-6)


def test_l2_penalty():
    variables = [keras.Variable(random_rows(3, 4)), keras.Variable(random_rows(2))]
    with tf.GradientTape() as tape:
        penalty = l2_penalty(variables, 0.3)
    gradients = tape.gradient(penalty, [variable.value for variable in variables])
    squares = sum(np.sum(np.square(variable.numpy())) for variable in variables)
    np.testing.assert_allclose(penalty, 0.3 * 0.5 * squares, rtol=1e-6)
    for gradient, variable in zip(gradients, variables, strict=True):
        np.testing.assert_allclose(gradient, 0.3 * variable.numpy(), rtol=1e-6)
    assert l2_penalty([], 0.3) == 0
