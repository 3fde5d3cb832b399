"""The losses against the numbers recorded from the official code, and against plain numpy."""

import pathlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.methods.losses import NTXent, distillation_loss, l2_penalty, nt_xent, supervised_loss

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


def with_gradient(hidden, temperature, normalize=True, negatives=None, scale=1.0, tile=0):
    """Loss, accuracy, entropy and the gradient of ``scale · loss``; hidden is [view-1 rows; view-2 rows]."""
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        result = nt_xent(*tf.split(hidden, 2), temperature, normalize, negatives, tile)
        scaled = result.loss * scale
    return *result, tape.gradient(scaled, hidden)


def on_replicas(strategy, hidden, temperature, normalize=True, **how):
    """The same per replica, each stacked over replicas; hidden is ``[replicas, 2n, d]``."""
    count = strategy.num_replicas_in_sync
    shares = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(hidden[context.replica_id_in_sync_group])
    )

    @tf.function(autograph=False)
    def step(shares):
        return strategy.run(
            lambda share: with_gradient(share, temperature, normalize, scale=1 / count, **how), (shares,)
        )

    return [np.stack(strategy.experimental_local_results(output)) for output in step(shares)]


def textbook(hidden, temperature, normalize=True, negatives=None):
    """As ``with_gradient``: from the whole matrix of similarities, differentiated by TensorFlow."""
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        unit = (lambda rows: tf.math.l2_normalize(rows, axis=1)) if normalize else tf.identity
        n, rows = len(hidden) // 2, unit(hidden)
        similarities = tf.matmul(rows, rows, transpose_b=True) / temperature
        compared = tf.linalg.set_diag(similarities, tf.fill([2 * n], similarities.dtype.min))
        if negatives is not None:
            to_queue = tf.matmul(rows, unit(negatives), transpose_b=True) / temperature
            compared = tf.concat([compared, to_queue], axis=1)
        positives = np.roll(np.arange(2 * n), n)
        loss = 2 * tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(positives, compared))
    to_view2 = similarities[:n, n:]
    accuracy = np.mean(np.argmax(to_view2, axis=1) == np.arange(n))
    shares = tf.nn.softmax(to_view2)
    entropy = -tf.reduce_mean(tf.reduce_sum(shares * tf.math.log(shares + 1e-8), axis=1))
    return loss, accuracy, entropy, tape.gradient(loss, hidden)


def assert_equal(results, expected, rtol):
    """Loss, accuracy and entropy; the gradient relative to its greatest number."""
    np.testing.assert_allclose(results[:3], expected[:3], rtol=rtol)
    gradient, other = (np.asarray(found[3], "float64") for found in (results, expected))
    np.testing.assert_allclose(gradient, other, rtol=0, atol=rtol * np.abs(other).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", SINGLE)
def test_recorded_on_one_device(tag, dtype, parity):
    case = f"single/{tag}"
    loss, accuracy, entropy, gradient = with_gradient(tf.constant(RECORDED[f"{case}/hidden"], dtype), *settings(case))
    assert loss.dtype == accuracy.dtype == entropy.dtype == dtype
    for name, value in (("loss", loss), ("entropy", entropy)):
        expected = RECORDED[f"{case}/{name}"]
        parity(f"NT-Xent: {name}", value, expected, ROUNDING, dtype, 1 + np.abs(expected), "of 1 + each")
    parity("NT-Xent: accuracy", accuracy, RECORDED[f"{case}/acc"], 0, dtype, of="one")
    parity("NT-Xent: gradient", gradient, RECORDED[f"{case}/grad"], gradient_rounding(case), dtype)


@pytest.mark.parametrize("tag", TWO_REPLICAS)
def test_recorded_on_two_replicas(tag, replicas, parity):
    case, title = f"multi/R2/{tag}", "NT-Xent, 2 replicas"
    loss, accuracy, entropy, gradient = on_replicas(replicas(2), RECORDED[f"{case}/hidden"], *settings(case))
    parity(f"{title}: loss", loss, RECORDED[f"{case}/loss_per_replica"], ROUNDING, of="each")
    parity(f"{title}: loss", loss.mean(), RECORDED[f"{case}/global_loss_single_device"], ROUNDING, of="each")
    parity(f"{title}: entropy", entropy, RECORDED[f"{case}/entropy_per_replica"], ROUNDING, of="each")
    parity(f"{title}: accuracy", accuracy, RECORDED[f"{case}/acc_per_replica"], 0, of="one")
    expected = RECORDED[f"{case}/grad_of_loss_over_R"]
    parity(f"{title}: gradient", gradient, expected, gradient_rounding(case))


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
    assert_equal(result, textbook(hidden, 0.5, normalize, queue), rtol=1e-12)
    alone = with_gradient(hidden, 0.5, normalize)
    assert alone[0] < result[0]
    assert alone[1:3] == result[1:3]


class TestTiles:
    """``tile`` rows at a time give what the whole matrix gives; of 13 images the last tile is often not full."""

    @pytest.mark.parametrize("queue", [False, True])
    @pytest.mark.parametrize("tile", [1, 2, 8, 11, 24, 26, 1000])
    def test_equal_the_textbook(self, tile, queue):
        hidden = tf.constant(random_rows(26, 6))
        negatives = tf.constant(random_rows(9, 6, seed=2)) if queue else None
        found = with_gradient(hidden, 0.2, negatives=negatives, tile=tile)
        assert_equal(found, textbook(hidden, 0.2, negatives=negatives), rtol=1e-12)

    @pytest.mark.parametrize("xla", [False, True])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_narrow_inputs_in_a_compiled_step(self, dtype, xla):
        hidden = tf.cast(random_rows(26, 16), dtype)
        negatives = tf.constant(random_rows(9, 16, seed=2), tf.float32)
        step = tf.function(with_gradient, jit_compile=xla)
        found = step(hidden, 0.1, negatives=negatives, tile=8)
        assert found[3].dtype == dtype
        expected = textbook(tf.cast(hidden, tf.float64), 0.1, negatives=tf.cast(negatives, tf.float64))
        assert_equal(found, expected, rtol=1e-5 if dtype == "float32" else 2**-8)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)

    @pytest.mark.parametrize("count", [2, 4])
    def test_on_replicas(self, count, replicas):
        hidden = random_rows(count, 2, 5, 6)  # replica, view, image, feature
        queue = tf.constant(random_rows(7, 6, seed=2))
        found = on_replicas(replicas(count), hidden.reshape(count, 10, 6), 0.3, negatives=queue, tile=4)
        whole = tf.constant(hidden.transpose(1, 0, 2, 3).reshape(10 * count, 6))
        gradient = found[3].reshape(count, 2, 5, 6).transpose(1, 0, 2, 3).reshape(10 * count, 6)
        means = [share.mean() for share in found[:3]]
        assert_equal([*means, gradient], textbook(whole, 0.3, negatives=queue), rtol=1e-12)

    def test_losses_of_unequal_weight(self):
        """A row is a candidate of others, whose losses may weigh more or less than its own."""
        hidden, weights = tf.constant(random_rows(12, 5)), np.arange(6.0)
        for tile in (2, 100):
            loss = NTXent(0.3, tile=tile, dtype="float64")
            theory, measured = tf.test.compute_gradient(
                lambda rows, loss=loss: loss(weights, rows, weights), [hidden], 1e-5
            )
            np.testing.assert_allclose(theory, measured, rtol=1e-6, atol=1e-9)

    def test_the_matrix_is_never_whole(self):
        """No array of the compiled step is as large as a quarter of it."""
        step = tf.function(with_gradient, jit_compile=True)
        hidden = tf.constant(random_rows(512, 4))
        sizes = {}
        for tile in (32, 512):
            program = step.experimental_get_compiler_ir(hidden, 0.1, True, None, 1.0, tile)(stage="optimized_hlo")
            shapes = re.findall(r"\bf64\[([\d,]+)\]", program)
            sizes[tile] = max(np.prod([int(side) for side in shape.split(",")]) for shape in shapes)
        assert sizes[32] <= 512 * 32 < 512 * 256 <= sizes[512]


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
