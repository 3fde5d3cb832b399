"""ResNet: shapes, initial values, frozen parts, gradients, dtypes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models.batch_norm import BatchNormSettings
from simclrv2_tf.models.resnet import BlockGroup, ResNet, SqueezeExcite

TINY = {"width_multiplier": 1 / 16, "stem": "cifar"}
ENDPOINTS = ["initial_conv", "initial_max_pool", *(f"block_group{g}" for g in (1, 2, 3, 4)), "final_avg_pool"]


def built(*args, **kwargs):
    network = ResNet(*args, **kwargs)
    network.build()
    return network


def images(count=4, size=16, dtype="float32"):
    return tf.constant(np.random.default_rng(0).uniform(size=(count, size, size, 3)), dtype)


@pytest.mark.parametrize(
    "depth, settings, sides",
    [
        (18, {"stem": "cifar"}, [33, 33, 33, 17, 9, 5]),
        (18, {}, [17, 9, 9, 5, 3, 2]),
        (50, {"sk_ratio": 0.0625}, [17, 9, 9, 5, 3, 2]),
        (50, {"se_ratio": 0.0625}, [17, 9, 9, 5, 3, 2]),
    ],
)
def test_shapes_of_the_endpoints(depth, settings, sides):
    network = built(depth, 1 / 16, **settings)
    outputs = network(images(2, 33))
    assert list(outputs) == ENDPOINTS
    expansion = 4 if depth == 50 else 1
    channels = [4, 4, 4 * expansion, 8 * expansion, 16 * expansion, 32 * expansion]
    expected = [(2, side, side, width) for side, width in zip(sides, channels, strict=True)]
    assert [tuple(outputs[name].shape) for name in ENDPOINTS[:-1]] == expected
    np.testing.assert_allclose(
        outputs["final_avg_pool"], tf.reduce_mean(outputs["block_group4"], [1, 2]), rtol=1e-5, atol=1e-6
    )
    assert network.feature_dim == 32 * expansion


def test_build_creates_all_variables():
    network = built(18, **TINY)
    count = len(network.variables)
    network(images())
    assert count == len(network.variables) == 21 * (1 + 4)  # 21 convolutions, each with a batch norm


def test_initial_values():
    network = built(18, 0.5, se_ratio=0.25)
    for v in network.variables:
        if v.name == "kernel":
            # Truncated at two standard deviations and rescaled to a variance of 1 / fan-in.
            fan_in = np.prod(v.shape[:-1])
            assert np.std(v) * fan_in**0.5 == pytest.approx(1.0, abs=0.5 if v.value.shape.num_elements() < 500 else 0.1)
            assert np.max(np.abs(v)) * fan_in**0.5 < 2.3
    block = network.groups[1].blocks[1]
    np.testing.assert_array_equal(block.convs[-1].batch_norm.gamma, 0)
    np.testing.assert_array_equal(block.convs[0].batch_norm.gamma, 1)
    np.testing.assert_array_equal(network.stem.batch_norm.gamma, 1)


@pytest.mark.parametrize("settings", [{}, {"sk_ratio": 0.0625}, {"se_ratio": 0.25}], ids=["plain", "sk", "se"])
def test_block_starts_as_its_shortcut(settings):
    network = built(50, **TINY, **settings)
    x = tf.nn.relu(tf.random.stateless_normal((2, 4, 4, 16), (0, 1)))
    np.testing.assert_array_equal(network.groups[0].blocks[1](x, training=True), x)


def test_squeeze_excite_scales_channels():
    layer = SqueezeExcite(3, 0.5)
    layer.build((None, None, None, 3))
    layer.expand.kernel.assign(tf.zeros_like(layer.expand.kernel))
    layer.expand.bias.assign([-100.0, 0.0, 100.0])
    x = images(2)
    np.testing.assert_allclose(layer(x), x * [0.0, 0.5, 1.0], atol=1e-6)


def moving_statistics(layer):
    return {v.path: v.numpy() for v in layer.variables if v.name.startswith("moving")}


@pytest.mark.parametrize("block", [-1, 0, 1, 3, 4])
def test_frozen_parts_do_not_change(block):
    network = built(10, **TINY)
    network.freeze_after_block(4)  # the later call replaces it
    network.freeze_after_block(block)
    parts = [network.stem, *network.groups]
    before = [moving_statistics(part) for part in parts]
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(images(), training=True)["final_avg_pool"] ** 2)
    trained = network.trainable_variables
    assert all(gradient is not None for gradient in tape.gradient(loss, trained))
    for index, part in enumerate(parts):
        frozen = index <= block
        changed = [not np.array_equal(value, before[index][path]) for path, value in moving_statistics(part).items()]
        assert changed and all(c != frozen for c in changed), (index, changed)
        assert any(v is w for v in part.variables for w in trained) != frozen


def test_frozen_parts_run_in_inference_mode():
    network = built(10, **TINY)
    inference = network(images())
    network.freeze_after_block(2)
    training = network(images(), training=True)
    np.testing.assert_array_equal(training["block_group2"], inference["block_group2"])
    assert np.abs(training["block_group3"] - inference["block_group3"]).max() > 0.01


def randomise(network):
    """Assigns weights with which every branch of every block contributes."""
    rng = np.random.default_rng(1)
    for v in network.trainable_variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if v.name == "gamma" else rng.normal(0, 0.3, v.shape))


@pytest.mark.parametrize(
    "settings",
    [
        {"bottleneck": False},
        {"bottleneck": True, "sk_ratio": 0.0625, "se_ratio": 0.25},
    ],
    ids=["basic", "bottleneck-sk-se"],
)
def test_gradient_equals_finite_differences(settings):
    block = {"batch_norm": BatchNormSettings(), "sk_ratio": 0.0, "se_ratio": 0.0} | settings
    group = BlockGroup(2, blocks=2, strides=2, block=block, dtype="float64")
    group.build((None, None, None, 3))
    randomise(group)
    rng = np.random.default_rng(2)
    x, variables = images(16, 7, "float64"), group.trainable_variables
    weights = tf.constant(rng.normal(size=group(x).shape))

    def loss():
        return tf.reduce_sum(group(x, training=True) * weights)

    with tf.GradientTape() as tape:
        value = loss()
    gradients = tape.gradient(value, variables)
    directions = [rng.normal(size=v.shape) for v in variables]
    expected = sum(np.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    step, sides = 1e-7, []
    starts = [v.numpy() for v in variables]
    for sign in (1, -1):
        for v, start, direction in zip(variables, starts, directions, strict=True):
            v.assign(start + sign * step * direction)
        sides.append(float(loss()))
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("stem, side, dtype", [("cifar", 16, "float32"), ("imagenet", 32, "float64")])
def test_networks_with_and_without_fused_kernels_agree(stem, side, dtype):
    results = []
    for fused in (True, False):
        keras.utils.set_random_seed(3)
        network = built(10, batch_norm=BatchNormSettings(fused=fused), dtype=dtype, **TINY | {"stem": stem})
        randomise(network)
        with tf.GradientTape() as tape:
            features = network(images(size=side, dtype=dtype), training=True)["final_avg_pool"]
            loss = tf.reduce_sum(features[:, 0])
        gradients = tape.gradient(loss, network.trainable_variables)
        results.append([features, *gradients, *moving_statistics(network).values()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize(
    "policy, fused", [("mixed_bfloat16", True), ("mixed_bfloat16", False), ("mixed_float16", True)]
)
def test_mixed_precision_is_close_to_float32(policy, fused):
    settings = {"batch_norm": {"fused": fused}, **TINY}
    network, full = built(10, dtype=policy, **settings), built(10, **settings)
    full.set_weights(network.get_weights())
    outputs = network(images(), training=True)
    assert {output.dtype.name for output in outputs.values()} == {network.compute_dtype}
    assert {v.dtype for v in network.variables} == {"float32"}
    expected = full(images(), training=True)["final_avg_pool"]
    difference = np.abs(tf.cast(outputs["final_avg_pool"], tf.float32) - expected)
    assert difference.max() < 0.1 * np.abs(expected).max()


def test_width_rounds_to_at_least_one_channel():
    assert ResNet(18, 1 / 1000).stem.out_channels == 1
    assert ResNet(18, 0.25).feature_dim == 128
    assert ResNet(50, 2).feature_dim == 4096


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"depth": 18, "sk_ratio": 0.0625}, "sk_ratio=0.0625.*resnet_depth.*not 18"),
        ({"depth": 34, "sk_ratio": 0.0625}, "sk_ratio=0.0625.*resnet_depth.*not 34"),
        ({"depth": 20}, "resnet_depth.*not 20"),
        ({"stem": "mnist"}, "stem.*mnist"),
        ({"width_multiplier": 0}, "width_multiplier"),
        ({"se_ratio": -0.1}, "se_ratio"),
        ({"sk_ratio": 2.0}, "sk_ratio"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**settings)


@pytest.mark.parametrize("block", [-2, 5])
def test_freezing_a_group_that_does_not_exist_raises(block):
    with pytest.raises(ValueError, match="freeze_after_block"):
        ResNet(10).freeze_after_block(block)


def test_configuration_round_trip():
    network = built(
        50, 1 / 16, 0.0625, 0.25, "cifar", BatchNormSettings(0.8, False, False), name="net", dtype="float64"
    )
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
    assert copy.built
    assert copy.get_config() == network.get_config()
    copy.set_weights(network.get_weights())
    x = images(2, 8, "float64")
    for a, b in zip(network(x).values(), copy(x).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert copy.stem.batch_norm.momentum == 0.8 and not copy.groups[3].blocks[0].convs[0].batch_norm.synchronized


def test_convolutions_start_as_conv_init_says():
    """Variances 1 / fan-in and 2 / fan-out; each convolution draws its own numbers."""

    def kernel(**settings):
        encoder = ResNet(18, 0.5, stem="cifar", **settings)
        encoder.build()
        convs = [block.convs[0].conv.kernel.numpy() for block in encoder.groups[1].blocks]  # 3x3, 32 to 64, 64 to 64
        return convs

    first, second = kernel()
    np.testing.assert_allclose([first.var(), second.var()], [1 / (9 * 32), 1 / (9 * 64)], rtol=0.05)
    first, second = kernel(conv_init="he_fan_out")
    np.testing.assert_allclose([first.var(), second.var()], [2 / (9 * 64), 2 / (9 * 64)], rtol=0.05)
    assert np.abs(second).max() > 3.5 * second.std()  # not truncated
    same_shape = ResNet(18, 0.5, stem="cifar", conv_init="he_fan_out")
    same_shape.build()
    one, other = (block.convs[1].conv.kernel.numpy() for block in same_shape.groups[1].blocks)
    assert np.abs(one - other).max() > 0.1
    with pytest.raises(ValueError, match="conv_init must be one of"):
        ResNet(18, conv_init="zeros")
