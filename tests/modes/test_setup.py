"""``build_run``: every setting reaches the object that it is for, and a run starts from the weights of its parent."""

import operator

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import Network
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.modes.setup import build_network, build_run
from simclrv2_tf.runs.checkpoints import save_network
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.run_dir import RunDirectory

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
    """Returns a run of each kind, built once with a value other than the default for every setting that it uses."""
    keras.config.set_dtype_policy("float32")
    folder = tmp_path_factory.mktemp("runs")
    save_run(folder / "pretrain")
    save_run(folder / "teacher", mode="supervised")
    views = dict(crop_area_min=0.5, use_flip=False, resize_method="bilinear", color_jitter_strength=0.3)
    common = views | dict(steps_per_execution=3, on_nan="skip", weight_decay=0.01, momentum=0.7, seed=5)
    pretrain = dict(memory_size=24, ema_decay=0.8, temperature=0.4, hidden_norm=False, grad_cache_micro_batch=5)
    pretrain |= dict(batch_norm_decay=0.6, global_bn=False, learning_rate=0.5, learning_rate_scaling="sqrt")
    finetune = dict(fine_tune_proj_head=False, fine_tune_after_block=2, ft_proj_selector=2, optimizer="momentum")
    distill = dict(temperature=0.7, distill_alpha=0.25, labels_per_class=3, zero_init_logits_layer=True)
    start = {"checkpoint": str(folder / "pretrain")}
    return {
        "pretrain": build(mode="pretrain", **common, **pretrain),
        "finetune": build(mode="finetune", labels_per_class=2, **start, **common, **finetune),
        "linear_eval": build(mode="linear_eval", **start),
        "distill": build(mode="distill", teacher=str(folder / "teacher"), **distill),
        "default": build(mode="pretrain", lineareval_while_pretraining=False, use_blur=False),
    }


@pytest.mark.parametrize(
    ("run", "attribute", "expected"),
    [
        ("pretrain", "method.memory.decay", 0.8),
        ("pretrain", "method.memory.queue.shape", (24, 16)),
        ("pretrain", "method.temperature", 0.4),
        ("pretrain", "method.hidden_norm", False),
        ("pretrain", "method.micro_batch", 5),
        ("pretrain", "method.skip_bad_steps", True),
        ("pretrain", "method.steps_per_execution", 3),
        ("pretrain", "method.optimizer.momentum", 0.7),
        ("pretrain", "method.optimizer.l2", 0.01),
        ("pretrain", "method.network.encoder.stem.batch_norm.momentum", 0.6),
        ("pretrain", "method.network.encoder.stem.batch_norm.synchronized", False),
        ("pretrain", "method.network.num_classes", 10),
        ("pretrain", "plan.peak_learning_rate", 0.5 * 20**0.5),
        ("pretrain", "data.seed", 5),
        ("pretrain", "data.num_views", 2),
        ("pretrain", "data.batch_size", 20),
        ("pretrain", "data.settings.crop_area_min", 0.5),
        ("pretrain", "data.settings.flip", False),
        ("pretrain", "data.settings.resize_method", "bilinear"),
        ("pretrain", "data.settings.color_jitter_strength", 0.3),
        ("pretrain", "data.settings.blur_probability", 0.5),
        ("pretrain", "data.source.num_examples", 1297),
        ("default", "method.memory", None),
        ("default", "method.skip_bad_steps", False),
        ("default", "method.network.classifier", None),
        ("default", "method.network.encoder.stem.batch_norm.synchronized", True),
        ("default", "data.settings.blur_probability", 0.0),
        ("finetune", "method.network.head_input", 2),
        ("finetune", "method.network.projection_head.trainable", False),
        ("finetune", "method.network.encoder.groups.1.trainable", False),
        ("finetune", "method.network.encoder.groups.2.trainable", True),
        ("finetune", "method.weight_decay", 0.01),
        ("finetune", "method.skip_bad_steps", True),
        ("finetune", "method.optimizer.name", "momentum"),
        ("finetune", "data.settings.color_jitter_strength", 0.0),
        ("finetune", "data.source.num_examples", 20),
        ("distill", "method.temperature", 0.7),
        ("distill", "method.alpha", 0.25),
        ("distill", "method.network.classifier.zero_init", True),
        ("distill", "method.network.projection_head.trainable", True),
    ],
)
def test_settings_reach_their_objects(run, attribute, expected, runs):
    value = runs[run]
    for name in attribute.split("."):
        value = value[int(name)] if name.isdecimal() else operator.attrgetter(name)(value)
    assert value == pytest.approx(expected) if isinstance(expected, float) else value == expected


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
    assert teacher.head_input == 1
    np.testing.assert_allclose(teacher(images)["logits_sup"], saved(images)["logits_sup"], rtol=1e-5)


def test_a_teacher_without_a_classifier_is_refused(tmp_path):
    save_run(tmp_path, num_classes=0)
    with pytest.raises(SettingError, match=f"^--teacher={tmp_path}: has no classifier; give a fine-tuned or "):
        build(mode="distill", teacher=str(tmp_path))


def test_a_teacher_with_other_classes_is_refused(tmp_path):
    save_run(tmp_path, num_classes=7, mode="supervised")
    with pytest.raises(SettingError, match=f"^--teacher={tmp_path}: has 7 classes, but digits/test has 10"):
        build(mode="distill", teacher=str(tmp_path))
