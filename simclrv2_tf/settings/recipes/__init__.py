"""Recipes: named settings of each stage for a data set. ``--recipe=NAME`` chooses one, and flags override it.

One file per family of data sets. Its docstring gives the purpose, the cost, and the published or measured accuracies;
``format_recipes`` prints these as ``docs/recipes.md``. A recipe is a plain function per stage.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import UNNAMED_RECIPES
from simclrv2_tf.settings.recipes import cifar, digits, fashion_mnist, imagenet, imagenette, own_images, stl10
from simclrv2_tf.settings.recipes.own_images import DataFacts
from simclrv2_tf.settings.recipes.recipe import Recipe, RunInfo

__all__ = [
    "RECIPES",
    "DataFacts",
    "Recipe",
    "RunInfo",
    "describe_recipe",
    "find_recipe",
    "format_recipes",
    "is_named",
    "needs_facts",
]

FILES = (imagenet, cifar, stl10, imagenette, digits, fashion_mnist)
RECIPES: dict[str, Recipe] = {name: recipe for file in FILES for name, recipe in file.RECIPES.items()}
FRACTIONS = {"1pct": 0.01, "10pct": 0.1, "100pct": 1}  # fraction of the labels, by suffix of former recipe names


def is_named(flags: Mapping[str, Any]) -> bool:
    """Returns whether ``--recipe`` names a recipe, instead of leaving the choice to the data set or using none."""
    return flags.get("recipe", "auto") not in UNNAMED_RECIPES


def needs_facts(flags: Mapping[str, Any]) -> bool:
    """Returns whether the recipe is ``own_images``: by name, or because the data set has no recipe of its own."""
    recipe, dataset = flags.get("recipe", "auto"), flags.get("dataset", "imagenet2012")
    has_recipe = any(dataset in (name, known.common.get("dataset")) for name, known in RECIPES.items())
    return recipe == "own_images" or (recipe == "auto" and not has_recipe)


def find_recipe(flags: Mapping[str, Any], data: DataFacts | None = None) -> Recipe | None:
    """Returns the recipe that ``--recipe`` names, or by default the one named as the data set, else ``own_images``.

    Args:
        flags: by name.
        data: facts for ``own_images``; None: without it, as in a program that has no data.

    Returns:
        None for the official defaults.

    Raises:
        SettingError: if there is no recipe of that name.
    """
    if needs_facts(flags):
        return own_images.build_recipe(data) if data is not None else None
    if not is_named(flags):
        return RECIPES.get(flags.get("dataset", "")) if flags.get("recipe", "auto") == "auto" else None
    name = flags["recipe"]
    base, _, labels = name.rpartition("_")
    if base in RECIPES and labels in FRACTIONS:
        raise SettingError(f"--recipe={name}: is now --recipe={base} --label_fraction={FRACTIONS[labels]}")
    if name not in RECIPES:
        names = ", ".join(["official", "own_images", *RECIPES])
        raise SettingError(f"--recipe={name}: must be auto or one of {names} (see --recipe=help)")
    return RECIPES[name]


def describe_recipe(config: Config) -> str:
    """Describes which recipe a config came from, and why; for example "digits (named as the data set)"."""
    if config.recipe != "auto":
        return f"{config.recipe} (--recipe={config.recipe})"
    if config.dataset in RECIPES:
        return f"{config.dataset} (named as the data set)"
    if needs_facts(vars(config)):
        return "own_images (the data set has no recipe of its own)"
    return "official defaults (a recipe of this data set has another name, see --recipe=help)"


HEADER = """# Recipes

A recipe is a named set of settings for each stage of a run, in a file of `simclrv2_tf/settings/recipes/`. Flags
override it. It overrides what a run takes from the run that it starts from, except for the network.
`--mode=semi_supervised` runs all stages of a recipe. `python run.py --recipe=help` prints this page.

A recipe that is named as the data set is used by default: {auto}.
Data sets without a recipe of their own use `own_images`.
`--recipe=official` turns that off and takes the defaults of the official code. Such a default recipe does not override
what a run takes from the run that it starts from, except in `semi_supervised`."""
COMMANDS = """- `python run.py --recipe={name} --mode=pretrain`
- `python run.py --recipe={name} --mode=linear_eval --checkpoint=runs/{name}-pretrain`
- `python run.py --recipe={name} --mode=supervised`
- `python run.py --recipe={name} --mode=finetune --checkpoint=runs/{name}-pretrain`
- `python run.py --recipe={name} --mode=distill --teacher=runs/{name}-finetune`"""


def format_recipes() -> str:
    """Returns all recipes with their accuracies and commands as Markdown; the text of ``docs/recipes.md``."""
    auto = ", ".join(f"`{name}`" for name, recipe in RECIPES.items() if recipe.common["dataset"] == name)
    sections = [HEADER.format(auto=auto), "## own_images", inspect.getdoc(own_images) or ""]
    for file in FILES:
        commands = "\n".join(COMMANDS.format(name=name) for name in file.RECIPES)
        sections += [f"## {file.__name__.rpartition('.')[2]}", inspect.getdoc(file) or "", commands]
    return "\n\n".join(sections)
