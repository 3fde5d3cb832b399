"""The mode that shows a run before it starts: what the network will see, and what that will cost."""

import dataclasses
import time
from typing import Any

import keras
import numpy as np

from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import open_labelled
from simclrv2_tf.methods.base import ReplicatedModel, distribute
from simclrv2_tf.modes import build
from simclrv2_tf.modes.costs import format_memory_estimate, step_memory, trace_step
from simclrv2_tf.modes.resolve import Result, Strategy, planned
from simclrv2_tf.modes.setup import Run, build_run, resolved_settings
from simclrv2_tf.report import charts, facts, pictures, write_preview
from simclrv2_tf.report.console import box
from simclrv2_tf.report.tables import duration
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

SHOWN = 48  # images of the batch
CLASSES, OF_A_CLASS = 10, 6  # of the labelled images
TIMED_STEPS = 3
TIMED_BYTES = 2e9  # activations and gradients of a timed step at most: it must fit wherever the run is previewed


def preview(explicit: dict[str, Any]) -> Result:
    """Writes ``preview.html`` about the run that the other settings describe, and its pictures.

    That run is distillation with ``--teacher``, fine-tuning with ``--checkpoint``, else pretraining. Its time is that
    of some steps on this machine; its memory is read off the traced training step.
    """
    config, strategy = planned(explicit)
    run = build_run(config.replace(steps_per_execution=1), strategy)
    resolved = resolved_settings(config, strategy, run)
    estimate = _estimate(config, strategy, run)
    figures = {"views": pictures.views_figure(pictures.example_views(run.data)), **_images(config, run.data)}
    model_dir = RunDirectory(build.model_dir(config)).model_dir
    described = vars(config) | {"resolved": resolved}
    page = write_preview(model_dir, described, estimate, figures)
    print(box(f"before {config.mode}: {model_dir}", facts(described) | estimate | {"preview": str(page)}))
    return {"mode": "preview", "path": str(page), **estimate}


def _estimate(config: Config, strategy: Strategy, run: Run) -> dict[str, str]:
    """Formats the time and the memory that the run will need."""
    data, plan, replicas = run.data, run.plan, strategy.num_replicas_in_sync
    batches = distribute(strategy, data.batch_size, lambda part: data.of(part).batches(0, 1))
    memory = step_memory(run.model, trace_step(run.model, batches.element_spec), data.resident_bytes)
    timed = _timed_batch_size(config, memory["activations and gradients"] * replicas, replicas)
    seconds = _seconds_per_step(run.model, dataclasses.replace(data, batch_size=timed)) * data.batch_size / timed
    return {
        "time": f"about {duration(seconds * plan.total_steps)} for {plan.total_steps:,} steps of {seconds:.3g} s, by "
        f"{TIMED_STEPS} steps of {timed:,} images on this machine; evaluations come on top",
        "memory": format_memory_estimate(memory, replicas, max(config.cpu_replicas, 1)),
    }


def _timed_batch_size(config: Config, step_bytes: int, replicas: int) -> int:
    """The batch size of the timed steps: smaller than the run's if a step might not fit in memory here."""
    batch_size = config.train_batch_size
    if config.grad_cache_micro_batch or step_bytes <= TIMED_BYTES:
        return batch_size
    return max(1, int(batch_size * TIMED_BYTES / step_bytes) // replicas) * replicas


class _Clock(keras.callbacks.Callback):
    """Notes when each step ends."""

    def __init__(self):
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        float(logs["loss"])  # waits for the device
        self.ends.append(time.perf_counter())


def _seconds_per_step(model: ReplicatedModel, data: TrainingInput) -> float:
    clock = _Clock()
    model.fit(data.batches(0, TIMED_STEPS + 2), epochs=1, verbose=0, shuffle=False, callbacks=[clock])
    return float(np.median(np.diff(clock.ends)[-TIMED_STEPS:]))  # not the first ones, which compile and fill buffers


def _images(config: Config, data: TrainingInput) -> dict[str, charts.Spec]:
    """The first batch and, where there are labels, some images of each class."""
    source = data.source
    views, labels = pictures.first_batch(data, SHOWN)
    found = {"batch": pictures.batch_figure(views[:, 0], labels, data.batch_size, source.class_names)}
    if source.class_names and (config.labels_per_class or config.label_fraction < 1):
        source = open_labelled(config)
    if not source.class_names or source.labels is None:  # records tell theirs only when all are read
        return found
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    chosen = [np.flatnonzero(source.labels == label)[:OF_A_CLASS] for label in range(min(len(counts), CLASSES))]
    images = [pictures.images_at(source, of_class, config.image_size) for of_class in chosen]
    return found | {"labels": pictures.labelled_figure(images, OF_A_CLASS, counts, source.class_names)}
