"""Merges defaults, recipe, parent run and command-line flags into one ``Config``."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import STAGES, Config, parse_value, tagged, unknown_setting_error
from simclrv2_tf.settings.recipes import DataFacts, RunInfo, find_recipe, is_named

DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}


def resolve(
    flags: Mapping[str, Any], stage: str = "", parent: Config | None = None, data: DataFacts | None = None
) -> Config:
    """Merges the settings of a run; later ones override earlier ones:

    1. the defaults;
    2. the recipe, by ``find_recipe``;
    3. the parent run: the settings tagged ``images``; to look at a run, all but those tagged ``not_inherited``;
    4. the flags, then ``--stage=STAGE.NAME=VALUE`` of this stage;
    5. the parent's network, which flags cannot change. Only a student chooses its own.

    A recipe that ``--recipe`` names, and any recipe in ``semi_supervised``, comes after the parent instead of before.

    Args:
        flags: by name.
        stage: a stage of a semi-supervised run; "": the mode of the flags.
        parent: config of the run that ``--checkpoint`` names; for ``distill``, of the teacher.
        data: facts about the data set for the recipe ``own_images``; without them it sets nothing.

    Raises:
        SettingError: for an unknown setting or recipe, a value that is not allowed, or a network that is not the
            parent's.
    """
    for name in flags:
        if name not in DEFAULTS:
            raise unknown_setting_error(name)
    mode = stage or flags.get("mode", "pretrain")
    if parent is not None:
        _check_trusted(parent, flags, "teacher" if mode == "distill" else "checkpoint")
    inherited = _inherited(parent, mode)
    recipe = find_recipe({**inherited, **flags}, data)
    recipe_wins = is_named(flags) or flags.get("mode") == "semi_supervised"
    flags = _flags_of_stage(flags, mode)
    network = _network_of(parent, flags) if parent is not None and mode != "distill" else {}

    def merge(recipe_settings: Mapping[str, Any]) -> dict[str, Any]:
        lower, upper = (inherited, recipe_settings) if recipe_wins else (recipe_settings, inherited)
        return {**DEFAULTS, **lower, **upper, **flags, **network, "mode": mode}

    settings = merge({})
    if recipe is not None:
        known = merge(recipe.common)
        names = {field.name for field in dataclasses.fields(RunInfo)} & known.keys()
        recipe_settings = recipe.settings(RunInfo(parent=parent, **{name: known[name] for name in names}))
        settings = merge(recipe_settings)
        if "label_fraction" in recipe_settings:  # the recipe has a data set that holds just this share of the labels
            settings |= {name: recipe_settings[name] for name in ("dataset", "label_fraction")}
    for epochs, steps in (("train_epochs", "train_steps"), ("checkpoint_epochs", "checkpoint_steps")):
        if epochs in flags and steps not in flags:
            settings[steps] = 0  # otherwise the steps of a recipe would override the epochs of a flag
    config = Config(**settings)
    return config.replace(ft_proj_selector=config.head_layers) if config.ft_proj_selector == -1 else config


def _flags_of_stage(flags: Mapping[str, Any], mode: str) -> Mapping[str, Any]:
    """Returns the flags, with those of ``--stage`` for this mode in place of the general ones."""
    own = {}
    for override in flags.get("stage", ()):
        place, _, text = override.partition("=")
        stage, _, name = place.partition(".")
        if stage not in STAGES or not name or not text:
            raise SettingError(f"--stage={override}: must look like finetune.learning_rate=0.1")
        if name in ("mode", "model_dir", "checkpoint", "teacher", "recipe"):
            raise SettingError(f"--stage={override}: {name} cannot be set for one stage alone")
        value = parse_value(name, text)
        if stage == mode:
            own[name] = value
    return {**flags, **own}


def _inherited(parent: Config | None, mode: str) -> Mapping[str, Any]:
    """Returns the settings that a run takes from its parent unless it is told otherwise."""
    if parent is None:
        return {}
    looks = mode in ("evaluate", "predict", "embed", "export", "summary")
    names = DEFAULTS.keys() - set(tagged("not_inherited")) if looks else tagged("images")
    return {name: getattr(parent, name) for name in names}


def _check_trusted(parent: Config, flags: Mapping[str, Any], flag: str) -> None:
    """Raises SettingError if the parent's network is built by code that the user has not named or allowed."""
    named = "encoder" in flags if flag == "checkpoint" else flags.get("encoder") == parent.encoder
    if ":" in parent.encoder and not (named or flags.get("trust_run_code")):
        raise SettingError(
            f"--{flag}={flags.get(flag, '')}: its network is built by {parent.encoder}; pass --trust_run_code, "
            f"or --encoder={parent.encoder}, to import that code"
        )


def _network_of(parent: Config, flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the settings of the parent's network; SettingError if a flag asks for another one."""
    network = {name: getattr(parent, name) for name in tagged("network")} | {"stem": parent.stem_kind}
    for name, value in network.items():
        if flags.get(name, value) not in (value, getattr(parent, name)):
            raise SettingError(f"--{name}={flags[name]}: the checkpoint's network has {value}, which cannot be changed")
    return network


@dataclasses.dataclass(frozen=True)
class SemiSupervisedConfig(Config):
    """Config of a whole semi-supervised run, and of each of its stages.

    Attributes:
        stages: by name of the sub-directory, such as ``finetune_10``, in the order in which they run.
        rows: of the table of results, as in the names of the stages: labels per class, a percentage or "all".
    """

    stages: Mapping[str, Config] = dataclasses.field(default_factory=dict, compare=False)
    rows: tuple[int | str, ...] = dataclasses.field(default=(), compare=False)


def resolve_stages(flags: Mapping[str, Any], data: DataFacts | None = None) -> SemiSupervisedConfig:
    """Merges the settings of all stages of a semi-supervised run, before the first one starts.

    The parent of a stage is the config of the earlier stage that it starts from.

    Raises:
        SettingError: as ``resolve``, for any of the stages.
    """
    flags = {**flags, "mode": "semi_supervised"}
    config = resolve(flags, data=data)
    stages: dict[str, Config] = {}

    def add(mode: str, row: int | str = "", parent: Config | None = None, **settings: Any) -> Config:
        name = f"{mode}_{row}" if row else mode
        own = {"model_dir": str(pathlib.PurePath(config.run_dir, name)), "checkpoint": "", **settings}
        stages[name] = resolve({**flags, **own}, mode, parent, data)
        return stages[name]

    all_labels = {"labels_per_class": 0, "label_fraction": 1.0}
    pretrained = add("pretrain", **all_labels)
    start = {"checkpoint": pretrained.model_dir}
    add("linear_eval", parent=pretrained, **start, **all_labels)
    rows = _label_rows(flags, config, data)
    for row, labels in rows.items():
        add("supervised", row, **labels)
        teacher = add("finetune", row, pretrained, **start, **labels)
        add("distill", row, teacher, teacher=teacher.model_dir, **start, **labels)
    return SemiSupervisedConfig(**vars(config), stages=stages, rows=tuple(rows))


def _label_rows(flags: Mapping[str, Any], config: Config, data: DataFacts | None) -> dict[int | str, Mapping[str, Any]]:
    """Returns the flags of each row of the result table: the labels of the flags, else of the recipe, else all."""
    if config.labels_per_class:
        return {config.labels_per_class: {"labels_per_class": config.labels_per_class}}
    if config.label_fraction < 1:
        return {f"{100 * config.label_fraction:g}%": {"label_fraction": config.label_fraction}}
    recipe = find_recipe(flags, data)
    if recipe is None or not recipe.label_counts or {"labels_per_class", "label_fraction"} & flags.keys():
        return {"all": {}}
    return {count: {"labels_per_class": count} for count in recipe.label_counts}
