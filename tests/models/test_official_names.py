"""The keys of the official TF2 code and the names of its TF1 code are of the same variables."""

import json
import pathlib
import random

import pytest

from simclrv2_tf.models.official_names import TF2_VALUE, tf2_names

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("config, variables", [("r18_1x_sk0", 121), ("r50_1x_sk0", 281)])
def test_every_recorded_key_gets_its_tf1_name(config, variables):
    listing = json.loads((GOLDEN / f"ckpt_tf2_{config}_variables.json").read_text())
    rows = listing["key_shape_dtype_canonicalTF1name"]
    recorded = {name: key for key, _, _, name in rows if name and not name.endswith("/Momentum")}
    assert tf2_names(key for key, *_ in rows) == recorded
    assert len(recorded) == variables


def selective_kernel_layers(blocks):
    """The layers of an SK-ResNet in the order of their creation, and where the official TF2 code keeps them."""
    for conv, batch_norm in ((0, 1), (2, 3), (4, 6)):
        yield f"initial_conv_relu_max_pool/{conv}/conv2d", f"initial_conv_relu_max_pool/{batch_norm}/bn"
    for group, count in enumerate(blocks):
        for block in range(count):
            place = f"block_groups/{group}/layers/{block}"
            if block == 0:  # a stride of 2 pads before it averages
                conv = 2 if group else 1
                yield f"{place}/projection_layers/{conv}/conv2d", f"{place}/projection_layers/{conv + 1}/bn"
            convs = f"{place}/conv_relu_dropblock_layers"
            yield f"{convs}/0/conv2d", f"{convs}/1/bn"
            yield f"{convs}/3/conv2d_fixed_padding/conv2d", f"{convs}/3/batch_norm_relu/bn"
            yield f"{convs}/3/conv2d_0", f"{convs}/3/batch_norm_relu_1/bn"
            yield f"{convs}/3/conv2d_1", None
            yield f"{convs}/5/conv2d", f"{convs}/6/bn"


def test_selective_kernels_are_numbered_as_the_tf1_code_made_them():
    layers = list(selective_kernel_layers((3, 4, 23, 3)))
    expected = {}
    for kind, variable, places in (
        ("conv2d", "kernel", [conv for conv, _ in layers]),
        ("batch_normalization", "gamma", [batch_norm for _, batch_norm in layers if batch_norm]),
    ):
        for index, place in enumerate(places):
            name = f"base_model/{kind}_{index}" if index else f"base_model/{kind}"
            expected[f"{name}/{variable}"] = f"model/resnet_model/{place}/{variable}{TF2_VALUE}"
    keys = list(expected.values())
    random.Random(0).shuffle(keys)
    assert tf2_names(keys) == expected


def test_what_is_not_of_the_network_gets_no_name():
    keys = ["global_step", "model/resnet_model/unknown/0/conv2d/kernel", "model/other/kernel", "optimizer/iter"]
    assert tf2_names(key + TF2_VALUE for key in keys) == {}
