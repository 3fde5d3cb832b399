"""LiteRT, ONNX and TF1 exports: the numbers of the network, the names of the classes, and what is refused."""

import json
import sys
import time
import zipfile

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tiny

import simclrv2_tf
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.runs import export

# TensorFlow's interpreter is that of ai_edge_litert under its old name.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s+Warning. tf.lite.Interpreter is deprecated")

NAMES = ["robin", "blue tit", "Zaunkönig"]
SELECTIVE = pytest.param({"depth": 50, "sk_ratio": 0.0625}, marks=pytest.mark.slow)
ARCHITECTURES = pytest.mark.parametrize("architecture", [{"depth": 18, "se_ratio": 0.25}, SELECTIVE])


def network_of(encoder: keras.Model) -> Network:
    """Builds a network of three classes, whose classifier reads the first layer of the head."""
    network = Network(encoder, ProjectionHead(out_dim=16), num_classes=3, head_input=1, name="network")
    network.build((None, None, None, 3))
    return network


def trained_network(architecture: dict) -> tuple[Network, np.ndarray]:
    """Returns a network with moved statistics, and images of 32 px."""
    network = network_of(ResNet(width_multiplier=1 / 16, name="encoder", **architecture))
    views = np.random.default_rng(0).uniform(size=(5, 32, 32, 3)).astype(np.float32)
    for _ in range(3):
        network(views, training=True, whole_head=True)
    return network, views


@ARCHITECTURES
def test_litert_equals_keras_by_builtin_operations(architecture, tmp_path):
    network, views = trained_network(architecture)
    export.save_litert(network, 32, tmp_path / "model.tflite", class_names=NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    model = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
    run = model.get_signature_runner("serving_default")
    expected = network(views, training=False)
    probabilities = tf.nn.softmax(expected["logits_sup"])
    for index, view in enumerate(views):
        outputs = run(images=view[None])
        assert set(outputs) == {"features", "probabilities"}
        np.testing.assert_allclose(outputs["probabilities"][0], probabilities[index], atol=1e-5)
        np.testing.assert_allclose(outputs["features"][0], expected["final_avg_pool"][index], rtol=1e-4, atol=1e-5)
    operations = {operation["op_name"] for operation in model._get_ops_details()}
    assert "CONV_2D" in operations and not any(name.startswith(("Flex", "CUSTOM")) for name in operations)


def test_a_litert_file_is_an_archive_with_the_names_of_the_classes(tmp_path):
    export.save_litert(network_of(tiny.encoder()), tiny.SIZE, tmp_path / "model.tflite", "tf1", NAMES)
    with zipfile.ZipFile(tmp_path / "model.tflite") as archive:
        assert archive.read("labels.txt").decode().splitlines() == NAMES
        metadata = json.loads(archive.read("metadata.json"))
    assert metadata == {
        "class_names": NAMES,
        "image_size": tiny.SIZE,
        "preprocessing": "RGB in [0, 1]; tf1 resize to 8 x 8 px",
        "producer": f"simclrv2_tf {simclrv2_tf.__version__}",
    }


@pytest.mark.parametrize("seconds", [0, 2**33], ids=["1970", "2242"])
def test_a_litert_file_is_the_same_at_any_time(seconds, tmp_path, monkeypatch):
    """ZIP cannot store times before 1980, which a machine without a clock battery may report."""
    network = network_of(tiny.encoder())
    export.save_litert(network, tiny.SIZE, tmp_path / "now")
    monkeypatch.setattr(time, "time", lambda: seconds)
    export.save_litert(network, tiny.SIZE, tmp_path / "then")
    assert (tmp_path / "then").read_bytes() == (tmp_path / "now").read_bytes()


@ARCHITECTURES
def test_onnx_equals_keras_at_every_endpoint(architecture, tmp_path):
    network, views = trained_network(architecture)
    expected = network(views, training=False, whole_head=True)
    expected["probabilities"] = tf.nn.softmax(expected["logits_sup"])
    export.save_onnx(network, 32, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert set(names) == set(expected)
    for name, value in zip(names, session.run(None, {"images": views}), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max())


def test_onnx_metadata(tmp_path):
    network = network_of(tiny.encoder())
    export.save_onnx(network, tiny.SIZE, tmp_path / "model.onnx", class_names=NAMES)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta()
    properties = metadata.custom_metadata_map
    assert json.loads(properties["class_names"]) == NAMES and properties["image_size"] == "8"
    assert properties["preprocessing"] == "RGB in [0, 1]; bicubic resize to 8 x 8 px"
    assert properties["producer"] == f"simclrv2_tf {simclrv2_tf.__version__}"
    assert metadata.producer_name == "simclrv2_tf"


def test_images_above_32_px_are_cropped_first():
    metadata = export.build_metadata(network_of(tiny.encoder()), 48, "bicubic", NAMES)
    assert (
        metadata["preprocessing"] == "RGB in [0, 1]; central square, 87.5 % of its side; bicubic resize to 48 x 48 px"
    )


def test_printable_names():
    names = ["two\nlines", b"not \xff UTF-8".decode(errors="surrogateescape"), "plain"]
    assert export.printable_names(names, 3) == ["two lines", "not \\udcff UTF-8", "plain"]
    assert export.printable_names([], 3) == ["0", "1", "2"]
    with pytest.raises(ValueError, match=r"^1 class names for 3 classes$"):
        export.printable_names(["one"], 3)


def test_tf1_checkpoint_of_another_encoder_than_resnet_raises(tmp_path):
    with pytest.raises(SettingError, match=r"^--format=tf1_checkpoint: the official code knows ResNet encoders only"):
        export.save_tf1_checkpoint(network_of(tiny.encoder()), 1, tmp_path / "tf1_checkpoint")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "save"), [("onnx", export.save_onnx), ("litert", export.save_litert)])
def test_a_large_network_is_refused(name, save, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "MAX_BYTES", 1000)
    with pytest.raises(SettingError, match=rf"^--format={name}: the network's 0\.0 GB do not fit .*; use saved_model$"):
        save(network_of(tiny.encoder()), tiny.SIZE, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_missing_onnx_packages_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(SettingError, match=r"^--format=onnx: needs pip install tf2onnx onnx$"):
        export.check_onnx_packages()
