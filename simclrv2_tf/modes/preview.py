"""Preview of a run before it starts: its images, and the time and memory that it will need."""

import dataclasses
import pathlib
import time
from typing import Any

import keras
import numpy as np

from simclrv2_tf.data.catalog import open_labelled
from simclrv2_tf.data.description import count_labels, describe_data, warn_about_classes
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.modes.setup import build_run, resolved_settings
from simclrv2_tf.report import charts, pictures, run_summary, write_preview
from simclrv2_tf.report.console import box
from simclrv2_tf.report.tables import format_duration
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.memory import format_memory_estimate, step_memory, trace_step
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

NUM_IMAGES = 48  # shown of the first batch
NUM_CLASSES, IMAGES_PER_CLASS = 10, 6  # shown of the labelled images
TIMED_STEPS = 3
TIMED_BYTES = 2e9  # maximum activations and gradients of a timed step, which must fit wherever the run is previewed


def preview(config: Config, strategy: Strategy) -> Result:
    """Writes ``preview.html`` about a training run before it starts, and its pictures.

    The time is measured over some steps on this machine; the memory is computed from the traced training step.
    """
    run = build_run(config.replace(steps_per_execution=1), strategy)
    resolved = resolved_settings(run, strategy)
    estimate = _estimate(config, strategy, run)
    figures = {"views": pictures.views_figure(pictures.example_views(run.data)), **_images(config, run.data)}
    model_dir = RunDirectory(pathlib.Path(config.run_dir)).model_dir
    described = vars(config) | {"resolved": resolved}
    page = write_preview(model_dir, described, estimate, figures)
    warn_about_classes(config, run.data.source, run.test)
    summary = run_summary(described) | describe_data(run.data.source, run.test) | estimate | {"preview": str(page)}
    print(box(f"before {config.mode}: {model_dir}", summary))
    return {"mode": "preview", "path": str(page), **estimate}


def _estimate(config: Config, strategy: Strategy, run: Run) -> dict[str, str]:
    """Formats the time and the memory that the run will need."""
    data, plan, replicas = run.data, run.plan, strategy.num_replicas_in_sync
    batches = distribute(strategy, data.batch_size, lambda part: data.of(part).batches(0, 1))
    memory = step_memory(run.method, trace_step(run.method, batches.element_spec), data.resident_bytes)
    timed = _timed_batch_size(config, memory["activations and gradients"] * replicas, replicas)
    seconds = _seconds_per_step(run.method, dataclasses.replace(data, batch_size=timed)) * data.batch_size / timed
    total = format_duration(seconds * plan.total_steps)
    return {
        "time": f"about {total} for {plan.total_steps:,} steps of {seconds:.3g} s, by {TIMED_STEPS} steps of {timed:,} "
        "images on this machine; evaluations come on top",
        "memory": format_memory_estimate(memory, replicas, max(config.cpu_replicas, 1)),
    }


def _timed_batch_size(config: Config, step_bytes: int, replicas: int) -> int:
    """Returns the batch size of the timed steps: smaller than the run's if a step might not fit in memory here."""
    batch_size = config.train_batch_size
    if config.grad_cache_micro_batch or step_bytes <= TIMED_BYTES:
        return batch_size
    return max(1, int(batch_size * TIMED_BYTES / step_bytes) // replicas) * replicas


class _Clock(keras.callbacks.Callback):
    """Records when each step ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        float(logs["loss"])  # waits for the device
        self.ends.append(time.perf_counter())


def _seconds_per_step(model: Method, data: TrainingInput) -> float:
    clock = _Clock()
    model.fit(data.batches(0, TIMED_STEPS + 2), epochs=1, verbose=0, shuffle=False, callbacks=[clock])
    return float(np.median(np.diff(clock.ends)[-TIMED_STEPS:]))  # not the first ones, which compile and fill buffers


def _images(config: Config, data: TrainingInput) -> dict[str, charts.Spec]:
    """Builds figures of the first batch and, if there are labels, of some images of each class."""
    source = data.source
    views, labels = pictures.first_batch(data, NUM_IMAGES)
    figures = {"batch": pictures.batch_figure(views[:, 0], labels, data.batch_size, source.class_names)}
    if source.class_names and (config.labels_per_class or config.label_fraction < 1):
        source = open_labelled(config)
    if not source.class_names or source.labels is None:  # the labels of records are known only when all are read
        return figures
    counts = count_labels(source)
    rows = [np.flatnonzero(source.labels == label)[:IMAGES_PER_CLASS] for label in range(min(len(counts), NUM_CLASSES))]
    images = [pictures.images_at(source, row, config.image_size) for row in rows]
    return figures | {"labels": pictures.labelled_figure(images, IMAGES_PER_CLASS, counts, source.class_names)}
