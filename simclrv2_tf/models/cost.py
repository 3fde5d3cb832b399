"""What a network costs, from the shapes of its layers: parameters, arithmetic, activations. Nothing is allocated."""

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from math import prod

import keras
import tensorflow as tf

from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import (
    BlockGroup,
    Conv,
    ConvBatchNorm,
    ResidualBlock,
    SelectiveKernelConv,
    Shortcut,
    Stem,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a part of a network costs.

    Attributes:
        trained: parameters that training moves.
        parameters: all of them and the moving statistics, as Table 1 of the paper counts.
        multiply_adds: of its convolutions and dense layers, for one view forward. The FLOPs of the ResNet paper (arXiv
            1512.03385, table 1), twice as many as single operations; a training step takes three times as many.
        activations: numbers that the backward pass reads of one view's forward pass, each counted once: the inputs of
            convolutions, dense layers and batch norms, and what ReLU, pooling and gates need. Padding, slices and casts
            of them are not counted, nor are frozen parts, below which no gradient flows.
    """

    trained: int = 0
    parameters: int = 0
    multiply_adds: int = 0
    activations: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


@dataclasses.dataclass(frozen=True)
class Summary:
    """The parts of a network in the order in which a view runs through them.

    Attributes:
        parts: ``stem``, ``block_group1`` … ``block_group4``, then ``projection_head`` and ``classifier`` if there are.
        dtype: that activations are kept in.
        recomputed: activations of a view that a network with ``remat`` has for a moment, beside those that it keeps:
            those of its largest block.
    """

    parts: dict[str, Cost]
    dtype: str
    recomputed: int

    @property
    def encoder(self) -> Cost:
        """The network without its heads, of which the paper's Table 1 speaks."""
        return reduce(Cost.__add__, (cost for name, cost in self.parts.items() if not name.endswith(HEADS)))

    @property
    def total(self) -> Cost:
        """All parts together."""
        return reduce(Cost.__add__, self.parts.values())

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return tf.as_dtype(self.dtype).size


HEADS = ("projection_head", "classifier")


def summarize(make_network: Callable[[], Network], image_size: int, whole_head: bool = True) -> Summary:
    """Adds up what a network costs without allocating any of it, however large it is.

    Args:
        make_network: returns a network on a ``ResNet``, built or not, e.g. ``lambda: Network(ResNet(152, 3, 0.0625))``.
        image_size: side of a view, pixels.
        whole_head: all of the projection head runs, as in pretraining; else as far as the classifier's tap.
    """
    # Keras remembers, per thread, the variables it has yet to initialise, and would allocate them at the end of the
    # next stateless scope; those of a thread of their own are forgotten with it.
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(_summarize, make_network, image_size, whole_head).result()


def _summarize(make_network: Callable[[], Network], image_size: int, whole_head: bool) -> Summary:
    with keras.StatelessScope(initialize_variables=False):
        network = make_network()
        if not network.built:
            network.build()
    encoder, head, classifier = network.encoder, network.projection_head, network.classifier
    view, parts, channels, below = _View(image_size), {}, 3, Cost()
    for part in [encoder.stem, *encoder.groups]:
        if not below.activations:  # else its input is kept already
            view.keep(channels)
        view.stem(part) if part is encoder.stem else view.group(part, last=part is encoder.groups[-1])
        parts[part.name] = below = view.cost(part)
        channels = part.out_channels
    view.side = 1
    running = head.layers if whole_head or classifier is None else head.layers[: network.head_input]
    if head.depth:
        if running:
            view.keep(encoder.feature_dim)
        for layer in running:
            view.dense(layer.dense)
            view.keep(layer.dense.units * (2 if layer.hidden else 1))
        parts["projection_head"] = view.cost(head)
    if classifier is not None:
        if not running or not head.trainable_variables:  # else its input is kept already
            view.keep(classifier.dense.kernel.shape[0])
        view.dense(classifier.dense)
        parts["classifier"] = view.cost(classifier)
    return Summary(parts, network.compute_dtype, view.recomputed)


class _View:
    """One square view on its way through the layers: its side in pixels, and the costs since they were last asked."""

    def __init__(self, side: int):
        self.side = side
        self.multiply_adds = self.kept = self.recomputed = 0

    def cost(self, part: keras.layers.Layer) -> Cost:
        """Of the part it has just run through."""
        trained = sum(prod(v.shape) for v in part.trainable_variables)
        multiply_adds, kept = self.multiply_adds, self.kept
        self.multiply_adds = self.kept = 0
        return Cost(trained, sum(prod(v.shape) for v in part.variables), multiply_adds, kept if trained else 0)

    def keep(self, channels: int) -> None:
        self.kept += channels * self.side**2

    def shrink(self, strides: int) -> None:
        self.side = -(-self.side // strides)

    def dense(self, layer: keras.layers.Dense) -> None:
        self.multiply_adds += prod(layer.kernel.shape)

    def conv(self, layer: Conv) -> None:
        self.shrink(layer.strides[0] * layer.skip)
        self.multiply_adds += prod(layer.kernel.shape) * self.side**2

    def conv_batch_norm(self, layer: ConvBatchNorm) -> None:
        self.conv(layer.conv)
        self.keep(layer.filters)  # for the batch norm
        if layer.relu:
            self.keep(layer.filters)  # for ReLU and for the next convolution, which are the same numbers

    def stem(self, stem: Stem) -> None:
        for layer in stem.convs:
            self.conv_batch_norm(layer)
        self.conv(stem.conv)
        self.keep(2 * stem.out_channels)
        if stem.kind == "imagenet":
            self.shrink(2)
            self.keep(stem.out_channels)

    def group(self, group: BlockGroup, last: bool) -> None:
        for block in group.blocks:
            before = self.kept
            self.block(block)
            if group.remat:
                if group.trainable_variables:
                    self.recomputed = max(self.recomputed, self.kept - before)
                self.kept = before
                if not (last and block is group.blocks[-1]):
                    self.keep(block.out_channels)  # the next one's input

    def block(self, block: ResidualBlock) -> None:
        side = self.side
        if block.shortcut is not None:
            self.shortcut(block.shortcut)
            self.side = side
        for layer in block.convs:
            self.selective_kernel(layer) if isinstance(layer, SelectiveKernelConv) else self.conv_batch_norm(layer)
        if block.squeeze_excite is not None:
            self.keep(block.out_channels)
            self.gate(block.squeeze_excite.reduce, block.squeeze_excite.expand)
        self.keep(block.out_channels)

    def shortcut(self, shortcut: Shortcut) -> None:
        if shortcut.resnet_d:
            self.shrink(shortcut.strides)
            self.keep(shortcut.projection.conv.kernel.shape[2])
        self.conv_batch_norm(shortcut.projection)

    def selective_kernel(self, layer: SelectiveKernelConv) -> None:
        self.conv_batch_norm(layer.streams)
        self.gate(layer.squeeze.conv, layer.expand)
        self.kept += layer.squeeze.filters  # for its batch norm
        self.keep(layer.filters)  # the mixture, for the next convolution

    def gate(self, narrow: Conv, wide: Conv) -> None:
        """Channels' means, two convolutions of a single pixel and a squashing of their output."""
        side, self.side = self.side, 1
        for layer in (narrow, wide):
            self.conv(layer)
            self.keep(layer.kernel.shape[2])  # its input
        self.keep(wide.filters)
        self.side = side
