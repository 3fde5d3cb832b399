"""A SavedModel, loaded with TensorFlow alone, is called like those of the authors, is fine-tuned, and serves images."""

import io
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from simclrv2_tf.data.cropping import center_crop_and_resize
from simclrv2_tf.data.decoding import decode
from simclrv2_tf.models.heads import ProjectionHead
from simclrv2_tf.models.network import Network
from simclrv2_tf.models.resnet import ResNet
from simclrv2_tf.runs.saved_model import save_saved_model

SIZE = 40  # px; above 32 images are cropped
NAMES = ["robin", "blue tit", "Zaunkönig 🐦"]
OFFICIAL_NAMES = {
    *("initial_conv", "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4"),
    *("final_avg_pool", "proj_head_input", "proj_head_output", "logits_sup"),
}
LEAN = {"class_name", "probabilities", "features"}

# Code for the published SavedModels, as in tf2/colabs/finetuning.ipynb and imagenet_results.ipynb. It runs in a new
# process, in a folder from which this package cannot be imported.
CLIENT = """
import json, sys
import numpy as np
import tensorflow as tf

num_classes = 3
arrays = np.load("arrays.npz")
images, labels = tf.constant(arrays["images"]), tf.constant(arrays["labels"])


class Model(tf.keras.Model):
    def __init__(self, path):
        super(Model, self).__init__()
        self.saved_model = tf.saved_model.load(path)
        self.dense_layer = tf.keras.layers.Dense(units=num_classes, name="head_supervised_new")
        self.head_optimizer = tf.keras.optimizers.SGD(0.1, momentum=0.9)

    def call(self, x):
        with tf.GradientTape() as tape:
            outputs = self.saved_model(x["image"], trainable=False)
            logits_t = self.dense_layer(outputs["final_avg_pool"])
            loss_t = tf.reduce_mean(
                tf.nn.softmax_cross_entropy_with_logits(labels=tf.one_hot(x["label"], num_classes), logits=logits_t)
            )
            dense_layer_weights = self.dense_layer.trainable_weights
            grads = tape.gradient(loss_t, dense_layer_weights)
            self.head_optimizer.apply_gradients(zip(grads, dense_layer_weights))
        return loss_t, x["image"], logits_t, x["label"]


model = Model("saved_model")


@tf.function
def train_step(x):
    return model(x)


head_losses = [float(train_step({"image": images, "label": labels})[0]) for _ in range(8)]

saved_model = model.saved_model
before = [variable.numpy() for variable in saved_model.variables]
outputs = saved_model(images, trainable=False)
np.savez("outputs.npz", **{name: value.numpy() for name, value in outputs.items()})
unmoved = all(np.array_equal(a, b) for a, b in zip(before, saved_model.variables))

losses, missing = [], set()
optimizer = tf.keras.optimizers.SGD(0.05)
for _ in range(8):
    with tf.GradientTape() as tape:
        outputs = saved_model(inputs=images, trainable=True)
        logits = outputs["logits_sup"]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
        loss += 1e-3 * tf.reduce_sum(outputs["proj_head_output"] ** 2)
    gradients = tape.gradient(loss, saved_model.trainable_variables)
    missing |= {v.name for v, g in zip(saved_model.trainable_variables, gradients) if g is None}
    optimizer.apply_gradients(zip(gradients, saved_model.trainable_variables))
    losses.append(float(loss))

moved = [not np.array_equal(a, b) for a, b in zip(before, saved_model.variables)]
print(json.dumps({
    "head_losses": head_losses, "losses": losses, "missing": sorted(missing), "unmoved": unmoved, "moved": moved,
    "trainable": len(saved_model.trainable_variables), "list": len(saved_model.trainable_variables_list),
    "names": [name.decode() for name in saved_model.class_names.numpy()],
    "package": "simclrv2_tf" in sys.modules,
}))
"""


def network_of(encoder: keras.Model, num_classes: int = 3) -> Network:
    network = Network(encoder, ProjectionHead(out_dim=16), num_classes=num_classes, name="network")
    network.build((None, None, None, 3))
    for _ in range(3):  # moves the moving statistics
        network(np.random.default_rng(0).uniform(size=(8, 8, 8, 3)).astype("float32"), training=True, whole_head=True)
    return network


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Returns a ResNet with three named classes and the path of its SavedModel."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("exported") / "saved_model"
    network = network_of(ResNet(10, 0.125, stem="cifar", name="encoder"))
    save_saved_model(network, SIZE, path, class_names=NAMES)
    return network, path


@pytest.fixture(scope="module")
def loaded(exported):
    return tf.saved_model.load(str(exported[1]))


@pytest.fixture
def images():
    """Four images of no particular size, uint8."""
    return np.random.default_rng(1).integers(0, 256, (4, 47, 61, 3), dtype=np.uint8)


def views_of(images: np.ndarray, size: int = SIZE, method: str = "bicubic") -> tf.Tensor:
    """Returns the evaluation views of images."""
    return tf.stack([center_crop_and_resize(tf.constant(image), (size, size), method=method) for image in images])


def assert_endpoints_equal(actual: dict, expected: dict) -> None:
    assert set(actual) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def test_code_for_the_published_saved_models_runs_unchanged_with_tensorflow_alone(exported, tmp_path):
    network, path = exported
    (tmp_path / "saved_model").symlink_to(path)
    rng = np.random.default_rng(0)
    images, labels = rng.uniform(size=(6, 24, 28, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2])
    np.savez(tmp_path / "arrays.npz", images=images, labels=labels)
    client = subprocess.run([sys.executable, "-c", CLIENT], capture_output=True, text=True, cwd=tmp_path)
    assert client.returncode == 0, client.stderr[-2000:]
    expected = network(images, training=False, whole_head=True)
    assert set(expected) >= OFFICIAL_NAMES
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert_endpoints_equal(outputs, expected)
    report = json.loads(client.stdout.splitlines()[-1])
    assert report["names"] == NAMES and not report["package"]
    assert report["head_losses"][-1] < report["head_losses"][0] and report["losses"][-1] < 0.95 * report["losses"][0]
    assert report["missing"] == [] and report["trainable"] == report["list"] == len(network.trainable_variables)
    assert report["unmoved"] and len(report["moved"]) == len(network.variables)
    moved = dict(zip([variable.path for variable in network.variables], report["moved"], strict=True))
    assert all(moved.values()), [path for path, is_moved in moved.items() if not is_moved]


def test_training_updates_the_moving_statistics_as_the_network_does(tmp_path):
    network = network_of(tiny.encoder())
    save_saved_model(network, tiny.SIZE, tmp_path / "model")
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    views = np.random.default_rng(2).uniform(size=(5, tiny.SIZE, tiny.SIZE, 3)).astype(np.float32)
    expected = network(views, training=True, whole_head=True)
    assert_endpoints_equal(loaded.signatures["train"](images=tf.constant(views)), expected)
    for variable, other in zip(network.variables, loaded.variables, strict=True):
        np.testing.assert_allclose(other, variable, rtol=1e-5, atol=1e-6, err_msg=variable.path)


@pytest.mark.parametrize("name", ["serving_default", "serve_float", "serve_encoded"])
def test_serving_signatures_evaluate_and_name_the_classes(name, exported, loaded, images):
    inputs = {
        "serving_default": {"images": tf.constant(images)},
        "serve_float": {"images": tf.constant(images / np.float32(255))},
        "serve_encoded": {"image_bytes": tf.stack([tf.io.encode_png(image) for image in images])},
    }
    outputs = loaded.signatures[name](**inputs[name])
    assert set(outputs) == LEAN
    expected = exported[0](views_of(images), training=False)
    probabilities = tf.nn.softmax(expected["logits_sup"]).numpy()
    np.testing.assert_allclose(outputs["probabilities"], probabilities, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(outputs["features"], expected["final_avg_pool"], rtol=1e-4, atol=1e-5)
    predicted = [name.decode() for name in outputs["class_name"].numpy()]
    assert predicted == [NAMES[label] for label in probabilities.argmax(axis=1)]


def test_encoded_images_of_several_sizes_and_formats_are_served_together(loaded, images):
    first, second = images[0], images[1, :33]
    files = [tf.io.encode_png(first), tf.io.encode_jpeg(second)]
    decoded = [first[None], tf.io.decode_jpeg(files[1])[None]]
    together = loaded.signatures["serve_encoded"](image_bytes=tf.stack(files))["probabilities"]
    for index, image in enumerate(decoded):
        alone = loaded.signatures["serving_default"](images=tf.constant(image))["probabilities"]
        np.testing.assert_allclose(together[index], alone[0], rtol=1e-4)


def test_floats_up_to_255_raise(loaded, images):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"images must be in \[0, 1\]: divide by 255"):
        loaded.signatures["serve_float"](images=tf.constant(images.astype(np.float32)))


def test_every_endpoint_is_served(exported, loaded, images):
    expected = exported[0](views_of(images), training=False, whole_head=True)
    assert_endpoints_equal(loaded.signatures["endpoints"](images=tf.constant(images)), expected)


def test_names_are_an_attribute_and_an_asset(exported, loaded):
    assert [name.decode() for name in loaded.class_names.numpy()] == NAMES
    asset = exported[1] / "assets/class_names.txt"
    assert asset.read_text(encoding="utf-8").splitlines() == NAMES
    assert loaded.class_names_file.asset_path.numpy().decode() == str(asset)


def test_files_are_decoded_as_in_training(tmp_path):
    """Turned upright, shown on white and scaled by the bits in use."""
    network = network_of(tiny.encoder(), num_classes=0)
    save_saved_model(network, tiny.SIZE, tmp_path / "model", image_bits=10)
    pixels = np.random.default_rng(2).integers(0, 1024, (20, 30, 4), dtype=np.uint16)
    exif, turned = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray((pixels >> 2).astype(np.uint8)).save(turned, "PNG", exif=exif)
    files = [tf.io.encode_png(pixels[..., :3]).numpy(), turned.getvalue()]
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    outputs = loaded.signatures["serve_encoded"](image_bytes=tf.constant(files))
    images = [decode(file, image_bits=10).numpy() for file in files]
    assert images[0].max() == 255 and images[1].shape == (30, 20, 3)
    expected = network(views_of(images, tiny.SIZE), training=False)["final_avg_pool"]
    np.testing.assert_allclose(outputs["features"], expected, rtol=1e-5, atol=1e-6)


def test_without_a_classifier_only_features_are_served(tmp_path, images):
    """By the resize of TensorFlow 1 and an encoder for one size."""
    network = network_of(tiny.encoder(), num_classes=0)
    save_saved_model(network, tiny.SIZE, tmp_path / "model", "tf1")
    loaded = tf.saved_model.load(str(tmp_path / "model"))
    outputs = loaded.signatures["serving_default"](images=tf.constant(images))
    assert set(outputs) == {"features"} and loaded.class_names.shape == [0]
    views = views_of(images, tiny.SIZE, "tf1")
    expected = network(views, training=False)
    np.testing.assert_allclose(outputs["features"], expected["final_avg_pool"], rtol=1e-5, atol=1e-6)
    assert_endpoints_equal(loaded(views, trainable=False), expected)


def test_a_failed_export_keeps_the_earlier_one(tmp_path, file_size_limit):
    network = network_of(tiny.encoder())
    save_saved_model(network, tiny.SIZE, tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with file_size_limit(1000), pytest.raises((OSError, tf.errors.OpError)):
        save_saved_model(network, tiny.SIZE, tmp_path / "model")
    with pytest.raises(ValueError, match=r"^2 class names for 3 classes$"):
        save_saved_model(network, tiny.SIZE, tmp_path / "model", class_names=["one", "two"])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
