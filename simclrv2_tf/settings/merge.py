"""What wins over what: the defaults, a recipe, the run that this one starts from, and what the user said."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import NETWORK_SETTINGS, STAGES, Config, parse_value, unknown_setting_error
from simclrv2_tf.settings.recipes import RECIPES, Recipe, Settings

# What a run takes from the run it starts from, unless told otherwise.
SAME_IMAGES = (
    "dataset", "data_dir", "image_size", "crop_area_min", "use_flip", "resize_method", "jpeg_scaling",
    "eval_resize",
)  # fmt: skip
# What a mode that looks at a run does not take from it.
NOT_INHERITED = ("mode", "model_dir", "checkpoint", "recipe", "stage", "format")
ENCODER_SETTINGS = ("resnet_depth", "width_multiplier", "sk_ratio", "se_ratio")


def resolve(explicit: Settings, stage: str = "", parent: Config | None = None) -> Config:
    """The settings of a run: the defaults, the recipe's, what its parent hands on, then what the user said.

    A recipe that the user named wins over the parent, but for the network; one that came with the data set does not.

    Args:
        explicit: what the user said, by name.
        stage: a stage of a semi-supervised run; "": the run itself.
        parent: settings of the run that ``--checkpoint`` names, whose network dictates this one's; of the teacher, for
            ``distill``.

    Raises:
        SettingError: for an unknown setting or recipe, a bad value, or a network other than the parent's.
    """
    known = {field.name for field in dataclasses.fields(Config)}
    for name in explicit:
        if name not in known:
            raise unknown_setting_error(name)
    mode = stage or explicit.get("mode", "pretrain")
    said = _said(explicit, mode)
    inherited = _inherited(parent, mode)
    recipe = find(inherited | dict(explicit))
    settings = recipe.of_stage(mode) if recipe is not None else {}
    settings = inherited | settings if _is_named(explicit) else settings | inherited
    settings |= said
    if parent is not None and mode != "distill":
        settings |= _network_of(parent, explicit)
    if recipe is not None:
        settings |= _follows(recipe, mode, settings, parent) | said
    for epochs, steps in (("train_epochs", "train_steps"), ("checkpoint_epochs", "checkpoint_steps")):
        if epochs in said and steps not in said:
            settings[steps] = 0  # a recipe's steps would win over the epochs that were asked for
    return Config(**settings | {"mode": mode})


def find(explicit: Settings) -> Recipe | None:
    """The recipe that is asked for: by name, or the one named as the data set.

    Raises:
        SettingError: if there is none of that name.
    """
    name = explicit.get("recipe", "auto")
    if not _is_named(explicit):
        return RECIPES.get(explicit.get("dataset", "")) if name == "auto" else None
    if name not in RECIPES:
        raise SettingError(f"--recipe={name}: must be auto, none or one of {', '.join(RECIPES)} (--recipe=help)")
    return RECIPES[name]


def _is_named(explicit: Settings) -> bool:
    return explicit.get("recipe", "auto") not in ("auto", "none")


def _said(explicit: Settings, mode: str) -> dict[str, Any]:
    """What the user said of this stage, by its own ``--stage`` or for all."""
    said = dict(explicit)
    for override in explicit.get("stage", ()):
        place, _, value = override.partition("=")
        of_stage, _, name = place.partition(".")
        if of_stage not in STAGES or not name or not value:
            raise SettingError(f"--stage={override}: must look like finetune.learning_rate=0.1")
        parsed = parse_value(name, value)
        if of_stage == mode:
            said[name] = parsed
    return said


def _inherited(parent: Config | None, mode: str) -> dict[str, Any]:
    """A run looks at the same images as its parent; to look at it is to take all of its settings."""
    if parent is None:
        return {}
    settings = dataclasses.asdict(parent)
    if mode in ("evaluate", "embed", "export", "summary"):
        return {k: v for k, v in settings.items() if k not in NOT_INHERITED}
    return {name: settings[name] for name in SAME_IMAGES}


def _network_of(parent: Config, explicit: Settings) -> dict[str, Any]:
    """The parent's network, which no flag can change."""
    for name in NETWORK_SETTINGS:
        given = getattr(parent, name)
        if name in explicit and explicit[name] != given:
            raise SettingError(f"--{name}={explicit[name]}: the checkpoint's network has {given}")
    return {name: getattr(parent, name) for name in NETWORK_SETTINGS} | {"stem": parent.stem_kind}


def _follows(recipe: Recipe, mode: str, settings: Settings, parent: Config | None) -> dict[str, Any]:
    """What a recipe changes because of the network: a large one's fine-tuning, distillation into the teacher's own."""
    defaults: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}
    encoder = {name: settings.get(name, defaults[name]) for name in ENCODER_SETTINGS}
    changed: dict[str, Any] = {}
    if encoder["width_multiplier"] > 1 or encoder["sk_ratio"]:
        changed |= recipe.large.get(mode, {})
    if mode == "distill" and parent is not None and all(getattr(parent, n) == v for n, v in encoder.items()):
        changed |= recipe.self_distill
    return changed
