"""What each ``--mode`` does, one function each: from settings to a trained, evaluated and reported run."""

import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf import build, evaluation, gallery, recipes
from simclrv2_tf import export as saved_model
from simclrv2_tf.config import STAGES, Config, SettingError
from simclrv2_tf.data.pipeline import TrainingInput, evaluation_batches
from simclrv2_tf.data.sources import FileSource, NoSuchSplitError, RecordSource, Source, open_labelled, open_source
from simclrv2_tf.report import format_table, write_report
from simclrv2_tf.training.checkpoints import find, load_network, run_of
from simclrv2_tf.training.classifier import ClassificationModel
from simclrv2_tf.training.distiller import Distiller
from simclrv2_tf.training.distributed import ReplicatedModel, choose_strategy
from simclrv2_tf.training.journal import Journal, write_atomically
from simclrv2_tf.training.loop import train
from simclrv2_tf.training.schedules import Plan
from simclrv2_tf.training.simclr import Memory, SimCLR

Result = dict[str, Any]
Features = tuple[np.ndarray, np.ndarray]
Strategy = tf.distribute.Strategy

# kNN compares with at most this many training images.
KNN_IMAGES = 50_000
PREFIX = {"finetune": "finetune", "linear_eval": "linear", "supervised": "supervised", "distill": "distill"}
# Settings that may differ when a run goes on.
FREE = {"model_dir", "checkpoint_epochs", "checkpoint_steps", "keep_checkpoint_max", "report", "cache_dataset"}
FREE |= {
    "augment_on",
    "steps_per_execution",
    "cpu_replicas",
    "use_tpu",
    "tpu_name",
    "tpu_zone",
    "gcp_project",
    "master",
}
FREE |= {"max_corrupt_share", "recipe", "stage", "data_dir"}


def run(explicit: dict[str, Any]) -> Result:
    """Runs the mode that the settings name.

    Args:
        explicit: the settings that the user gave, by name.

    Raises:
        SettingError: for a setting or an input that cannot be used, before anything is written.
    """
    _check_backend()
    mode = explicit.get("mode", "pretrain")
    if mode == "semi_supervised":
        return semi_supervised(explicit)
    functions: dict[str, Callable[[Config, Strategy], Result]] = {
        "pretrain": pretrain,
        "finetune": classify,
        "linear_eval": classify,
        "supervised": classify,
        "distill": distill,
        "evaluate": evaluate,
        "embed": embed,
        "export": export,
    }
    config = _settle(explicit)
    strategy = choose_strategy(config)
    if "train_batch_size" not in explicit:
        config = _fit_batch(config, strategy)
    return _finished(config) or functions[mode](config, strategy)


def pretrain(config: Config, strategy: Strategy) -> Result:
    """Step 1: contrastive pretraining without labels (labels only train the classifier beside it)."""
    source, test = open_source(config, config.train_split), _evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    classes = len(source.class_names) if config.lineareval_while_pretraining else 0
    with strategy.scope():
        network = build.network(config, strategy, classes)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        memory = Memory(network, config.memory_size, config.ema_decay) if config.memory_size else None
        model = SimCLR(
            network, build.views(config), config.temperature, config.hidden_norm, config.weight_decay, memory
        )
        build.compile_model(model, config, strategy, plan)

    def online_top1() -> dict[str, float]:
        if not classes or test is None:
            return {}
        return {"online_top1": _ranks(*_logits(model, config, test))["top1"]}

    def results(journal: Journal) -> Result:
        found = online_top1()
        if test is not None and source.class_names:
            train_features = _knn_features(model, config, source)
            test_features = _features(model, config, test)
            found["knn_top1"] = evaluation.knn_accuracy(*train_features, *test_features)
            if config.report:
                gallery.draw_pretraining(journal.model_dir, data, source, test, train_features, test_features)
                gallery.write_projector(journal.model_dir, test, test_features, config.image_size)
                journal.write_images("views", np.concatenate(gallery.example_views(data)), plan.total_steps)
        return found

    return _train_and_report(config, strategy, model, data, plan, online_top1, results)


def classify(config: Config, strategy: Strategy) -> Result:
    """Step 2: fine-tuning; and its neighbours, linear evaluation and training from scratch."""
    source, test = open_labelled(config), _evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    with strategy.scope():
        network = build.network(config, strategy, len(source.class_names), config.ft_proj_selector)
        if config.checkpoint:
            load_network(network, config.checkpoint, with_classifier=False)
        model = ClassificationModel(network, build.views(config), config.weight_decay)
        frozen = 4 if config.mode == "linear_eval" else config.fine_tune_after_block
        model.freeze(frozen, keep_head=not config.fine_tune_proj_head)
        build.compile_model(model, config, strategy, plan)
    return _train_classifier(config, strategy, model, data, plan, test)


def distill(config: Config, strategy: Strategy) -> Result:
    """Step 3: a teacher's soft labels for all images teach a student, of its own size or smaller."""
    teacher_config, resolved = run_of(config.teacher, "teacher")
    if config.distill_alpha < 1:
        source = open_labelled(config, keep_unlabelled=True)
    else:
        source = open_source(config, config.train_split)
    test = _evaluation_source(config)
    data, plan = build.training_input(config, source), Plan.of(config, source.num_examples)
    classes = resolved["num_classes"]
    if not classes:
        raise SettingError(f"--teacher={config.teacher}: has no classifier to teach with")
    _check_classes(test, classes, f"--teacher={config.teacher}")
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

    def eval_top1() -> dict[str, float]:
        return {"eval_top1": _ranks(*_logits(model, config, test))["top1"]} if test is not None else {}

    def results(journal: Journal) -> Result:
        if test is None:
            return {}
        logits, labels = _logits(model, config, test)
        if config.report:
            gallery.draw_classification(journal.model_dir, test, logits, labels, config.image_size)
        return {f"{prefix}_{name}": value for name, value in _ranks(logits, labels).items()}

    return _train_and_report(config, strategy, model, data, plan, eval_top1, results)


def _train_and_report(
    config: Config,
    strategy: Strategy,
    model: ReplicatedModel,
    data: TrainingInput,
    plan: Plan,
    evaluate: Callable[[], dict[str, float]],
    results: Callable[[Journal], Result],
) -> Result:
    """The common course of every training mode."""
    resolved = _resolved(config, strategy, model, data, plan)
    model_dir = build.model_dir(config)
    _check_same_run(config, model_dir)
    journal = Journal(model_dir)
    journal.write_config(config, resolved)
    _announce(config, resolved, model_dir)
    started = time.perf_counter()
    train(model, data, plan, journal, config.keep_checkpoint_max, evaluate)
    result = {"mode": config.mode, "steps": plan.total_steps, "labels": _labels_of(config), **results(journal)}
    result["seconds"] = round(time.perf_counter() - started, 1)
    if isinstance(data.source, FileSource):
        result["corrupt_images"] = sorted(data.source.corrupt)
    journal.write_result(result)
    _print_scores(result)
    if config.report:
        write_report(model_dir)
    return result


def _settle(explicit: dict[str, Any], stage: str = "") -> Config:
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
    flag = "teacher" if mode == "distill" else "checkpoint"
    parent = run_of(explicit[flag], flag)[0] if explicit.get(flag) else None
    return recipes.resolve(explicit, stage, parent)


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise SettingError(f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow")


def _finished(config: Config) -> Result | None:
    """The result of a training run that has nothing left to do."""
    model_dir = build.model_dir(config)
    if config.mode not in STAGES or not (model_dir / "result.json").is_file():
        return None
    _check_same_run(config, model_dir)
    print(f"Nothing left to train: {model_dir} has its result.")
    return Journal(model_dir).result()


def _check_same_run(config: Config, model_dir: pathlib.Path) -> None:
    """A model directory belongs to one run; SettingError with the settings that differ."""
    file = model_dir / "config.json"
    if not file.is_file():
        return
    earlier = Config.from_json(file.read_text(encoding="utf-8"))
    changed = [
        f"{name} {getattr(earlier, name)} -> {value}"
        for name, value in vars(config).items()
        if name not in FREE and getattr(earlier, name) != value
    ]
    if changed:
        raise SettingError(f"--model_dir={model_dir}: holds a run with other settings ({', '.join(changed)})")


def _evaluation_source(config: Config) -> Source | None:
    """The evaluation split; None where there is none, or without labels, and the mode can do without.

    Raises:
        SettingError: if the data are not as they should be; or fine-tuning and its like have nothing to evaluate on.
    """
    needed = config.mode in ("finetune", "linear_eval", "supervised", "evaluate")
    try:
        source = open_source(config, config.eval_split)
    except NoSuchSplitError:
        if needed or config.eval_split:
            raise
        return None
    if source.class_names or config.mode == "embed":
        return source
    if needed:
        raise SettingError(f"--eval_split={config.eval_split}: {source.name} has no labels to evaluate with")
    return None


def _check_classes(source: Source | None, classes: int, flag: str) -> None:
    if source is not None and classes and source.class_names and len(source.class_names) != classes:
        raise SettingError(f"{flag}: knows {classes} classes, {source.name} has {len(source.class_names)}")


def _labels_of(config: Config) -> str | int:
    """How many labels a run had: a number a class, a percentage, or all."""
    if config.mode == "pretrain":
        return 0
    if config.labels_per_class:
        return config.labels_per_class
    return "all" if config.label_fraction == 1 else f"{100 * config.label_fraction:g} %"


def _collect(model: ReplicatedModel, config: Config, source: Source, name: str, max_steps: int) -> Features:
    """An endpoint of every image of a split, and the labels ``[n]``; SettingError if too many images are corrupt."""
    batches = evaluation_batches(source, config.eval_batch_size, config.image_size, max_steps)
    try:
        found = model.collect(batches, (name,))
    finally:
        if isinstance(source, FileSource):
            source.check_corrupt()
    return found[name], found["labels"]


def _logits(model: ReplicatedModel, config: Config, source: Source) -> Features:
    """Logits ``[n, classes]`` and labels ``[n]`` of a split."""
    return _collect(model, config, source, "logits_sup", config.eval_steps)


def _ranks(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1, and top-5 where there are more than five classes."""
    ranks = (1, 5) if logits.shape[1] > 5 else (1,)
    return {f"top{k}": evaluation.top_k_accuracy(logits, labels, k) for k in ranks}


def _features(model: ReplicatedModel, config: Config, source: Source, max_steps: int = 0) -> Features:
    """Encoder outputs ``[n, d]`` and labels ``[n]`` of a split."""
    return _collect(model, config, source, "final_avg_pool", max_steps)


def _knn_features(model: ReplicatedModel, config: Config, source: Source) -> Features:
    """Features of the training images that kNN compares with: those with a label, of many a seeded choice."""
    if source.num_examples > KNN_IMAGES and not isinstance(source, RecordSource):
        source = source.subset(np.sort(np.random.default_rng(0).permutation(source.num_examples)[:KNN_IMAGES]))
    features, labels = _features(model, config, source, -(-KNN_IMAGES // config.eval_batch_size))
    return features[labels >= 0], labels[labels >= 0]


def _resolved(
    config: Config, strategy: Strategy, model: ReplicatedModel, data: TrainingInput, plan: Plan
) -> dict[str, Any]:
    """What followed from the settings."""
    network = model.network
    return {
        "train_images": data.source.num_examples,
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
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "device": _device(),
    }


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "TPU" if tf.config.list_logical_devices("TPU") else "CPU"
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")


def _announce(config: Config, resolved: dict[str, Any], model_dir: pathlib.Path) -> None:
    print(
        f"\n{config.mode}: {config.dataset} -> {model_dir}\n"
        f"  ResNet-{config.resnet_depth} x{config.width_multiplier:g}, {config.image_size} px, "
        f"{resolved['parameters']:,} parameters ({resolved['trained_parameters']:,} trained), "
        f"{resolved['dtype_policy']}, {'XLA' if resolved['xla'] else 'no XLA'}\n"
        f"  {resolved['train_images']:,} images, {resolved['steps']:,} steps of {config.train_batch_size} on "
        f"{resolved['replicas']} replica(s), {config.optimizer}, peak learning rate "
        f"{resolved['peak_learning_rate']:g}, {resolved['warmup_steps']} warm-up steps",
        flush=True,
    )


def _trained_model(config: Config, strategy: Strategy) -> tuple[ClassificationModel, list[str]]:
    """The network of ``--checkpoint``, to look at; and the names of its classes."""
    _, resolved = run_of(config.checkpoint)
    with strategy.scope():
        network = build.network(config, strategy, resolved["num_classes"], resolved["head_input"])
        found = load_network(network, config.checkpoint, with_classifier=bool(resolved["num_classes"]))
        model = ClassificationModel(network, build.views(config))
    print(f"{config.mode}: {found}")
    return model, resolved["class_names"]


def evaluate(config: Config, strategy: Strategy) -> Result:
    """Top-1 and top-5 of a run's classifier and kNN on its features, on the evaluation split."""
    source, test = open_source(config, config.train_split), _evaluation_source(config)
    model, _ = _trained_model(config, strategy)
    _check_classes(test, model.network.num_classes, f"--checkpoint={config.checkpoint}")
    result: Result = {"mode": "evaluate", "checkpoint": config.checkpoint, "eval_images": test.num_examples}
    if model.network.classifier is not None:
        result |= _ranks(*_logits(model, config, test))
    train_features = _knn_features(model, config, source)
    result["knn_top1"] = evaluation.knn_accuracy(*train_features, *_features(model, config, test))
    journal = Journal(build.model_dir(config))
    write_atomically(journal.model_dir / "evaluation.json", json.dumps(result, indent=1))
    _print_scores(result)
    return result


def embed(config: Config, strategy: Strategy) -> Result:
    """Features of both splits as ``embeddings.npz``: ``x_SPLIT [n, d]``, ``y_SPLIT [n]``, for files ``path_SPLIT``."""
    sources = [open_source(config, config.train_split), _evaluation_source(config)]
    model, _ = _trained_model(config, strategy)
    arrays: dict[str, np.ndarray] = {}
    for source in sources:
        if source is None:
            continue
        split = source.name.rpartition("/")[2]
        arrays[f"x_{split}"], arrays[f"y_{split}"] = _features(model, config, source)
        if isinstance(source, FileSource):
            arrays[f"path_{split}"] = np.array([path for path in source.paths if path not in source.corrupt])
    path = Journal(build.model_dir(config)).model_dir / "embeddings.npz"
    unfinished = path.with_name(".embeddings.tmp.npz")
    np.savez(unfinished, **arrays)
    os.replace(unfinished, path)
    print(f"{path}: " + ", ".join(f"{name} {array.shape}" for name, array in arrays.items()))
    return {"mode": "embed", "path": str(path)}


def export(config: Config, strategy: Strategy) -> Result:
    """A SavedModel in ``MODEL_DIR/saved_model``."""
    model, _ = _trained_model(config.replace(jit_compile="false", mixed_precision="float32"), strategy)
    path = Journal(build.model_dir(config)).model_dir / "saved_model"
    saved_model.save(model.network, config.image_size, path)
    print(f"{path}: signatures serve (uint8 images of any size) and train ({config.image_size} px)")
    return {"mode": "export", "path": str(path)}


def semi_supervised(explicit: dict[str, Any]) -> Result:
    """All three steps, and what they are to be compared with, each in a sub-directory of the model directory."""
    config = recipes.resolve(explicit)
    strategy = choose_strategy(config)
    model_dir = build.model_dir(config)
    counts = _label_counts(explicit, config)
    _check_stages(explicit, counts)

    seconds = []

    def stage(name: str, number: str | int = "", **settings: Any) -> Result:
        folder = model_dir / (f"{name}_{number}" if number != "" else name)
        of_stage = explicit | {"model_dir": str(folder)} | settings
        function = {"pretrain": pretrain, "distill": distill}.get(name, classify)
        settled = _fit_batch(_settle(of_stage, name), strategy)
        result = _finished(settled) or function(settled, strategy)
        seconds.append(result["seconds"])
        return result

    pretrained = stage("pretrain", checkpoint="")
    start = {"checkpoint": str(model_dir / "pretrain")}
    linear = stage("linear_eval", labels_per_class=0, label_fraction=1.0, **start)
    table = []
    for number, labels in counts.items():
        row: Result = {"labels_per_class": number}
        row |= stage("supervised", number, checkpoint="", **labels)
        row |= stage("finetune", number, **start, **labels)
        row |= stage("distill", number, teacher=str(model_dir / f"finetune_{number}"), **start, **labels)
        kept = ("labels_per_class", "supervised_top1", "finetune_top1", "distill_top1")
        table.append({name: row[name] for name in kept})
    result = {
        "mode": "semi_supervised",
        "seed": config.seed,
        "table": table,
        "linear_top1": linear["linear_top1"],
        "knn_top1": pretrained["knn_top1"],
        "online_top1": pretrained.get("online_top1"),
        "seconds": round(sum(seconds), 1),
    }
    journal = Journal(model_dir)
    journal.write_config(config, {})
    journal.write_result(result)
    print("\n" + format_table(result))
    if config.report:
        print(f"Report: {write_report(model_dir)}")
    return result


def _check_stages(explicit: dict[str, Any], counts: dict[str | int, dict[str, Any]]) -> None:
    """Refuses a bad setting of a late stage, or labels that are not there, before the first stage starts."""
    for labels in counts.values():
        for name in STAGES:
            later = {} if name == "supervised" else {"checkpoint": "pretrain", "teacher": "finetune"}
            settled = recipes.resolve(explicit | labels | later, name)
            if name == "supervised":
                open_labelled(settled)


def _label_counts(explicit: dict[str, Any], config: Config) -> dict[str | int, dict[str, Any]]:
    """The rows of the table: what is asked for, or the recipe's numbers, or all labels."""
    if config.labels_per_class:
        return {config.labels_per_class: {"labels_per_class": config.labels_per_class}}
    if config.label_fraction < 1:
        return {f"{100 * config.label_fraction:g}%": {"label_fraction": config.label_fraction}}
    recipe = recipes.find(explicit)
    counts = recipe.label_counts if recipe is not None else ()
    return {n: {"labels_per_class": n} for n in counts} or {"all": {}}


def _fit_batch(config: Config, strategy: Strategy) -> Config:
    """A stage with fewer labelled images than its batch takes them all at once (as many as the replicas can share)."""
    if config.mode not in ("supervised", "finetune"):
        return config
    replicas = strategy.num_replicas_in_sync
    images = open_labelled(config).num_examples
    if images < replicas:
        raise SettingError(f"--labels_per_class={config.labels_per_class}: {images} images for {replicas} replicas")
    return config.replace(train_batch_size=min(config.train_batch_size, images // replicas * replicas))


def _print_scores(result: Result) -> None:
    print("  ".join(f"{k} {100 * v:.1f} %" for k, v in result.items() if k.endswith(("top1", "top5"))))
