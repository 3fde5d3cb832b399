"""What networks cost: against the recorded parameter counts, the profiler, and the graph of the gradient."""

import json
import pathlib
import resource
from math import prod

import keras
import pytest
import tensorflow as tf

from simclrv2_tf.models import Network, ProjectionHead, ResNet, summarize

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TABLE_1 = json.loads((GOLDEN / "param_counts.json").read_text())
KINDS = {
    "basic": {"depth": 18, "stem": "cifar"},
    "sk": {"depth": 50, "sk_ratio": 0.0625},
    "se": {"depth": 50, "se_ratio": 0.25},
    "remat": {"depth": 18, "stem": "cifar", "remat": True},
}
SIZE, BATCH, CLASSES = 37, 5, 3  # an odd side; a number of views that no layer has channels of


def tiny(kind, head_input=0, frozen=-1, fused=True, **head):
    def make():
        settings = {"width_multiplier": 1 / 16, "batch_norm": {"fused": fused}} | KINDS[kind]
        network = Network(ResNet(**settings, name="encoder"), ProjectionHead(**head), CLASSES, head_input)
        network.build()
        network.encoder.freeze_after_block(frozen)
        return network

    return make


def test_the_papers_table_1(parity):
    """All 13 networks, part by part, exactly; none of their 5 GiB is allocated."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for row in TABLE_1:
        encoder = {"depth": row["depth"], "width_multiplier": row["width"], "sk_ratio": 0.0625 if row["sk"] else 0.0}
        found = summarize(lambda encoder=encoder: Network(ResNet(**encoder), num_classes=1000), 224)
        head, classifier = (found.parts[name] for name in ("projection_head", "classifier"))
        counts = {
            "base_trainable": found.encoder.trained,
            "base_incl_moving_stats": found.encoder.parameters,
            "proj3_trainable": head.trained,
            "sup1000_trainable": classifier.trained,
            "total_trainable": found.total.trained,
            "paper_millions": round(found.encoder.parameters / 1e6),
        }
        expected = [row[name] for name in counts]
        parity("parameters of the 13 networks of Table 1", list(counts.values()), expected, 0, "whole", of="one")
    assert len(TABLE_1) == 13
    # The end of a stateless scope initialises what Keras still has to: nothing of the above may be left.
    with keras.StatelessScope():
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_those_of_what_is_built(kind):
    found, network = summarize(tiny(kind), SIZE), tiny(kind)()
    encoder = network.encoder
    parts = [encoder.stem, *encoder.groups, network.projection_head, network.classifier]
    assert list(found.parts) == ["stem", *(f"block_group{g}" for g in range(1, 5)), "projection_head", "classifier"]
    for part, cost in zip(parts, found.parts.values(), strict=True):
        assert cost.trained == sum(prod(v.shape) for v in part.trainable_variables)
        assert cost.parameters == sum(prod(v.shape) for v in part.variables)
    assert found.total.parameters == sum(prod(v.shape) for v in network.variables)


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
    found = summarize(lambda: Network(ResNet(50), ProjectionHead("none"), 1000), 224)
    assert found.encoder.multiply_adds == expected
    assert found.total.multiply_adds == expected + 2048 * 1000 == 4_089_184_256


def traced(make_network, whole_head=True):
    """The graph of a forward pass in training mode and of its gradient, the network, and the forward operations."""
    network, graph = make_network(), tf.Graph()
    with graph.as_default():
        placeholder = tf.compat.v1.placeholder
        images = placeholder(network.compute_dtype, [BATCH, SIZE, SIZE, 3])
        trained = [placeholder(v.dtype, v.shape) for v in network.trainable_variables]
        statistics = [placeholder(v.dtype, v.shape) for v in network.non_trainable_variables]
        outputs, _ = network.stateless_call(trained, statistics, images, training=True, whole_head=whole_head)
        ends = [outputs["logits_sup"], *([outputs["proj_head_output"]] if whole_head else [])]
        forward = graph.get_operations()
        tf.gradients(ends, trained, grad_ys=[tf.ones_like(end) for end in ends])
    return graph, images, forward


def multiply_adds(graph, forward):
    """Of the forward operations, by TensorFlow's profiler, which counts each as two."""
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation() | {"output": "none"}
    names, found = {op.name for op in forward if op.type in ("Conv2D", "MatMul")}, {}

    def walk(node):
        found[node.name] = node.float_ops
        for child in node.children:
            walk(child)

    walk(tf.compat.v1.profiler.profile(graph, options=options))
    return sum(found[name] for name in names) // 2


VIEWS_OF_OTHERS = ("Reshape", "Identity", "IdentityN", "Pad", "StridedSlice", "Transpose", "Split", "Cast")


def is_view(op):
    """Of a tensor that is kept anyway; a pool of single pixels is a slice, too."""
    return op.type in VIEWS_OF_OTHERS or (op.type == "AvgPool" and set(op.get_attr("ksize")) == {1})


def numbers_read_by_the_gradient(graph, images, forward):
    """Of the forward pass, each once, whatever is padded, cut or cast from it."""
    of_images = {images.op}
    for op in forward:
        if any(tensor.op in of_images for tensor in op.inputs):
            of_images.add(op)
    read = {}
    for op in graph.get_operations()[len(forward) :]:
        for tensor in op.inputs if op.type not in ("Shape", "ShapeN", "Size") else ():
            while is_view(tensor.op) and tensor.op in of_images:
                data = {"IdentityN": tensor.value_index, "Split": 1}.get(tensor.op.type, 0)
                tensor = tensor.op.inputs[data]
            if tensor.op in of_images and tensor.shape[0] == BATCH:
                read[tensor.ref()] = prod(tensor.shape)
    return sum(read.values())


@pytest.mark.parametrize(
    ("kind", "fused"), [("basic", True), ("basic", False), ("sk", True), ("se", True), ("remat", True)]
)
def test_costs_are_those_of_the_graph(kind, fused):
    make = tiny(kind, fused=fused)
    graph, images, forward = traced(make)
    found = summarize(make, SIZE).total
    assert found.multiply_adds * BATCH == multiply_adds(graph, forward)
    assert found.activations * BATCH == numbers_read_by_the_gradient(graph, images, forward)


@pytest.mark.parametrize(
    "how", [{"head_input": 2}, {"frozen": 1}, {"frozen": 4, "mode": "none"}, {"mode": "linear"}], ids=str
)
def test_costs_where_parts_are_frozen_or_do_not_run(how):
    make = tiny("basic", **how)
    found = summarize(make, SIZE, whole_head=False)
    graph, images, forward = traced(make, whole_head=False)
    assert found.total.multiply_adds * BATCH == multiply_adds(graph, forward)
    assert found.total.activations * BATCH == numbers_read_by_the_gradient(graph, images, forward)
    for index, name in enumerate(["stem", "block_group1", "block_group2"]):
        assert (found.parts[name].activations == 0) == (index <= how.get("frozen", -1)), name


def test_half_precision_halves_the_bytes():
    assert summarize(tiny("basic"), SIZE).itemsize == 4
    with_policy = lambda: (keras.config.set_dtype_policy("mixed_bfloat16"), tiny("basic")())[1]  # noqa: E731
    assert summarize(with_policy, SIZE).itemsize == 2
