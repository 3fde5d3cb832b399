"""Names in checkpoints of the official code: TF2 keys map to TF1 names; other encoders have none."""

import json
import pathlib
import random

import keras
import pytest

from simclrv2_tf.models import Network, ProjectionHead
from simclrv2_tf.models.official_names import TF2_VALUE, official_names, tf2_names

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("config, variables", [("r18_1x_sk0", 121), ("r50_1x_sk0", 281)])
def test_every_recorded_tf2_key_gets_its_tf1_name(config, variables):
    listing = json.loads((GOLDEN / f"ckpt_tf2_{config}_variables.json").read_text())
    rows = listing["key_shape_dtype_canonicalTF1name"]
    recorded = {name: key for key, _, _, name in rows if name and not name.endswith("/Momentum")}
    assert tf2_names(key for key, *_ in rows) == recorded
    assert len(recorded) == variables


def selective_kernel_layers(blocks):
    """Yields the TF2 paths of an SK-ResNet's convolutions and batch norms in the order of their creation."""
    for conv, batch_norm in ((0, 1), (2, 3), (4, 6)):
        yield f"initial_conv_relu_max_pool/{conv}/conv2d", f"initial_conv_relu_max_pool/{batch_norm}/bn"
    for group, count in enumerate(blocks):
        for block in range(count):
            path = f"block_groups/{group}/layers/{block}"
            if block == 0:  # with stride 2 there is a padding layer before the average pool
                conv = 2 if group else 1
                yield f"{path}/projection_layers/{conv}/conv2d", f"{path}/projection_layers/{conv + 1}/bn"
            convs = f"{path}/conv_relu_dropblock_layers"
            yield f"{convs}/0/conv2d", f"{convs}/1/bn"
            yield f"{convs}/3/conv2d_fixed_padding/conv2d", f"{convs}/3/batch_norm_relu/bn"
            yield f"{convs}/3/conv2d_0", f"{convs}/3/batch_norm_relu_1/bn"
            yield f"{convs}/3/conv2d_1", None
            yield f"{convs}/5/conv2d", f"{convs}/6/bn"


def test_selective_kernels_are_numbered_in_the_order_of_the_tf1_code():
    layers = list(selective_kernel_layers((3, 4, 23, 3)))
    expected = {}
    for kind, variable, paths in (
        ("conv2d", "kernel", [conv for conv, _ in layers]),
        ("batch_normalization", "gamma", [batch_norm for _, batch_norm in layers if batch_norm]),
    ):
        for index, path in enumerate(paths):
            name = f"base_model/{kind}_{index}" if index else f"base_model/{kind}"
            expected[f"{name}/{variable}"] = f"model/resnet_model/{path}/{variable}{TF2_VALUE}"
    keys = list(expected.values())
    random.Random(0).shuffle(keys)
    assert tf2_names(keys) == expected


def test_keys_outside_the_network_get_no_name():
    keys = ["global_step", "model/resnet_model/unknown/0/conv2d/kernel", "model/other/kernel", "optimizer/iter"]
    assert tf2_names(key + TF2_VALUE for key in keys) == {}


def test_encoder_that_is_not_a_resnet_raises():
    layers = [keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()]
    network = Network(keras.Sequential(layers), ProjectionHead(num_layers=1, out_dim=4))
    network.build((None, 8, 8, 3))
    with pytest.raises(ValueError, match=r"^the official code knows ResNet encoders only, not Sequential$"):
        official_names(network)
