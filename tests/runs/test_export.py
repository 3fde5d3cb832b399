"""Exports: a SavedModel, loaded with TensorFlow alone, gives the same numbers and can be fine-tuned; ONNX too."""

import json
import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from simclrv2_tf.data.augment import center_crop_and_resize
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.runs import export

# Runs in a new process, in a folder from which this package cannot be imported.
CLIENT = """
import json, sys
import numpy as np
import tensorflow as tf

for folder in sys.argv[1:]:
    model = tf.saved_model.load(folder + "/model")
    assert "simclrv2_tf" not in sys.modules
    serve, train = model.signatures["serve"], model.signatures["train"]
    served = serve(images=tf.constant(np.load(folder + "/images.npy")))
    outputs = {name: value.numpy() for name, value in served.items()}
    np.savez(folder + "/outputs.npz", **outputs)

    x, labels = tf.constant(np.load(folder + "/views.npy")), tf.constant([0, 1, 2, 0])
    losses, missing = [], set()
    for _ in range(8):
        with tf.GradientTape() as tape:
            endpoints = train(images=x)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=endpoints["logits_sup"])
            ) + 1e-3 * tf.reduce_sum(endpoints["proj_head_output"] ** 2)
        gradients = tape.gradient(loss, train.trainable_variables)
        missing |= {v.name for v, g in zip(train.trainable_variables, gradients) if g is None}
        for variable, gradient in zip(train.trainable_variables, gradients):
            variable.assign_sub(0.05 * gradient)
        losses.append(float(loss))
    print(json.dumps({"losses": losses, "missing": sorted(missing), "trainable": len(train.trainable_variables)}))
"""


def network_of(encoder: keras.Model) -> Network:
    network = Network(encoder, ProjectionHead(out_dim=16, name="projection_head"), num_classes=3, name="network")
    network.build((None, None, None, 3))
    return network


def test_saved_models_serve_and_train_with_tensorflow_alone(tmp_path):
    """Two sizes and two interpolations."""
    network = network_of(ResNet(10, 0.125, stem="cifar", name="encoder"))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 37, 51, 3), dtype=np.uint8)
    folders = {(size, method): tmp_path / method for size, method in ((16, "tf1"), (48, "bicubic"))}
    for (size, method), folder in folders.items():
        export.save_saved_model(network, size, folder / "model", method)
        np.save(folder / "images.npy", images)
        np.save(folder / "views.npy", rng.uniform(size=(4, size, size, 3)).astype(np.float32))
    command = [sys.executable, "-c", CLIENT, *map(str, folders.values())]
    client = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert client.returncode == 0, client.stderr[-2000:]

    for ((size, method), folder), line in zip(folders.items(), client.stdout.splitlines()[-2:], strict=True):
        views = tf.stack([center_crop_and_resize(tf.constant(image), (size, size), method=method) for image in images])
        expected = network(views, training=False, whole_head=True)
        with np.load(folder / "outputs.npz") as outputs:
            assert set(outputs.files) == set(expected)
            for name, value in expected.items():
                np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)
        report = json.loads(line)
        assert report["missing"] == []
        assert report["trainable"] == len(network.trainable_variables)
        assert report["losses"][-1] < 0.95 * report["losses"][0]


def test_a_failed_export_keeps_the_earlier_one(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/saved_model.pb").write_bytes(b"earlier")
    with pytest.raises(AttributeError):
        export.save_saved_model(None, 16, tmp_path / "model")
    assert (tmp_path / "model/saved_model.pb").read_bytes() == b"earlier"


SELECTIVE = pytest.param({"depth": 50, "sk_ratio": 0.0625}, marks=pytest.mark.slow)


@pytest.mark.parametrize("architecture", [{"depth": 18, "se_ratio": 0.25}, SELECTIVE])
def test_onnx_equals_keras_at_every_endpoint(architecture, tmp_path):
    network = network_of(ResNet(width_multiplier=1 / 16, name="encoder", **architecture))
    views = np.random.default_rng(0).uniform(size=(5, 32, 32, 3)).astype(np.float32)
    for _ in range(3):  # moves the moving statistics
        expected = network(views, training=True, whole_head=True)
    expected = network(views, training=False, whole_head=True)
    export.save_onnx(network, 32, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert set(names) == set(expected)
    for name, value in zip(names, session.run(None, {"images": views}), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max())


def test_tf1_checkpoint_of_another_encoder_than_resnet_raises(tmp_path):
    layers = [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]
    network = network_of(keras.Sequential(layers))
    with pytest.raises(SettingError, match=r"^--format=tf1_checkpoint: the official code knows ResNet encoders only"):
        export.save_tf1_checkpoint(network, 1, tmp_path / "tf1_checkpoint")
    assert not list(tmp_path.iterdir())


def test_onnx_of_a_large_network_or_without_packages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "ONNX_BYTES", 1000)
    with pytest.raises(SettingError, match=r"^--format=onnx: the network's 0\.0 GB do not fit"):
        export.save_onnx(network_of(ResNet(10, 1 / 16)), 32, tmp_path / "model.onnx")
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(SettingError, match=r"^--format=onnx: needs pip install tf2onnx onnx$"):
        export.check_onnx_packages()
    assert not list(tmp_path.iterdir())
