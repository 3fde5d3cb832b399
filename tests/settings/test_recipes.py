"""Recipes: the numbers of the paper, two steps of every stage, the generated page."""

import csv
import dataclasses
import json
import math
import pathlib
import re
from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import cli, modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.settings.config import Config, tagged
from simclrv2_tf.settings.fields import STAGES
from simclrv2_tf.settings.merge import resolve
from simclrv2_tf.settings.recipes import RECIPES, RunInfo, describe_recipe, find_recipe

DEFAULT = Config()
IMAGES = {"imagenet2012": 1_281_167, "imagenet2012_subset/1pct": 12_811, "imagenet2012_subset/10pct": 128_116}
IMAGES |= {"cifar10": 50_000}


def settings_of(name, mode, flags=None, parent=None):
    """Returns the settings that a recipe itself sets for a stage."""
    config = resolve({"recipe": name, "mode": mode, "checkpoint": "run", "teacher": "run"} | (flags or {}), "", parent)
    names = {field.name for field in dataclasses.fields(RunInfo)} - {"parent"}
    return RECIPES[name].settings(RunInfo(parent=parent, **{name: getattr(config, name) for name in names})), config


@pytest.mark.parametrize("labels", [{}, {"labels_per_class": 700}, {"label_fraction": 0.01}, {"label_fraction": 0.1}])
@pytest.mark.parametrize("mode", (*STAGES, "semi_supervised"))
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_returns_settings_of_the_right_type(name, mode, labels):
    if name == "imagenet":
        labels = labels | {"dataset": "folder:x"}  # otherwise the recipe would use a subset of ImageNet
    settings, config = settings_of(name, mode, labels)
    for key, value in settings.items():
        assert type(value) is type(getattr(DEFAULT, key))
        assert getattr(config, key) == labels.get(key, value)
    network = set(tagged("network"))
    assert not network & (settings.keys() - RECIPES[name].common.keys())  # else ``RunInfo`` would not know it
    assert min(RECIPES[name].label_counts, default=1) > 0


def resolved(recipe, mode, parent=None, **flags):
    """Returns the config of a stage and its plan."""
    config = resolve(dict(recipe=recipe, checkpoint="run", teacher="run", **flags), mode, parent)
    return config, Plan.of(config, IMAGES[config.dataset])


@pytest.mark.parametrize(
    "recipe, fraction, mode, images, epochs, peak, steps, warmup",
    [
        ("imagenet", 1.0, "pretrain", "imagenet2012", 800, 6.4, 250_228, 12_511),
        ("imagenet", 0.01, "pretrain", "imagenet2012", 800, 6.4, 250_228, 12_511),
        ("imagenet", 1.0, "linear_eval", "imagenet2012", 90, 1.6, 28_151, 0),
        ("imagenet", 1.0, "supervised", "imagenet2012", 90, 6.4, 28_151, 1_407),
        ("imagenet", 0.1, "supervised", "imagenet2012_subset/10pct", 90, 3.2, 11_261, 563),
        ("imagenet", 1.0, "finetune", "imagenet2012", 30, 0.16, 37_535, 0),
        ("imagenet", 0.1, "finetune", "imagenet2012_subset/10pct", 30, 0.16, 3_754, 0),
        ("imagenet", 0.01, "finetune", "imagenet2012_subset/1pct", 60, 0.16, 751, 0),
        ("imagenet", 0.01, "distill", "imagenet2012", 400, 6.4, 125_114, 6_255),
        ("cifar10", 1.0, "pretrain", "cifar10", 1000, 2.0, 97_657, 976),
        ("cifar10", 1.0, "linear_eval", "cifar10", 100, 0.2, 9_766, 0),
        ("cifar10_sgd", 1.0, "pretrain", "cifar10", 100, 0.12, 9_766, 0),
    ],
)
def test_steps_and_learning_rates(recipe, fraction, mode, images, epochs, peak, steps, warmup):
    config, plan = resolved(recipe, mode, label_fraction=fraction)
    assert (config.dataset, config.train_epochs) == (images, epochs)
    assert (plan.peak_learning_rate, plan.total_steps, plan.warmup_steps) == (pytest.approx(peak), steps, warmup)


# Depth, width, selective kernels.
PAPER_NETWORKS = [(depth, width, sk) for depth in (50, 101, 152) for width in (1, 2) for sk in (False, True)]
PAPER_NETWORKS += [(152, 3, True)]


@pytest.mark.parametrize("fraction", [1.0, 0.01, 0.1])
@pytest.mark.parametrize("depth, width, selective_kernels", PAPER_NETWORKS)
def test_large_networks_are_fine_tuned_slowly(depth, width, selective_kernels, fraction):
    flags = {"resnet_depth": depth, "width_multiplier": float(width), "sk_ratio": 0.0625 * selective_kernels}
    pretrained, plan = resolved("imagenet", "pretrain", **flags)
    assert plan.peak_learning_rate == pytest.approx(6.4)
    config, plan = resolved("imagenet", "finetune", pretrained, label_fraction=fraction)
    assert {name: getattr(config, name) for name in flags} == flags
    assert plan.peak_learning_rate == pytest.approx(0.064 if width > 1 or selective_kernels else 0.16)
    few = fraction < 1
    assert (config.optimizer, config.weight_decay, config.ft_proj_selector) == ("lars", 0, 1 if few else 0)


def test_the_papers_other_settings():
    pretraining, _ = resolved("imagenet", "pretrain")
    assert (pretraining.weight_decay, pretraining.temperature, pretraining.num_proj_layers) == (1e-4, 0.1, 3)
    assert (pretraining.resize_method, pretraining.eval_resize) == ("bicubic", "bicubic")  # the exact ones
    linear, _ = resolved("imagenet", "linear_eval")
    assert (linear.optimizer, linear.weight_decay, linear.ft_proj_selector) == ("momentum", 1e-6, 0)
    big = pretraining.replace(resnet_depth=152, width_multiplier=3.0, sk_ratio=0.0625)
    small_student, _ = resolved("imagenet", "distill", big)
    assert (small_student.temperature, small_student.weight_decay) == (1, 1e-4)
    assert resolved("imagenet", "distill", pretraining)[0].temperature == 0.1  # self-distillation


def test_a_subset_of_imagenet_is_its_own_data_set():
    """Even if no data set is given: otherwise one per cent of one per cent would be used."""
    for flags in ({}, {"dataset": "imagenet2012"}):
        config, _ = resolved("imagenet", "finetune", label_fraction=0.01, **flags)
        assert (config.dataset, config.label_fraction) == ("imagenet2012_subset/1pct", 1.0)
        assert (config.train_batch_size, config.checkpoint_epochs) == (1024, 10)
    own = resolve({"recipe": "imagenet", "dataset": "folder:x", "label_fraction": 0.01, "checkpoint": "x"}, "finetune")
    assert (own.dataset, own.label_fraction, own.train_epochs, own.ft_proj_selector) == ("folder:x", 0.01, 60, 1)
    half, _ = resolved("imagenet", "finetune", label_fraction=0.5)
    assert (half.dataset, half.label_fraction, half.ft_proj_selector) == ("imagenet2012", 0.5, 0)


@pytest.mark.parametrize("recipe", ["fashion_mnist", "fashion_mnist_32px"])
@pytest.mark.parametrize(
    "labels, supervised, finetune",
    [  # learning rate, batch, smallest crop, steps at 16 px, at 32 px
        ({"labels_per_class": 1}, (0.04, 50, 0.9, 800, 800), (0.0014, 50, 0.6, 400, 400)),
        ({"labels_per_class": 59}, (0.04, 50, 0.9, 800, 800), (0.0014, 50, 0.6, 400, 400)),
        ({"labels_per_class": 60}, (0.04, 50, 0.9, 800, 800), (0.0378, 50, 0.6, 400, 400)),
        ({"label_fraction": 0.01}, (0.04, 50, 0.9, 800, 800), (0.0378, 50, 0.6, 400, 400)),
        ({"labels_per_class": 600}, (0.013, 128, 0.6, 1200, 2400), (0.0126, 128, 0.6, 1200, 1200)),
        ({"label_fraction": 0.1}, (0.013, 128, 0.6, 1200, 2400), (0.0126, 128, 0.6, 1200, 1200)),
        ({}, (0.013, 128, 0.6, 3000, 9400), (0.0126, 128, 0.6, 3000, 4700)),
    ],
)
def test_fashion_mnist_depends_on_the_number_of_labels(recipe, labels, supervised, finetune):
    for mode, expected in (("supervised", supervised), ("finetune", finetune)):
        config = resolve({"recipe": recipe, "mode": mode, "checkpoint": "run"} | labels)
        steps = expected[4] if recipe.endswith("32px") else expected[3]
        found = (config.learning_rate, config.train_batch_size, config.crop_area_min, config.train_steps)
        assert found == (*expected[:3], steps)


def test_the_batch_of_imagenette():
    stages = ("pretrain", "linear_eval", "supervised", "finetune", "distill")
    assert {settings_of("imagenette", mode)[1].train_batch_size for mode in stages} == {256}


@pytest.mark.parametrize(
    "name, flags",
    [
        ("imagenet_1pct", "--recipe=imagenet --label_fraction=0.01"),
        ("imagenet_10pct", "--recipe=imagenet --label_fraction=0.1"),
        ("fashion_mnist_1pct", "--recipe=fashion_mnist --label_fraction=0.01"),
        ("fashion_mnist_32px_100pct", "--recipe=fashion_mnist_32px --label_fraction=1"),
    ],
)
def test_a_recipe_that_was_replaced_names_the_flags(name, flags):
    with pytest.raises(SettingError) as caught:
        find_recipe({"recipe": name})
    assert str(caught.value) == f"--recipe={name}: is now {flags}"


def test_which_recipe_was_used_and_why():
    assert describe_recipe(Config(dataset="digits")) == "digits (named as the data set)"
    assert describe_recipe(Config(dataset="npz:x")) == "own_images (the data set has no recipe of its own)"
    assert describe_recipe(Config(dataset="npz:x", recipe="digits")) == "digits (--recipe=digits)"
    assert describe_recipe(Config(dataset="digits", recipe="none")) == "none (--recipe=none)"


# Two steps of every stage

# Settings for a small run; everything else comes from the recipe.
TOY = {
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 32,
    "train_batch_size": 8,
    "train_steps": 2,
    "checkpoint_steps": 2,
    "eval_batch_size": 8,
    "report": False,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """40 training images of 4 classes, 8 test images, and 24 without labels, as in STL-10."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)
        for split, count in (("train", 40), ("test", 8), ("unlabelled", 24))
    }
    np.savez(path, **arrays, y_train=np.arange(40) % 4, y_test=np.arange(8) % 4)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """``run(recipe, mode, …)``: the directory of a toy run. Recipes that agree on a stage share its run.

    Without graphs, because tracing takes longer than these steps.
    """
    place = tmp_path_factory.mktemp("runs")
    finished: dict[Config, pathlib.Path] = {}

    def run(recipe, mode, **start):
        explicit = {"recipe": recipe, "mode": mode, "dataset": images} | TOY | start
        config = resolve_config(explicit).replace(recipe="none")
        if config not in finished:
            finished[config] = place / str(len(finished))
            modes.run(explicit | {"model_dir": str(finished[config])})
        return finished[config]

    tf.config.run_functions_eagerly(True)
    yield run
    tf.config.run_functions_eagerly(False)


def check(model_dir, own):
    """Asserts that a run took two steps with the recipe's own settings."""
    config = json.loads((model_dir / "config.json").read_text())
    own = {name: value for name, value in own.items() if name not in {"dataset", *TOY}}
    assert {name: config[name] for name in own} == own
    (row,) = csv.DictReader((model_dir / "metrics.csv").read_text().splitlines())
    assert row["step"] == "2" and math.isfinite(float(row["loss"]))
    assert (model_dir / "result.json").is_file()


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
@pytest.mark.slow  # test_modes.py runs the stages of the digits
@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_runs(run, name):
    pretrained = run(name, "pretrain")
    start = {"checkpoint": str(pretrained)}
    finetuned = run(name, "finetune", **start)
    check(pretrained, settings_of(name, "pretrain")[0])
    check(finetuned, settings_of(name, "finetune")[0])
    check(run(name, "linear_eval", **start), settings_of(name, "linear_eval")[0])
    check(run(name, "supervised"), settings_of(name, "supervised")[0])
    teacher = Config.from_json((finetuned / "config.json").read_text())
    student = run(name, "distill", teacher=str(finetuned))
    check(student, settings_of(name, "distill", TOY, teacher)[0])
    assert json.loads((student / "config.json").read_text())["temperature"] == (1 if name == "digits" else 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_distillation_into_another_network_runs(run):
    teacher = run("imagenet", "finetune", checkpoint=str(run("imagenet", "pretrain")))
    student = run("imagenet", "distill", teacher=str(teacher), width_multiplier=0.03125)
    check(student, settings_of("imagenet", "distill")[0])


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_features_of_unlabelled_images_are_compared_with_labelled_ones_when_asked(run, tmp_path):
    evaluation = {"mode": "evaluate", "checkpoint": str(run("stl10", "pretrain")), "model_dir": str(tmp_path)}
    assert "knn_top1" not in modes.run(evaluation)
    assert "knn_top1" in modes.run(evaluation | {"train_split": "train"})


# The page


def test_the_page_is_what_the_recipes_print(capsys):
    cli.main(["run.py", "--recipe=help"])
    page = pathlib.Path(__file__).parents[2] / "docs/recipes.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")


# Every published and measured figure, by section of the page.
FIGURES = {
    "imagenet": """
        57.9 68.4 76.3 71.7 76.6  64.5 72.1 78.7 74.6 78.5  66.3 73.9 79.1 75.6 77.8  70.6 77.0 81.3 77.7 79.3
        62.1 71.4 78.2 73.6 78.0  68.3 75.1 80.6 76.3 79.6  69.1 75.8 80.7 77.0 78.9  73.2 78.8 82.4 79.0 80.1
        64.0 73.0 79.3 74.5 78.3  70.0 76.5 81.3 77.2 79.9  70.2 76.6 81.1 77.4 79.1  74.2 79.4 82.9 79.4 80.4
        74.9 80.1 83.1 79.8 80.5  71.7 71.1 73.9 77.5""",
    "cifar": "91 65.8",
    "stl10": "76.5",
    "imagenette": "88.9",
    "digits": "95.5±1.3 96.1±0.7 87.7±2.0 94.1±1.9 94.6±1.1",
    "fashion_mnist": """85.5±0.0 86.6±0.1  34.1±5.3 58.4±1.4 58.8±1.5  69.4±3.4 75.8±1.5 76.1±1.5
        80.4±0.3 83.0±0.6 83.2±0.9  88.0±0.2 89.1±0.5 89.2±0.2  90.2±0.1 91.1±0.2 90.7±0.2""",
}
SOURCES = {
    "imagenet": "https://arxiv.org/abs/2006.10029 https://github.com/google-research/simclr/issues/77",
    "cifar": "https://github.com/google-research/simclr https://github.com/vturrisi/solo-learn",
    "stl10": "https://github.com/Spijkervet/SimCLR",
    "imagenette": "https://docs.lightly.ai/self-supervised-learning/getting_started/benchmarks.html",
    "digits": "benchmarks/peer.py 2026-11-30",
    "fashion_mnist": "benchmarks/paper_claims.py 2026-11-26",
}


def test_the_page_has_every_command_and_figure(capsys):
    cli.main(["run.py", "--recipe=help"])
    page = capsys.readouterr().out
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    assert set(sections) == {"own_images", *FIGURES}
    for name, section in ((name, sections[name]) for name in FIGURES):
        found = re.findall(r"\b\d+(?:\.\d)?(?:±\d\.\d)?", section.replace(" ± ", "±"))
        assert not Counter(FIGURES[name].split()) - Counter(found)
        assert all(source in section for source in SOURCES[name].split())
    commands = [line for line in page.splitlines() if line.startswith("- `python run.py ")]
    assert len(commands) == len(RECIPES) * len(STAGES)
    for name in RECIPES:
        assert all(any(f"--recipe={name} --mode={mode}" in line for line in commands) for mode in STAGES)
