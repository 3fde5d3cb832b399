"""Translates the flags of the official code (google-research/simclr, both releases) that have another name here."""

from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.fields import MODES

TYPES: Mapping[str, type] = {
    "train_mode": str,
    "head_proj_mode": str,
    "head_proj_dim": int,
    "num_nlh_layers": int,
    "master": str,
    "tpu_zone": str,
    "gcp_project": str,
    "variable_schema": str,
    "train_summary_steps": int,
    "keep_hub_module_max": int,
    "eval_name": str,
}
OFFICIAL_MODES = ("train", "train_then_eval", "eval")
IGNORED = {
    "variable_schema": "a run loads the network, and adds a new classifier where it trains one",
    "train_summary_steps": "metrics are written at every evaluation",
    "keep_hub_module_max": "--mode=export writes a SavedModel",
    "eval_name": "the results are in result.json or evaluation.json",
}


def translate(flags: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns the settings that flags of the official code stand for.

    Args:
        flags: by name; settings of this code, flags in ``TYPES``, and ``mode`` with a value in ``OFFICIAL_MODES``.

    Returns:
        The settings by name, and one line per translated flag that describes the translation.

    Raises:
        SettingError: for a value that the official code does not have, or a flag that contradicts another one.
    """
    settings = {name: value for name, value in flags.items() if name not in TYPES}
    notes = [f"--{name} has no effect here: {why}" for name, why in IGNORED.items() if name in flags]

    def replace(name: str, value: Any, *official: str) -> None:
        settings[name] = value
        given = " ".join(f"--{flag}={flags[flag]}" for flag in official)
        notes.append(f"{given} is {f'--{name}={value}' if value != '' else 'the default'} here")

    if "train_mode" in flags or flags.get("mode") in OFFICIAL_MODES:
        replace("mode", _mode(flags), *(name for name in ("mode", "train_mode") if name in flags))
        if settings["mode"] == "evaluate" and "checkpoint" not in flags and "model_dir" in flags:
            replace("checkpoint", flags["model_dir"], "model_dir")
        if "recipe" not in flags:
            settings["recipe"] = "official"
            notes.append("a command of the official code uses its defaults: --recipe=official")
    for official, name in (("head_proj_mode", "proj_head_mode"), ("head_proj_dim", "proj_out_dim")):
        if official in flags:
            replace(name, flags[official], official)
    if "num_nlh_layers" in flags:  # the official flag does not count the last, linear layer
        replace("num_proj_layers", flags["num_nlh_layers"] + 1, "num_nlh_layers")
    if flags.get("master"):
        replace("tpu_name", flags["master"], "master")
    if place := [name for name in ("gcp_project", "tpu_zone") if flags.get(name)]:
        if len(place) < 2 or not flags.get("tpu_name"):
            raise SettingError(
                f"--{place[0]}={flags[place[0]]}: give project, zone and name: --tpu_name=PROJECT/ZONE/NAME"
            )
        name = f"{flags['gcp_project']}/{flags['tpu_zone']}/{flags['tpu_name']}"
        replace("tpu_name", name, *place, "tpu_name")
    return settings, notes


def _mode(flags: Mapping[str, Any]) -> str:
    """Returns the mode that ``--mode`` and ``--train_mode`` of the official code stand for."""
    mode, train_mode = flags.get("mode", "train"), flags.get("train_mode", "pretrain")
    if train_mode not in ("pretrain", "finetune"):
        raise SettingError(f"--train_mode={train_mode}: must be pretrain or finetune; other modes have --mode here")
    if mode in MODES:
        raise SettingError(f"--train_mode={train_mode}: contradicts --mode={mode}; give --mode alone")
    if mode not in OFFICIAL_MODES:
        return mode  # rejected like any other unknown mode
    if mode == "eval":
        return "evaluate"
    is_linear = train_mode == "finetune" and flags.get("fine_tune_after_block") == 4
    return "linear_eval" if is_linear else train_mode
