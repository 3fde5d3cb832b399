"""Wiring: in each mode, changing a setting changes something that the mode builds, computes or writes."""

import ast
import dataclasses
import functools
import pathlib
import re

import numpy as np
import pytest
import saved_runs
import tensorflow as tf
from tensorflow.python.framework.config import disable_op_determinism, is_op_determinism_enabled

from simclrv2_tf import help
from simclrv2_tf.distributed.devices import choose_strategy, dtype_policy, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.modes.setup import build_run, load_trained
from simclrv2_tf.settings.config import Config

TESTS = pathlib.Path(__file__).parents[1]
NAMES = ("crow", "robin", "wren", "jay")
# Two archives: 40 labelled images to train on, 12 to test on; the other one also has 10 without labels.
BASE = {
    "dataset": "npz:plain.npz",
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 8,
    "train_epochs": 3,
}
TRAINING = ("pretrain", "supervised", "distill")  # each is built by another function
NETWORK, ENCODER = "method.network", "method.network.encoder"

# Modes, setting, another value, attribute path in the run, its value with the base settings, and with the others. Each
# table is one run per mode, which has all of its other values.
TABLES = {
    "first": [
        ("pretrain", "dataset", "npz:other.npz", "data.source.name", "plain/train", "other/train+test+unlabelled"),
        ("pretrain", "train_split", "all", "data.source.num_examples", 40, 62),
        ("supervised", "dataset", "npz:other.npz", "data.source.name", "plain/train", "other/train+test"),
        ("supervised", "train_split", "all", "data.source.name", "plain/train", "other/train+test"),
        ("supervised", "labels_per_class", 3, "data.source.num_examples", 40, 12),
        ("distill", "dataset", "npz:other.npz", "data.source.name", "plain/train", "other/train+test+unlabelled"),
        ("distill", "train_split", "all", "data.source.num_examples", 40, 62),
        ("distill", "distill_alpha", 0.25, "method.alpha", 1.0, 0.25),
        ("distill", "labels_per_class", 3, "data.source.labels.num_known", 40, 12),
        (TRAINING, "eval_split", "train", "test.name", "plain/test", "other/train"),
        (TRAINING, "seed", 5, "data.seed", 0, 5),
        (TRAINING, "image_size", 12, "data.settings.image_size", 8, 12),
        (TRAINING, "crop_area_min", 0.5, "data.settings.crop_area_min", 0.08, 0.5),
        (TRAINING, "use_flip", False, "data.settings.flip", True, False),
        (TRAINING, "crop_sampler", "torchvision", "data.settings.crop_sampler", "tensorflow", "torchvision"),
        (TRAINING, "resize_method", "bilinear", "data.settings.resize_method", "bicubic", "bilinear"),
        (TRAINING, "resize_method", "bilinear", "method.views.resize_method", "bicubic", "bilinear"),
        (TRAINING, "jpeg_scaling", True, "data.settings.jpeg_scaling", False, True),
        ("pretrain", "color_jitter_strength", 0.3, "data.settings.color_jitter_strength", 1.0, 0.3),
        ("pretrain", "color_jitter_strength", 0.3, "method.views.color_jitter_strength", 1.0, 0.3),
        ("pretrain", "use_blur", False, "data.settings.blur_probability", 0.5, 0.0),
        (TRAINING, "train_batch_size", 10, "data.batch_size", 8, 10),
        (TRAINING, "optimizer", "adam", "method.optimizer.name", "lars", "adam"),
        (TRAINING, "learning_rate", 0.5, "method.optimizer._learning_rate.peak", 0.009375, 0.01953125),
        (TRAINING, "weight_decay", 0.02, "method.weight_decay", 1e-6, 0.02),
        (TRAINING, "on_nan", "skip", "method.skip_bad_steps", False, True),
        (TRAINING, "resnet_depth", 18, f"{ENCODER}.settings.depth", 10, 18),
        (TRAINING, "width_multiplier", 0.125, f"{NETWORK}.feature_dim", 32, 64),
        (TRAINING, "se_ratio", 0.25, f"{ENCODER}.settings.se_ratio", 0.0, 0.25),
        (TRAINING, "stem", "imagenet", f"{ENCODER}.stem.kind", "cifar", "imagenet"),
        (TRAINING, "conv_init", "he_fan_out", f"{ENCODER}.settings.conv_init", "lecun_normal", "he_fan_out"),
        (TRAINING, "num_proj_layers", 2, f"{NETWORK}.projection_head.depth", 3, 2),
        (TRAINING, "proj_out_dim", 6, f"{NETWORK}.projection_dim", 128, 6),
        (TRAINING, "batch_norm_decay", 0.6, f"{ENCODER}.stem.batch_norm.momentum", 0.9, 0.6),
        (TRAINING, "batch_norm_decay", 0.6, f"{NETWORK}.projection_head.layers.0.batch_norm.momentum", 0.9, 0.6),
        (TRAINING, "global_bn", False, f"{ENCODER}.stem.batch_norm.synchronized", True, False),
        (TRAINING, "zero_init_logits_layer", True, f"{NETWORK}.classifier.zero_init", False, True),
        (TRAINING, "remat", True, f"{ENCODER}.groups.3.remat", False, True),
        (("pretrain", "distill"), "steps_per_execution", 3, "method.steps_per_execution", 1, 3),
        ("supervised", "ft_proj_selector", 1, f"{NETWORK}.head_input", 0, 1),
        ("distill", "ft_proj_selector", 2, f"{NETWORK}.head_input", 0, 2),
        ("supervised", "fine_tune_after_block", 2, f"{ENCODER}.groups.1.trainable", True, False),
        ("supervised", "fine_tune_after_block", 2, f"{ENCODER}.groups.2.trainable", True, True),
        ("supervised", "fine_tune_proj_head", False, f"{NETWORK}.projection_head.trainable", True, False),
        ("pretrain", "memory_size", 24, "method.memory.queue.shape", None, (24, 6)),
        ("pretrain", "ema_decay", 0.8, "method.memory.decay", None, 0.8),
        ("pretrain", "temperature", 0.4, "method.temperature", 0.1, 0.4),
        ("pretrain", "hidden_norm", False, "method.hidden_norm", True, False),
        ("pretrain", "grad_cache_micro_batch", 5, "method.micro_batch", 0, 5),
        ("distill", "temperature", 0.7, "method.temperature", 0.1, 0.7),
    ],
    "second": [  # 40 images, 8 per step: 5 steps per epoch
        (TRAINING, "train_epochs", 7, "method.optimizer._learning_rate.total_steps", 16, 36),
        (TRAINING, "train_epochs", 7, "plan.total_steps", 16, 36),
        (TRAINING, "warmup_epochs", 2.0, "method.optimizer._learning_rate.warmup_steps", 50, 10),
        (TRAINING, "checkpoint_epochs", 2, "plan.interval_steps", 5, 10),
        (TRAINING, "learning_rate_scaling", "sqrt", "plan.peak_learning_rate", 0.009375, 0.3 * 8**0.5),
        (TRAINING, "weight_decay", 0.01, "method.optimizer.l2", 1e-6, 0.01),
        (TRAINING, "momentum", 0.7, "method.optimizer.momentum", 0.9, 0.7),
        (TRAINING, "proj_head_mode", "linear", f"{NETWORK}.projection_head.depth", 3, 1),
        (TRAINING, "mixed_precision", "bfloat16", f"{NETWORK}.compute_dtype", "float32", "bfloat16"),
        (TRAINING, "jit_compile", "true", "method.jit_compile", False, True),
        (TRAINING, "jit_compile", "true", f"{ENCODER}.stem.batch_norm.fused", True, False),
        (TRAINING, "resident_mb", 0, "data.resident_bytes", 40 * 12 * 12 * 3, 0),
        ("pretrain", "lineareval_while_pretraining", False, f"{NETWORK}.num_classes", 4, 0),
    ],
    "third": [
        (TRAINING, "train_steps", 9, "plan.total_steps", 16, 9),
        (TRAINING, "checkpoint_steps", 4, "plan.interval_steps", 5, 4),
        (TRAINING, "optimizer", "momentum", "method.optimizer.name", "lars", "momentum"),
        (TRAINING, "momentum", 0.6, "method.optimizer.momentum", 0.9, 0.6),
        (TRAINING, "steps_per_execution", 6, "method.steps_per_execution", 1, 4),  # at most an interval
        (TRAINING, "image_size", 33, f"{ENCODER}.stem.kind", "cifar", "imagenet"),  # the stem is chosen by size
        ("supervised", "label_fraction", 0.5, "data.source.num_examples", 40, 20),
        ("distill", "label_fraction", 0.5, "data.source.labels.num_known", 40, 20),
        ("distill", "distill_alpha", 0.5, "method.alpha", 1.0, 0.5),
        ("supervised", "fine_tune_after_block", 0, f"{ENCODER}.stem.trainable", True, False),
        ("supervised", "ft_proj_selector", -1, f"{NETWORK}.head_input", 0, 3),
    ],
    "files": [  # 12 images
        (TRAINING, "dataset", "folder:photos", "data.source.name", "plain/train", "photos/train"),
        (TRAINING, "train_batch_size", 6, "data.batch_size", 8, 6),
        (TRAINING, "max_corrupt_share", 0.3, "data.source.max_corrupt_share", None, 0.3),
        (TRAINING, "max_corrupt_share", 0.3, "test.max_corrupt_share", None, 0.3),
        (TRAINING, "max_file_mb", 7, "data.source.max_file_mb", None, 7),
        (TRAINING, "image_bits", 12, "data.source.image_bits", None, 12),
        (TRAINING, "cache_dataset", True, "data.source.encoded.shape", None, (12,)),
        (TRAINING, "cache_dataset", True, "test.encoded.shape", None, (8,)),
    ],
}


def modes_of(row):
    return (row[0],) if isinstance(row[0], str) else row[0]


ROWS = [(mode, table, *row[1:]) for table, rows in TABLES.items() for row in rows for mode in modes_of(row)]


def look(run, path):
    """Returns the value at a path of attributes, keys and positions; None if there is none."""
    value = run
    for name in path.split("."):
        if name == "num_known":
            value = int((value >= 0).sum())
        elif name.isdecimal():
            value = value[int(name)]
        else:
            value = value[name] if isinstance(value, dict) else getattr(value, name, None)
    return tuple(value) if isinstance(value, tf.TensorShape) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The data sets, and a run of their classes to learn from."""
    place, rng = tmp_path_factory.mktemp("wiring"), np.random.default_rng(0)
    sizes = {"train": 40, "test": 12, "unlabelled": 10}
    for name, splits in (("plain", ("train", "test")), ("other", tuple(sizes))):
        arrays = {f"x_{split}": rng.integers(0, 256, (sizes[split], 12, 12, 3), np.uint8) for split in splits}
        np.savez(place / f"{name}.npz", **arrays, y_train=np.arange(40) % 4, y_test=np.arange(12) % 4)
    saved_runs.save_run(place / "teacher", NAMES)
    saved_runs.save_images(place / "photos/train", [f"{name}/{i}.png" for name in NAMES for i in range(3)])
    saved_runs.save_images(place / "photos/test", [f"{name}/{i}.png" for name in NAMES for i in range(2)])
    return place


@pytest.fixture(autouse=True)
def working_directory(place, monkeypatch):
    monkeypatch.chdir(place)


def build(mode, **settings):
    teacher = {"teacher": "teacher"} if mode == "distill" else {}
    return build_run(resolve_config(BASE | teacher | {"mode": mode} | settings), tf.distribute.get_strategy())


@pytest.fixture(scope="module")
def runs():
    """Returns a function that builds the run of a mode, once: with the base settings, or the others of a table."""

    @functools.cache
    def build_once(mode, table=""):
        return build(mode, **{row[1]: row[2] for row in TABLES.get(table, ()) if mode in modes_of(row)})

    return build_once


@pytest.mark.parametrize(("mode", "table", "setting", "other", "path", "base_value", "other_value"), ROWS)
def test_training(mode, table, setting, other, path, base_value, other_value, runs):
    for run, expected in ((runs(mode), base_value), (runs(mode, table), other_value)):
        value = look(run, path)
        assert value == (pytest.approx(expected) if isinstance(expected, float) else expected), f"--{setting}={other}"


@pytest.mark.parametrize(
    ("mode", "views"), [("pretrain", (2, 1.0, 0.5)), ("supervised", (1, 0.0, 0.0)), ("distill", (1, 0.0, 0.0))]
)
def test_views_of_each_mode(mode, views, runs):
    paths = ("data.num_views", "data.settings.color_jitter_strength", "data.settings.blur_probability")
    assert tuple(look(runs(mode), path) for path in paths) == views


@pytest.mark.parametrize("mode", TRAINING)
def test_the_seed_is_that_of_the_initial_weights(mode, runs):
    kernels = [np.array(run.method.network.encoder.stem.conv.kernel) for run in (runs(mode), build(mode))]
    np.testing.assert_array_equal(*kernels)
    assert np.abs(build(mode, seed=5).method.network.encoder.stem.conv.kernel - kernels[0]).min() > 0


def test_the_seed_is_that_of_the_choice_of_labels():
    subsets = [build("supervised", labels_per_class=2, seed=seed).data.source.images for seed in (0, 0, 5)]
    np.testing.assert_array_equal(subsets[0], subsets[1])
    assert (subsets[0] != subsets[2]).any(axis=(1, 2, 3)).sum() >= 4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("npz:plain.npz", "plain/train is in this machine's memory, where no other can read it"),
        ("folder:photos", "grpc://localhost:1 did not answer within --worker_timeout=1 seconds"),
    ],
)
def test_the_data_service_and_its_timeout(data, message):
    settings = {"dataset": data, "data_service": "grpc://localhost:1", "worker_timeout": 1}
    with pytest.raises(SettingError, match=f"^--data_service=grpc://localhost:1: {message}$"):
        build("pretrain", **settings)


# The other modes


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        ({}, "pretrain"),
        ({"checkpoint": "teacher"}, "finetune"),
        ({"teacher": "teacher"}, "distill"),
        ({"teacher": "teacher", "checkpoint": "teacher"}, "distill"),
    ],
)
@pytest.mark.parametrize("looking", ["preview", "benchmark"])
def test_a_run_that_is_previewed_or_measured(looking, flags, mode):
    config = resolve_config({"mode": looking, "dataset": "npz:plain.npz", "learning_rate": 0.7} | flags)
    assert (config.mode, config.learning_rate, config.dataset) == (mode, 0.7, "npz:plain.npz")
    assert (config.checkpoint, config.teacher) == (flags.get("checkpoint", ""), flags.get("teacher", ""))


def test_the_recipe_counts_the_images_of_the_run_that_a_run_starts_from(place, capsys):
    saved_runs.save_run(place / "start", NAMES, dataset="npz:plain.npz")
    assert resolve_config({"mode": "finetune", "checkpoint": "start"}).dataset == "npz:plain.npz"
    assert "Recipe own_images, for 40 images of 12 px, 4 classes" in capsys.readouterr().out


# Setting, another value, attribute path in the trained model, its value in the run, and with the other value.
TRAINED = [
    ("image_size", 12, "image_size", 8, 12),
    ("image_bits", 12, "image_bits", 0, 12),
    ("eval_resize", "tf1", "eval_resize", "bicubic", "tf1"),
    ("mixed_precision", "bfloat16", "network.compute_dtype", "float32", "bfloat16"),
    ("jit_compile", "true", "network.encoder.stem.batch_norm.fused", True, False),
    ("crop_area_min", 0.5, "views.crop_area_min", 0.08, 0.5),  # to train it further
    ("use_flip", False, "views.flip", True, False),
]


@pytest.mark.parametrize("mode", ["evaluate", "predict", "embed", "select", "export"])
def test_trained_models(mode):
    flags = {"mode": mode, "checkpoint": "teacher", "images": "photos"}
    others = {setting: other for setting, other, *_ in TRAINED}
    for settings, column in (({}, 3), (others, 4)):
        model = load_trained(resolve_config(flags | settings), tf.distribute.get_strategy())
        values = {row[2]: look(model, row[2]) for row in TRAINED}
        assert values == {row[2]: row[column] for row in TRAINED}
        assert model.class_names == NAMES


@pytest.mark.parametrize(("value", "policy"), [
    ("auto", "float32"), ("float32", "float32"), ("bfloat16", "mixed_bfloat16"), ("float16", "mixed_float16"),
    ("float64", "float64"),
])  # fmt: skip
def test_dtype_policies(value, policy):
    assert dtype_policy(Config(mixed_precision=value)) == policy
    assert dtype_policy(Config(use_tpu=True, mixed_precision="auto")) == "mixed_bfloat16"


@pytest.mark.parametrize(("value", "on_tpu", "compiled"), [
    ("auto", False, False), ("auto", True, True), ("true", False, True), ("false", True, False),
])  # fmt: skip
def test_xla(value, on_tpu, compiled):
    assert use_xla(Config(jit_compile=value, use_tpu=on_tpu), tf.distribute.get_strategy()) is compiled


def test_deterministic_operations():
    assert not is_op_determinism_enabled()
    try:
        choose_strategy(Config())
        assert not is_op_determinism_enabled()
        choose_strategy(Config(deterministic=True))
        assert is_op_determinism_enabled()
    finally:
        disable_op_determinism()


# Completeness

ELSEWHERE = {  # tested elsewhere, in the modes that read it
    "mode": "modes/test_modes.py::test_semi_supervised_runs_every_stage_and_reports",
    "model_dir": "modes/test_modes.py::test_semi_supervised_runs_every_stage_and_reports",
    "checkpoint": "modes/test_setup.py::test_a_run_starts_from_the_weights_of_the_checkpoint",
    "recipe": "settings/test_merge.py::test_recipes_are_found_by_name",
    "stage": "settings/test_merge.py::test_settings_of_one_stage",
    "seeds": "settings/test_merge.py::test_seeds_draw_the_labels_of_all_stages_but_pretraining_is_shared",
    "format": "modes/test_export_mode.py::test_litert_and_onnx_equal_the_saved_model",
    "tracker": "runs/test_trackers.py::test_tensorboard_receives_settings_and_figures",
    "compare": "modes/test_modes.py::test_compares_runs",
    "keep_checkpoint_max": "runs/test_saving.py::test_the_newest_checkpoints_are_kept",
    "keep_best": "runs/test_saving.py::test_the_best_checkpoint_is_kept",
    "on_checkpoint_error": "runs/test_saving.py::test_a_checkpoint_that_cannot_be_written",
    "override_config": "modes/test_modes.py::test_other_settings_resume_with_override_config",
    "report": "modes/test_modes.py::test_the_report_is_written_at_each_evaluation_and_at_the_end",
    "callbacks": "runs/test_loop.py::test_callbacks_get_the_metrics_and_can_add_columns",
    "data_dir": "data/test_records.py::test_splits_by_their_usual_names",
    "images": "modes/test_predict.py::test_every_image_is_in_the_table_and_the_least_sure_on_the_page",
    "select_count": "modes/test_select.py::test_more_images_than_there_are_is_an_error",
    "select_by": "modes/test_select.py::test_images_without_a_label_are_selected",
    "method": "runs/test_loop.py::test_is_trained_and_resumes_bit_by_bit_with_its_predictor",
    "encoder": "runs/test_loop.py::test_goes_through_all_stages_with_unnamed_layers",
    "input_range": "models/test_pretrained.py::test_other_models_need_input_range",
    "trust_run_code": "settings/test_merge.py::test_code_that_only_a_run_names_is_not_trusted",
    "sk_ratio": "models/test_encoders.py::test_resnet_has_the_settings_of_the_config",
    "eval_resize": "modes/test_evaluation_settings.py::test_images_are_resized_as_the_settings_say",
    "teacher": "modes/test_setup.py::test_the_teacher_reads_its_own_layer_of_the_head",
    "eval_batch_size": "modes/test_evaluation_settings.py::test_logits_of_some_steps",
    "eval_steps": "modes/test_evaluation_settings.py::test_logits_of_some_steps",
    "deterministic": "settings/test_wiring.py::test_deterministic_operations",
    "cpu_replicas": "distributed/test_devices.py::test_logical_cpu_devices",
    "worker_timeout": "distributed/test_devices.py::test_missing_worker_is_named",
    "data_service": "settings/test_wiring.py::test_the_data_service_and_its_timeout",
    "use_tpu": "distributed/test_devices.py::test_unreachable_tpu_is_refused",
    "tpu_name": "distributed/test_devices.py::test_unreachable_tpu_is_refused",
}


def flags_of(mode):
    """Returns the settings that the help of a mode lists."""
    return set(re.findall(r"^  --(\w+)=", help.help_text(["run.py", f"--mode={mode}", "--help"]), re.M))


@pytest.mark.parametrize(
    ("mode", "table_mode"),
    [(mode, mode) for mode in TRAINING] + [(m, "supervised") for m in ("finetune", "linear_eval")],
)
def test_every_setting_of_training_is_in_a_table_or_elsewhere(mode, table_mode):
    in_tables = {row[2] for row in ROWS if row[0] == table_mode}
    assert flags_of(mode) - in_tables - ELSEWHERE.keys() == set()


# Read by `open_source`, which all modes call alike; the tables test it in training.
DATA = {"dataset", "train_split", "eval_split", "cache_dataset", "max_corrupt_share", "max_file_mb"}


@pytest.mark.parametrize("mode", ["evaluate", "predict", "embed", "select", "export"])
def test_every_setting_of_a_trained_model_is_in_a_table_or_elsewhere(mode):
    assert flags_of(mode) - {row[0] for row in TRAINED} - ELSEWHERE.keys() - DATA == set()


def test_every_setting_is_in_a_table_or_elsewhere():
    names = {field.name for field in dataclasses.fields(Config)}
    tables = {row[2] for row in ROWS} | {row[0] for row in TRAINED}
    assert names - tables - ELSEWHERE.keys() == set()
    assert (tables | ELSEWHERE.keys()) <= names


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_the_tests_elsewhere_exist(test):
    path, name = test.split("::")
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    marks = [ast.unparse(mark) for mark in functions[name].decorator_list]
    assert "pytest.mark.slow" not in marks
