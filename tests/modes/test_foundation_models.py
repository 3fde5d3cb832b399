"""Runs that start from a foundation model instead of a run, down to a small distilled network."""

import json
import pathlib
import signal

import children
import foreign_models
import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import load_run, modes
from simclrv2_tf.errors import SettingError

SIZE = foreign_models.SIZE
TOY = {
    "dataset": "digits",
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "optimizer": "adamw",
    "learning_rate": 0.01,
    "warmup_epochs": 0.0,
    "train_batch_size": 50,
    "train_steps": 4,
    "checkpoint_steps": 2,
    "eval_batch_size": 250,
    "report": False,
}


def run(mode: str, model_dir: pathlib.Path, **flags) -> dict:
    return modes.run(TOY | flags | {"mode": mode, "model_dir": str(model_dir)})


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    path = tmp_path_factory.mktemp("presets") / "dinov2"
    foreign_models.save_dino(path)
    keras.backend.clear_session()
    return f"keras_hub:{path}"


@pytest.fixture(scope="module")
def linear(preset, tmp_path_factory):
    """Returns the model directory of linear evaluation on the preset's frozen features."""
    model_dir = tmp_path_factory.mktemp("runs") / "linear"
    run("linear_eval", model_dir, encoder=preset)
    keras.backend.clear_session()
    return model_dir


def weights(model_dir) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


def test_linear_evaluation_trains_the_classifier_alone(linear, preset):
    config = json.loads((linear / "config.json").read_text())
    resolved = config["resolved"]
    assert config["image_size"] == SIZE and config["proj_head_mode"] == "none"
    assert resolved["trained_parameters"] == 8 * 10 + 10
    assert resolved["encoder_description"] == f"{preset} (images in imagenet, class token)"
    assert "linear_top1" in json.loads((linear / "result.json").read_text())


def test_loading_a_run_needs_trust_but_no_weights_of_the_preset(linear, preset):
    with pytest.raises(SettingError, match=f"built by {preset}; pass --trust_run_code"):
        load_run(linear)
    model = load_run(linear, trust_run_code=True)
    assert model.class_names == tuple("0123456789") and model.image_size == SIZE


def test_a_student_is_distilled(linear, tmp_path):
    flags = {"teacher": str(linear), "trust_run_code": True}
    result = run("distill", tmp_path, **flags)
    assert result["distill_top1"] > 0.05
    assert json.loads((tmp_path / "config.json").read_text())["encoder"] == "resnet"
    with pytest.raises(SettingError, match="--image_size=16: the teacher's encoder takes 8 px; pass that size"):
        run("distill", tmp_path / "other", image_size=16, **flags)


def test_features_of_an_encoder_without_a_run(preset, tmp_path, capsys):
    run("embed", tmp_path, encoder=preset)
    assert f"embed: {preset} (images in imagenet, class token)" in capsys.readouterr().out
    with np.load(tmp_path / "embeddings.npz") as embeddings:
        assert embeddings["x_train"].shape == (1297, 8) and embeddings["x_test"].std() > 0
    result = run("evaluate", tmp_path, encoder=preset)
    assert set(result) >= {"knn_top1"} and "top1" not in result
    run("export", tmp_path, encoder=preset)
    exported = tf.saved_model.load(str(tmp_path / "saved_model"))
    assert exported.signatures["views"](tf.constant(foreign_models.images()))["final_avg_pool"].shape == (3, 8)
    for mode in ("predict", "linear_eval"):
        with pytest.raises(SettingError, match=f"--checkpoint=: {mode} needs the model directory of a"):
            run(mode, tmp_path, images="x", **({"encoder": preset} if mode == "predict" else {}))


@pytest.mark.parametrize("kind", [pytest.param("teacher.keras", marks=pytest.mark.slow), "teacher"])
def test_a_teacher_that_is_a_file(kind, tmp_path):
    path = foreign_models.saved(foreign_models.classifier(), tmp_path / kind)
    flags = {"teacher": path, "input_range": "auto" if "." in kind else "0..255"}
    result = run("distill", tmp_path / "run", **flags)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["image_size"] == SIZE and config["resolved"]["num_classes"] == 10 and result["distill_top1"] >= 0
    with pytest.raises(SettingError, match=f"--teacher={path}: has 10 classes, but .* has 4"):
        images, labels = np.zeros([60, SIZE, SIZE], np.uint8), np.arange(60) % 4
        np.savez(tmp_path / "four.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        run("distill", tmp_path / "other", dataset=f"npz:{tmp_path}/four.npz", **flags)


def test_fine_tuning_a_file_starts_from_its_weights(tmp_path):
    model = foreign_models.convolutional(keras.layers.Rescaling(1 / 255))
    path = foreign_models.saved(model, tmp_path / "model.keras")
    one_step = {"train_steps": 1, "checkpoint_steps": 1, "learning_rate": 1e-6}
    run("finetune", tmp_path / "run", encoder=path, **one_step)
    saved = {value.shape: value for name, value in weights(tmp_path / "run").items() if name.startswith("encoder")}
    for variable in model.variables:
        np.testing.assert_allclose(saved[tuple(variable.shape)], variable, atol=1e-5)
        assert not np.array_equal(saved[tuple(variable.shape)], variable)
    with pytest.raises(SettingError, match="--checkpoint=: finetune needs a pretrained run or --encoder"):
        run("finetune", tmp_path)


class TestResume:
    """A run that is killed and resumed is bit-equal to an uninterrupted one."""

    @pytest.fixture(autouse=True)
    def fresh_keras(self):
        """Everything runs in child processes."""

    @pytest.fixture
    def check(self, tmp_path):
        def check(**settings):
            flags = children.TOY | {"memory_size": 0, "train_steps": 6, "checkpoint_steps": 2} | settings
            whole, killed = (flags | {"model_dir": tmp_path / name} for name in ("whole", "killed"))
            log = tmp_path / "log"
            calls = tmp_path / "calls"
            assert children.run(whole, log, children.SignalAt(0, count_to=calls)) == 0, log.read_text()
            kill = children.SignalAt(2 * int(calls.read_text()) // 3)
            assert children.run(killed, log, kill) == -signal.SIGKILL
            assert children.run(killed, log) == 0
            assert "Resuming from step" in log.read_text()
            children.assert_same_records(tmp_path / "killed", tmp_path / "whole")

        return check

    def test_linear_evaluation_of_dinov2(self, check, preset):
        check(mode="linear_eval", encoder=preset, labels_per_class=5)

    @pytest.mark.slow
    def test_distillation_of_dinov2_into_a_resnet(self, check, linear):
        check(mode="distill", teacher=linear, trust_run_code="true")

    @pytest.mark.slow
    def test_pretraining_of_dinov2(self, check, preset):
        check(encoder=preset)

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["pretrain", "linear_eval"])
    def test_a_keras_resnet_with_random_weights(self, check, mode):
        small = {"image_size": 32, "train_batch_size": 8, "train_steps": 4, "eval_batch_size": 8}
        check(mode=mode, encoder="keras.applications:ResNet50:random", **small)
