"""Variable names in checkpoints of the official code (google-research/simclr, TF1 and ``tf2/``)."""

import collections
import itertools
import re
from collections.abc import Iterable, Iterator

import keras

from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet


def official_names(network: Network) -> dict[str, keras.Variable]:
    """Maps official checkpoint names to the variables of a built network.

    The official code numbers the encoder's convolutions and batch norms in the order of their creation:
    ``base_model/conv2d_3/kernel``, ``base_model/batch_normalization_7/gamma``. The heads have their own names:
    ``head_contrastive/nl_0/dense/kernel`` (``l_0`` for a linear head), ``head_supervised/linear_layer/dense/bias``.

    Args:
        network: built, with a ``ResNet`` encoder of any settings.

    Returns:
        Every variable once, in the official order.

    Raises:
        ValueError: if the encoder is not a ``ResNet``.
    """
    if not isinstance(network.encoder, ResNet):
        raise ValueError(f"the official code knows ResNet encoders only, not {type(network.encoder).__name__}")
    names = dict(_encoder_names(network.encoder))
    head = network.projection_head
    prefix = "l" if head.settings["mode"] == "linear" else "nl"
    for index, layer in enumerate(head.layers):
        scope = f"head_contrastive/{prefix}_{index}"
        names |= {f"{scope}/dense/{v.name}": v for v in layer.dense.variables}
        names |= {f"{scope}/batch_normalization/{v.name}": v for v in layer.batch_norm.variables}
    if network.classifier is not None:
        names |= {f"head_supervised/linear_layer/dense/{v.name}": v for v in network.classifier.variables}
    return names


def _encoder_names(encoder: ResNet) -> Iterator[tuple[str, keras.Variable]]:
    # The first variable of a convolution is its kernel, that of a batch norm its gamma.
    kinds = {"kernel": "conv2d", "gamma": "batch_normalization"}
    counts: collections.Counter[str] = collections.Counter()
    scope = ""
    for variable in encoder.variables:
        if variable.name in kinds:
            scope = _next_scope(kinds[variable.name], counts)
        yield f"{scope}/{variable.name}", variable


def _next_scope(kind: str, counts: collections.Counter[str]) -> str:
    """Counts a layer and returns its TF1 name: ``base_model/conv2d``, ``base_model/conv2d_1``, …"""
    counts[kind] += 1
    return f"base_model/{kind}_{counts[kind] - 1}" if counts[kind] > 1 else f"base_model/{kind}"


TF2_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# Attributes under which the TF2 code keeps an encoder's layers, sorted in the order in which the TF1 code numbers them:
# a block's shortcut before its convolutions, then squeeze-and-excite; the two streams of a selective kernel before the
# layers that mix them.
TF2_ATTRIBUTES = (
    "initial_conv_relu_max_pool", "block_groups", "layers",
    "projection_layers", "shortcut_layers", "conv2d_bn_layers", "conv_relu_dropblock_layers", "se_layer",
    "conv2d_fixed_padding", "batch_norm_relu", "conv2d_0", "batch_norm_relu_1", "conv2d_1",
    "se_reduce", "se_expand", "conv2d", "bn",
)  # fmt: skip
TF2_HEADS = (
    (r"model/_projection_head/linear_layers/(\d+)/dense/(\w+)", r"head_contrastive/nl_\1/dense/\2"),
    (r"model/_projection_head/linear_layers/(\d+)/bn_relu/bn/(\w+)", r"head_contrastive/nl_\1/batch_normalization/\2"),
    (r"model/supervised_head/linear_layer/dense/(\w+)", r"head_supervised/linear_layer/dense/\1"),
)


def tf2_names(keys: Iterable[str]) -> dict[str, str]:
    """Maps TF1 names to the keys of an object-based checkpoint of the official TF2 code.

    Args:
        keys: all keys of the checkpoint; those that do not belong to the network (optimizer slots, counters) are
            ignored.
    """
    paths = [key.removesuffix(TF2_VALUE) for key in keys if "/.OPTIMIZER_SLOT/" not in key]
    names = {}
    for path, (pattern, name) in itertools.product(paths, TF2_HEADS):
        if match := re.fullmatch(pattern, path):
            names[match.expand(name)] = path + TF2_VALUE
    variables: dict[str, list[str]] = {}  # layer → names of its variables
    for path in paths:
        layer, _, variable = path.removeprefix("model/resnet_model/").rpartition("/")
        if path.startswith("model/resnet_model/") and all(p.isdigit() or p in TF2_ATTRIBUTES for p in layer.split("/")):
            variables.setdefault(layer, []).append(variable)
    counts: collections.Counter[str] = collections.Counter()
    for layer in sorted(variables, key=_tf1_order):
        scope = _next_scope("conv2d" if "kernel" in variables[layer] else "batch_normalization", counts)
        names |= {f"{scope}/{v}": f"model/resnet_model/{layer}/{v}{TF2_VALUE}" for v in variables[layer]}
    return names


def _tf1_order(layer: str) -> list[int]:
    return [int(part) if part.isdigit() else TF2_ATTRIBUTES.index(part) for part in layer.split("/")]
