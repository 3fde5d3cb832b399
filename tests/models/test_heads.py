"""Projection head and classifier."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.models.heads import Classifier, ProjectionHead


def features(count=16, width=6, dtype="float32"):
    return tf.constant(np.random.default_rng(0).normal(size=(count, width)), dtype)


def built(**settings):
    head = ProjectionHead(**settings)
    head.build((None, 6))
    return head


@pytest.mark.parametrize(
    "settings, widths",
    [
        ({"mode": "none"}, [6]),
        ({"mode": "linear", "out_dim": 4}, [6, 4]),
        ({"num_layers": 1, "out_dim": 4}, [6, 4]),
        ({"num_layers": 2, "out_dim": 4}, [6, 6, 4]),
        ({}, [6, 6, 6, 128]),
        ({"num_layers": 4, "out_dim": 4}, [6, 6, 6, 6, 4]),
    ],
)
def test_taps_are_the_outputs_of_the_layers(settings, widths):
    head = built(**settings)
    taps = head(features(), training=True)
    assert [tap.shape[-1] for tap in taps] == widths == [head.tap_dim(k, 6) for k in range(head.depth + 1)]
    np.testing.assert_array_equal(taps[0], features())
    for tap in taps[1:-1]:
        assert np.min(tap) == 0 and np.max(tap) > 0  # hidden layers end with a ReLU
    if head.depth:
        assert np.min(taps[-1]) < 0  # the output layer does not
        np.testing.assert_allclose(np.mean(taps[-1], 0), 0, atol=1e-5)
    np.testing.assert_array_equal(head(features(), depth=head.depth // 2)[-1], head(features())[head.depth // 2])


def test_layer_is_dense_batch_norm_and_relu():
    head = built(num_layers=2, out_dim=4, dtype="float64")
    x = features(dtype="float64").numpy()
    for layer, tap in zip(head.layers, head(x, training=True)[1:], strict=True):
        z = x @ layer.dense.kernel.numpy()
        x = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        x = np.maximum(x, 0) if layer.hidden else x
        np.testing.assert_allclose(tap, x, rtol=1e-9, atol=1e-12)


def test_output_layer_has_no_beta():
    names = [[v.name for v in layer.variables] for layer in built().layers]
    moving = ["moving_mean", "moving_variance"]
    hidden = ["gamma", "beta", *moving, "kernel"]
    assert [sorted(n) for n in names] == [sorted(hidden), sorted(hidden), sorted(["gamma", *moving, "kernel"])]


def test_initial_kernels_are_normal_with_standard_deviation_0_01():
    head = ProjectionHead(num_layers=1)
    head.build((None, 256))
    classifier = Classifier(100)
    classifier.build((None, 256))
    for kernel in (head.layers[0].dense.kernel, classifier.dense.kernel):
        assert np.std(kernel) == pytest.approx(0.01, rel=0.03)
        assert np.max(np.abs(kernel)) > 0.025  # not truncated


def test_layers_that_do_not_run_keep_their_statistics():
    head = built()
    before = [layer.batch_norm.moving_mean.numpy() for layer in head.layers]
    head(features(), training=True, depth=1)
    moved = [not np.array_equal(layer.batch_norm.moving_mean, b) for layer, b in zip(head.layers, before, strict=True)]
    assert moved == [True, False, False]


def test_batch_norm_settings_reach_every_layer():
    head = built(batch_norm={"momentum": 0.5, "synchronized": False})
    assert [(n.momentum, n.synchronized) for n in (layer.batch_norm for layer in head.layers)] == [(0.5, False)] * 3


@pytest.mark.parametrize("zero_init", [False, True])
def test_classifier_is_linear_with_bias(zero_init):
    classifier = Classifier(10, zero_init)
    logits = classifier(features())
    expected = features() @ classifier.dense.kernel.numpy() + classifier.dense.bias.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert np.all(logits == 0) == zero_init


@pytest.mark.parametrize("policy, logits", [("mixed_bfloat16", "float32"), ("bfloat16", "float32"), ("float64",) * 2])
def test_logits_are_float32_at_least_and_taps_have_the_compute_dtype(policy, logits):
    assert Classifier(10, dtype=policy)(features()).dtype.name == logits
    taps = ProjectionHead(dtype=policy)(features(), training=True)
    compute = keras.DTypePolicy(policy).compute_dtype
    assert {tap.dtype.name for tap in taps} == {compute}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ProjectionHead("linear", 2, 7, {"momentum": 0.5}, name="head"),
        lambda: ProjectionHead(num_layers=4, dtype="float64"),
        lambda: Classifier(7, zero_init=True, name="classifier"),
    ],
)
def test_configuration_round_trip(make):
    layer = make()
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert copy.get_config() == layer.get_config()
    for each in (layer, copy):
        each.build((None, 6))
    assert [v.shape for v in copy.variables] == [v.shape for v in layer.variables]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: ProjectionHead("quadratic"), "proj_head_mode"),
        (lambda: ProjectionHead(num_layers=0), "num_proj_layers"),
        (lambda: ProjectionHead(out_dim=0), "proj_out_dim"),
        (lambda: Classifier(0), "num_classes"),
    ],
)
def test_invalid_settings_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
