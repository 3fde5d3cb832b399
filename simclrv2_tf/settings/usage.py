"""Modes that read each setting, for the help and for a warning about flags without an effect."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from simclrv2_tf.settings.config import Config, tagged
from simclrv2_tf.settings.fields import LOOKS, MODES, STAGES


class Group(NamedTuple):
    """Flags that ``--help`` lists together: from ``first`` on, and the modes for which they matter."""

    first: str
    title: str
    modes: tuple[str, ...]


RUNS = (*STAGES, "semi_supervised")
TRIALS = ("preview", "benchmark", "check_devices")  # modes that take the flags of a run without running it
TRAINS = (*RUNS, *TRIALS)
PRETRAINS = ("pretrain", "semi_supervised", *TRIALS)
CLASSIFIES = ("linear_eval", "supervised", "finetune", "semi_supervised", *TRIALS)
DISTILLS = ("distill", "semi_supervised", *TRIALS)
FROM_CHECKPOINT = tuple(stage for stage in STAGES if stage != "supervised")
FINE_TUNES = ("supervised", "finetune", "semi_supervised", *TRIALS, "summary")
LABELLED = tuple(mode for mode in TRAINS if mode != "pretrain")
GROUPS = (
    Group("mode", "General", MODES),
    Group("checkpoint_epochs", "Checkpoints and report", RUNS),
    Group("dataset", "Data", (*TRAINS, "evaluate", "embed", "select")),
    Group("method", "Network", (*PRETRAINS, "supervised", "distill", "summary")),
    Group("train_batch_size", "Optimization", TRAINS),
    Group("temperature", "Pretraining objective", PRETRAINS),
    Group("crop_area_min", "Augmentation", TRAINS),
    Group("ft_proj_selector", "Fine-tuning and distillation", (*CLASSIFIES, "distill")),
    Group("eval_batch_size", "Devices, speed and memory", (*TRAINS, *LOOKS)),
)
MODES_OF_FLAG = {  # flags whose modes differ from those of their group
    "checkpoint": (*FROM_CHECKPOINT, *TRIALS, *LOOKS, "summary", "import_checkpoint"),
    "recipe": (*TRAINS, *LOOKS, "summary"),
    "stage": TRAINS,
    "seed": TRAINS,
    "seeds": ("semi_supervised",),
    "format": ("export", "embed", "predict"),
    "compare": ("report",),
    "tracker": (*RUNS, "export"),
    "override_config": (*RUNS, "import_checkpoint"),
    "dataset": (*TRAINS, "evaluate", "embed", "select", "export", "summary"),  # a recipe may be named after it
    "cache_dataset": (*TRAINS, "evaluate", "embed", "predict", "select"),
    "images": ("predict", "select"),
    "select_count": ("select",),
    "select_by": ("select",),
    "labels_per_class": LABELLED,
    "label_fraction": LABELLED,
    "max_corrupt_share": (*TRAINS, "evaluate", "embed", "predict", "select"),
    "max_file_mb": (*TRAINS, "evaluate", "embed", "predict", "select"),
    "image_bits": (*TRAINS, *LOOKS),
    "method": PRETRAINS,
    "encoder": (*TRAINS, *LOOKS, "summary"),
    "input_range": (*TRAINS, *LOOKS, "summary"),
    "trust_run_code": (*TRAINS, *LOOKS, "summary"),
    "conv_init": TRAINS,
    "crop_sampler": TRAINS,
    "resize_method": TRAINS,
    "image_size": (*TRAINS, *LOOKS, "summary"),
    "global_bn": TRAINS,
    "batch_norm_decay": TRAINS,
    "train_batch_size": (*TRAINS, "summary"),
    "temperature": (*PRETRAINS, "distill"),
    "memory_size": (*PRETRAINS, "summary"),
    "color_jitter_strength": PRETRAINS,
    "use_blur": PRETRAINS,
    "eval_resize": (*TRAINS, *LOOKS, "import_checkpoint"),
    "ft_proj_selector": (*CLASSIFIES, "distill", "import_checkpoint"),
    "fine_tune_after_block": FINE_TUNES,
    "fine_tune_proj_head": FINE_TUNES,
    "zero_init_logits_layer": (*PRETRAINS, *CLASSIFIES, "distill"),
    "teacher": ("distill", *TRIALS),
    "distill_alpha": DISTILLS,
    "eval_batch_size": (*TRAINS, "evaluate", "predict", "embed", "select"),
    "eval_steps": (*TRAINS, "evaluate"),
    **dict.fromkeys(("steps_per_execution", "resident_mb", "data_service"), TRAINS),
    "remat": (*TRAINS, "summary"),
    **dict.fromkeys(("mixed_precision", "use_tpu"), (*TRAINS, *LOOKS, "summary")),
    "grad_cache_micro_batch": PRETRAINS,
}


def _groups_of_settings() -> dict[str, Group]:
    groups, starts, group = {}, {group.first: group for group in GROUPS}, GROUPS[0]
    for field in dataclasses.fields(Config):
        groups[field.name] = group = starts.get(field.name, group)
    return groups


GROUP_OF = _groups_of_settings()


def is_read(name: str, mode: str) -> bool:
    """Returns whether a mode reads a setting, so that its help lists it."""
    return mode in MODES_OF_FLAG.get(name, GROUP_OF[name].modes)


def unread_settings(mode: str, names: Iterable[str]) -> list[str]:
    """Returns those of the named settings that a mode neither reads, checks, nor writes for modes that read them."""
    modes: tuple[str, ...] = (mode, *RUNS) if mode in TRIALS else (mode,)
    others: set[str] = set()
    if is_read("checkpoint", mode):
        others |= set(tagged("network"))  # these must equal those of the checkpoint
    if mode == "supervised":
        others.add("checkpoint")  # it is refused
    if mode == "import_checkpoint":  # modes that read the run take the rest from its config.json
        modes, others = (mode, *LOOKS), others | set(tagged("images"))
    return [name for name in names if name not in others and not any(is_read(name, each) for each in modes)]
