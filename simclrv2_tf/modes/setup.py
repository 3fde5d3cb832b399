"""Builds what a run consists of from its settings: data, network, method, optimizer."""

import dataclasses
import pathlib
import platform
import subprocess
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.service import services
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import default_steps_per_execution, dtype_policy, has_workers, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods import METHODS
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.models import BatchNormSettings, Network, ProjectionHead
from simclrv2_tf.models.encoders import build_encoder, describe_encoder, warn_about_local_batch_norm
from simclrv2_tf.modes.measure import check_classes, evaluation_source
from simclrv2_tf.modes.quality import split_held_out
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.plugins import load_plugin
from simclrv2_tf.settings.recipes import describe_recipe

Strategy = tf.distribute.Strategy


def build_run(config: Config, strategy: Strategy) -> Run:
    """Builds a run of a training mode: opens the data, builds the network, loads the weights it starts from.

    Raises:
        SettingError: if the data cannot be opened or the model cannot be built.
    """
    build = {"pretrain": _build_pretraining, "distill": _build_distillation}.get(config.mode, _build_classification)
    return _with_images(build(config, strategy), strategy)


def _build_pretraining(config: Config, strategy: Strategy) -> Run:
    source, test = open_source(config, config.train_split, with_unlabelled=True), evaluation_source(config)
    source, held_out = split_held_out(config, source, test)
    method_class = load_method(config)
    classes = len(source.class_names) if config.lineareval_while_pretraining else 0
    data, plan = build_input(config, source, method_class), Plan.of(config, source.num_examples)
    check_micro_batch(config, strategy)
    with strategy.scope():
        network = build_network(config, strategy, classes)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = method_class.from_settings(network, data.settings, config)
        compile_method(method, config, strategy, plan)
    return Run(config, method, data, plan, test, held_out)


def _build_classification(config: Config, strategy: Strategy) -> Run:
    source, test = open_labelled(config), evaluation_source(config)
    data, plan = build_input(config, source, ClassificationModel), Plan.of(config, source.num_examples)
    with strategy.scope():
        network = build_network(config, strategy, len(source.class_names), config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = ClassificationModel(network, data.settings, weight_decay=config.weight_decay)
        freeze(method, config)
        compile_method(method, config, strategy, plan)
    return Run(config, method, data, plan, test)


def _build_distillation(config: Config, strategy: Strategy) -> Run:
    teacher_config, resolved = read_run_config(config.teacher, "teacher")
    if config.distill_alpha < 1:
        source = open_labelled(config, keep_unlabelled=True)
    else:
        source = open_source(config, config.train_split, with_unlabelled=True)
    test = evaluation_source(config)
    data, plan = build_input(config, source, Distiller), Plan.of(config, source.num_examples)
    classes = resolved["num_classes"]
    if not classes:
        raise SettingError(f"--teacher={config.teacher}: has no classifier; give a fine-tuned or supervised run")
    check_classes(test, classes, f"--teacher={config.teacher}")
    with strategy.scope():
        teacher = build_network(teacher_config, strategy, classes, resolved["head_input"])
        load_network(teacher, config.teacher, with_classifier=True, flag="teacher")
        network = build_network(config, strategy, classes, config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = Distiller(
            network,
            teacher,
            data.settings,
            config.temperature,
            config.distill_alpha,
            weight_decay=config.weight_decay,
        )
        compile_method(method, config, strategy, plan)
    return Run(config, method, data, plan, test)


def _with_images(run: Run, strategy: Strategy) -> Run:
    """Puts the training images into the memory of each device if they are small enough."""
    images = run.data.source.images
    if images is None or images.nbytes > run.config.resident_mb * 1e6:
        return run
    if has_workers(strategy):  # to make a variable they send each other its value, which collectives cannot in bytes
        return run
    with strategy.scope():
        # flat, as TPUs pad the last axis of an array to 128
        rows = tf.Variable(images.reshape(len(images), -1), trainable=False, name="images")
    data = dataclasses.replace(run.data, resident=rows)
    run.method.complete_batch = data.completed
    return dataclasses.replace(run, data=data)


def load_trained(config: Config, strategy: Strategy) -> ClassificationModel:
    """Builds the network of ``--checkpoint`` with its weights, to evaluate or export it."""
    _, resolved = read_run_config(config.checkpoint)
    with strategy.scope():
        network = build_network(config, strategy, resolved["num_classes"], resolved["head_input"])
        path = load_network(network, config.checkpoint, with_classifier=bool(resolved["num_classes"]))
        model = ClassificationModel(network, build_views(config, ClassificationModel))
    print(f"{config.mode}: {path}")
    return model


def load_method(config: Config) -> type[Method]:
    """Returns the pretraining method of ``--method``: one of ``METHODS``, or ``package.module:Class``.

    Raises:
        SettingError: if there is no such class.
    """
    if config.method in METHODS:
        return METHODS[config.method]
    method_class = load_plugin("method", config.method)
    if not (isinstance(method_class, type) and issubclass(method_class, Method)):
        raise SettingError(f"--method={config.method}: must be a subclass of simclrv2_tf.Method")
    return method_class


def build_network(config: Config, strategy: Strategy, num_classes: int, head_input: int = 0) -> Network:
    """Builds the network that the settings describe, with seeded initial weights. Call it in the strategy's scope."""
    keras.config.set_dtype_policy(dtype_policy(config))
    keras.utils.set_random_seed(config.seed)
    batch_norm = BatchNormSettings(
        momentum=config.batch_norm_decay, synchronized=config.global_bn, fused=not use_xla(config, strategy)
    )
    encoder = build_encoder(config, batch_norm)
    warn_about_local_batch_norm(encoder, config, strategy.num_replicas_in_sync)
    head = ProjectionHead(
        config.proj_head_mode, config.num_proj_layers, config.proj_out_dim, batch_norm, name="projection_head"
    )
    network = Network(encoder, head, num_classes, head_input, config.zero_init_logits_layer, name="network")
    size = None if config.encoder == "resnet" else config.image_size
    try:
        network.build((None, size, size, 3))
    except ValueError as error:
        raise SettingError(f"--encoder={config.encoder}: {error}") from None
    return network


def build_views(config: Config, method_class: type[Method]) -> ViewSettings:
    """Builds the augmentation of a method's views: crop and flip, and colors and blur if it asks for them."""
    strong = method_class.strong_augmentation
    return ViewSettings(
        image_size=config.image_size,
        crop_area_min=config.crop_area_min,
        flip=config.use_flip,
        color_jitter_strength=config.color_jitter_strength if strong else 0.0,
        blur_probability=0.5 if strong and config.use_blur else 0.0,
        resize_method=config.resize_method,
        jpeg_scaling=config.jpeg_scaling,
    )


def build_input(config: Config, source: Source, method_class: type[Method]) -> TrainingInput:
    """Builds the batches of a run.

    Raises:
        SettingError: if there are fewer images than a batch, or a data service does not answer.
    """
    if config.train_batch_size > source.num_examples:
        raise SettingError(
            f"--train_batch_size={config.train_batch_size}: {source.name} has only {source.num_examples} images"
        )
    return TrainingInput(
        source,
        config.train_batch_size,
        num_views=method_class.num_views,
        settings=build_views(config, method_class),
        seed=config.seed,
        services=services(config.data_service, source, config.worker_timeout) if config.data_service else (),
    )


def check_micro_batch(config: Config, strategy: Strategy) -> None:
    """Raises SettingError unless the micro-batches divide a replica's batch."""
    images = config.train_batch_size // strategy.num_replicas_in_sync
    if config.grad_cache_micro_batch and images % config.grad_cache_micro_batch:
        raise SettingError(
            f"--grad_cache_micro_batch={config.grad_cache_micro_batch}: does not divide the {images} images per replica"
        )


def freeze(method: ClassificationModel, config: Config) -> None:
    """Freezes the parts that the settings name: all but the classifier for linear evaluation."""
    after_block = 4 if config.mode == "linear_eval" else config.fine_tune_after_block
    try:
        method.freeze(after_block, keep_head=not config.fine_tune_proj_head)
    except ValueError as error:
        raise SettingError(f"--{error}") from None


def compile_method(method: Method, config: Config, strategy: Strategy, plan: Plan) -> None:
    """Compiles a method with its optimizer. Call it in the strategy's scope."""
    method.compile(
        optimizer=build_optimizer(config.optimizer, plan.schedule, config.momentum, config.weight_decay),
        jit_compile=use_xla(config, strategy),
        steps_per_execution=min(default_steps_per_execution(config), plan.interval_steps),
        skip_bad_steps=config.on_nan == "skip",
    )


def load_callbacks(config: Config) -> list[keras.callbacks.Callback]:
    """Builds the callbacks of ``--callbacks``: each factory returns a Keras callback, or a list of them.

    Raises:
        SettingError: if there is no such factory or it returns something else.
    """
    callbacks: list[keras.callbacks.Callback] = []
    for reference in filter(None, config.callbacks.split(",")):
        built = load_plugin("callbacks", reference)()
        callbacks += built if isinstance(built, list | tuple) else [built]
        if not all(isinstance(callback, keras.callbacks.Callback) for callback in callbacks):
            raise SettingError(f"--callbacks={reference}: must return a Keras callback, or a list of them")
    return callbacks


def resolved_settings(run: Run, strategy: Strategy) -> dict[str, Any]:
    """Returns the values derived from the settings, which config.json has under ``resolved``."""
    config, method, data, plan, network = run.config, run.method, run.data, run.plan, run.method.network
    # the class of the workers' strategy has another name than TensorFlow gives it in public
    kind = "MultiWorkerMirroredStrategy" if has_workers(strategy) else type(strategy).__name__
    return {
        "train_images": data.source.num_examples,
        "images": data.source.fingerprint,
        "num_classes": network.num_classes,
        "class_names": list(data.source.class_names),
        "head_input": network.head_input,
        "recipe": describe_recipe(config),
        "encoder_description": describe_encoder(config),
        "steps": plan.total_steps,
        "warmup_steps": plan.warmup_steps,
        "peak_learning_rate": plan.peak_learning_rate,
        "replicas": strategy.num_replicas_in_sync,
        "batch_per_replica": config.train_batch_size // strategy.num_replicas_in_sync,
        "parameters": sum(int(np.prod(v.shape)) for v in network.weights if not v.name.startswith("moving_")),
        "trained_parameters": sum(int(np.prod(v.shape)) for v in method.trained_variables),
        "dtype_policy": keras.config.dtype_policy().name,
        "xla": bool(method.jit_compile),
        **environment(),
        "strategy": kind if strategy.num_replicas_in_sync > 1 else "one device",
    }


def environment() -> dict[str, str]:
    """Returns versions, the commit of this code, and the device."""
    return {
        "versions": f"Python {platform.python_version()}, TensorFlow {tf.__version__}, Keras {keras.__version__}",
        "revision": _revision(),
        "device": _device(),
    }


def _revision() -> str:
    """Returns the commit of this code, marked if there are changes; "" outside a repository."""
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
