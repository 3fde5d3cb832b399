"""Merges defaults, recipe, parent run and command-line flags into one ``Config``."""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config, parse_value, tagged, unknown_setting_error
from simclrv2_tf.settings.fields import LOOKS, STAGES
from simclrv2_tf.settings.plugins import is_trusted
from simclrv2_tf.settings.recipes import DataFacts, RunInfo, find_recipe, is_named

DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in dataclasses.fields(Config)}


def resolve(
    flags: Mapping[str, Any], stage: str = "", parent: Config | None = None, data: DataFacts | None = None
) -> Config:
    """Merges the settings of a run; later ones override earlier ones:

    1. the defaults;
    2. the recipe, by ``find_recipe``;
    3. the parent run: settings tagged ``images``; for modes that read a run, all but those tagged ``not_inherited``;
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
        if "label_fraction" in recipe_settings:  # the recipe's data set contains only this fraction of the labels
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
    """Returns the settings that a run takes from its parent by default."""
    if parent is None:
        return {}
    looks = mode in (*LOOKS, "summary")
    names = DEFAULTS.keys() - set(tagged("not_inherited")) if looks else tagged("images")
    return {name: getattr(parent, name) for name in names}


def _check_trusted(parent: Config, flags: Mapping[str, Any], flag: str) -> None:
    """Raises SettingError if the parent's network is built by code that the user has not named or allowed."""
    named = "encoder" in flags if flag == "checkpoint" else flags.get("encoder") == parent.encoder
    if not is_trusted(parent.encoder) and not (named or flags.get("trust_run_code")):
        raise SettingError(
            f"--{flag}={flags.get(flag, '')}: its network is built by {parent.encoder}; pass --trust_run_code, "
            f"or --encoder={parent.encoder}, to load it"
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
        rows: rows of the result table, as in the names of the stages: labels per class, a percentage or "all".
        draws: the seeds of ``--seeds``; empty if the labels are drawn once.
    """

    stages: Mapping[str, Config] = dataclasses.field(default_factory=dict, compare=False)
    rows: tuple[int | str, ...] = dataclasses.field(default=(), compare=False)
    draws: tuple[int, ...] = dataclasses.field(default=(), compare=False)


def resolve_stages(flags: Mapping[str, Any], data: DataFacts | None = None) -> SemiSupervisedConfig:
    """Merges the settings of all stages of a semi-supervised run, before the first one starts.

    The parent of a stage is the config of the earlier stage that it starts from.

    Raises:
        SettingError: as ``resolve``, for any of the stages.
    """
    flags = {**flags, "mode": "semi_supervised"}
    config = resolve(flags, data=data)
    draws = tuple(dict.fromkeys(map(int, config.seeds.split(",")))) if config.seeds else ()
    flags = {name: value for name, value in flags.items() if name != "seeds"}
    stages: dict[str, Config] = {}

    def add(name: str, parent: Config | None = None, **settings: Any) -> Config:
        mode = next(stage for stage in STAGES if name == stage or name.startswith(f"{stage}_"))
        own = {"model_dir": str(pathlib.PurePath(config.run_dir, name)), "checkpoint": "", **settings}
        stages[name] = resolve({**flags, **own}, mode, parent, data)
        return stages[name]

    all_labels: dict[str, Any] = {"labels_per_class": 0, "label_fraction": 1.0}
    pretrained = add("pretrain", **all_labels)
    start = {"checkpoint": pretrained.model_dir}
    add("linear_eval", pretrained, **start, **all_labels)
    rows = _label_rows(flags, config, data)
    for (row, labels), draw in itertools.product(rows.items(), draws or (None,)):
        drawn = labels if draw is None else {**labels, "seed": draw}
        if draw is not None:
            add(stage_name("linear_eval", row, draw), pretrained, **start, **drawn)
        add(stage_name("supervised", row, draw), **drawn)
        teacher = add(stage_name("finetune", row, draw), pretrained, **start, **drawn)
        add(stage_name("distill", row, draw), teacher, teacher=teacher.model_dir, **start, **drawn)
    return SemiSupervisedConfig(**vars(config), stages=stages, rows=tuple(rows), draws=draws)


def stage_name(mode: str, row: int | str, draw: int | None = None) -> str:
    """Returns the name of a stage: mode and labels, and the seed of the labels if they are drawn several times."""
    return f"{mode}_{row}" if draw is None else f"{mode}_{row}_seed{draw}"


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
