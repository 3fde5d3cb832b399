"""What a training mode needs before its first step: data and model; and what follows from its settings."""

import dataclasses
import pathlib
import platform
import subprocess
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import has_workers
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import ReplicatedModel
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes import build
from simclrv2_tf.modes.measure import check_classes, evaluation_source
from simclrv2_tf.modes.resolve import Strategy
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.settings.config import Config


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run needs before its first step."""

    model: ReplicatedModel
    data: TrainingInput
    plan: Plan
    test: Source | None


def build_run(config: Config, strategy: Strategy) -> Run:
    """Data and model of a training mode; SettingError if they cannot be had."""
    prepare = {"pretrain": _ready_to_pretrain, "distill": _ready_to_distill}.get(config.mode, _ready_to_classify)
    return _with_resident_images(prepare(config, strategy), config, strategy)


def _with_resident_images(run: Run, config: Config, strategy: Strategy) -> Run:
    """The run with its images in the memory of each device, if they are small enough."""
    source = run.data.source
    if config.augment_on == "host" or source.images is None:
        return run
    if has_workers(strategy):  # to make a variable they send each other its value, which collectives cannot in bytes
        return run
    if source.images.nbytes > config.resident_mb * 1e6:
        return run
    with strategy.scope():
        # flat, as TPUs pad the last axis of an array to 128
        rows = tf.Variable(source.images.reshape(len(source.images), -1), trainable=False, name="images")
    data = dataclasses.replace(run.data, resident=rows)
    run.model.completed = data.completed
    return dataclasses.replace(run, data=data)


def _ready_to_pretrain(config: Config, strategy: Strategy) -> Run:
    source, test = open_source(config, config.train_split), evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    classes = len(source.class_names) if config.lineareval_while_pretraining else 0
    micro_batch = build.micro_batch(config, strategy)
    with strategy.scope():
        network = build.network(config, strategy, classes)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        model = build.simclr(config, network, micro_batch)
        build.compile_model(model, config, strategy, plan)
    return Run(model, data, plan, test)


def _ready_to_classify(config: Config, strategy: Strategy) -> Run:
    source, test = open_labelled(config), evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    with strategy.scope():
        network = build.network(config, strategy, len(source.class_names), config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        model = ClassificationModel(network, build.views(config), config.weight_decay)
        build.freeze(model, config)
        build.compile_model(model, config, strategy, plan)
    return Run(model, data, plan, test)


def _ready_to_distill(config: Config, strategy: Strategy) -> Run:
    teacher_config, resolved = read_run_config(config.teacher, "teacher")
    if config.distill_alpha < 1:
        source = open_labelled(config, keep_unlabelled=True)
    else:
        source = open_source(config, config.train_split)
    test = evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    classes = resolved["num_classes"]
    if not classes:
        raise SettingError(f"--teacher={config.teacher}: has no classifier to teach with")
    check_classes(test, classes, f"--teacher={config.teacher}")
    with strategy.scope():
        teacher = build.network(teacher_config, strategy, classes, resolved["head_input"])
        load_network(teacher, config.teacher, with_classifier=True, flag="teacher")
        network = build.network(config, strategy, classes, config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        model = Distiller(
            network, teacher, build.views(config), config.temperature, config.distill_alpha, config.weight_decay
        )
        build.compile_model(model, config, strategy, plan)
    return Run(model, data, plan, test)


def resolved_settings(config: Config, strategy: Strategy, run: Run) -> dict[str, Any]:
    """What follows from the settings: the ``resolved`` of a ``config.json``."""
    model, data, plan, network = run.model, run.data, run.plan, run.model.network
    # the class of the workers' one has another name than TensorFlow gives it in public
    kind = "MultiWorkerMirroredStrategy" if has_workers(strategy) else type(strategy).__name__
    return {
        "train_images": data.source.num_examples,
        "images": data.source.fingerprint,
        "num_classes": network.num_classes,
        "class_names": list(data.source.class_names),
        "head_input": network.head_input,
        "steps": plan.total_steps,
        "warmup_steps": plan.warmup_steps,
        "peak_learning_rate": plan.peak_learning_rate,
        "replicas": strategy.num_replicas_in_sync,
        "batch_per_replica": config.train_batch_size // strategy.num_replicas_in_sync,
        "parameters": sum(int(np.prod(v.shape)) for v in network.weights if not v.name.startswith("moving_")),
        "trained_parameters": sum(int(np.prod(v.shape)) for v in model.trained_variables),
        "dtype_policy": keras.config.dtype_policy().name,
        "xla": bool(model.jit_compile),
        **environment(),
        "strategy": kind if strategy.num_replicas_in_sync > 1 else "one device",
    }


def environment() -> dict[str, str]:
    """Where a run runs: versions, the commit of this code, the device."""
    return {
        "versions": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "revision": _revision(),
        "device": _device(),
    }


def _revision() -> str:
    """The commit of this code, with a mark if there are changes; nothing where it does not lie in a repository."""
    here = pathlib.Path(__file__)
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", here.name], cwd=here.parent, capture_output=True, check=True
        )
        describe = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(describe, cwd=here.parent, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "TPU" if tf.config.list_logical_devices("TPU") else "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
