"""``build_run``: every setting reaches its object, and a run starts from the weights of its parent."""

import keras
import numpy as np
import plugins
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import Network
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.modes.setup import build_network, build_run, load_callbacks, resolved_settings
from simclrv2_tf.modes.train import ClassifierEvaluation, _num_labels
from simclrv2_tf.runs.checkpoints import save_network
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.networks import load_run
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

TOY = {
    "dataset": "digits",
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 20,
    "train_steps": 4,
    "checkpoint_steps": 4,
    "proj_out_dim": 16,
}
ONE_DEVICE = tf.distribute.get_strategy()


def build(**settings) -> Run:
    return build_run(resolve_config(TOY | settings), ONE_DEVICE)


def save_run(model_dir, num_classes=10, head_input=0, **settings) -> Network:
    """Writes a model directory with random weights; returns its network."""
    config = resolve_config(TOY | settings | {"model_dir": str(model_dir)})
    network = build_network(config, ONE_DEVICE, num_classes, head_input)
    rng = np.random.default_rng(1)
    for variable in network.variables:
        variable.assign(rng.uniform(0.5, 1, variable.shape))
    RunDirectory(model_dir).write_config(config, {"num_classes": num_classes, "head_input": head_input})
    save_network(network, model_dir, 1)
    return network


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns a run of each mode that starts from another one."""
    keras.config.set_dtype_policy("float32")
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "pretrain")
    save_run(folder / "teacher", mode="supervised")
    finetune = dict(fine_tune_proj_head=False, fine_tune_after_block=2, ft_proj_selector=2, optimizer="momentum")
    finetune |= dict(labels_per_class=2, weight_decay=0.01, on_nan="skip")
    start = {"checkpoint": str(folder / "pretrain")}
    return {
        "finetune": build(mode="finetune", **start, **finetune),
        "linear_eval": build(mode="linear_eval", **start),
        "distill": build(mode="distill", teacher=str(folder / "teacher"), distill_alpha=0.25, labels_per_class=3),
    }


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("method.network.head_input", 2),
        ("method.network.projection_head.trainable", False),
        ("method.network.encoder.groups.1.trainable", False),
        ("method.network.encoder.groups.2.trainable", True),
        ("method.weight_decay", 0.01),
        ("method.skip_bad_steps", True),
        ("method.optimizer.name", "momentum"),
        ("data.source.num_examples", 20),
    ],
)
def test_settings_of_fine_tuning_reach_their_objects(attribute, expected, runs):
    """tests/settings/test_wiring.py has tables of the modes that start without a run."""
    value = runs["finetune"]
    for name in attribute.split("."):
        value = value[int(name)] if name.isdecimal() else getattr(value, name)
    assert value == expected


def test_linear_evaluation_trains_only_the_classifier(runs):
    method = runs["linear_eval"].method
    assert {id(v) for v in method.trained_variables} == {id(v) for v in method.network.classifier.variables}


def test_supervised_distillation_uses_a_few_labels_and_all_images(runs):
    labels = runs["distill"].data.source.labels
    assert len(labels) == 1297 and np.bincount(labels[labels >= 0]).tolist() == [3] * 10


def test_pure_distillation_uses_all_images(tmp_path):
    save_run(tmp_path / "teacher", mode="supervised")
    run = build(mode="distill", teacher=str(tmp_path / "teacher"), labels_per_class=3)
    assert run.data.source.num_examples == 1297


@pytest.mark.parametrize("mode", ["pretrain", "finetune", "linear_eval", "distill"])
def test_a_run_starts_from_the_weights_of_the_checkpoint(mode, tmp_path):
    parent = save_run(tmp_path / "parent")
    teacher = {"teacher": str(tmp_path / "parent")} if mode == "distill" else {}
    network = build(mode=mode, checkpoint=str(tmp_path / "parent"), **teacher).method.network
    for part in (network.encoder, network.projection_head):
        expected = {path: value for path, value in tiny.numbers(parent.variables).items() if part.name in path}
        assert not tiny.moved(expected, tiny.numbers(network.variables))
    assert np.abs(network.classifier.dense.kernel).max() < 0.1  # the classifier is new


def test_the_teacher_reads_its_own_layer_of_the_head(tmp_path):
    saved = save_run(tmp_path, head_input=1, mode="supervised", ft_proj_selector=1)
    teacher = build(mode="distill", teacher=str(tmp_path)).method.teacher
    images = tf.random.stateless_uniform([4, 8, 8, 3], [0, 0])
    for network in (teacher, load_run(tmp_path).network):
        assert network.head_input == 1
        np.testing.assert_allclose(network(images)["logits_sup"], saved(images)["logits_sup"], rtol=1e-5)


def test_a_teacher_without_a_classifier_is_refused(tmp_path):
    save_run(tmp_path, num_classes=0)
    with pytest.raises(SettingError, match=f"^--teacher={tmp_path}: has no classifier; give a fine-tuned or "):
        build(mode="distill", teacher=str(tmp_path))


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    save_run(tmp_path, num_classes=7, mode="supervised")
    with pytest.raises(SettingError, match=f"^--teacher={tmp_path}: has 7 classes, but digits/test has 10"):
        build(mode="distill", teacher=str(tmp_path))


def test_callbacks_of_several_factories():
    callbacks = load_callbacks(Config(callbacks="plugins:recorder,plugins:recorder_and_interrupt"))
    kinds = [plugins.Recorder, plugins.Recorder, plugins.InterruptAtSecondInterval]
    assert list(map(type, callbacks)) == kinds and load_callbacks(Config()) == []


@pytest.mark.parametrize(("mode", "prefix"), [("finetune", "finetune"), ("linear_eval", "linear")])
def test_accuracies_of_an_interval_and_of_the_result(mode, prefix, runs, tmp_path):
    evaluation = ClassifierEvaluation(runs[mode], None)
    row, result = evaluation.metrics(), evaluation.result(RunDirectory(tmp_path))
    assert set(row) == {"eval_top1"} and set(result) == {f"{prefix}_top1", f"{prefix}_top5"}
    assert row["eval_top1"] == result[f"{prefix}_top1"] < result[f"{prefix}_top5"]


def test_trained_parameters_are_those_that_the_classifier_depends_on(runs):
    resolved = resolved_settings(build(mode="supervised"), ONE_DEVICE)
    head = 2 * (32 * 32 + 2 * 32) + 32 * 16 + 16  # two hidden layers; the last one has no beta
    assert resolved["parameters"] - resolved["trained_parameters"] == head
    assert resolved_settings(runs["linear_eval"], ONE_DEVICE)["trained_parameters"] == 32 * 10 + 10


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"mode": "supervised"}, "all"),
        ({"mode": "supervised", "labels_per_class": 5}, 5),
        ({"mode": "supervised", "label_fraction": 0.1}, "10 %"),
        ({"mode": "pretrain", "labels_per_class": 5}, 0),
    ],
)
def test_the_number_of_labels_of_a_result(settings, labels):
    assert _num_labels(Config(**settings)) == labels
