"""Before a run starts: its settings, with those of the run it starts from, and what its directory already holds."""

import json
import logging
import pathlib
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.catalog import open_labelled
from simclrv2_tf.distributed.devices import choose_strategy
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes import build
from simclrv2_tf.report import write_report
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import find, read_run_config
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings import merge as precedence
from simclrv2_tf.settings.config import STAGES, Config

log = logging.getLogger(__name__)

Result = dict[str, Any]
Strategy = tf.distribute.Strategy

# Settings that may differ when a run goes on.
MAY_CHANGE_ON_RESUME = {
    "model_dir", "checkpoint_epochs", "checkpoint_steps", "keep_checkpoint_max", "keep_best", "on_checkpoint_error",
    "on_nan", "override_config", "deterministic", "format", "report", "compare", "embedding", "profile_steps",
    "histograms", "cache_dataset", "data_dir", "max_corrupt_share", "recipe", "stage", "augment_on",
    "steps_per_execution", "loss_tile", "remat", "cpu_replicas", "worker_timeout", "use_tpu", "tpu_name", "tpu_zone",
    "gcp_project", "master", "tpu_topology", "resident_mb", "device_prefetch", "data_service",
}  # fmt: skip


def resolve_config(explicit: dict[str, Any], stage: str = "") -> Config:
    """The run's settings; those of the run that it starts from, too."""
    mode = stage or explicit.get("mode", "pretrain")
    paths = {k: explicit[k].rstrip("/") for k in ("checkpoint", "teacher") if explicit.get(k)}
    explicit = explicit | paths
    if mode in ("evaluate", "embed", "export"):  # what they leave belongs to the run they look at
        run_dir = explicit.get("checkpoint") or explicit.get("model_dir")
        if run_dir:
            explicit = {"model_dir": find(run_dir).rpartition("/checkpoints/")[0], "checkpoint": run_dir} | explicit
    if mode == "finetune" and not explicit.get("checkpoint"):
        raise SettingError("--checkpoint=: finetune needs a pretrained run; --mode=supervised starts from scratch")
    if mode == "supervised" and explicit.get("checkpoint"):
        raise SettingError(f"--checkpoint={explicit['checkpoint']}: supervised starts from scratch; take finetune")
    if mode == "import_checkpoint" and explicit.get("checkpoint"):
        found = official.read(explicit["checkpoint"], explicit.get("ft_proj_selector"))
        resize = found.eval_resize
        described = Config(mode=mode, checkpoint=explicit["checkpoint"], eval_resize=resize, **found.settings)
        return precedence.resolve({"ft_proj_selector": found.head_input} | explicit, parent=described)
    flag = "teacher" if mode == "distill" else "checkpoint"
    parent = read_run_config(explicit[flag], flag)[0] if explicit.get(flag) else None
    return precedence.resolve(explicit, stage, parent)


def planned(explicit: dict[str, Any]) -> tuple[Config, Strategy]:
    """The training run that settings without its mode describe, and its devices.

    It is distillation with ``--teacher``, fine-tuning with ``--checkpoint``, else pretraining.
    """
    mode = "distill" if explicit.get("teacher") else "finetune" if explicit.get("checkpoint") else "pretrain"
    config = resolve_config(explicit | {"mode": mode}, mode)
    strategy = choose_strategy(config)
    return config if "train_batch_size" in explicit else cap_batch_size(config, strategy), strategy


def cap_batch_size(config: Config, strategy: Strategy) -> Config:
    """A stage with fewer labelled images than its batch takes them all at once (as many as the replicas can share)."""
    if config.mode not in ("supervised", "finetune"):
        return config
    replicas = strategy.num_replicas_in_sync
    images = open_labelled(config).num_examples
    if images < replicas:
        raise SettingError(f"--labels_per_class={config.labels_per_class}: {images} images for {replicas} replicas")
    return config.replace(train_batch_size=min(config.train_batch_size, images // replicas * replicas))


def finished_result(config: Config) -> Result | None:
    """The result of a training run that has nothing left to do."""
    model_dir = build.model_dir(config)
    if config.mode not in STAGES or not (model_dir / "result.json").is_file():
        return None
    if changed(config, model_dir):
        return None
    print(f"Nothing left to train: {model_dir} has its result.")
    if config.report and not (model_dir / "report.html").is_file():  # killed just before it
        write_report(model_dir)
    return RunDirectory(model_dir).result()


def changed(config: Config, model_dir: pathlib.Path, resolved: dict[str, Any] | None = None) -> bool:
    """Whether a model directory holds a run with other settings, which ``--override_config`` allows.

    Args:
        config: the settings.
        model_dir: their model directory.
        resolved: what followed from them, where that is known: of it the fingerprint of the images.

    Raises:
        SettingError: if it does and that is not allowed, with all the differences.
    """
    file = model_dir / "config.json"
    if not file.is_file():
        return False
    text = file.read_text(encoding="utf-8")
    earlier = Config.from_json(text)
    differences = [
        f"{name} {getattr(earlier, name)} -> {value}"
        for name, value in vars(config).items()
        if name not in MAY_CHANGE_ON_RESUME and getattr(earlier, name) != value
    ]
    images = json.loads(text).get("resolved", {}).get("images")
    if resolved and images not in (None, resolved["images"]):
        differences.append(f"the training images have changed: {images} -> {resolved['images']}")
    if not differences:
        return False
    told = f"--model_dir={model_dir}: holds a run with other settings ({', '.join(differences)})"
    if not config.override_config:
        raise SettingError(f"{told}; --override_config goes on with it all the same")
    log.warning("%s; going on with it, as --override_config says", told)
    return True
