"""Preview of a run before it starts: the images that the network will see, the time and the memory."""

import pathlib
import time
from typing import Any

import keras
import numpy as np

from simclrv2_tf.data.catalog import open_labelled
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes.costs import format_memory_estimate, network_cost, step_memory
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.modes.setup import build_input, build_run, resolved_settings
from simclrv2_tf.report import charts, pictures, run_summary, write_preview
from simclrv2_tf.report.console import box
from simclrv2_tf.report.tables import format_duration
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

SHOWN_IMAGES = 48  # of the first batch
SHOWN_CLASSES, IMAGES_PER_CLASS = 10, 6  # of the labelled images
TIMED_STEPS = 3
TIMED_BYTES = 2e9  # activations of a timed step at most: it must fit wherever the run is previewed


def preview(config: Config, strategy: Strategy) -> Result:
    """Writes ``preview.html`` about a training run before it starts, and its pictures.

    The time is measured over some steps on this machine; the memory is estimated from the traced step.
    """
    run = build_run(_timed(config, strategy), strategy)
    data = build_input(config, run.data.source, type(run.method))
    plan = Plan.of(config, data.source.num_examples)
    resolved = resolved_settings(Run(config, run.method, data, plan, run.test), strategy)
    estimate = _estimate(config, strategy, run, plan)
    figures = {"views": pictures.views_figure(pictures.example_views(data)), **_images(config, data)}
    model_dir = RunDirectory(pathlib.Path(config.run_dir)).model_dir
    described = vars(config) | {"resolved": resolved}
    page = write_preview(model_dir, described, estimate, figures)
    print(box(f"before {config.mode}: {model_dir}", run_summary(described) | estimate | {"preview": str(page)}))
    return {"mode": "preview", "path": str(page), **estimate}


def _timed(config: Config, strategy: Strategy) -> Config:
    """Returns the settings with a batch that is small enough to be timed."""
    if config.grad_cache_micro_batch:  # it fits already
        return config.replace(steps_per_execution=1)
    replicas, batch = strategy.num_replicas_in_sync, config.train_batch_size
    activations = (
        step_memory(network_cost(config, 1, config.ft_proj_selector), config, replicas)["activations"] * replicas
    )
    share = min(1.0, TIMED_BYTES / max(activations, 1))
    return config.replace(
        train_batch_size=max(1, int(batch * share) // replicas) * replicas if share < 1 else batch,
        steps_per_execution=1,
    )


def _estimate(config: Config, strategy: Strategy, run: Run, plan: Plan) -> dict[str, str]:
    """Formats the estimated time and memory."""
    timed = run.data.batch_size
    seconds = _seconds_per_step(run) * config.train_batch_size / timed
    total = format_duration(seconds * plan.total_steps)
    return {
        "time": f"about {total} for {plan.total_steps:,} steps of {seconds:.3g} s, by {TIMED_STEPS} steps of {timed:,} "
        "images on this machine; evaluations come on top",
        "memory": format_memory_estimate(
            run.method.network, config, strategy.num_replicas_in_sync, run.data.resident_bytes
        ),
    }


class _Clock(keras.callbacks.Callback):
    """Records when each step ends."""

    def __init__(self):
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        float(logs["loss"])  # waits for the device
        self.ends.append(time.perf_counter())


def _seconds_per_step(run: Run) -> float:
    clock = _Clock()
    run.method.fit(run.data.batches(0, TIMED_STEPS + 2), epochs=1, verbose=0, shuffle=False, callbacks=[clock])
    return float(np.median(np.diff(clock.ends)[-TIMED_STEPS:]))  # not the first ones, which compile and fill buffers


def _images(config: Config, data: TrainingInput) -> dict[str, charts.Spec]:
    """Builds the figures of the first batch and, if there are labels, of some images per class."""
    source = data.source
    views, labels = pictures.first_batch(data, SHOWN_IMAGES)
    figures = {"batch": pictures.batch_figure(views[:, 0], labels, data.batch_size, source.class_names)}
    if source.class_names and (config.labels_per_class or config.label_fraction < 1):
        source = open_labelled(config)
    if not source.class_names or source.labels is None:  # labels of records are known only when all are read
        return figures
    counts = np.bincount(source.labels[source.labels >= 0], minlength=len(source.class_names))
    chosen = [
        np.flatnonzero(source.labels == label)[:IMAGES_PER_CLASS] for label in range(min(len(counts), SHOWN_CLASSES))
    ]
    images = [pictures.images_at(source, indices, config.image_size) for indices in chosen]
    return figures | {"labels": pictures.labelled_figure(images, IMAGES_PER_CLASS, counts, source.class_names)}
