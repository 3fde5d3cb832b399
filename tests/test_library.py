"""The package as a library: public names, docstring examples, pretraining of any backbone, saving and loading."""

import doctest
import inspect
import pathlib
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import saved_runs
import tensorflow as tf

import simclrv2_tf
from simclrv2_tf import (
    LARS,
    ClassificationModel,
    Distiller,
    Method,
    MovingAverage,
    Network,
    NTXent,
    Pretraining,
    ProjectionHead,
    ResNet,
    SimCLR,
    ViewSettings,
    WarmUpCosine,
    view_batches,
)

SIZE = 8
VIEWS = ViewSettings(SIZE, color_jitter_strength=0.5)
CROPS = ViewSettings.crop_and_flip(SIZE)  # faster to trace


def backbone() -> keras.Model:
    """A model of Keras's own layers."""
    layers = [keras.layers.Conv2D(6, 3, 2), keras.layers.BatchNormalization(), keras.layers.GlobalAveragePooling2D()]
    return keras.Sequential([keras.Input((SIZE, SIZE, 3)), *layers], name="backbone")


def images(count: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), "uint8")


def batches(num_views: int = 2) -> tf.data.Dataset:
    dataset = tf.data.Dataset.from_tensor_slices((images(), np.arange(12) % 3))
    return view_batches(dataset, 4, VIEWS, num_views=num_views)


def small(tap: int = 0) -> Network:
    return Network(backbone(), ProjectionHead(num_layers=2, out_dim=5, name="head"), 3, tap, name="network")


def public_objects() -> dict[str, Any]:
    return {name: getattr(simclrv2_tf, name) for name in simclrv2_tf.__all__}


def test_public_names_are_those_of_their_objects():
    assert set(simclrv2_tf.__all__) <= set(dir(simclrv2_tf))
    for name in simclrv2_tf.__all__:
        assert getattr(simclrv2_tf, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute SimClr"):
        _ = simclrv2_tf.SimClr


def test_another_backend_raises(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")  # no other backend is installed
    with pytest.raises(ImportError, match="KERAS_BACKEND=jax: must be tensorflow"):
        _ = simclrv2_tf.SimCLR


def example_finder() -> doctest.DocTestFinder:
    return doctest.DocTestFinder(recurse=False)


EXAMPLES = [name for name, value in public_objects().items() if example_finder().find(value)[0].examples]


def test_every_public_class_and_the_main_functions_have_an_example():
    classes = {name for name, value in public_objects().items() if inspect.isclass(value)}
    functions = {"evaluation_batches", "knn_accuracy", "linear_probe", "load_run", "nt_xent", "view_batches"}
    assert set(EXAMPLES) >= classes | functions


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """Changes to a directory with a run and photos, as the examples assume."""
    monkeypatch.chdir(tmp_path)
    saved_runs.save_run(tmp_path / "runs/birds-ft", ("robin", "wren"))
    saved_runs.save_images(tmp_path / "photos", ["a.jpg", "b.jpg"])


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_in_the_docstring_runs(name, request):
    """The names that an example may use: NumPy, TensorFlow, Keras, all public names, ``images``."""
    if name == "load_run":
        request.getfixturevalue("reader")
    dataset = tf.data.Dataset.from_tensor_slices((images(8), np.arange(8) % 2))
    names = {"np": np, "tf": tf, "keras": keras, "images": dataset, **public_objects()}
    names = vars(inspect.getmodule(names[name])) | names
    (example,) = example_finder().find(names[name], name, globs=names)
    output: list[str] = []
    assert doctest.DocTestRunner().run(example, out=output.append).failed == 0, "".join(output)


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


def test_labels_train_the_online_classifier_and_then_the_network(replicas):
    with replicas(2).scope():
        encoder, head = backbone(), ProjectionHead("linear", out_dim=5)
        simclr = SimCLR(Network(encoder, head, num_classes=3), CROPS)
        simclr.compile(LARS(0.1), jit_compile=False)
        assert simclr.fit(batches(), verbose=0).history["online_loss"][0] > 0
        tuned = ClassificationModel(Network(encoder, head, num_classes=3, head_input=1), CROPS)
        tuned.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        assert tuned.fit(batches(num_views=1), verbose=0).history["loss"][0] > 0


def build_method(kind: str) -> Method:
    network = small()
    network.build()
    if kind == "simclr":
        return SimCLR(network, CROPS, 0.5, weight_decay=1e-3, memory_size=6, ema_decay=0.9, micro_batch=2)
    if kind == "classification":
        return ClassificationModel(small(tap=1), CROPS, weight_decay=1e-3, name="tuned")
    return Distiller(small(), network, CROPS, temperature=0.2, alpha=0.5)


@pytest.mark.parametrize("kind", ["simclr", "classification", "distiller"])
def test_loaded_model_continues_where_it_was_saved(kind, tmp_path):
    data = list(batches(num_views=2 if kind == "simclr" else 1))
    one_pass = [tf.data.Dataset.from_tensors(batch) for batch in data]
    model = build_method(kind)
    model.compile(LARS(WarmUpCosine(0.1, 9), weight_decay=1e-3), skip_bad_steps=True, jit_compile=False)
    model.fit(one_pass[0], shuffle=False, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    nested = ("network", "teacher")
    assert all(loaded.get_config()[k] == v for k, v in model.get_config().items() if k not in nested)
    assert loaded.get_compile_config() == model.get_compile_config() and loaded.skip_bad_steps
    for each in (model, loaded):
        each.fit(one_pass[1], shuffle=False, verbose=0)
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
    original = kind(**arguments[kind])
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(original))
    assert type(restored) is kind and restored.get_config() == original.get_config()


def test_every_public_layer_and_model_is_registered_with_keras():
    """``keras.saving`` finds them, except abstract classes and the moving average, which its method rebuilds."""
    serializable = (keras.layers.Layer, keras.losses.Loss, keras.optimizers.Optimizer)
    for name, value in public_objects().items():
        if not inspect.isclass(value) or not issubclass(value, serializable):
            continue
        registered = keras.saving.get_registered_object(f"simclrv2_tf>{name}")
        assert registered is (None if value in (Method, Pretraining, MovingAverage) else value), name


@pytest.mark.parametrize(
    "imports",
    [
        "keras, simclrv2_tf",
        *(pytest.param(names, marks=pytest.mark.slow) for names in ("simclrv2_tf, keras", "simclrv2_tf.methods.base")),
    ],
)
def test_a_saved_model_is_loaded_after_import_simclrv2_tf(imports, tmp_path):
    """In a new process, in any order; the import itself does not import TensorFlow."""
    build_method("simclr").save(tmp_path / "model.keras")
    program = f"""
import simclrv2_tf, sys
assert "tensorflow" not in sys.modules and "keras" not in sys.modules
import {imports}, keras
print(type(keras.saving.load_model({str(tmp_path / "model.keras")!r})).__name__)
"""
    environment = {"PYTHONPATH": str(pathlib.Path(simclrv2_tf.__file__).parents[1]), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.stdout == "SimCLR\n", run.stderr


class TestKerasFunctions:
    IMAGES = np.random.default_rng(0).random((2, SIZE, SIZE, 3)).astype("float32")

    def trained(self) -> SimCLR:
        model = SimCLR(small(), CROPS, memory_size=6)
        model.compile("sgd", jit_compile=False)
        model.fit(batches(), verbose=0)
        return model

    def test_export_after_fit(self, tmp_path):
        """As a SavedModel and for LiteRT."""
        model = self.trained()
        expected = model(self.IMAGES)
        model.export(tmp_path / "saved_model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "saved_model")
        for name in ("final_avg_pool", "logits_sup"):
            np.testing.assert_allclose(loaded.serve(self.IMAGES)[name], expected[name], rtol=1e-4, atol=1e-5)
        model.export(tmp_path / "model.tflite", format="litert", verbose=False)
        interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
        features = interpreter.get_signature_runner()(images=self.IMAGES[:1])["final_avg_pool"]
        np.testing.assert_allclose(features, expected["final_avg_pool"][:1], rtol=1e-4, atol=1e-5)

    def test_clone_model(self):
        model = self.trained()
        for original in (model, model.network):
            clone = keras.models.clone_model(original)
            assert type(clone) is type(original) and len(clone.weights) == len(original.weights)
            clone.set_weights(original.get_weights())
            features = [each(self.IMAGES)["final_avg_pool"] for each in (clone, original)]
            np.testing.assert_allclose(*features, rtol=1e-6)

    def test_summary_has_shapes(self):
        lines: list[str] = []
        model = build_method("distiller")
        for each in (model, model.network, SimCLR(Network(ResNet(10, 0.0625, stem="cifar")), CROPS).network):
            each.summary(print_fn=lines.append)
        text = "\n".join(lines)
        for layer, shape in [
            ("network (Network)", "(None, 3)"),
            ("backbone (Sequential)", "(None, 6)"),
            ("head (ProjectionHead)", "(None, 5)"),
            ("classifier (Classifier)", "(None, 3)"),
            ("(ResNet)", "(None, 32)"),
        ]:
            assert any(layer in line and shape in line for line in text.splitlines()), layer
        assert "?" not in text
