"""The package as a library: its public names, a few lines to pretrain any backbone, models saved and loaded."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

import simclrv2_tf
from simclrv2_tf import (
    LARS,
    ClassificationModel,
    Distiller,
    Method,
    Network,
    NTXent,
    ProjectionHead,
    SimCLR,
    ViewSettings,
    WarmUpCosine,
    view_batches,
)

SIZE = 8
VIEWS = ViewSettings(SIZE, color_jitter_strength=0.5)


def backbone() -> keras.Model:
    """Keras's own layers alone."""
    layers = [keras.layers.Conv2D(6, 3, 2), keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="backbone")


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), "uint8")


def batches(num_views: int = 2) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices((images(), np.arange(12) % 3))
    return view_batches(dataset, 4, VIEWS, num_views=num_views)


def small(tap: int = 0) -> Network:
    return Network(backbone(), ProjectionHead(out_dim=5, name="head"), 3, tap, name="network")


def test_public_names_are_what_they_say():
    assert set(simclrv2_tf.__all__) <= set(dir(simclrv2_tf))
    for name in simclrv2_tf.__all__:
        assert getattr(simclrv2_tf, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute SimClr"):
        _ = simclrv2_tf.SimClr


def test_another_backend_is_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # none is installed
    with pytest.raises(ImportError, match="KERAS_BACKEND=jax: must be tensorflow"):
        _ = simclrv2_tf.SimCLR


def test_any_backbone_is_pretrained_in_four_lines():
    model = backbone()
    before = model.get_weights()
    simclr = SimCLR(model, VIEWS)
    simclr.compile(LARS(WarmUpCosine(1.0, 6), weight_decay=1e-4))
    history = simclr.fit(batches(), epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all() and len(history["loss"]) == 2
    assert "online_loss" not in history
    assert all(np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True))
    assert int(simclr.optimizer.iterations) == 6


def test_labels_train_the_classifier_beside_it_and_then_the_network(replicas):
    with replicas(2).scope():
        encoder, head = backbone(), ProjectionHead(out_dim=5)
        simclr = SimCLR(Network(encoder, head, num_classes=3), VIEWS)
        simclr.compile(LARS(0.1))
        assert simclr.fit(batches(), verbose=0).history["online_loss"][0] > 0
        tuned = ClassificationModel(Network(encoder, head, num_classes=3, head_input=1), VIEWS)
        tuned.compile(keras.optimizers.SGD(0.1))
        assert tuned.fit(batches(num_views=1), verbose=0).history["loss"][0] > 0


def made(kind: str) -> keras.Model:
    network = small()
    network.build()
    if kind == "simclr":
        return SimCLR(network, VIEWS, 0.5, weight_decay=1e-3, memory_size=6, ema_decay=0.9, micro_batch=2)
    if kind == "classification":
        return ClassificationModel(small(tap=1), VIEWS, weight_decay=1e-3, name="tuned")
    return Distiller(small(), network, VIEWS, temperature=0.2, alpha=0.5)


@pytest.mark.parametrize("kind", ["simclr", "classification", "distiller"])
def test_a_model_goes_on_where_it_was_saved(kind, tmp_path):
    data = list(batches(num_views=2 if kind == "simclr" else 1))
    one_pass = [tf.data.Dataset.from_tensors(batch) for batch in data]
    model = made(kind)
    model.compile(LARS(WarmUpCosine(0.1, 9), weight_decay=1e-3), skip_bad_steps=True)
    model.fit(one_pass[0], shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    nested = ("network", "teacher")
    assert all(loaded.get_config()[k] == v for k, v in model.get_config().items() if k not in nested)
    assert loaded.get_compile_config() == model.get_compile_config() and loaded.skip_bad_steps
    for one in (model, loaded):
        one.fit(one_pass[1], shuffle=False, verbose=0)
    assert len(loaded.variables) == len(model.variables)
    for variable, other in zip(model.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(other, variable, err_msg=variable.path)


@pytest.mark.parametrize("kind", [LARS, NTXent, WarmUpCosine, ViewSettings])
def test_losses_optimizers_and_settings_are_restored(kind):
    arguments = {
        LARS: {"learning_rate": WarmUpCosine(0.3, 9, 2), "momentum": 0.8, "weight_decay": 0.1},
        NTXent: {"temperature": 0.5},
        WarmUpCosine: {"peak": 0.3, "total_steps": 9},
        ViewSettings: {"image_size": 9},
    }
    one = kind(**arguments[kind])
    other = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(one))
    assert type(other) is kind and other.get_config() == one.get_config()


def test_every_public_layer_and_model_can_be_saved():
    """Each is registered, so that ``keras.saving`` finds it without being told; its own tests restore it."""
    kept = (keras.layers.Layer, keras.losses.Loss, keras.optimizers.Optimizer)
    for name in simclrv2_tf.__all__:
        kind = getattr(simclrv2_tf, name)
        if inspect.isclass(kind) and issubclass(kind, kept) and kind is not Method:
            assert keras.saving.get_registered_object(f"simclrv2_tf>{name}") is kind
