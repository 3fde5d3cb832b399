"""``load_run``: the network of a run in Python, with class names, predictions and features of files."""

import json
import sys

import keras
import numpy as np
import pytest
import saved_runs
import tensorflow as tf

import simclrv2_tf
from simclrv2_tf import load_run
from simclrv2_tf.errors import SettingError

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")

NAMES = ("wren", "robin", "crow")


@pytest.fixture(autouse=True)
def without_graphs():
    """Tracing takes longer than these few images."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture
def run(tmp_path):
    """Returns a model directory and its network."""
    network = saved_runs.save_run(tmp_path / "run", NAMES, mixed_precision="bfloat16")
    keras.config.set_dtype_policy("float32")
    return tmp_path / "run", network


@pytest.fixture
def files(tmp_path):
    return saved_runs.save_images(tmp_path / "photos", [f"{i}.png" for i in range(6)])


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def test_predictions_and_features_are_those_of_the_network(run, files):
    model_dir, network = run
    model = load_run(model_dir)
    assert model.class_names == NAMES and model.image_size == 8 and isinstance(model, keras.Model)
    images = saved_runs.pixels_of(files)
    endpoints = load_run(str(model_dir))(images)  # the Keras model itself
    names, probabilities = model.predict_images(files, batch_size=4)
    np.testing.assert_allclose(probabilities, softmax(endpoints["logits_sup"].numpy()), rtol=1e-4, atol=1e-6)
    assert names == [NAMES[i] for i in probabilities.argmax(axis=1)] and len(set(names)) > 1
    np.testing.assert_allclose(model.features(map(str, files)), endpoints["final_avg_pool"], rtol=1e-4)
    for variable, saved in zip(model.network.variables, network.variables, strict=True):
        np.testing.assert_array_equal(variable, saved)
        assert variable.dtype == "float32"


def test_one_checkpoint_is_loaded(run):
    assert load_run(f"{run[0]}/checkpoints/step-1").class_names == NAMES


def test_a_corrupt_file_has_no_class_and_nan_in_its_place(run, files, caplog):
    model = load_run(run[0])
    whole = model.predict_images(files)
    files[2].write_bytes(b"not an image")
    names, probabilities = model.predict_images(files)
    assert names == [*whole[0][:2], "", *whole[0][3:]] and np.isnan(probabilities[2]).all()
    readable = np.arange(6) != 2
    np.testing.assert_allclose(probabilities[readable], whole[1][readable], rtol=1e-5)
    assert np.isnan(model.features(files[2:3])).all() and str(files[2]) in caplog.text


def test_what_is_not_a_list_of_files_is_refused(run, files):
    model = load_run(run[0])
    for paths, message in (
        ("photos", "photos: give a list of files"),
        ([], "the list of files is empty"),
        ([*files, "no.png"], "no.png: there"),
    ):
        with pytest.raises(ValueError, match=message):
            model.predict_images(paths)


def test_a_run_without_names_has_numbers_and_one_without_a_classifier_has_features_only(tmp_path, files):
    saved_runs.save_run(tmp_path / "unnamed", NAMES)
    config = tmp_path / "unnamed/config.json"
    content = json.loads(config.read_text())
    content["resolved"]["class_names"] = []
    config.write_text(json.dumps(content))
    assert load_run(tmp_path / "unnamed").class_names == ("0", "1", "2")
    saved_runs.save_run(tmp_path / "pretrained", (), mode="pretrain")
    model = load_run(tmp_path / "pretrained")
    assert model.class_names == () and model.features(files).shape == (6, 32)
    with pytest.raises(SettingError, match="no classifier; train one with --mode=finetune or linear_eval first"):
        model.predict_images(files)


def test_a_diverged_network_is_refused(run, files):
    model = load_run(run[0])
    model.network.classifier.dense.bias.assign(np.full(3, np.nan))
    with pytest.raises(SettingError, match="NaN or infinite: its training has diverged"):
        model.predict_images(files)


def test_loading_changes_neither_the_random_numbers_nor_the_dtype_of_the_program(run):
    keras.config.set_dtype_policy("mixed_bfloat16")
    numbers = []
    for load in (lambda: None, lambda: load_run(run[0])):
        np.random.seed(3)
        load()
        numbers.append(np.random.random())
    assert numbers[0] == numbers[1] and keras.config.dtype_policy().name == "mixed_bfloat16"


def test_a_loaded_run_is_saved_and_loaded_by_keras_and_trained_further(run, files, tmp_path):
    model = load_run(run[0])
    expected = model.predict_images(files)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.class_names == NAMES and loaded.predict_images(files)[0] == expected[0]
    data = tf.data.Dataset.from_tensor_slices((np.zeros([4, 9, 9, 3], np.uint8), np.arange(4) % 3))
    loaded.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    history = loaded.fit(simclrv2_tf.view_batches(data, 2, loaded.views, num_views=1), verbose=0).history
    assert np.isfinite(history["loss"]).all()


def test_code_that_a_run_names_is_imported_only_if_it_is_trusted(tmp_path, monkeypatch):
    module = "import keras, tiny\n\n\ndef build(image_size):\n    return tiny.encoder()\n"
    (tmp_path / "their_code.py").write_text(module)
    monkeypatch.syspath_prepend(str(tmp_path))
    saved_runs.save_run(tmp_path / "run", NAMES, encoder="their_code:build")
    sys.modules.pop("their_code")
    with pytest.raises(SettingError, match="built by their_code:build; pass --trust_run_code"):
        load_run(tmp_path / "run")
    assert "their_code" not in sys.modules
    assert load_run(tmp_path / "run", trust_run_code=True).class_names == NAMES


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no checkpoint"):
        load_run(tmp_path)
