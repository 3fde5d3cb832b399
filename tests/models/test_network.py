"""Network: outputs against recordings of the official code; official names, taps, parts, saving."""

import functools
import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.official_names import official_names
from simclrv2_tf.models.resnet import ResNet

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("golden_values", GOLDEN / "values.py")
values = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(values)

R18, R50, R50SK = (18, 0.0, 32), (50, 0.0, 64), (50, 0.0625, 64)
BATCH, CLASSES = 8, 10
# The official code records the head's layers before their ReLU.
HEAD_KEYS = {"proj_head_1": "nl_0", "proj_head_2": "nl_1", "proj_head_output": "nl_2"}


def tag(depth, sk_ratio, size):
    return values.tag_of(depth, 1, sk_ratio, size)


def recorded_network(depth, sk_ratio, size, dtype="float32", classes=CLASSES, **batch_norm):
    """Builds a network with the weights of the recordings."""
    stem = "cifar" if size <= 32 else "imagenet"
    encoder = ResNet(depth, 1, sk_ratio, stem=stem, batch_norm=batch_norm, dtype=dtype)
    network = Network(encoder, ProjectionHead(batch_norm=batch_norm, dtype=dtype), classes)
    network.build()
    for name, variable in official_names(network).items():
        variable.assign(recorded_value(name, tuple(variable.shape)))
    return network


recorded_value = functools.lru_cache(600)(values.fill)  # those of two networks


def assert_endpoints(parity, case, endpoints, prefix, recorded, tolerance, precision):
    """Compares the sampled numbers of each endpoint, and the mean and standard deviation of all its numbers."""
    for name, output in endpoints.items():
        key, output = f"{prefix}/{HEAD_KEYS.get(name, name)}", np.asarray(output, "float64")
        np.testing.assert_array_equal(output.shape, recorded[f"{key}/shape"])
        if f"{key}/full" in recorded:
            actual, expected = output, recorded[f"{key}/full"]
        else:
            expected = recorded[f"{key}/sample"]
            actual = output.reshape(-1)[values.sample_idx(output.size, 32 if "/" in name else 256)]
        if key.endswith(("nl_0", "nl_1")):
            expected = np.maximum(expected, 0)
        else:
            moments = [recorded[f"{key}/mean"], recorded[f"{key}/std"]]
            largest = np.abs(expected).max()
            parity(case, [output.mean(), output.std()], moments, tolerance, precision, largest, "of the largest")
        parity(case, actual, expected, tolerance, precision)


def without_duplicates(endpoints):
    """Returns the endpoints without those that are recorded under another name."""
    recorded = {name: output for name, output in endpoints.items() if name not in ("proj_head_input", "proj_head_3")}
    assert len(recorded) == 11
    return recorded


def assert_moving_statistics(parity, case, network, prefix, recorded):
    names, case = official_names(network), f"{case}: moving statistics"
    means = [float(np.mean(names[str(name)])) for name in recorded[f"{prefix}/names"]]
    expected = recorded[f"{prefix}/mean_of"]
    parity(case, means, expected, 2e-7, "float64", np.maximum(np.abs(expected), 0.1), "of each, at least 0.1")
    sampled = [key.removeprefix(f"{prefix}/") for key in recorded.files if key.startswith(f"{prefix}/")]
    sampled = [name for name in sampled if name not in ("names", "mean_of")]
    assert len(sampled) == 10
    for name in sampled:
        actual = names[name].numpy()
        parity(case, actual[values.sample_idx(actual.size, 128)], recorded[f"{prefix}/{name}"], 2e-7, "float64")


def block_by_block(encoder, images, training=False):
    """Returns the outputs of the blocks, and of the first selective kernel if there is one."""
    outputs = {}
    _, x = encoder.stem(images, training=training)
    first = encoder.groups[0].blocks[0]
    if encoder.settings["sk_ratio"]:
        reduced = first.convs[0](x, training=training)
        outputs["block_group1/block0/sk_conv"] = first.convs[1](reduced, training=training)
    for group in encoder.groups:
        for block in group.blocks:
            x = outputs[f"{group.name}/{block.name}"] = block(x, training=training)
    return outputs


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(R18, id=tag(*R18)),
        pytest.param(R50, id=tag(*R50)),
        pytest.param(R50SK, id=tag(*R50SK), marks=pytest.mark.slow),  # the test below trains it
    ],
)
def test_inference_equals_the_official_network(config, parity):
    recorded = np.load(GOLDEN / f"model_tf2_{tag(*config)}.npz")
    network = recorded_network(*config)
    images = values.image_input(tag(*config), BATCH, config[-1])
    case = f"{tag(*config)}, inference"
    endpoints = without_duplicates(network(images, whole_head=True)) | block_by_block(network.encoder, images)
    assert_endpoints(parity, case, endpoints, "eval", recorded, 5e-6, "float32")


@pytest.mark.parametrize(
    ("config", "synchronized"),
    [
        (R18, True),
        pytest.param(R50, True, marks=pytest.mark.slow),
        (R50SK, True),
        (R18, False),
        pytest.param(R50SK, False, marks=pytest.mark.slow),
    ],
    ids=lambda x: tag(*x) if isinstance(x, tuple) else "global" if x else "local",
)
def test_training_equals_the_official_network(config, synchronized, parity):
    """Compares outputs and moving statistics after one step, with batch norms synchronized or not."""
    recorded = np.load(GOLDEN / f"model_tf2_{tag(*config)}.npz")
    suffix = "" if synchronized else "_localbn"
    network = recorded_network(*config, dtype="float64", synchronized=synchronized)
    images = values.image_input(tag(*config), BATCH, config[-1])
    case = f"{tag(*config)}, training, {'global' if synchronized else 'local'} BN"
    endpoints = without_duplicates(network(images, training=True, whole_head=True))
    assert_endpoints(parity, case, endpoints, f"train{suffix}", recorded, 2e-7, "float64")
    assert_moving_statistics(parity, case, network, f"after_train{suffix}", recorded)
    blocks = block_by_block(network.encoder, images, training=True)
    assert_endpoints(parity, case, blocks, f"train{suffix}", recorded, 2e-7, "float64")


@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_replicas_equal_the_official_network_on_one_device(count, replicas, parity):
    strategy, case = replicas(count), f"{tag(*R18)}, training, global BN, {count} replicas"
    recorded = np.load(GOLDEN / f"model_tf2_{tag(*R18)}.npz")
    with strategy.scope():
        network = recorded_network(*R18, dtype="float64")
    images = values.image_input(tag(*R18), BATCH, 32).astype("float64").reshape(count, -1, 32, 32, 3)
    shards = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(images[context.replica_id_in_sync_group])
    )
    outputs = strategy.run(lambda x: network(x, training=True, whole_head=True), args=(shards,))
    endpoints = {name: tf.concat(strategy.experimental_local_results(value), 0) for name, value in outputs.items()}
    assert_endpoints(parity, case, without_duplicates(endpoints), "train", recorded, 2e-7, "float64")
    assert_moving_statistics(parity, case, network, "after_train", recorded)


def described(depth, sk_ratio, classes, head=None, width=1, stem="imagenet"):
    """Builds a network whose variables have shapes but no values."""
    with keras.StatelessScope(initialize_variables=False):
        network = Network(ResNet(depth, width, sk_ratio, stem=stem), head, classes)
        network.build()
    return network


@pytest.mark.parametrize("config", [R18, R50, R50SK], ids=lambda c: tag(*c))
def test_official_names_equal_the_recorded_names_in_order(config):
    listing = json.loads((GOLDEN / f"model_tf1_{tag(*config)}_variables.json").read_text())
    network = described(*config[:2], CLASSES, stem="cifar" if config[2] == 32 else "imagenet")
    ours = [[name, list(v.shape), v.trainable] for name, v in official_names(network).items()]
    assert ours == listing["tf1_global_variables_creation_order"]


@pytest.mark.parametrize("sk, mode, classes", [(0, "finetune", 1000), (1, "pretrain", 0)])
def test_official_checkpoints_hold_exactly_these_names(sk, mode, classes):
    listing = json.loads((GOLDEN / f"ckpt_tf1_r50_1x_sk{sk}_{mode}_variables.json").read_text())
    names = official_names(described(50, 0.0625 * sk, classes))
    saved = [row for row in listing["graph_creation_order"] if not row[0].endswith("/Momentum")]
    assert [[name, list(v.shape), "float32"] for name, v in names.items()] == [
        row for row in saved if row[0] != "global_step"
    ]


@pytest.mark.parametrize("depth, sk_ratio", [(34, 0.0), (101, 0.0), (152, 0.0625), (200, 0.0)])
def test_official_names_cover_every_variable_of_other_depths_and_heads(depth, sk_ratio):
    network = described(depth, sk_ratio, CLASSES, ProjectionHead("linear"))
    names = official_names(network)
    assert {id(v) for v in names.values()} == {id(v) for v in network.variables}
    assert len(names) == len(network.variables)
    if not sk_ratio:
        shortcuts, classifier = 4, 1
        assert sum(n.endswith("/kernel") and "base_model" in n for n in names) == depth - classifier + shortcuts
    assert [n for n in names if n.startswith("head_contrastive")] == [
        "head_contrastive/l_0/dense/kernel",
        *(f"head_contrastive/l_0/batch_normalization/{v}" for v in ("gamma", "moving_mean", "moving_variance")),
    ]


def tiny(head=None, classes=3, head_input=0, dtype="float32", **settings):
    encoder = ResNet(10, 1 / 32, stem="cifar", dtype=dtype, name="encoder")
    network = Network(encoder, head, classes, head_input, name="network", **settings)
    network.build()
    return network


def images(dtype="float32"):
    return tf.constant(np.random.default_rng(0).uniform(size=(6, 8, 8, 3)), dtype)


def head_keys(endpoints):
    return [name for name in endpoints if name.startswith(("proj", "logits"))]


LAYERS = ["proj_head_1", "proj_head_2", "proj_head_3"]


@pytest.mark.parametrize(
    "classes, call, keys",
    [
        (0, {}, [*LAYERS, "proj_head_output"]),
        (3, {}, ["logits_sup"]),
        (3, {"head_input": 2}, [*LAYERS[:2], "logits_sup"]),
        (3, {"head_input": 2, "whole_head": True}, [*LAYERS, "proj_head_output", "logits_sup"]),
    ],
)
def test_endpoints_and_statistics_depend_on_the_arguments_of_the_call(classes, call, keys):
    network = tiny(classes=classes)
    before = [layer.batch_norm.moving_variance.numpy() for layer in network.projection_head.layers]
    endpoints = network(images(), training=True, **call)
    assert head_keys(endpoints) == ["proj_head_input", *keys]
    np.testing.assert_array_equal(endpoints["proj_head_input"], endpoints["final_avg_pool"])
    for name, layer, variance in zip(LAYERS, network.projection_head.layers, before, strict=True):
        assert np.array_equal(layer.batch_norm.moving_variance, variance) != (name in keys)


@pytest.mark.parametrize("mode, depth", [("none", 0), ("linear", 1), ("nonlinear", 3)])
def test_every_tap_of_every_head_can_feed_the_classifier(mode, depth):
    for tap in range(depth + 1):
        network = tiny(ProjectionHead(mode, out_dim=5), head_input=tap)
        endpoints = network(images(), training=True, whole_head=True)
        read = endpoints[f"proj_head_{tap}" if tap else "proj_head_input"]
        np.testing.assert_allclose(endpoints["logits_sup"], network.classifier(read), rtol=1e-6)
        assert endpoints["proj_head_output"].shape[-1] == (5 if depth else network.encoder.feature_dim)
    with pytest.raises(ValueError, match=f"ft_proj_selector must be 0 to {depth}"):
        tiny(ProjectionHead(mode), head_input=depth + 1)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("tap", [0, 1])
def test_stopped_gradient_does_not_reach_below_the_classifier(stop, tap):
    network = tiny(head_input=tap)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(network(images(), training=True, stop_gradient_to_classifier=stop)["logits_sup"][:, 0])
    below = network.encoder_variables + network.head_variables(tap)
    gradients = tape.gradient(loss, below + network.classifier_variables)
    assert all((g is None) == stop for g in gradients[: len(below)])
    assert all(g is not None for g in gradients[len(below) :])


def test_variables_of_the_parts():
    network = tiny()
    head = network.projection_head
    assert network.head_variables(0) == []
    assert [id(v) for v in network.head_variables(1)] == [id(v) for v in head.layers[0].trainable_variables]
    assert len(network.head_variables(2)) == 6
    assert len(network.head_variables()) == len(network.head_variables(3)) == 8
    parts = network.encoder_variables + network.head_variables() + network.classifier_variables
    assert {id(v) for v in parts} == {id(v) for v in network.trainable_variables}
    network.encoder.freeze_after_block(4)
    assert network.encoder_variables == []
    assert tiny(classes=0).classifier_variables == []
    with pytest.raises(ValueError, match="ft_proj_selector"):
        network.head_variables(4)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_endpoints_have_the_compute_dtype_and_logits_float32_at_least(policy):
    keras.config.set_dtype_policy(policy)
    network = tiny(dtype=None)
    endpoints = network(images(), training=True, whole_head=True)
    dtypes = {name: output.dtype.name for name, output in endpoints.items()}
    assert dtypes.pop("logits_sup") == ("float64" if policy == "float64" else "float32")
    assert set(dtypes.values()) == {network.compute_dtype}


def test_dtype_defaults_to_that_of_the_encoder():
    network = tiny(dtype="float64")
    assert {v.dtype for v in network.variables} == {"float64"}


@pytest.mark.parametrize("named", [False, True])
def test_encoder_can_be_any_keras_model(named):
    x = keras.Input((None, None, 3))
    features = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(7, 3)(x))
    encoder = keras.Model(x, {"final_avg_pool": features} if named else features)
    network = Network(encoder, num_classes=3)
    network.build()
    endpoints = network(images(), training=True, whole_head=True)
    np.testing.assert_array_equal(
        endpoints["final_avg_pool"],
        tf.reshape(network.encoder(images()), (6, 7)) if not named else encoder(images())["final_avg_pool"],
    )
    assert endpoints["proj_head_1"].shape == (6, 7) and endpoints["logits_sup"].shape == (6, 3)


def test_encoder_without_feature_vectors_raises():
    x = keras.Input((None, None, 3))
    with pytest.raises(ValueError, match="features must be"):
        Network(keras.Model(x, keras.layers.Conv2D(7, 3)(x))).build()


def test_configuration_round_trip():
    network = tiny(ProjectionHead("nonlinear", 2, 5), head_input=2, zero_init_classifier=True, dtype="float64")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(network))
    assert copy.built
    assert copy.get_config() == network.get_config()
    copy.set_weights(network.get_weights())
    x = images("float64")
    for a, b in zip(network(x, whole_head=True).values(), copy(x, whole_head=True).values(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_saved_network_is_loaded_with_the_same_outputs(tmp_path):
    network = tiny(head_input=1)
    network(images(), training=True)
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(loaded(images())["logits_sup"], network(images())["logits_sup"])


def test_stateless_call_does_not_change_variables():
    network = tiny()
    doubled = [2 * v.value for v in network.trainable_variables]
    statistics = [v.value for v in network.non_trainable_variables]
    before = network.get_weights()
    outputs, updated = network.stateless_call(doubled, statistics, images(), training=True)
    for old, new in zip(before, network.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    for v, value in zip(network.trainable_variables, doubled, strict=True):
        v.assign(value)
    np.testing.assert_allclose(network(images(), training=True)["logits_sup"], outputs["logits_sup"], rtol=1e-5)
    for v, value in zip(network.non_trainable_variables, updated, strict=True):
        np.testing.assert_allclose(v, value, rtol=1e-5, atol=1e-7)
