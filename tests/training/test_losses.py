"""The losses against the numbers recorded from the official code, and against plain numpy."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.training.losses import NTXent, distillation_loss, l2_penalty, nt_xent, supervised_loss

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "golden" / "ntxent.npz")
SINGLE = sorted({key.split("/")[1] for key in RECORDED.files if key.startswith("single/")})
TWO_REPLICAS = sorted({key.split("/")[2] for key in RECORDED.files if key.startswith("multi/R2/")})
ROUNDING = 5e-7  # of float32, in which the official code computed


def settings(case: str) -> tuple[float, bool]:
    _, _, temperature, normalize = RECORDED[f"{case}/n_d_T_norm"]
    return float(temperature), bool(normalize)


def gradient_rounding(case: str) -> float:
    """Float32 holds logits to epsilon times their size, which exp turns into a relative error of the gradient."""
    temperature, normalize = settings(case)
    largest = 1 if normalize else np.square(RECORDED[f"{case}/hidden"]).sum(axis=-1).max()
    return (4 + largest / temperature) * np.finfo("float32").eps


def random_rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_gradient(hidden, temperature, normalize=True, negatives=None, scale=1.0):
    """Loss, accuracy, entropy and the gradient of ``scale · loss``; hidden is [view-1 rows; view-2 rows]."""
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        result = nt_xent(*tf.split(hidden, 2), temperature, normalize, negatives)
        scaled = result.loss * scale
    return *result, tape.gradient(scaled, hidden)


def on_replicas(strategy, hidden, temperature, normalize=True):
    """The same per replica, each stacked over replicas; hidden is ``[replicas, 2n, d]``."""
    count = strategy.num_replicas_in_sync
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(hidden[context.replica_id_in_sync_group])
    )

    @tf.function(autograph=False)
    def step(shares):
        return strategy.run(lambda share: with_gradient(share, temperature, normalize, scale=1 / count), (shares,))

    return [np.stack(strategy.experimental_local_results(output)) for output in step(shares)]


def numpy_nt_xent(view1, view2, temperature, negatives):
    """Row by row, from the definition; returns the loss."""
    rows = np.concatenate([view1, view2])
    n, losses = len(view1), []
    for i, row in enumerate(rows):
        positive = row @ rows[(i + n) % (2 * n)] / temperature
        others = [row @ rows[j] / temperature for j in range(2 * n) if j != i] + list(negatives @ row / temperature)
        losses.append(np.log(np.sum(np.exp(others))) - positive)
    return np.sum(losses) / n


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", SINGLE)
def test_recorded_on_one_device(tag, dtype):
    case = f"single/{tag}"
    loss, accuracy, entropy, gradient = with_gradient(tf.constant(RECORDED[f"{case}/hidden"], dtype), *settings(case))
    assert loss.dtype == accuracy.dtype == entropy.dtype == dtype
    np.testing.assert_allclose(loss, RECORDED[f"{case}/loss"], rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(entropy, RECORDED[f"{case}/entropy"], rtol=ROUNDING, atol=ROUNDING)
    assert accuracy == RECORDED[f"{case}/acc"]
    expected = RECORDED[f"{case}/grad"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=gradient_rounding(case) * np.abs(expected).max())


@pytest.mark.parametrize("tag", TWO_REPLICAS)
def test_recorded_on_two_replicas(tag, replicas):
    case = f"multi/R2/{tag}"
    loss, accuracy, entropy, gradient = on_replicas(replicas(2), RECORDED[f"{case}/hidden"], *settings(case))
    np.testing.assert_allclose(loss, RECORDED[f"{case}/loss_per_replica"], rtol=ROUNDING)
    np.testing.assert_allclose(loss.mean(), RECORDED[f"{case}/global_loss_single_device"], rtol=ROUNDING)
    np.testing.assert_allclose(entropy, RECORDED[f"{case}/entropy_per_replica"], rtol=ROUNDING)
    np.testing.assert_array_equal(accuracy, RECORDED[f"{case}/acc_per_replica"])
    expected = RECORDED[f"{case}/grad_of_loss_over_R"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=gradient_rounding(case) * np.abs(expected).max())


def test_four_replicas_equal_one_device(replicas):
    hidden = random_rows(4, 2, 3, 5)  # replica, view, image, feature
    shares = on_replicas(replicas(4), hidden.reshape(4, 6, 5), 0.3)
    whole = with_gradient(tf.constant(hidden.transpose(1, 0, 2, 3).reshape(24, 5)), 0.3)
    for share, value in zip(shares[:3], whole[:3], strict=True):
        np.testing.assert_allclose(share.mean(), value, rtol=1e-12)
    gradient = shares[3].reshape(4, 2, 3, 5).transpose(1, 0, 2, 3).reshape(24, 5)
    np.testing.assert_allclose(gradient, whole[3], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("normalize", [True, False])
def test_queue_of_negatives(normalize):
    view1, view2, queue = random_rows(4, 6), random_rows(4, 6, seed=1), random_rows(9, 6, seed=2)
    rows = [unit(view) if normalize else view for view in (view1, view2)]
    result = nt_xent(tf.constant(view1), tf.constant(view2), 0.5, normalize, tf.constant(queue))
    expected = numpy_nt_xent(*rows, 0.5, unit(queue) if normalize else queue)
    np.testing.assert_allclose(result.loss, expected, rtol=1e-12)
    alone = nt_xent(tf.constant(view1), tf.constant(view2), 0.5, normalize)
    assert alone.loss < result.loss
    assert (alone.accuracy, alone.entropy) == (result.accuracy, result.entropy)


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
    def test_recorded(self, tag):
        case = f"single/{tag}"
        temperature, normalize = settings(case)
        hidden = RECORDED[f"{case}/hidden"]
        loss = NTXent(temperature, hidden_norm=normalize)(np.zeros(len(hidden)), hidden)
        np.testing.assert_allclose(loss, RECORDED[f"{case}/loss"], rtol=ROUNDING)

    def test_round_trip(self):
        loss = NTXent(0.25, hidden_norm=False, reduction="sum")
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


def test_supervised_loss_recorded():
    logits, labels = RECORDED["sup/logits"], RECORDED["sup/labels"].argmax(axis=1)
    losses = supervised_loss(labels, logits)
    assert losses.shape == (8,)
    np.testing.assert_allclose(tf.reduce_mean(losses), RECORDED["sup/loss"], rtol=ROUNDING)
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
