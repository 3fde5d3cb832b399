"""Costs of networks: against recorded parameter counts, the profiler, and numbers worked out by hand."""

import json
import pathlib
import resource
from math import prod

import keras
import pytest
import tensorflow as tf

from simclrv2_tf.models import Network, ProjectionHead, ResNet, summarize
from simclrv2_tf.models.cost import peak_bytes, without_allocation

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TABLE_1 = json.loads((GOLDEN / "param_counts.json").read_text())
KINDS = {
    "basic": {"depth": 18, "stem": "cifar"},
    "sk": {"depth": 50, "sk_ratio": 0.0625},
    "se": {"depth": 50, "se_ratio": 0.25},
    "remat": {"depth": 18, "stem": "cifar", "remat": True},
}
SIZE, CLASSES = 37, 3  # an odd side
PARTS = ("stem", "block_group1", "block_group2", "block_group3", "block_group4", "projection_head", "classifier")
# Multiply-adds per view of the parts, and float32 numbers that the backward pass reads, from the shapes of the layers.
MULTIPLY_ADDS = {
    "basic": (147852, 810448, 739328, 819200, 819200, 6144, 96),
    "sk": (58482, 127552, 188672, 390656, 363520, 49152, 384),
    "se": (212268, 83584, 130048, 269312, 268288, 49152, 384),
    "remat": (147852, 810448, 739328, 819200, 819200, 6144, 96),
}
ACTIVATIONS = {
    "basic": (15059, 49284, 25992, 14400, 7200, 288, 0),
    "sk": (10283, 20228, 14752, 15008, 7328, 768, 0),
    "se": (7395, 20908, 15088, 15776, 7840, 768, 0),
    "remat": (15059, 2 * 37**2 * 4, 2 * 19**2 * 8, 2 * 10**2 * 16, 5**2 * 32, 288, 0),  # block inputs
}


def tiny(kind, head_input=0, frozen=-1, fused=True, **head):
    def make():
        settings = {"width_multiplier": 1 / 16, "batch_norm": {"fused": fused}} | KINDS[kind]
        network = Network(ResNet(**settings, name="encoder"), ProjectionHead(**head), CLASSES, head_input)
        network.build()
        network.encoder.freeze_after_block(frozen)
        return network

    return make


def number_of(variables):
    return sum(prod(variable.shape) for variable in variables)


def make_table_1(row):
    return Network(ResNet(row["depth"], row["width"], 0.0625 if row["sk"] else 0.0), num_classes=1000)


@pytest.fixture
def no_allocation():
    """Asserts that a test allocates less than 1 GiB, though the weights of its networks would take several."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    # The end of a stateless scope initialises what Keras still has to: nothing of the test may be left.
    with keras.StatelessScope():
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


EVERY_THIRD = TABLE_1[::3]  # of each depth and width, the largest network among them


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(EVERY_THIRD, id="every third"),
        pytest.param([row for row in TABLE_1 if row not in EVERY_THIRD], id="the others", marks=pytest.mark.slow),
    ],
)
def test_the_papers_table_1(rows, parity, no_allocation):
    """All 13 networks, part by part, exactly."""

    def counts(row):
        network = make_table_1(row)
        network.build()
        return {
            "base_trainable": number_of(network.encoder.trainable_variables),
            "base_incl_moving_stats": network.encoder.count_params(),
            "proj3_trainable": number_of(network.projection_head.trainable_variables),
            "sup1000_trainable": number_of(network.classifier.trainable_variables),
            "total_trainable": number_of(network.trainable_variables),
            "paper_millions": round(network.encoder.count_params() / 1e6),
        }

    for row in rows:
        actual = without_allocation(lambda row=row: counts(row))
        expected = [row[name] for name in actual]
        parity("parameters of the 13 networks of Table 1", list(actual.values()), expected, 0, "whole", of="one")
    assert len(TABLE_1) == 13


@pytest.mark.slow
def test_the_cost_of_the_largest_network(no_allocation):
    largest = max(TABLE_1, key=lambda row: row["total_trainable"])
    costs = summarize(lambda: make_table_1(largest), 224)
    assert costs.encoder.parameters == largest["base_incl_moving_stats"]
    assert costs.total.trained == largest["total_trainable"]
    assert costs.total.multiply_adds == 157_806_508_032 and costs.total.activations == 4 * 167_756_224


def test_resnet50_by_hand():
    """The well-known 4.09 billion multiply-adds at 224 pixels, classifier included."""
    expected = 7 * 7 * 3 * 64 * 112**2
    wide_in, side_in = 64, 56
    for group, blocks in enumerate((3, 4, 6, 3)):
        narrow, side = 64 << group, 56 >> group
        shortcut = wide_in * 4 * narrow * side**2
        first = wide_in * narrow * side_in**2  # the stride is on the 3×3 convolution behind it
        expected += shortcut + first + (blocks - 1) * 4 * narrow * narrow * side**2
        expected += blocks * (9 * narrow * narrow + narrow * 4 * narrow) * side**2
        wide_in, side_in = 4 * narrow, side
    costs = summarize(lambda: Network(ResNet(50), ProjectionHead("none"), 1000), 224)
    assert costs.encoder.multiply_adds == expected
    assert costs.total.multiply_adds == expected + 2048 * 1000 == 4_089_184_256


@pytest.mark.parametrize(
    ("kind", "fused"), [("basic", True), ("basic", False), ("sk", True), ("se", True), ("remat", True)]
)
def test_costs_of_the_parts(kind, fused):
    costs, network = summarize(tiny(kind, fused=fused), SIZE), tiny(kind)()
    assert tuple(costs.parts) == PARTS
    assert tuple(cost.multiply_adds for cost in costs.parts.values()) == MULTIPLY_ADDS[kind]
    assert tuple(cost.activations // 4 for cost in costs.parts.values()) == ACTIVATIONS[kind]
    layers = [network.encoder.stem, *network.encoder.groups, network.projection_head, network.classifier]
    for layer, cost in zip(layers, costs.parts.values(), strict=True):
        assert cost.trained == number_of(layer.trainable_variables)
        assert cost.parameters == number_of(layer.variables)
    assert costs.total.parameters == number_of(network.variables)


def test_remat_keeps_the_block_inputs_and_recomputes_one_block_at_a_time():
    plain, remat = summarize(tiny("basic"), SIZE), summarize(tiny("remat"), SIZE)
    assert plain.total.activations < plain.peak < 1.2 * plain.total.activations
    largest_block = 4 * 5 * 37**2 * 4  # bytes: of 4 channels, the input, and output of convolutions and ReLUs
    assert remat.total.activations + largest_block / 2 < remat.peak < remat.total.activations + 1.2 * largest_block


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"head_input": 2}, (*ACTIVATIONS["basic"][:5], 5 * 32, 0)),
        ({"frozen": 1}, (0, 0, 25992 + 37**2 * 4, 14400, 7200, 0, 32)),
        ({"frozen": 4, "mode": "none"}, (0, 0, 0, 0, 0, 32)),
        ({"mode": "linear"}, (*ACTIVATIONS["basic"][:5], 0, 32)),
    ],
    ids=str,
)
def test_costs_where_parts_are_frozen_or_do_not_run(how, expected):
    costs = summarize(tiny("basic", **how), SIZE, whole_head=False)
    assert tuple(cost.activations // 4 for cost in costs.parts.values()) == expected
    multiply_adds = [cost.multiply_adds for cost in costs.parts.values()]
    assert multiply_adds[:5] == list(MULTIPLY_ADDS["basic"][:5]) and multiply_adds[-1] == 32 * CLASSES
    assert sum(multiply_adds[5:-1]) == how.get("head_input", 0) * 32 * 32


def test_half_precision_halves_the_bytes():
    with_policy = lambda: (keras.config.set_dtype_policy("mixed_bfloat16"), tiny("basic")())[1]  # noqa: E731
    full, half = (summarize(make, SIZE).encoder.activations for make in (tiny("basic"), with_policy))
    assert half == full / 2


class TestOtherEncoders:
    def test_sequential_by_hand(self):
        def make():
            layers = keras.layers
            return keras.Sequential(
                [
                    keras.Input((8, 8, 3)),
                    layers.Conv2D(4, 3, padding="same", activation="relu"),
                    layers.Conv2D(6, 3, strides=2, padding="same", use_bias=False),
                    layers.BatchNormalization(),
                    layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False),
                    layers.Dropout(0.5),
                    layers.Flatten(),
                    layers.Dense(5),
                ]
            )

        costs = summarize(lambda: Network(make(), ProjectionHead("none"), CLASSES), 8)
        assert list(costs.parts) == ["encoder", "classifier"]
        encoder = costs.parts["encoder"]
        conv0, conv1, depthwise, dense = 3 * 3 * 3 * 4, 3 * 3 * 4 * 6, 3 * 3 * 6 * 2, 4 * 4 * 12 * 5
        assert encoder.trained == (conv0 + 4) + conv1 + 2 * 6 + depthwise + (dense + 5)
        assert encoder.parameters == encoder.trained + 2 * 6
        assert encoder.multiply_adds == 8 * 8 * conv0 + 4 * 4 * conv1 + 4 * 4 * depthwise + dense
        read = [8 * 8 * 3, 8 * 8 * 4, 4 * 4 * 6, 4 * 4 * 6, 4 * 4 * 12, 5]  # inputs of what learns
        assert encoder.activations == 4 * sum(read) + 4 * 4 * 12  # dropout's mask has one byte each
        assert costs.parts["classifier"] == (18, 18, 15, 0)

    def test_a_grouped_convolution_has_fewer_multiply_adds(self):
        """Keras runs it as a compiled function."""
        convolution = keras.layers.Conv2D(6, 3, padding="same", groups=3)
        layers = [keras.Input((8, 8, 3)), convolution, keras.layers.GlobalAveragePooling2D()]
        costs = summarize(lambda: Network(keras.Sequential(layers)), 8)
        assert costs.encoder.multiply_adds == 8 * 8 * 3 * 3 * 6

    def test_attention_by_hand(self):
        def make():
            images = keras.Input((8, 8, 3))
            patches = keras.layers.Reshape((16, 12))(images)
            attended = keras.layers.MultiHeadAttention(2, 5, use_bias=False)(patches, patches)
            return keras.Model(images, keras.layers.GlobalAveragePooling1D()(attended))

        encoder = summarize(lambda: Network(make()), 8).encoder
        assert encoder.parameters == 4 * 12 * 10
        assert encoder.multiply_adds == 4 * 16 * 12 * 10 + 2 * 16 * 16 * 10

    def test_of_keras_applications(self):
        """Multiply-adds by TensorFlow's profiler, which counts each as two."""

        def make():
            return keras.applications.MobileNetV2((64, 64, 3), weights=None, include_top=False, pooling="avg")

        costs = summarize(lambda: Network(make(), num_classes=CLASSES), 64)
        encoder = make()
        assert list(costs.parts) == ["encoder", "projection_head", "classifier"]
        assert costs.encoder.parameters == encoder.count_params() == 2_257_984
        assert costs.encoder.trained == number_of(encoder.trainable_variables)
        assert costs.encoder.multiply_adds == profiled_multiply_adds(encoder, 64)
        assert 4 * 1e6 < costs.encoder.activations < costs.peak < 6 * 1e6


def profiled_multiply_adds(encoder, size):
    graph = tf.function(encoder).get_concrete_function(tf.TensorSpec([1, size, size, 3])).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    kinds, total = {op.name: op.type for op in graph.get_operations()}, 0
    nodes = [profiler.profile(graph, options=options)]
    while nodes:
        node = nodes.pop()
        nodes += node.children
        total += node.float_ops if kinds.get(node.name) in ("Conv2D", "DepthwiseConv2dNative") else 0
    return total // 2


class TestPeakBytes:
    KIB = tf.TensorSpec([256])

    def peak(self, function, *specs):
        return peak_bytes(tf.function(function, autograph=False).get_concrete_function(*specs or (self.KIB,)).graph)

    def test_a_tensor_is_in_memory_from_its_operation_to_its_last_reader(self):
        chain = lambda x: tf.exp(tf.exp(tf.exp(x)))  # noqa: E731
        assert self.peak(lambda x: tf.reduce_sum(chain(x))) == 2 * 1024  # one is read while the next is written
        assert self.peak(lambda x: tf.reduce_sum(tf.exp(y := tf.exp(x)) + chain(y))) == 3 * 1024

    def test_aliases_take_no_memory(self):
        assert self.peak(lambda x: tf.reduce_sum((y := tf.exp(x)) * tf.reshape(tf.identity(y), [256]))) == 2 * 1024

    def test_shapes_need_no_values(self):
        late = lambda x, y: tf.cast(tf.raw_ops.Size(input=x), tf.float32) + tf.reduce_sum(y)  # noqa: E731
        with_size = self.peak(lambda x: late(y := tf.exp(x), tf.exp(tf.exp(tf.exp(y)))))
        assert with_size == pytest.approx(2 * 1024, abs=16)

    def test_dtypes(self):
        half = self.peak(lambda x: tf.reduce_sum(tf.exp(tf.exp(x))), tf.TensorSpec([256], tf.bfloat16))
        assert half == 2 * 512

    @pytest.mark.parametrize("xla", [False, True])
    def test_inner_functions_add_their_peak(self, xla):
        inner = tf.function(lambda x: tf.reduce_sum(tf.exp(tf.exp(x))), jit_compile=xla, autograph=False)

        def outer(x):
            y = tf.exp(x)
            return tf.reduce_sum(y * inner(y))

        assert self.peak(outer) == pytest.approx(3 * 1024, abs=8)

    def test_a_loop_holds_one_turn_at_a_time(self):
        turn = lambda x: tf.reduce_sum(tf.exp(tf.exp(x)))  # noqa: E731

        def loop(x):
            sums = tf.while_loop(lambda i, _: i < 100, lambda i, total: (i + 1, total + turn(x)), (0, 0.0))
            return sums[1]

        assert self.peak(loop) == pytest.approx(self.peak(turn), abs=64)
