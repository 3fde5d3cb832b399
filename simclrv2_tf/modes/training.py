"""The modes that train a network: each of the three steps, and their neighbours."""

import importlib.util
import pathlib
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf import build, evaluation
from simclrv2_tf.config import Config, SettingError
from simclrv2_tf.console import box
from simclrv2_tf.data.pipeline import TrainingInput
from simclrv2_tf.data.sources import FileSource, Source, open_labelled, open_source
from simclrv2_tf.modes.measuring import (
    check_classes,
    evaluation_source,
    features_of,
    knn_features,
    knn_source,
    logits_of,
    top_k,
)
from simclrv2_tf.modes.starting import Result, Strategy, changed
from simclrv2_tf.report import cell, facts, scores, write_report
from simclrv2_tf.report.pictures import Pictures, example_views, write_projector
from simclrv2_tf.training.checkpoints import load_network, run_of
from simclrv2_tf.training.classifier import ClassificationModel
from simclrv2_tf.training.distiller import Distiller
from simclrv2_tf.training.distributed import ReplicatedModel
from simclrv2_tf.training.journal import Journal
from simclrv2_tf.training.loop import train
from simclrv2_tf.training.schedules import Plan
from simclrv2_tf.training.simclr import Memory, SimCLR

PREFIX = {"finetune": "finetune", "linear_eval": "linear", "supervised": "supervised", "distill": "distill"}


def pretrain(config: Config, strategy: Strategy) -> Result:
    """Step 1: contrastive pretraining without labels (labels only train the classifier beside it)."""
    source, test = open_source(config, config.train_split), evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    classes = len(source.class_names) if config.lineareval_while_pretraining else 0
    micro_batch = build.micro_batch(config, strategy)
    with strategy.scope():
        network = build.network(config, strategy, classes)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        memory = Memory(network, config.memory_size, config.ema_decay) if config.memory_size else None
        model = SimCLR(
            network,
            build.views(config),
            config.temperature,
            config.hidden_norm,
            config.weight_decay,
            memory,
            config.loss_tile,
            micro_batch,
        )
        build.compile_model(model, config, strategy, plan)

    pictures = _pictures(config, test)

    def online_top1() -> dict[str, float]:
        if not classes or test is None:
            return {}
        return {"online_top1": top_k(*logits_of(model, config, test))["top1"]}

    def evaluate() -> dict[str, float]:
        if pictures is not None and test is not None:
            pictures.draw_embedding(features_of(model, config, pictures.sample))
        return online_top1()

    def results(journal: Journal) -> Result:
        found = online_top1()
        if test is not None and source.class_names:
            neighbours = knn_source(source)
            features = [knn_features(model, config, neighbours), features_of(model, config, test)]
            found["knn_top1"] = evaluation.knn_accuracy(*features[0], *features[1])
            if pictures is not None:
                pictures.draw_neighbours(neighbours, *features)
                write_projector(pictures, features_of(model, config, pictures.sample))
                journal.write_images("views", np.concatenate(example_views(data)), plan.total_steps)
        return found

    return _train_and_report(config, strategy, model, data, plan, evaluate, results, pictures)


def classify(config: Config, strategy: Strategy) -> Result:
    """Step 2: fine-tuning; and its neighbours, linear evaluation and training from scratch."""
    source, test = open_labelled(config), evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    with strategy.scope():
        network = build.network(config, strategy, len(source.class_names), config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        model = ClassificationModel(network, build.views(config), config.weight_decay)
        build.freeze(model, config)
        build.compile_model(model, config, strategy, plan)
    return _train_classifier(config, strategy, model, data, plan, test)


def distill(config: Config, strategy: Strategy) -> Result:
    """Step 3: a teacher's soft labels for all images teach a student, of its own size or smaller."""
    teacher_config, resolved = run_of(config.teacher, "teacher")
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
    return _train_classifier(config, strategy, model, data, plan, test)


def _train_classifier(
    config: Config, strategy: Strategy, model: ReplicatedModel, data: TrainingInput, plan: Plan, test: Source | None
) -> Result:
    prefix = PREFIX[config.mode]

    pictures = _pictures(config, test)

    def accuracies() -> dict[str, float]:
        if test is None:
            return {}
        logits, labels = logits_of(model, config, test)
        if pictures is not None:
            pictures.draw_classification(logits, labels)
        return top_k(logits, labels)

    def evaluate() -> dict[str, float]:
        return {f"eval_{name}": value for name, value in accuracies().items() if name == "top1"}

    def results(journal: Journal) -> Result:
        return {f"{prefix}_{name}": value for name, value in accuracies().items()}

    return _train_and_report(config, strategy, model, data, plan, evaluate, results, pictures)


def _pictures(config: Config, test: Source | None) -> Pictures | None:
    """The figures of a run that is to have some; SettingError if they cannot be drawn."""
    if not config.report:
        return None
    if config.embedding == "umap" and importlib.util.find_spec("umap") is None:
        raise SettingError("--embedding=umap: needs pip install umap-learn")
    return Pictures(build.model_dir(config), test, config.image_size, config.embedding)


def _train_and_report(
    config: Config,
    strategy: Strategy,
    model: ReplicatedModel,
    data: TrainingInput,
    plan: Plan,
    evaluate: Callable[[], dict[str, float]],
    results: Callable[[Journal], Result],
    pictures: Pictures | None,
) -> Result:
    """The common course of every training mode."""
    resolved = _resolved(config, strategy, model, data, plan)
    journal = Journal(build.model_dir(config))

    def refresh() -> None:
        if pictures is not None:
            write_report(journal.model_dir)

    with journal.locked():
        changed(config, journal.model_dir, resolved)
        journal.write_config(config, resolved)
        print(
            "\n" + box(f"{config.mode}: {journal.model_dir}", facts(vars(config) | {"resolved": resolved})), flush=True
        )
        started = time.perf_counter()
        if pictures is not None:
            pictures.draw_views(data)
        train(model, data, plan, journal, config, evaluate, refresh)
        result = {"mode": config.mode, "steps": plan.total_steps, "labels": _labels_of(config), **results(journal)}
        result["seconds"] = round(time.perf_counter() - started, 1)
        if isinstance(data.source, FileSource):
            result["corrupt_images"] = sorted(data.source.corrupt)
        journal.write_result(result)
        refresh()
        print(box(f"{config.mode}: done", _told(result, journal.model_dir)), flush=True)
    return result


def _told(result: Result, model_dir: pathlib.Path) -> dict[str, str]:
    """What the end of a run says."""
    told = scores(result) | {"time": cell("seconds", result["seconds"])}
    page = model_dir / "report.html"
    return told | ({"report": str(page)} if page.is_file() else {})


def _labels_of(config: Config) -> str | int:
    """How many labels a run had: a number a class, a percentage, or all."""
    if config.mode == "pretrain":
        return 0
    if config.labels_per_class:
        return config.labels_per_class
    return "all" if config.label_fraction == 1 else f"{100 * config.label_fraction:g} %"


def _resolved(
    config: Config, strategy: Strategy, model: ReplicatedModel, data: TrainingInput, plan: Plan
) -> dict[str, Any]:
    """What followed from the settings."""
    network = model.network
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
