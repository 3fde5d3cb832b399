"""Parameters, multiply-adds and memory, read off traced graphs of any network: nothing is allocated or run."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.settings.config import check_arguments

BATCH = 10_007  # views in the traced graph: tensors of this first dimension, which no weight has, are per view
SHAPE_READERS = {"Shape", "ShapeN", "Size", "Rank"}  # they do not read their inputs' values
ALIASES = {"Identity", "IdentityN", "Reshape", "Squeeze", "ExpandDims", "StopGradient", "PreventGradient"}
COPIES = ALIASES | {"Pad", "PadV2", "StridedSlice", "Split", "Transpose", "Cast"}
NOT_INTERMEDIATE = {"Const", "Placeholder", "ReadVariableOp"}
INNER_FUNCTIONS = {"PartitionedCall": "f", "StatefulPartitionedCall": "f", "While": "body", "StatelessWhile": "body"}


class Cost(NamedTuple):
    """Cost of a part of a network.

    Attributes:
        trained: trainable parameters.
        parameters: all parameters and moving statistics, as Table 1 of the paper counts them.
        multiply_adds: of convolutions and matrix products in one view's forward pass: the FLOPs of the ResNet paper
            (arXiv 1512.03385, table 1), half the single operations. A training step takes three times as many.
        activations: bytes of one view's forward pass that the backward pass reads, each tensor counted once. Padded,
            sliced and cast copies are not counted, nor are frozen parts below which no gradient flows.
    """

    trained: int
    parameters: int
    multiply_adds: int
    activations: int


class Summary(NamedTuple):
    """Costs of a network.

    Attributes:
        parts: ``stem`` and ``block_group1`` to ``block_group4`` of a ``ResNet``, ``encoder`` of any other model; then
            ``projection_head`` and ``classifier`` if the network has them.
        encoder: sum of the parts without the heads, as in Table 1 of the paper.
        total: sum of all parts.
        peak: bytes per view of the tensors that a forward and backward pass holds at the same time, at most. With
            ``remat`` the activations are the blocks' inputs; the peak has what a block recomputes, too.
    """

    parts: dict[str, Cost]
    encoder: Cost
    total: Cost
    peak: int


def summarize(make_network: Callable[[], Network], image_size: int, whole_head: bool = True) -> Summary:
    """Computes the cost of a network, however large, from the graph of a training step that is traced but not run.

    Args:
        make_network: returns a network, built or not, e.g. ``lambda: Network(ResNet(152, 3, 0.0625))``.
        image_size: height and width of a view, px.
        whole_head: run the whole projection head, as in pretraining; otherwise up to the classifier's tap.

    Raises:
        ValueError: if the size is out of bounds.
    """
    check_arguments(image_size=image_size)

    def trace() -> Summary:
        network = make_network()
        if not network.built:
            network.build((None, image_size, image_size, 3))
        return _summarize(network, image_size, whole_head)

    return without_allocation(trace)


def without_allocation(function: Callable[[], Any]) -> Any:
    """Calls a function in which variables of new layers have shapes but no values, and returns its result."""

    def call() -> Any:
        with keras.StatelessScope(initialize_variables=False):
            return function()

    # Keras remembers, per thread, the variables that it has yet to initialise, and would allocate them at the end of
    # the next stateless scope; those of a thread of their own are forgotten with it.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(call).result()


def peak_bytes(graph: tf.Graph) -> int:
    """Computes how many bytes of intermediate tensors a graph holds at most, if it runs in the order of its tracing.

    A tensor is in memory from its operation to the last one that reads it. A loop or a compiled function adds its own
    peak. Variables, constants, tensors of unknown shape and the kernels' workspace are not counted.

    Args:
        graph: of a traced function, e.g. a training step. If XLA compiles it, it fuses operations and needs less.
    """
    operations = graph.get_operations()
    last_reads: dict[int, tuple[int, tf.Tensor]] = {}  # by the tensor's id: a graph has one object for each tensor
    for index, op in enumerate(operations):
        for tensor in op.inputs if op.type not in SHAPE_READERS else ():
            source = _source(tensor, ALIASES)
            last_reads[id(source)] = index, source
    freed: Counter[int] = Counter()
    for index, tensor in last_reads.values():
        freed[index] += _num_bytes(tensor)
    live = peak = 0
    for index, op in enumerate(operations):
        if op.type not in ALIASES:
            live += sum(_num_bytes(tensor) for tensor in op.outputs if id(tensor) in last_reads)
        inner = peak_bytes(_inner_graph(op)) if op.type in INNER_FUNCTIONS else 0
        peak = max(peak, live + inner)
        live -= freed[index]
    return peak


def _summarize(network: Network, image_size: int, whole_head: bool) -> Summary:
    placeholders = lambda variables: [tf.compat.v1.placeholder(v.dtype, v.shape) for v in variables]  # noqa: E731
    with tf.__internal__.FuncGraph("step").as_default() as graph:  # unlike tf.Graph it captures eager constants
        images = tf.random.uniform([BATCH, image_size, image_size, 3], dtype=network.compute_dtype)
        trainable, state = map(placeholders, (network.trainable_variables, network.non_trainable_variables))
        endpoints, _ = network.stateless_call(trainable, state, images, training=True, whole_head=whole_head)
        forward = graph.get_operations()
        ends = [endpoints[name] for name in ("proj_head_output", "logits_sup") if name in endpoints]
        gradients = tf.gradients(ends, trainable)

    # Operations that no gradient needs, e.g. for the gradient of a constant, never run.
    needed = {gradient.op for gradient in gradients if gradient is not None}
    activations: set[Any] = set()
    for op in reversed(graph.get_operations()[len(forward) :]):
        if op in needed:
            needed.update(tensor.op for tensor in op.inputs)
            activations.update(id(_source(t, COPIES)) for t in op.inputs if op.type not in SHAPE_READERS)

    parts, start, num_bytes = {}, 0, 0
    for name, layer, output in _parts(network, endpoints):
        end = start if output is None else forward.index(output.op) + 1
        operations, start = forward[start:end], end
        kept_tensors = [tensor for op in operations for tensor in op.outputs if id(tensor) in activations]
        num_bytes += sum(_num_bytes(tensor) for tensor in kept_tensors if tensor.shape[:1] == [BATCH]) // BATCH
        trained = sum(prod(variable.shape) for variable in layer.trainable_variables)
        multiply_adds = sum(map(_multiply_adds, operations)) // BATCH
        parts[name] = Cost(trained, layer.count_params(), multiply_adds, num_bytes if trained else 0)
        num_bytes = 0 if trained else num_bytes  # the output of a frozen part is kept for the next part
    add = lambda costs: Cost(*map(sum, zip(*costs, strict=True)))  # noqa: E731
    encoder = add(cost for name, cost in parts.items() if name not in ("projection_head", "classifier"))
    return Summary(parts, encoder, add(parts.values()), peak_bytes(graph) // BATCH)


def _parts(
    network: Network, endpoints: dict[str, tf.Tensor]
) -> Iterator[tuple[str, keras.layers.Layer, tf.Tensor | None]]:
    """Yields name, layer and output (None if it does not run) of each part. ResNet's final mean is of the next part."""
    encoder, head = network.encoder, network.projection_head
    if isinstance(encoder, ResNet):
        yield "stem", encoder.stem, endpoints["initial_max_pool"]
        yield from ((group.name, group, endpoints[group.name]) for group in encoder.groups)
    else:
        yield "encoder", encoder, endpoints["final_avg_pool"]
    if head.depth:
        taps = [endpoints[name] for i in range(head.depth) if (name := f"proj_head_{i + 1}") in endpoints]
        yield "projection_head", head, taps[-1] if taps else None
    if network.classifier is not None:
        yield "classifier", network.classifier, endpoints["logits_sup"]


def _multiply_adds(op: tf.Operation) -> int:
    """Counts the multiply-adds of a convolution or matrix product, or of one run of an inner function; otherwise 0."""
    if op.type in INNER_FUNCTIONS:
        return sum(map(_multiply_adds, _inner_graph(op).get_operations()))
    if op.type == "Einsum":
        subscripts = op.get_attr("equation").decode().split("->")[0].split(",")
        labelled = zip("".join(subscripts), (size for tensor in op.inputs for size in tensor.shape), strict=True)
        return prod(dict(labelled).values())
    if op.type == "Conv2D":
        terms = prod(op.inputs[1].shape[:3])  # [height, width, channels per group, filters]
    elif op.type == "DepthwiseConv2dNative":
        terms = prod(op.inputs[1].shape[:2])  # [height, width, channels, multiplier]
    elif op.type in ("MatMul", "BatchMatMulV2"):
        transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        terms = op.inputs[0].shape[-2 if transposed else -1]
    else:
        return 0
    return op.outputs[0].shape.num_elements() * terms


def _inner_graph(op: tf.Operation) -> tf.Graph:
    return op.graph._get_function(op.get_attr(INNER_FUNCTIONS[op.type]).name).graph


def _source(tensor: tf.Tensor, through: set[str]) -> tf.Tensor:
    """Follows operations of the given types, with COPIES pooling of single pixels too, to their source."""
    op = tensor.op
    while op.type in through or (op.type == "AvgPool" and through is COPIES and set(op.get_attr("ksize")) == {1}):
        tensor = op.inputs[{"IdentityN": tensor.value_index, "Split": 1}.get(op.type, 0)]
        op = tensor.op
    return tensor


def _num_bytes(tensor: tf.Tensor) -> int:
    counted = tensor.op.type not in NOT_INTERMEDIATE
    return (tensor.shape.num_elements() or 0) * tensor.dtype.size if counted else 0
