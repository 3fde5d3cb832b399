"""Exports of a run: every format gives the run's predictions, and names its classes."""

import json
import pathlib
import zipfile

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from simclrv2_tf import modes
from simclrv2_tf.data.cropping import center_crop_and_resize

# TensorFlow's interpreter is the one of ai_edge_litert under its old name.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s+Warning. tf.lite.Interpreter is deprecated")

SIZE = 36
TOY = {
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": SIZE,
    "train_batch_size": 8,
    "train_steps": 2,
    "checkpoint_steps": 2,
    "eval_batch_size": 8,
    "eval_split": "train",
    "report": False,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the model directory of a classifier of birds, and the paths of its images with their features."""
    place = tmp_path_factory.mktemp("birds")
    rng = np.random.default_rng(0)
    for index in range(12):
        path = place / f"data/{('robin', 'wren')[index % 2]}/{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tf.io.encode_png(rng.integers(0, 256, (40 + index, 50, 3), np.uint8)).numpy())
    model_dir = place / "run"
    modes.run(TOY | {"mode": "supervised", "dataset": f"folder:{place}/data", "model_dir": str(model_dir)})
    modes.run({"mode": "embed", "format": "parquet", "checkpoint": str(model_dir)})
    table = pq.read_table(model_dir / "embeddings.parquet").to_pydict()
    return model_dir, dict(zip(table["path"], table["features"], strict=True))


@pytest.fixture(scope="module")
def saved_model(run):
    """Returns the exported SavedModel."""
    path = exported(run[0], "saved_model")
    assert path == run[0] / "saved_model"
    return tf.saved_model.load(str(path))


def exported(model_dir: pathlib.Path, format_name: str) -> pathlib.Path:
    result = modes.run({"mode": "export", "format": format_name, "checkpoint": str(model_dir)})
    return pathlib.Path(result["path"])


def test_a_saved_model_serves_files_as_the_run_evaluates_them(run, saved_model):
    features = run[1]
    contents = tf.stack([tf.io.read_file(name) for name in features])
    outputs = saved_model.signatures["serve_encoded"](image_bytes=contents)
    np.testing.assert_allclose(outputs["features"], list(features.values()), rtol=1e-4, atol=1e-5)
    labels = outputs["probabilities"].numpy().argmax(axis=1)
    assert [name.decode() for name in outputs["class_name"].numpy()] == [("robin", "wren")[label] for label in labels]


def test_litert_and_onnx_equal_the_saved_model(run, saved_model):
    model_dir, features = run
    images = [tf.io.decode_image(tf.io.read_file(name)) for name in features]
    views = tf.stack([center_crop_and_resize(image, (SIZE, SIZE)) for image in images])
    expected = tf.nn.softmax(saved_model(views, trainable=False)["logits_sup"])

    litert = exported(model_dir, "litert")
    run_litert = tf.lite.Interpreter(str(litert)).get_signature_runner()
    probabilities = [run_litert(images=view[None])["probabilities"][0] for view in views.numpy()]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert zipfile.ZipFile(litert).read("labels.txt") == b"robin\nwren\n"

    session = onnxruntime.InferenceSession(exported(model_dir, "onnx"), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["probabilities"], {"images": views.numpy()})[0], expected, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == ["robin", "wren"]
    names = sorted(path.name for path in model_dir.iterdir() if path.name.startswith((".", "model", "saved")))
    assert names == [".lock", "model.onnx", "model.tflite", "saved_model"]


@pytest.mark.parametrize(
    ("resolved", "message", "labels"),
    [
        ({"class_names": []}, "model.tflite: 2 classes", b"0\n1\n"),
        ({"num_classes": 0, "class_names": []}, "features only, no classifier", b""),
    ],
)
def test_a_run_without_class_names_numbers_them_and_one_without_classifier_says_so(
    resolved, message, labels, run, tmp_path, capsys
):
    (tmp_path / "checkpoints").mkdir()
    for path in run[0].glob("checkpoints/*"):
        (tmp_path / "checkpoints" / path.name).write_bytes(path.read_bytes())
    config = json.loads((run[0] / "config.json").read_text())
    config["resolved"] |= resolved
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = exported(tmp_path, "litert")
    assert message in capsys.readouterr().out
    assert zipfile.ZipFile(path).read("labels.txt") == labels
    outputs = tf.lite.Interpreter(str(path)).get_signature_runner().get_output_details()
    assert set(outputs) == ({"features", "probabilities"} if labels else {"features"})
