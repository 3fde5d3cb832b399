"""Builds the parts of a run from its settings: data, network, method, optimizer."""

import dataclasses
import functools
import pathlib
import platform
import subprocess
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.catalog import open_labelled, open_source
from simclrv2_tf.data.classes import align_labels
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.service import services
from simclrv2_tf.data.sources import Source
from simclrv2_tf.distributed.devices import default_steps_per_execution, has_workers, use_xla
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods import METHODS
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.optimizers import build_optimizer
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.models.encoders import describe_encoder
from simclrv2_tf.modes.measure import evaluation_source
from simclrv2_tf.modes.quality import split_held_out
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.networks import build_network, load_model, load_teacher, teacher_classes
from simclrv2_tf.runs.trained import TrainedModel
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.plugins import load_plugin
from simclrv2_tf.settings.recipes import describe_recipe

Strategy: TypeAlias = tf.distribute.Strategy


@dataclasses.dataclass(frozen=True)
class RunData:
    """Training and evaluation images of a run.

    Attributes:
        source: the training images.
        test: labelled images to evaluate on; None without them.
        held_out: images that pretraining does not see, labelled or not; None without them.
        class_names: classes of the classifier; empty without one.
    """

    source: Source
    test: Source | None
    held_out: Source | None = None
    class_names: tuple[str, ...] = ()

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the training and evaluation images, by their names in config.json; "" for none."""
        evaluation = self.test or self.held_out
        return {"images": self.source.fingerprint, "eval_images": evaluation.fingerprint if evaluation else ""}


def open_data(config: Config) -> RunData:
    """Opens the images of a training mode.

    Raises:
        SettingError: if they cannot be opened, or do not fit the classes of the run or of its teacher.
    """
    if config.mode == "distill":
        return _open_distillation(config)
    if config.mode != "pretrain":
        return _align_with_classifier(config, open_labelled(config))
    source = open_source(config, config.train_split, with_unlabelled=True)
    data = _align_with_classifier(config, source)
    source, held_out = split_held_out(config, data.source, data.test)
    names = data.class_names if config.lineareval_while_pretraining else ()
    return RunData(source, data.test, held_out, names)


def _open_distillation(config: Config) -> RunData:
    names, flag = teacher_classes(config), f"--teacher={config.teacher}"
    if config.distill_alpha < 1:
        source = align_labels(open_labelled(config, keep_unlabelled=True), names, flag)
    else:
        source = open_source(config, config.train_split, with_unlabelled=True)
    test = align_labels(evaluation_source(config), names, flag)
    if test is not None and test.class_names:  # a teacher that is a file may have numbers only
        names = test.class_names
    if _resumed_classes(config) not in ((), names):
        raise SettingError(f"{flag}: has other classes than the run in --model_dir={config.run_dir}; choose another")
    return RunData(source, test, class_names=names)


def build_run(config: Config, strategy: Strategy, data: RunData | None = None) -> Run:
    """Builds a run of a training mode: its batches and network, with the weights it starts from.

    Args:
        config: its settings.
        strategy: its devices.
        data: ``open_data(config)``, if it has been called already.

    Raises:
        SettingError: if the data cannot be opened or the model cannot be built.
    """
    data = data or open_data(config)
    build = {"pretrain": _build_pretraining, "distill": _build_distillation}.get(config.mode, _build_classification)
    return _with_images(build(config, strategy, data), strategy)


def _build_pretraining(config: Config, strategy: Strategy, data: RunData) -> Run:
    method_class = load_method(config)
    batches, plan = build_input(config, data.source, method_class), Plan.of(config, data.source.num_examples)
    check_micro_batch(config, strategy)
    with strategy.scope():
        network = build_network(config, strategy, len(data.class_names))
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = method_class.from_settings(network, batches.settings, config)
        compile_method(method, config, strategy, plan)
    return Run(config, method, batches, plan, data.test, data.held_out, data.class_names)


def _build_classification(config: Config, strategy: Strategy, data: RunData) -> Run:
    batches, plan = build_input(config, data.source, ClassificationModel), Plan.of(config, data.source.num_examples)
    with strategy.scope():
        network = build_network(config, strategy, len(data.class_names), config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = ClassificationModel(network, batches.settings, weight_decay=config.weight_decay)
        freeze(method, config)
        compile_method(method, config, strategy, plan)
    return Run(config, method, batches, plan, data.test, class_names=data.class_names)


def _build_distillation(config: Config, strategy: Strategy, data: RunData) -> Run:
    batches, plan = build_input(config, data.source, Distiller), Plan.of(config, data.source.num_examples)
    num_classes = len(data.class_names)
    with strategy.scope():
        teacher = load_teacher(config, strategy)
        network = build_network(config, strategy, num_classes, config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        method = Distiller(
            network,
            teacher,
            batches.settings,
            config.temperature,
            config.distill_alpha,
            weight_decay=config.weight_decay,
        )
        compile_method(method, config, strategy, plan)
    return Run(config, method, batches, plan, data.test, class_names=data.class_names)


def _align_with_classifier(config: Config, source: Source) -> RunData:
    """Aligns the labels of training and evaluation images with the classifier: a new one, or that of a resumed run."""
    if names := _resumed_classes(config):
        source = align_labels(source, names, f"--model_dir={config.run_dir}")
    names = names or source.class_names
    test = align_labels(evaluation_source(config), names, f"--train_split={config.train_split}")
    return RunData(source, test, class_names=names)


def _resumed_classes(config: Config) -> tuple[str, ...]:
    """Returns the classes of the run that ``--override_config`` resumes with other images; () if there is none."""
    if not config.override_config:
        return ()
    try:
        return tuple(read_run_config(config.run_dir, "model_dir")[1]["class_names"])
    except SettingError:  # no checkpoint yet; a damaged config.json is reported when it is compared
        return ()


def _with_images(run: Run, strategy: Strategy) -> Run:
    """Puts the training images into the memory of each device if they are small enough."""
    images = run.data.source.images
    if images is None or images.nbytes > run.config.resident_mb * 1e6:
        return run
    if has_workers(strategy):  # they broadcast the initial value of a variable, but collectives do not support uint8
        return run
    with strategy.scope():
        # flat, as TPUs pad the last axis of an array to 128
        rows = tf.Variable(images.reshape(len(images), -1), trainable=False, name="images")
    data = dataclasses.replace(run.data, resident=rows)
    run.method.complete_batch = data.completed  # type: ignore[method-assign]
    return dataclasses.replace(run, data=data)


def load_trained(config: Config, strategy: Strategy) -> TrainedModel:
    """Builds the network of ``--checkpoint`` with its weights, to evaluate or export it."""
    model, path = load_model(config, build_views(config, ClassificationModel), strategy)
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


def build_views(config: Config, method_class: type[Method]) -> ViewSettings:
    """Builds the augmentation of a method's views: crop and flip, and colors and blur if it asks for them."""
    strong = method_class.strong_augmentation
    return ViewSettings(
        image_size=config.image_size,
        crop_area_min=config.crop_area_min,
        flip=config.use_flip,
        color_jitter_strength=config.color_jitter_strength if strong else 0.0,
        blur_probability=0.5 if strong and config.use_blur else 0.0,
        crop_sampler=config.crop_sampler,
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
    """Returns the values derived from the settings, saved in config.json under ``resolved``."""
    config, method, data, plan, network = run.config, run.method, run.data, run.plan, run.method.network
    # the class of the workers' strategy has another name than TensorFlow's public one
    kind = "MultiWorkerMirroredStrategy" if has_workers(strategy) else type(strategy).__name__
    return {
        "train_images": data.source.num_examples,
        **RunData(data.source, run.test, run.held_out).fingerprints,
        "num_classes": network.num_classes,
        "class_names": list(run.class_names),
        "head_input": network.head_input,
        "recipe": describe_recipe(config),
        "encoder_description": describe_encoder(config, network.encoder),
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
