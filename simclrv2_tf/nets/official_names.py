"""The names under which the official code (google-research/simclr, TF1) saves the variables of a network."""

from collections.abc import Iterator

import keras

from simclrv2_tf.nets.network import Network


def official_names(network: Network) -> dict[str, keras.Variable]:
    """Maps official checkpoint names to the variables of a built network.

    The official code numbers the encoder's convolutions and batch norms in the order of their creation:
    ``base_model/conv2d_3/kernel``, ``base_model/batch_normalization_7/gamma``. The heads have names of their own:
    ``head_contrastive/nl_0/dense/kernel`` (``l_0`` for a linear head), ``head_supervised/linear_layer/dense/bias``.

    Args:
        network: built, with a ``ResNet`` encoder of any settings.

    Returns:
        Every variable once, in the official order.
    """
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


def _encoder_names(encoder: keras.Model) -> Iterator[tuple[str, keras.Variable]]:
    # A convolution's variables start with its kernel, a batch norm's with its gamma.
    starts = {"kernel": "conv2d", "gamma": "batch_normalization"}
    seen = dict.fromkeys(starts.values(), 0)
    scope = ""
    for variable in encoder.variables:
        if variable.name in starts:
            kind = starts[variable.name]
            scope = f"base_model/{kind}_{seen[kind]}" if seen[kind] else f"base_model/{kind}"
            seen[kind] += 1
        yield f"{scope}/{variable.name}", variable
