"""Learning-rate schedule against those recorded from the official code; step counts."""

import doctest
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.methods import schedules
from simclrv2_tf.methods.schedules import WarmUpCosine, peak_learning_rate, training_steps, warmup_steps

RECORDED = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "lr_schedule.json").read_text())


def schedule_of(config: dict) -> WarmUpCosine:
    examples, batch = config["num_examples"], config["train_batch_size"]
    return WarmUpCosine(
        peak_learning_rate(config["base_learning_rate"], batch, config["learning_rate_scaling"]),
        training_steps(examples, batch, config["train_epochs"], config.get("train_steps", 0)),
        warmup_steps(examples, batch, config["warmup_epochs"]),
    )


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_schedule(name, parity):
    recorded = RECORDED[name]
    schedule = schedule_of(recorded["config"])
    assert (schedule.total_steps, schedule.warmup_steps) == (recorded["total_steps"], recorded["warmup_steps"])
    rates = [schedule(tf.constant(step, tf.int64)).numpy() for step in recorded["steps"]]
    # Float32 rounding: of the rate while it rises, and of 1 + cos, which is of the order of the peak, where it falls.
    for version in ("lr", "lr_tf1"):
        parity("learning rates", rates, recorded[version], 2e-7)
    rising = np.array(recorded["steps"]) < schedule.warmup_steps
    if rising.any():
        expected = np.array(recorded["lr"])[rising]
        parity("learning rates while they rise", np.array(rates)[rising], expected, 5e-7, of="each")
    assert schedule(0).dtype == tf.float32


def test_float64_follows_floatx():
    keras.config.set_floatx("float64")
    schedule = WarmUpCosine(0.3, total_steps=90, warmup_steps=10)
    expected = 0.3 * 0.5 * (1 + np.cos(np.pi * 37 / 80))
    np.testing.assert_allclose(schedule(47), expected, rtol=1e-14)
    np.testing.assert_allclose(schedule(7), 0.3 * 7 / 10, rtol=1e-14)


def test_at_least_float32(recwarn):
    keras.config.set_floatx("float16")
    schedule = WarmUpCosine(0.3, total_steps=10**6, warmup_steps=10)
    expected = 0.3 * 0.5 * (1 + np.cos(np.pi * 70_000 / (10**6 - 10)))
    np.testing.assert_allclose(schedule(70_010), expected, rtol=1e-6)  # the step alone exceeds float16


@pytest.mark.parametrize(
    ("total", "warmup", "expected"),
    [
        (4, 0, [1.0, 0.853553, 0.5, 0.146447, 0.0, 0.0]),  # no warm-up
        (4, 4, [0.0, 0.25, 0.5, 0.75, 0.0, 0.0]),  # warm-up only: 0 after the last step nevertheless
        (2, 4, [0.0, 0.25, 0.0, 0.0]),  # the run ends within its warm-up
        (1, 0, [1.0, 0.0]),  # one step
        (1, 1, [0.0, 0.0]),
    ],
)
def test_edges(total, warmup, expected):
    schedule = WarmUpCosine(1.0, total, warmup)
    np.testing.assert_allclose([schedule(step) for step in range(len(expected))], expected, atol=1e-6)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.floats(1e-6, 100))
def test_any_schedule_rises_then_falls_and_stays_within_its_peak(total, warmup, peak):
    schedule = WarmUpCosine(peak, total, warmup)
    steps = np.unique(np.linspace(0, total, 9, dtype=int).clip(max=total - 1))
    rates = np.array([schedule(step) for step in steps])
    assert ((rates >= 0) & (rates <= peak * (1 + 1e-6))).all()
    assert (np.diff(rates[steps <= warmup]) >= 0).all() and (np.diff(rates[steps >= warmup]) <= peak * 1e-6).all()


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (10, -1)])
def test_refuses_impossible_lengths(total, warmup):
    with pytest.raises(ValueError, match="at least"):
        WarmUpCosine(1.0, total, warmup)


def test_the_example_in_the_docstring():
    assert doctest.testmod(schedules, extraglobs={"tf": tf, "np": np, "keras": keras}).failed == 0


def test_steps():
    assert training_steps(50_000, 500, 1) == 101  # one more than whole epochs, as in the official code
    assert training_steps(50_000, 500, 1, train_steps=7) == 7
    assert training_steps(100, 8, 0.5) == 7
    assert warmup_steps(50_000, 512, 0) == 0


def test_peak_refuses_another_scaling():
    with pytest.raises(ValueError, match="cubic"):
        peak_learning_rate(0.1, 256, "cubic")


def test_round_trip_through_an_optimizer_config():
    optimizer = keras.optimizers.SGD(WarmUpCosine(0.3, 90, 10))
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert again._learning_rate.get_config() == {"peak": 0.3, "total_steps": 90, "warmup_steps": 10}


def test_xla_and_an_optimizer_step_read_the_same_rate():
    schedule = WarmUpCosine(0.5, total_steps=8, warmup_steps=2)
    compiled = tf.function(schedule, jit_compile=True)
    weight = keras.Variable(np.zeros([1], "float32"))
    optimizer = keras.optimizers.SGD(schedule)
    total = 0.0
    for step in range(10):
        np.testing.assert_allclose(compiled(tf.constant(step)), schedule(step), rtol=1e-6, atol=1e-7)
        optimizer.apply([tf.ones([1])], [weight])
        total += schedule(step).numpy()
        np.testing.assert_allclose(-weight.numpy(), total, rtol=1e-5)


def test_keras_cosine_decay_has_the_same_rates():
    ours = WarmUpCosine(0.4, 100, 10)
    theirs = keras.optimizers.schedules.CosineDecay(0.0, 90, warmup_target=0.4, warmup_steps=10)
    np.testing.assert_allclose([ours(t) for t in range(120)], [theirs(t) for t in range(120)], rtol=0, atol=1e-7)
