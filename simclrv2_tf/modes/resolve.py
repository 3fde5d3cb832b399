"""Resolves the config of a run and of its parent run, and compares it with the contents of the model directory."""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import tensorflow as tf

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.facts import data_facts
from simclrv2_tf.distributed.devices import has_accelerator
from simclrv2_tf.errors import ConfigVersionError, DamagedError, SettingError, shorten
from simclrv2_tf.models.encoders import implied_settings
from simclrv2_tf.report import write_report
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import find_checkpoint, list_folder, read_run_config
from simclrv2_tf.schemas import read_record
from simclrv2_tf.settings.config import Config, tagged
from simclrv2_tf.settings.fields import LOOKS, STAGES
from simclrv2_tf.settings.merge import resolve, resolve_stages
from simclrv2_tf.settings.plugins import is_file
from simclrv2_tf.settings.recipes import DataFacts, needs_facts
from simclrv2_tf.settings.recipes.own_images import build_recipe

log = logging.getLogger(__name__)

Result = dict[str, Any]
Fingerprints = Mapping[str, str]
Strategy: TypeAlias = tf.distribute.Strategy

IMAGES = {"images": "training images", "eval_images": "evaluation images"}  # by the name of their fingerprint


def resolve_config(flags: Mapping[str, Any]) -> Config:
    """Resolves the config of a run, with that of the run it starts from.

    For ``preview``, ``benchmark`` and ``check_devices`` it is the config of the training run that they examine:
    distillation with ``--teacher``, fine-tuning with ``--checkpoint``, else pretraining. For ``summary`` likewise, with
    the mode of the run that ``--checkpoint`` names. For ``semi_supervised`` it is a ``SemiSupervisedConfig``.

    Raises:
        SettingError: for settings that cannot be used, or a ``--checkpoint`` or ``--teacher`` that cannot be read.
    """
    mode = flags.get("mode", "pretrain")
    flags = {name: value.rstrip("/") if name in ("checkpoint", "teacher") else value for name, value in flags.items()}
    checkpoint, teacher = flags.get("checkpoint", ""), flags.get("teacher", "")
    has_encoder = flags.get("encoder", "resnet") != "resnet" and not checkpoint
    if mode == "semi_supervised":
        flags = implied_settings(mode, flags) | flags
        return resolve_stages(flags, _data_facts(flags, None, "pretrain"))
    if mode in ("preview", "benchmark", "check_devices"):
        mode = "distill" if teacher else "finetune" if checkpoint else "pretrain"
    elif mode in LOOKS and (run_dir := checkpoint or _run_of(flags, has_encoder)):
        # the output is written beside the run that the mode reads
        flags = {"model_dir": find_checkpoint(run_dir).rpartition("/checkpoints/")[0], "checkpoint": run_dir} | flags
        checkpoint = flags["checkpoint"]
        if flags.get("images"):  # one corrupt photograph does not stop the prediction of the others
            flags = {"max_corrupt_share": 1.0} | flags
    elif mode == "finetune" and not checkpoint and not has_encoder:
        raise SettingError(
            "--checkpoint=: finetune needs a pretrained run or --encoder; --mode=supervised trains from scratch"
        )
    elif mode == "supervised" and checkpoint:
        raise SettingError(f"--checkpoint={checkpoint}: supervised trains from scratch; use --mode=finetune")
    elif mode == "import_checkpoint" and checkpoint:
        return _resolve_import(flags, checkpoint)
    flag, path = ("teacher", teacher) if mode == "distill" else ("checkpoint", checkpoint)
    is_run = path and not (flag == "teacher" and is_file(path))
    parent = read_run_config(path, flag, checks_network=True)[0] if is_run else None
    flags = implied_settings(mode, flags) | flags
    if mode == "summary":
        return resolve(flags, "" if parent else "pretrain", parent).replace(mode=parent.mode if parent else "pretrain")
    return resolve(flags, mode, parent, _data_facts(flags, parent, mode) if mode in STAGES else None)


def _run_of(flags: Mapping[str, Any], has_encoder: bool) -> str:
    """Returns the run in ``--model_dir`` that a mode reads; "" if the mode reads an ``--encoder`` instead."""
    model_dir = flags.get("model_dir", "")
    return "" if has_encoder and not (pathlib.Path(model_dir) / "config.json").is_file() else model_dir


def _data_facts(flags: Mapping[str, Any], parent: Config | None, mode: str) -> DataFacts | None:
    """Opens the training images if the recipe depends on them, and prints the settings it chooses for them."""
    inherited = {name: getattr(parent, name) for name in tagged("images")} if parent else {}
    known = {**inherited, **flags}
    if not needs_facts(known):
        return None
    names = ("dataset", "data_dir", "train_split", "max_corrupt_share", "max_file_mb", "image_bits", "use_tpu")
    config = Config(**{name: known[name] for name in names if name in known})
    source = open_source(config, config.train_split, with_unlabelled=mode in ("pretrain", "distill"))
    facts = data_facts(source, has_accelerator(config))
    print(f"Recipe own_images, for {facts}.")
    if not facts.has_accelerator:
        with_gpu = build_recipe(dataclasses.replace(facts, has_accelerator=True)).common
        print("With a GPU it would choose ResNet-{resnet_depth} and {image_size} px.".format(**with_gpu))
    return facts


def _resolve_import(flags: Mapping[str, Any], checkpoint: str) -> Config:
    """Resolves the config of an official checkpoint: its variables describe the network."""
    official_checkpoint = official.read(checkpoint, flags.get("ft_proj_selector"))
    described = Config(
        mode="import_checkpoint",
        checkpoint=checkpoint,
        eval_resize=official_checkpoint.eval_resize,
        **official_checkpoint.settings,
    )
    return resolve({"ft_proj_selector": official_checkpoint.head_input, **flags}, parent=described)


def cap_batch_size(config: Config, strategy: Strategy) -> Config:
    """Caps the batch of a stage to its labelled images, rounded down to a multiple of the replicas."""
    if config.mode not in ("supervised", "finetune", "linear_eval"):
        return config
    replicas = strategy.num_replicas_in_sync
    images = open_labelled(config).num_examples
    if images < replicas:
        raise SettingError(f"--labels_per_class={config.labels_per_class}: {images} images for {replicas} replicas")
    return config.replace(train_batch_size=min(config.train_batch_size, images // replicas * replicas))


def describe_progress(model_dir: str) -> str:
    """Describes the progress of the run in a model directory, for example "step-4, no result"."""
    steps = sorted(name[5:-6] for name in list_folder(f"{model_dir}/checkpoints") if name.endswith(".index"))
    newest = f"step-{max(steps, key=lambda step: (len(step), step))}" if steps else "no checkpoint"
    return f"{newest}, {'a' if 'result.json' in list_folder(model_dir) else 'no'} result"


def finished_result(config: Config, fingerprints: Fingerprints) -> Result | None:
    """Returns the result of a training run that is already complete, with these images; None for any other."""
    model_dir = pathlib.Path(config.run_dir)
    if (result := read_record(model_dir, "result.json")) is None or changed(config, model_dir, fingerprints):
        return None
    if result["mode"] != config.mode:
        raise SettingError(
            f"--model_dir={model_dir}: result.json is that of {result['mode']}, not of {config.mode}; restore it, or "
            "delete it to train on"
        )
    print(f"Training already complete: {model_dir} has its result.")
    if config.report and not (model_dir / "report.html").is_file():  # the run was killed before it wrote the report
        write_report(model_dir)
    return result


def changed(config: Config, model_dir: pathlib.Path, fingerprints: Fingerprints | None = None) -> bool:
    """Returns whether a model directory holds a run with other settings or images.

    Args:
        config: config of the run to start.
        model_dir: its model directory.
        fingerprints: ``RunData.fingerprints`` of its images; None: only the settings are compared.

    Raises:
        SettingError: if they differ and ``--override_config`` is not given, with all the differences; or if
            ``config.json`` cannot be read, or is missing beside the records of a run.
    """
    content = read_record(model_dir, "config.json")
    if content is None:
        return _check_empty(config, model_dir)
    try:
        earlier = Config.from_content(content)
    except DamagedError as error:
        raise SettingError(
            f"--model_dir={model_dir}: its config.json is damaged ({error}); restore the file or "
            "delete the model directory"
        ) from None
    except ConfigVersionError as error:
        raise SettingError(f"--model_dir={model_dir}: its {error}") from None
    differences = [
        f"{name} {shorten(getattr(earlier, name), 100)} -> {shorten(value, 100)}"
        for name, value in vars(config).items()
        if name not in tagged("resume_ok") and getattr(earlier, name) != value
    ]
    resolved = content.get("resolved", {})
    for name, value in (fingerprints or {}).items():
        if resolved.get(name) != value:
            differences.append(f"the {IMAGES[name]} have changed: {resolved.get(name) or None} -> {value or None}")
    return bool(differences) and _overridden(config, f"holds a run with other settings ({', '.join(differences)})")


def _check_empty(config: Config, model_dir: pathlib.Path) -> bool:
    """Returns False for a model directory without records of a run, which cannot be resumed without config.json."""
    records = {"checkpoints", "result.json", "metrics.csv"} & set(list_folder(str(model_dir)))
    if "checkpoints" in records and not list_folder(str(model_dir / "checkpoints")):
        records.remove("checkpoints")
    return bool(records) and _overridden(config, f"has {min(records)}, but its config.json is missing; restore it")


def _overridden(config: Config, reason: str) -> bool:
    """Returns True with a warning if ``--override_config`` is given; raises SettingError otherwise."""
    message = f"--model_dir={config.run_dir}: {reason}"
    if not config.override_config:
        raise SettingError(f"{message}; pass --override_config to resume anyway, or choose another --model_dir")
    log.warning("%s; resuming anyway because of --override_config", message)
    return True
