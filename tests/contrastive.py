"""Helpers of the NT-Xent tests: recorded numbers, the formula row by row, the loss on one and on many replicas."""

import pathlib

import numpy as np
import tensorflow as tf

from simclrv2_tf.methods.losses import nt_xent

RECORDED = np.load(pathlib.Path(__file__).parent / "golden" / "ntxent.npz")
SINGLE = sorted({key.split("/")[1] for key in RECORDED.files if key.startswith("single/")})
TWO_REPLICAS = sorted({key.split("/")[2] for key in RECORDED.files if key.startswith("multi/R2/")})
ROUNDING = 5e-7  # of float32, which the official code used


def settings(case: str) -> tuple[float, bool]:
    _, _, temperature, normalize = RECORDED[f"{case}/n_d_T_norm"]
    return float(temperature), bool(normalize)


def gradient_rounding(case: str) -> float:
    """Returns the relative error of the gradient in float32, in which exp amplifies the rounding of the logits."""
    temperature, normalize = settings(case)
    largest = 1 if normalize else np.square(RECORDED[f"{case}/hidden"]).sum(axis=-1).max()
    return (4 + largest / temperature) * np.finfo("float32").eps


def random_rows(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def with_gradient(hidden, temperature, normalize=True, negatives=None, scale=1.0, tile=0):
    """Returns loss, accuracy, entropy and the gradient of ``scale · loss``; hidden is [view-1 rows; view-2 rows]."""
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        result = nt_xent(*tf.split(hidden, 2), temperature, normalize, negatives, tile)
        scaled = result.loss * scale
    return *result, tape.gradient(scaled, hidden)


def on_replicas(strategy, hidden, temperature, normalize=True, **how):
    """Returns the same per replica, stacked over replicas; hidden is ``[replicas, 2n, d]``."""
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


def by_definition(hidden, temperature, normalize=True, negatives=None):
    """Returns the results of ``with_gradient`` by the formula, row by row, differentiated by TensorFlow."""
    with tf.GradientTape() as tape:
        tape.watch(hidden)
        unit = (lambda rows: tf.math.l2_normalize(rows, axis=1)) if normalize else tf.identity
        n, rows = len(hidden) // 2, unit(hidden)
        queue = rows[:0] if negatives is None else unit(negatives)
        losses = []
        for row in range(2 * n):
            others = tf.concat([rows[:row], rows[row + 1 :], queue], axis=0)
            similarities = tf.linalg.matvec(others, rows[row]) / temperature
            positive = tf.reduce_sum(rows[row] * rows[(row + n) % (2 * n)]) / temperature
            losses.append(tf.reduce_logsumexp(similarities) - positive)
        loss = tf.add_n(losses) / n
    to_view2 = tf.matmul(rows[:n], rows[n:], transpose_b=True) / temperature
    accuracy = np.mean(np.argmax(to_view2, axis=1) == np.arange(n))
    probabilities = tf.nn.softmax(to_view2)
    entropy = -tf.reduce_mean(tf.reduce_sum(probabilities * tf.math.log(probabilities + 1e-8), axis=1))
    return loss, accuracy, entropy, tape.gradient(loss, hidden)


def assert_equal(results, expected, rtol):
    """Compares loss, accuracy and entropy relative to each; the gradient relative to its largest entry."""
    np.testing.assert_allclose(results[:3], expected[:3], rtol=rtol)
    gradient, other = (np.asarray(values[3], "float64") for values in (results, expected))
    np.testing.assert_allclose(gradient, other, rtol=0, atol=rtol * np.abs(other).max())


def check_recorded_on_one_device(tag, dtype, parity, tile=0):
    """Asserts that NT-Xent on one device gives the official code's numbers."""
    case = f"single/{tag}"
    hidden = tf.constant(RECORDED[f"{case}/hidden"], dtype)
    loss, accuracy, entropy, gradient = with_gradient(hidden, *settings(case), tile=tile)
    assert loss.dtype == accuracy.dtype == entropy.dtype == dtype
    for name, value in (("loss", loss), ("entropy", entropy)):
        expected = RECORDED[f"{case}/{name}"]
        parity(f"NT-Xent: {name}", value, expected, ROUNDING, dtype, 1 + np.abs(expected), "of 1 + each")
    parity("NT-Xent: accuracy", accuracy, RECORDED[f"{case}/acc"], 0, dtype, of="one")
    parity("NT-Xent: gradient", gradient, RECORDED[f"{case}/grad"], gradient_rounding(case), dtype)


def check_recorded_on_two_replicas(tag, strategy, parity, tile=0):
    """Asserts that NT-Xent on two replicas gives the official code's numbers, gradients of gathered rows included."""
    case, title = f"multi/R2/{tag}", "NT-Xent, 2 replicas"
    hidden = RECORDED[f"{case}/hidden"]
    loss, accuracy, entropy, gradient = on_replicas(strategy, hidden, *settings(case), tile=tile)
    parity(f"{title}: loss", loss, RECORDED[f"{case}/loss_per_replica"], ROUNDING, of="each")
    parity(f"{title}: loss", loss.mean(), RECORDED[f"{case}/global_loss_single_device"], ROUNDING, of="each")
    parity(f"{title}: entropy", entropy, RECORDED[f"{case}/entropy_per_replica"], ROUNDING, of="each")
    parity(f"{title}: accuracy", accuracy, RECORDED[f"{case}/acc_per_replica"], 0, of="one")
    expected = RECORDED[f"{case}/grad_of_loss_over_R"]
    parity(f"{title}: gradient", gradient, expected, gradient_rounding(case))
