"""Optimizers by name: AdamW against its formula (arXiv 1711.05101); ``test_lars.py`` has the others."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf import ClassificationModel
from simclrv2_tf.methods.optimizers import AdamW, build_optimizer, penalised_variables
from simclrv2_tf.methods.schedules import WarmUpCosine

RATE, DECAY, STEPS = 0.05, 0.3, 3


def expected_weights(weight: np.ndarray, gradients: np.ndarray, rates: list[float], decay: float) -> np.ndarray:
    """Runs AdamW in NumPy: the decay bypasses the moments; as in Keras, ε is added to the uncorrected root."""
    first, second = np.zeros_like(weight), np.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        weight = weight * (1 - rate * decay)
        corrected_rate = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weight = weight - corrected_rate * first / (np.sqrt(second) + 1e-7)
    return weight


@pytest.mark.parametrize(("shape", "decay"), [((3, 4), DECAY), ((4,), 0), ((1, 2, 3, 4), DECAY)])
def test_adamw_decays_kernels_but_no_vectors(shape, decay):
    tiny.use_float64()
    rng = np.random.default_rng(0)
    weight, gradients = rng.normal(size=shape), rng.normal(size=(STEPS, *shape))
    schedule = WarmUpCosine(RATE, total_steps=STEPS)
    variable = keras.Variable(weight)
    optimizer = build_optimizer("adamw", schedule, weight_decay=DECAY)
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
    rates = [float(schedule(step)) for step in range(STEPS)]
    np.testing.assert_allclose(variable.numpy(), expected_weights(weight, gradients, rates, decay), rtol=0, atol=1e-5)


def adamw_model(strategy: tf.distribute.Strategy) -> ClassificationModel:
    with strategy.scope():
        return tiny.compiled(ClassificationModel(tiny.network(), tiny.VIEWS, weight_decay=DECAY), "adamw", RATE, DECAY)


def test_the_loss_has_no_decay_and_replicas_do_not_matter(replicas):
    tiny.use_float64()
    model, doubled = adamw_model(tf.distribute.get_strategy()), adamw_model(replicas(2))
    assert penalised_variables(model) == [] and model.weight_decay_loss() == 0
    before = tiny.numbers(model.trained_variables)
    logs, doubled_logs = (tiny.fit(each, tiny.dataset(0, STEPS, num_views=1)) for each in (model, doubled))
    assert logs[-1]["loss"] == pytest.approx(doubled_logs[-1]["loss"], rel=1e-6)
    tiny.assert_close(tiny.numbers(doubled.trained_variables), tiny.numbers(model.trained_variables), rtol=1e-6)
    assert tiny.moved(before, tiny.numbers(model.trained_variables)) == set(before)


def test_a_saved_optimizer_still_spares_vectors():
    optimizer = AdamW(RATE, weight_decay=DECAY)
    loaded = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    vector = keras.Variable(np.ones([2], "float32"))
    loaded.apply([tf.zeros([2])], [vector])
    np.testing.assert_array_equal(vector.numpy(), 1)
