"""The recipes hold the paper's numbers; each of their stages runs; their page is what they print."""

import csv
import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import cli, modes
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.settings.config import STAGES, Config
from simclrv2_tf.settings.merge import resolve
from simclrv2_tf.settings.recipes import PAPER_NETWORKS, RECIPES

DEFAULT = Config()
IMAGES = {"imagenet2012": 1_281_167, "imagenet2012_subset/1pct": 12_811, "imagenet2012_subset/10pct": 128_116}
IMAGES |= {"cifar10": 50_000}
QUICK = ("digits", "imagenet")
QUICK_AND_SLOW = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mode", (*STAGES, "semi_supervised"))
def test_every_recipe_is_made_of_settings(name, mode):
    recipe = RECIPES[name]
    changes = [recipe.of_stage(mode), recipe.large.get(mode, {}), recipe.self_distill]
    known = {field.name for field in dataclasses.fields(Config)}
    assert set().union(*changes) <= known and {*recipe.stages, *recipe.large} <= set(STAGES)
    assert {*recipe.published.top1, *recipe.measured.top1} <= set(STAGES)
    assert recipe.summary and min(recipe.label_counts, default=1) > 0
    found = resolve({"teacher": "run", "checkpoint": "run", "recipe": name, "mode": mode})  # without contradictions
    for key, value in recipe.of_stage(mode).items():
        assert getattr(found, key) == value and type(value) is type(getattr(DEFAULT, key))


def planned(recipe, mode, parent=None, **said):
    """The settings of a stage and its plan."""
    config = resolve(dict(recipe=recipe, checkpoint="run", teacher="run", **said), mode, parent)
    return config, Plan.of(config, IMAGES[config.dataset])


@pytest.mark.parametrize(
    "recipe, mode, images, epochs, peak, steps, warmup",
    [
        ("imagenet", "pretrain", "imagenet2012", 800, 6.4, 250_228, 12_511),
        ("imagenet_1pct", "pretrain", "imagenet2012", 800, 6.4, 250_228, 12_511),
        ("imagenet", "linear_eval", "imagenet2012", 90, 1.6, 28_151, 0),
        ("imagenet", "supervised", "imagenet2012", 90, 6.4, 28_151, 1_407),
        ("imagenet", "finetune", "imagenet2012", 30, 0.16, 37_535, 0),
        ("imagenet_10pct", "finetune", "imagenet2012_subset/10pct", 30, 0.16, 3_754, 0),
        ("imagenet_1pct", "finetune", "imagenet2012_subset/1pct", 60, 0.16, 751, 0),
        ("imagenet_1pct", "distill", "imagenet2012", 400, 6.4, 125_114, 6_255),
        ("cifar10", "pretrain", "cifar10", 1000, 2.0, 97_657, 976),
        ("cifar10", "linear_eval", "cifar10", 100, 0.2, 9_766, 0),
        ("cifar10_sgd", "pretrain", "cifar10", 100, 0.12, 9_766, 0),
    ],
)
def test_how_long_and_how_fast(recipe, mode, images, epochs, peak, steps, warmup):
    config, plan = planned(recipe, mode)
    assert (config.dataset, config.train_epochs) == (images, epochs)
    assert (plan.peak_learning_rate, plan.total_steps, plan.warmup_steps) == (pytest.approx(peak), steps, warmup)


@pytest.mark.parametrize("subset", ["", "_1pct", "_10pct"])
@pytest.mark.parametrize("depth, width, selective_kernels", PAPER_NETWORKS)
def test_large_networks_are_fine_tuned_slowly(depth, width, selective_kernels, subset):
    flags = {"resnet_depth": depth, "width_multiplier": float(width), "sk_ratio": 0.0625 * selective_kernels}
    pretrained, plan = planned("imagenet", "pretrain", **flags)
    assert plan.peak_learning_rate == pytest.approx(6.4)
    config, plan = planned(f"imagenet{subset}", "finetune", pretrained)
    assert {name: getattr(config, name) for name in flags} == flags
    assert plan.peak_learning_rate == pytest.approx(0.064 if width > 1 or selective_kernels else 0.16)
    assert (config.optimizer, config.weight_decay, config.ft_proj_selector) == ("lars", 0, 1 if subset else 0)


def test_the_papers_other_settings():
    pretraining, _ = planned("imagenet", "pretrain")
    assert (pretraining.weight_decay, pretraining.temperature, pretraining.num_proj_layers) == (1e-4, 0.1, 3)
    assert (pretraining.resize_method, pretraining.eval_resize) == ("bicubic", "bicubic")  # the exact ones
    linear, _ = planned("imagenet", "linear_eval")
    assert (linear.optimizer, linear.weight_decay, linear.ft_proj_selector) == ("momentum", 1e-6, 0)
    big = pretraining.replace(resnet_depth=152, width_multiplier=3.0, sk_ratio=0.0625)
    small_student, _ = planned("imagenet_1pct", "distill", big)
    assert (small_student.temperature, small_student.weight_decay) == (1, 1e-4)
    assert planned("imagenet_1pct", "distill", pretraining)[0].temperature == 0.1  # self-distillation


# Two steps of every stage

# What makes a run small; everything else is the recipe's own.
TOY = {
    "resnet_depth": 18,
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
    """40 training images of 4 classes, 8 to test on, and 24 without labels as STL-10 has them."""
    path = tmp_path_factory.mktemp("images") / "images.npz"
    rng = np.random.default_rng(0)
    arrays = {
        f"x_{split}": rng.integers(0, 256, (count, 24, 24, 3), dtype=np.uint8)
        for split, count in (("train", 40), ("test", 8), ("unlabelled", 24))
    }
    np.savez(path, **arrays, y_train=np.arange(40) % 4, y_test=np.arange(8) % 4)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def run(images, tmp_path_factory, half_resnet18):
    """``run(recipe, mode, …)``: the directory of a toy run. Recipes that agree on a stage share its run.

    Without graphs, which take longer to make than these steps.
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
    """A run took two steps with the recipe's own settings."""
    config = json.loads((model_dir / "config.json").read_text())
    own = {name: value for name, value in own.items() if name not in {"dataset", *TOY}}
    assert {name: config[name] for name in own} == own
    (row,) = csv.DictReader((model_dir / "metrics.csv").read_text().splitlines())
    assert row["step"] == "2" and math.isfinite(float(row["loss"]))
    assert (model_dir / "result.json").is_file()


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
@pytest.mark.parametrize("name", QUICK_AND_SLOW)
def test_every_stage_runs(run, name):
    recipe = RECIPES[name]
    pretrained = run(name, "pretrain")
    start = {"checkpoint": str(pretrained)}
    finetuned = run(name, "finetune", **start)
    check(pretrained, recipe.of_stage("pretrain"))
    check(finetuned, recipe.of_stage("finetune"))
    check(run(name, "linear_eval", **start), recipe.of_stage("linear_eval"))
    check(run(name, "supervised"), recipe.of_stage("supervised"))
    check(run(name, "distill", teacher=str(finetuned)), recipe.of_stage("distill") | recipe.self_distill)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_distillation_into_another_network_runs(run):
    teacher = run("imagenet_1pct", "finetune", checkpoint=str(run("imagenet_1pct", "pretrain")))
    student = run("imagenet_1pct", "distill", teacher=str(teacher), width_multiplier=0.03125)
    check(student, RECIPES["imagenet_1pct"].of_stage("distill"))


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
def test_features_of_unlabelled_images_are_compared_with_labelled_ones_when_asked(run, tmp_path):
    evaluation = {"mode": "evaluate", "checkpoint": str(run("stl10", "pretrain")), "model_dir": str(tmp_path)}
    assert "knn_top1" not in modes.run(evaluation)
    assert 0 <= modes.run(evaluation | {"train_split": "train"})["knn_top1"] <= 1


# The page


def test_the_page_is_what_the_recipes_print(capsys):
    cli.main(["run.py", "--recipe=help"])
    page = pathlib.Path(__file__).parents[2] / "docs/recipes.md"
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")


def test_the_page_has_every_recipe_and_network(capsys):
    cli.main(["run.py", "--recipe=help"])
    page = capsys.readouterr().out
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")[1:]}
    for name, recipe in RECIPES.items():
        section = " ".join(sections[name].split())
        assert recipe.summary in section and f"--recipe={name} --mode=finetune" in section
        for results in (recipe.published, recipe.measured):
            assert all(f"| {number} |" in section for number in results.top1.values())
            assert not results.top1 or results.source in section
        for mode in STAGES:  # a command that is listed is right
            assert f"--mode={mode}" not in section or f"run.py --recipe={name} --mode={mode}" in section
        listed = sum(f"--mode={mode}" in section for mode in STAGES)
        assert section.count("not measured here") == listed - len(recipe.measured.top1)
    assert sections["The networks of the paper"].count("\n| `--resnet_depth=") == len(PAPER_NETWORKS) == 13
