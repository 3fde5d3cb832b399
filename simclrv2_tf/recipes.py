"""Named settings: the paper's and small ones that were measured here.

A recipe holds what its runs share and what each stage changes. ``--recipe=NAME`` loads it, flags win over it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.config import NETWORK_SETTINGS, STAGES, Config, SettingError, parse_value

Settings = Mapping[str, Any]

# What a run takes from the run it starts from, unless told otherwise.
SAME_IMAGES = ("dataset", "data_dir", "image_size", "crop_area_min", "use_flip", "resize_method", "eval_resize")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Settings of the five stages of a semi-supervised run.

    Attributes:
        summary: what it is for and what it costs.
        common: settings of every stage.
        stages: what a stage changes.
        label_counts: labels a class that ``semi_supervised`` compares.
    """

    summary: str
    common: Settings
    stages: Mapping[str, Settings]
    label_counts: tuple[int, ...] = (10,)


# Stages of a small run, in which few labels mean few images: the batch is cut to them, the rates are not scaled up.
LABELLED = dict(
    optimizer="momentum", train_batch_size=50, warmup_epochs=0.0, learning_rate_scaling="sqrt", checkpoint_steps=1000
)
SMALL_STAGES: dict[str, Settings] = {
    "pretrain": dict(
        train_batch_size=128, train_epochs=60, checkpoint_epochs=6, learning_rate=1.0, warmup_epochs=5.0,
        weight_decay=1e-4, temperature=0.5, color_jitter_strength=0.5, use_blur=False,
    ),
    "linear_eval": dict(
        optimizer="momentum", learning_rate=0.3, weight_decay=0.0, warmup_epochs=0.0, train_batch_size=256,
        train_steps=100, checkpoint_steps=100,
    ),
    "supervised": dict(LABELLED, learning_rate=0.04, weight_decay=5e-4, train_steps=200),
    "finetune": dict(LABELLED, learning_rate=0.0014, weight_decay=5e-4, train_steps=100, ft_proj_selector=1),
    "distill": dict(
        optimizer="momentum", learning_rate=0.1, weight_decay=5e-4, train_batch_size=128, train_steps=80,
        checkpoint_steps=80, warmup_epochs=0.5, temperature=1.0,
    ),
}  # fmt: skip

RECIPES: dict[str, Recipe] = {
    "digits": Recipe(
        summary="scikit-learn's 1,797 digits, a narrow ResNet-18 at 16 px: minutes on two CPU cores.",
        common=dict(
            resnet_depth=18, width_multiplier=0.25, image_size=16, crop_area_min=0.6, use_flip=False,
            eval_batch_size=256,
        ),
        stages=SMALL_STAGES,
        label_counts=(1, 2, 5, 10),
    ),
    "fashion_mnist": Recipe(
        summary="60,000 images of clothes, the same narrow network; not yet run at full length.",
        common=dict(
            resnet_depth=18, width_multiplier=0.25, image_size=16, crop_area_min=0.2, eval_batch_size=512,
        ),
        stages=SMALL_STAGES | {
            "pretrain": dict(SMALL_STAGES["pretrain"], train_epochs=10, checkpoint_epochs=2, warmup_epochs=1.0),
            "linear_eval": dict(SMALL_STAGES["linear_eval"], train_steps=500, checkpoint_steps=500),
            "distill": dict(SMALL_STAGES["distill"], train_steps=500, checkpoint_steps=500, warmup_epochs=0.2),
        },
        label_counts=(10, 60),
    ),
}  # fmt: skip


def resolve(explicit: Settings, stage: str = "", parent: Config | None = None) -> Config:
    """The settings of a run: the defaults, the recipe's, what its parent hands on, then what the user said.

    Args:
        explicit: what the user said, by name.
        stage: a stage of a semi-supervised run; "": the run itself.
        parent: settings of the run that ``--checkpoint`` names, whose network dictates this one's.

    Raises:
        SettingError: for an unknown recipe, a bad value, or a network other than the parent's.
    """
    mode = stage or explicit.get("mode", "pretrain")
    inherited = _inherited(parent, mode)
    recipe = find(inherited | dict(explicit))
    settings = {**recipe.common, **recipe.stages.get(mode, {})} if recipe is not None else {}
    settings |= inherited
    said = dict(explicit)
    for override in explicit.get("stage", ()):
        place, _, value = override.partition("=")
        of_stage, _, name = place.partition(".")
        if of_stage not in STAGES or not name or not value:
            raise SettingError(f"--stage={override}: must look like finetune.learning_rate=0.1")
        parsed = parse_value(name, value)
        if of_stage == mode:
            said[name] = parsed
    settings |= said
    for epochs, steps in (("train_epochs", "train_steps"), ("checkpoint_epochs", "checkpoint_steps")):
        if epochs in said and steps not in said:
            settings[steps] = 0  # a recipe's steps would win over the epochs that were asked for
    if parent is not None and mode != "distill":
        for name in NETWORK_SETTINGS:
            given = getattr(parent, name)
            if name in explicit and explicit[name] != given:
                raise SettingError(f"--{name}={explicit[name]}: the checkpoint's network has {given}")
            settings[name] = given
        settings["stem"] = parent.stem_kind
    return Config(**settings | {"mode": mode})


def _inherited(parent: Config | None, mode: str) -> dict[str, Any]:
    """A run looks at the same images as its parent; to look at it is to take all of its settings."""
    if parent is None:
        return {}
    settings = dataclasses.asdict(parent)
    if mode in ("evaluate", "embed", "export", "summary"):
        return {k: v for k, v in settings.items() if k not in ("mode", "model_dir", "checkpoint", "recipe", "stage")}
    return {name: settings[name] for name in SAME_IMAGES}


def find(explicit: Settings) -> Recipe | None:
    """The recipe that is asked for: by name, or the one named as the data set.

    Raises:
        SettingError: if there is none of that name.
    """
    name = explicit.get("recipe", "auto")
    if name == "auto":
        return RECIPES.get(explicit.get("dataset", ""))
    if name == "none":
        return None
    if name not in RECIPES:
        raise SettingError(f"--recipe={name}: must be auto, none or one of {', '.join(RECIPES)}")
    return RECIPES[name]
