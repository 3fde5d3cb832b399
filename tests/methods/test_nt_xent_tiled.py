"""NT-Xent in tiles against the recorded numbers, the formula row by row, and the plain form; which form is chosen."""

import re

import numpy as np
import pytest
import tensorflow as tf
from contrastive import (
    SINGLE,
    TWO_REPLICAS,
    assert_equal,
    by_definition,
    check_recorded_on_one_device,
    check_recorded_on_two_replicas,
    on_replicas,
    random_rows,
    with_gradient,
)

from simclrv2_tf.methods import losses
from simclrv2_tf.methods.losses import NTXent, similarity_bytes, similarity_rows
from simclrv2_tf.methods.nt_xent_tiled import tile_rows

FORMS = [pytest.param(0, id="plain"), pytest.param(8, id="tiled")]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tag", SINGLE)
def test_recorded_on_one_device(tag, dtype, parity):
    check_recorded_on_one_device(tag, dtype, parity, tile=4)


@pytest.mark.parametrize("tag", TWO_REPLICAS)
def test_recorded_on_two_replicas(tag, replicas, parity):
    check_recorded_on_two_replicas(tag, replicas(2), parity, tile=4)


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("tile", [1, 2, 8, 11, 24, 26, 1000])
def test_equals_formula_and_plain_form(tile, normalize, queue):
    """With 13 images the last tile is often partly filled."""
    hidden = tf.constant(random_rows(26, 6))
    negatives = tf.constant(random_rows(9, 6, seed=2)) if queue else None
    tiled = with_gradient(hidden, 0.2, normalize, negatives, tile=tile)
    assert_equal(tiled, by_definition(hidden, 0.2, normalize, negatives), rtol=1e-12)
    assert_equal(tiled, with_gradient(hidden, 0.2, normalize, negatives), rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "xla"),
    [
        ("float32", False),
        ("bfloat16", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("float32", True), ("bfloat16", False)]),
    ],
)
@pytest.mark.parametrize("tile", FORMS)
def test_narrow_inputs_in_a_compiled_step(tile, dtype, xla):
    hidden = tf.cast(random_rows(26, 16), dtype)
    negatives = tf.constant(random_rows(9, 16, seed=2), tf.float32)
    result = tf.function(with_gradient, jit_compile=xla)(hidden, 0.1, negatives=negatives, tile=tile)
    assert result[3].dtype == dtype
    expected = by_definition(tf.cast(hidden, tf.float64), 0.1, negatives=tf.cast(negatives, tf.float64))
    assert_equal(result, expected, rtol=1e-5 if dtype == "float32" else 2**-8)
    np.testing.assert_allclose(result[0], expected[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("tile", "count"), [(8, 2), (0, 4), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(8, 4), (0, 2)])]
)
def test_replicas_with_a_queue_equal_one_device(tile, count, replicas):
    hidden = random_rows(count, 2, 5, 6)  # replica, view, image, feature
    queue = tf.constant(random_rows(7, 6, seed=2))
    shares = on_replicas(replicas(count), hidden.reshape(count, 10, 6), 0.3, negatives=queue, tile=tile)
    whole = tf.constant(hidden.transpose(1, 0, 2, 3).reshape(10 * count, 6))
    gradient = shares[3].reshape(count, 2, 5, 6).transpose(1, 0, 2, 3).reshape(10 * count, 6)
    means = [share.mean() for share in shares[:3]]
    assert_equal([*means, gradient], by_definition(whole, 0.3, negatives=queue), rtol=1e-12)


@pytest.mark.parametrize("tile", [0, 2, 100])
def test_losses_of_unequal_weight(tile):
    """A row is a candidate of others, whose losses may weigh more or less than its own."""
    hidden, weights = tf.constant(random_rows(10, 3)), np.arange(5.0)
    loss = NTXent(0.3, tile=tile, dtype="float64")
    function = tf.function(lambda rows: loss(weights, rows, weights))
    theory, measured = tf.test.compute_gradient(function, [hidden], 1e-5)
    np.testing.assert_allclose(theory, measured, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("queue", [False, True])
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_extreme_temperatures_and_equal_views(temperature, queue):
    hidden = random_rows(16, 8).astype("float32")
    hidden[8:] = hidden[:8]
    how = {"negatives": tf.constant(random_rows(5, 8, seed=2)) if queue else None}
    tiled, plain = (with_gradient(tf.constant(hidden), temperature, tile=tile, **how) for tile in (4, 0))
    assert np.isfinite(tiled[3]).all()
    np.testing.assert_allclose(tiled[:3], plain[:3], rtol=1e-5, atol=1e-6)


def test_zero_rows_have_a_finite_gradient():
    loss, *_, gradient = with_gradient(tf.zeros([6, 4]), 0.1, tile=2)
    np.testing.assert_allclose(loss, 2 * np.log(5), rtol=1e-6)
    assert np.isfinite(gradient).all()


def test_the_matrix_is_never_whole():
    """No array of the compiled step is as large as a quarter of it."""
    step = tf.function(with_gradient, jit_compile=True)
    hidden = tf.constant(random_rows(512, 4))
    sizes = {}
    for tile in (32, 512):
        program = step.experimental_get_compiler_ir(hidden, 0.1, True, None, 1.0, tile)(stage="optimized_hlo")
        shapes = re.findall(r"\bf64\[([\d,]+)\]", program)
        sizes[tile] = max(np.prod([int(side) for side in shape.split(",")]) for shape in shapes)
    assert sizes[32] <= 512 * 32 // 2 < 512 * 512 // 2 <= sizes[512]  # a tile's two views come one after the other


class TestChoiceOfTheForm:
    """Up to ``MATRIX_ENTRIES`` similarities per replica the whole matrix, above them tiles."""

    @staticmethod
    def is_plain(graph: tf.Graph) -> bool:
        definition = graph.as_graph_def()
        nodes = [definition.node, *(function.node_def for function in definition.library.function)]
        operations = {node.op for part in nodes for node in part}
        assert "MatMul" in operations
        return "SparseSoftmaxCrossEntropyWithLogits" in operations

    def traced_is_plain(self, rows, negatives=None, tile=0):
        step = tf.function(lambda hidden: with_gradient(hidden, 0.1, negatives=negatives, tile=tile))
        return self.is_plain(step.get_concrete_function(tf.TensorSpec([rows, 4])).graph)

    def test_at_the_limit(self):
        side = int(losses.MATRIX_ENTRIES**0.5)
        assert side**2 == losses.MATRIX_ENTRIES
        assert self.traced_is_plain(side)
        assert not self.traced_is_plain(side + 2)
        assert not self.traced_is_plain(side, negatives=tf.zeros([1, 4]))
        assert not self.traced_is_plain(6, tile=2)
        assert self.traced_is_plain(None)

    def test_both_forms_are_equal_at_the_limit(self):
        hidden = tf.constant(random_rows(int(losses.MATRIX_ENTRIES**0.5), 8), tf.float32)
        plain, tiled = (tf.function(with_gradient)(hidden, 0.1, tile=tile) for tile in (0, tile_rows(len(hidden))))
        assert_equal(plain, tiled, rtol=1e-5)

    @pytest.mark.parametrize("limit", [10 * 20, 10 * 20 - 1])
    def test_replicas_count_what_they_compare_with_all_others(self, limit, replicas, monkeypatch):
        monkeypatch.setattr(losses, "MATRIX_ENTRIES", limit)
        strategy = replicas(2)
        step = tf.function(lambda hidden: strategy.run(with_gradient, (hidden, 0.1)), autograph=False)
        graph = step.get_concrete_function(tf.TensorSpec([10, 4])).graph
        assert self.is_plain(graph) == (limit == 10 * 20)

    def test_estimate_of_memory(self):
        assert similarity_rows(4096, 4096) == 4096
        assert similarity_bytes(4096, 4096) == 4 * 4 * 4096 * 4096
        assert similarity_rows(8192, 8192) == tile_rows(8192) == 256
        assert similarity_bytes(8192, 8192) == 7 * 4 * 256 * 8192
        assert similarity_rows(64, 2**20) == 64  # fewer than a tile has
