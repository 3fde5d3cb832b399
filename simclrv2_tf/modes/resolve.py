"""Resolves the config of a run, with that of the run it starts from, and compares it with what its directory holds."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.facts import data_facts
from simclrv2_tf.errors import SettingError
from simclrv2_tf.report import write_report
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import find_checkpoint, read_run_config
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import STAGES, Config, tagged
from simclrv2_tf.settings.merge import resolve, resolve_stages
from simclrv2_tf.settings.recipes import DataFacts, needs_facts
from simclrv2_tf.settings.recipes.own_images import build_recipe

log = logging.getLogger(__name__)

Result = dict[str, Any]
Strategy = tf.distribute.Strategy


def resolve_config(flags: Mapping[str, Any]) -> Config:
    """Resolves the config of a run, with that of the run it starts from.

    For ``preview`` and ``benchmark`` it is the config of the training run that they look at: distillation with
    ``--teacher``, fine-tuning with ``--checkpoint``, else pretraining. For ``summary`` likewise, with the mode of the
    run that ``--checkpoint`` names. For ``semi_supervised`` it is a ``SemiSupervisedConfig``.

    Raises:
        SettingError: for settings that cannot be used, or a ``--checkpoint`` or ``--teacher`` that cannot be read.
    """
    mode = flags.get("mode", "pretrain")
    flags = {name: value.rstrip("/") if name in ("checkpoint", "teacher") else value for name, value in flags.items()}
    checkpoint, teacher = flags.get("checkpoint", ""), flags.get("teacher", "")
    if mode == "semi_supervised":
        return resolve_stages(flags, _data_facts(flags, None, "pretrain"))
    if mode in ("preview", "benchmark"):
        mode = "distill" if teacher else "finetune" if checkpoint else "pretrain"
    elif mode in ("evaluate", "predict", "embed", "export") and (run_dir := checkpoint or flags.get("model_dir")):
        # the output belongs to the run that is looked at
        flags = {"model_dir": find_checkpoint(run_dir).rpartition("/checkpoints/")[0], "checkpoint": run_dir} | flags
        checkpoint = flags["checkpoint"]
    elif mode == "finetune" and not checkpoint:
        raise SettingError("--checkpoint=: finetune needs a pretrained run; --mode=supervised trains from scratch")
    elif mode == "supervised" and checkpoint:
        raise SettingError(f"--checkpoint={checkpoint}: supervised trains from scratch; use --mode=finetune")
    elif mode == "import_checkpoint" and checkpoint:
        return _resolve_import(flags, checkpoint)
    flag, path = ("teacher", teacher) if mode == "distill" else ("checkpoint", checkpoint)
    parent = read_run_config(path, flag)[0] if path else None
    if mode == "summary":
        return resolve(flags, "" if parent else "pretrain", parent).replace(mode=parent.mode if parent else "pretrain")
    return resolve(flags, mode, parent, _data_facts(flags, parent, mode) if mode in STAGES else None)


def _data_facts(flags: Mapping[str, Any], parent: Config | None, mode: str) -> DataFacts | None:
    """Opens the training images if the recipe depends on them, and prints what it chooses for them."""
    inherited = {name: getattr(parent, name) for name in tagged("images")} if parent else {}
    known = {**inherited, **flags}
    if not needs_facts(known):
        return None
    names = ("dataset", "data_dir", "train_split", "max_corrupt_share")
    config = Config(**{name: known[name] for name in names if name in known})
    has_accelerator = bool(tf.config.list_physical_devices("GPU")) or bool(flags.get("use_tpu"))
    source = open_source(config, config.train_split, with_unlabelled=mode in ("pretrain", "distill"))
    facts = data_facts(source, has_accelerator)
    print(f"Recipe own_images, for {facts}.")
    if not has_accelerator:
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
    if config.mode not in ("supervised", "finetune"):
        return config
    replicas = strategy.num_replicas_in_sync
    images = open_labelled(config).num_examples
    if images < replicas:
        raise SettingError(f"--labels_per_class={config.labels_per_class}: {images} images for {replicas} replicas")
    return config.replace(train_batch_size=min(config.train_batch_size, images // replicas * replicas))


def finished_result(config: Config) -> Result | None:
    """Returns the result of a training run that is already complete; None for any other."""
    model_dir = pathlib.Path(config.run_dir)
    if config.mode not in STAGES or not (model_dir / "result.json").is_file():
        return None
    if changed(config, model_dir):
        return None
    print(f"Training already complete: {model_dir} has its result.")
    if config.report and not (model_dir / "report.html").is_file():  # the run was killed before it wrote it
        write_report(model_dir)
    return RunDirectory(model_dir).result()


def changed(config: Config, model_dir: pathlib.Path, resolved: dict[str, Any] | None = None) -> bool:
    """Returns whether a model directory holds a run with other settings or training images.

    Args:
        config: of the run to start.
        model_dir: its model directory.
        resolved: values derived from the config, if known; the fingerprint of the images is compared.

    Raises:
        SettingError: if they differ and ``--override_config`` is not given, with all the differences; or if
            ``config.json`` cannot be read.
    """
    file = model_dir / "config.json"
    if not file.is_file():
        return False
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        earlier = Config.from_json(text)
    except SettingError as error:
        raise SettingError(f"--model_dir={model_dir}: its {error}") from None
    differences = [
        f"{name} {getattr(earlier, name)} -> {value}"
        for name, value in vars(config).items()
        if name not in tagged("resume_ok") and getattr(earlier, name) != value
    ]
    images = (json.loads(text).get("resolved") or {}).get("images")
    if resolved and images not in (None, resolved["images"]):
        differences.append(f"the training images have changed: {images} -> {resolved['images']}")
    if not differences:
        return False
    message = f"--model_dir={model_dir}: holds a run with other settings ({', '.join(differences)})"
    if not config.override_config:
        raise SettingError(f"{message}; pass --override_config to resume anyway, or choose another --model_dir")
    log.warning("%s; resuming anyway because of --override_config", message)
    return True
