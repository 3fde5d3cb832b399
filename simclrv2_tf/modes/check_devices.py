"""Compares a training step on all devices with one device, as wrong gradients do not show in the training curves."""

import dataclasses
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.input import Part, ordered_options
from simclrv2_tf.distributed.collectives import all_sum
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Batch, Logs, Method
from simclrv2_tf.methods.inference import distribute
from simclrv2_tf.modes.resolve import Result, Strategy
from simclrv2_tf.modes.setup import RunData, build_run, open_data
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.loop import Run
from simclrv2_tf.settings.config import Config

IMAGES = 64  # in the step, so that it fits on one device; 2 to 8 per replica
TOLERANCE = 1e-5  # in float64, where rounding is below 1e-9 and an error in the communication above 1e-3
FLOOR = 1e-3  # of the largest value of the kind; variables with smaller values are compared relative to this floor
Numbers = dict[str, list[tuple[str, np.ndarray]]]  # by kind: name and value of each variable


@dataclasses.dataclass(frozen=True)
class Difference:
    """Largest difference within one kind of values, relative to the largest value of the variable; NaN if not finite.

    Attributes:
        kind: kind of values, such as gradients.
        name: the variable that differs most.
        value: the relative difference.
    """

    kind: str
    name: str
    value: float


def check_devices(config: Config, strategy: Strategy) -> Result:
    """Compares one step of a run on one device and on all: loss, gradients, batch-norm statistics, updated weights.

    The run is the same as in ``preview``, with at most ``IMAGES`` images and without warm-up. The verdict is for
    float64; the differences in the precision of the run are shown as well. Writes nothing.

    Raises:
        SettingError: if there is a single device, the settings make the steps differ by design, or they differ.
    """
    replicas = strategy.num_replicas_in_sync
    config = _comparable(config, replicas)
    data, lines, result = open_data(config), {}, {}
    for precision in dict.fromkeys(("float64", config.mixed_precision)):
        step_config = config.replace(mixed_precision=precision)
        one, seconds = run_one_step(step_config, tf.distribute.get_strategy(), data)
        all_devices, seconds_of_all = run_one_step(step_config, strategy, data)
        differences = compare(one, all_devices)
        policy = keras.config.dtype_policy().name
        result[precision] = {each.kind: each.value for each in differences}
        values = ", ".join(f"{each.kind} {each.value:.1g}" for each in differences)
        lines[policy] = f"{values}; {seconds:.3g} s on one device, {seconds_of_all:.3g} s on all"
        if precision == "float64":
            worst = max(differences, key=_size)
    is_equal = worst.value <= TOLERANCE
    verdict = f"{replicas} replicas {'match' if is_equal else 'do NOT match'} one device"
    lines["verdict"] = f"{verdict} (float64, largest difference {worst.value:.1g}: {worst.kind} {worst.name})"
    print(box(f"one step of {config.mode}, {config.train_batch_size} images, largest relative differences", lines))
    if not is_equal:
        raise SettingError(f"--mode=check_devices: {lines['verdict']}; do not train on these devices")
    return {"mode": "check_devices", "replicas": replicas, "is_equal": is_equal, "differences": result}


def _comparable(config: Config, replicas: int) -> Config:
    """Returns the settings of the step to compare."""
    if replicas == 1:
        raise SettingError(
            "--mode=check_devices: there is a single device; --cpu_replicas=2 checks the step on two logical devices"
        )
    if not config.global_bn:
        raise SettingError(
            "--global_bn=false: each replica normalizes with its own statistics, so the numbers differ by design; "
            "check with --global_bn"
        )
    batch_size = min(config.train_batch_size, replicas * max(2, min(8, IMAGES // replicas)))
    settings = {"train_batch_size": batch_size, "warmup_epochs": 0.0, "resident_mb": 0, "data_service": ""}
    return config.replace(**settings, on_nan="stop", train_steps=1, checkpoint_steps=1, steps_per_execution=1)


def run_one_step(config: Config, strategy: Strategy, data: RunData) -> tuple[Numbers, float]:
    """Runs the first step of a run; returns its values and the seconds of a second step.

    GradCache uses one micro-batch per replica, because smaller ones would be normalized in different groups on one
    device. Variables that are zero get small random values, so that gradients reach all layers below them.
    """
    if config.grad_cache_micro_batch:
        config = config.replace(grad_cache_micro_batch=config.train_batch_size // strategy.num_replicas_in_sync)
    run = build_run(config, strategy, data)
    method = run.method
    rng = np.random.default_rng(config.seed)
    for variable in method.trained_variables:
        if not np.any(variable.numpy()):
            variable.assign(0.1 * rng.standard_normal(variable.shape))
    batches = iter(distribute(strategy, config.train_batch_size, _same_batch(run)))
    step = _make_step(method)
    logs, gradients = step(next(batches))
    numbers = {
        "loss": [("of all images", logs["loss"].numpy())],
        "gradients": [(v.path, g.numpy()) for v, g in zip(method.trained_variables, gradients, strict=True)],
        **_state(method),
    }
    started = time.perf_counter()
    float(step(next(batches))[0]["loss"])
    return numbers, time.perf_counter() - started


def _same_batch(run: Run) -> Callable[..., tf.data.Dataset]:
    """Returns a function that repeats a part of the first batch endlessly; its views are computed once."""
    data = dataclasses.replace(run.data, augment_on_host=True)
    batch = next(data.batches(0, 1).as_numpy_iterator())

    def part_of_batch(part: Part) -> tf.data.Dataset:
        first, end = part.rows(data.batch_size)
        rows = {name: values[first:end] for name, values in batch.items()}
        return tf.data.Dataset.from_tensors(rows).repeat().with_options(ordered_options())

    return part_of_batch


def _make_step(method: Method) -> Callable[[Batch], tuple[Logs, list[tf.Tensor]]]:
    """Returns a step that also returns the gradients that the optimizer applies, summed over replicas."""
    apply, captured = method.optimizer.apply, threading.local()  # a thread per replica

    def apply_and_capture(gradients: list[tf.Tensor], variables: list[keras.Variable] | None = None) -> None:
        captured.gradients = [tf.zeros(v.shape) if g is None else g for g, v in zip(gradients, variables, strict=True)]
        apply(gradients, variables)

    def replica_step(batch: Batch) -> tuple[tf.Tensor, list[tf.Tensor]]:
        metrics = method.guarded_step(batch)
        return metrics, [all_sum(tf.convert_to_tensor(gradient)) for gradient in captured.gradients]

    method.optimizer.apply = apply_and_capture
    strategy = method.distribute_strategy
    if method.jit_compile and not isinstance(strategy, tf.distribute.TPUStrategy):
        replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

    @tf.function(autograph=False)
    def step(batch: Batch) -> tuple[Logs, list[tf.Tensor]]:
        outputs = strategy.run(replica_step, args=(batch,))
        metrics, gradients = tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], outputs)
        return {"loss": metrics[0]}, gradients

    return step


def _state(method: Method) -> Numbers:
    """Returns the variables that a step updates: batch-norm statistics, and weights with others such as a queue."""
    statistics: list[tuple[str, np.ndarray]] = []
    weights: list[tuple[str, np.ndarray]] = []
    for variable in (variable for part in method.parts().values() for variable in part.variables):
        kind = statistics if variable.name in ("moving_mean", "moving_variance") else weights
        kind.append((variable.path, variable.numpy()))
    return {"batch-norm statistics": statistics, "weights": weights}


def compare(one: Numbers, other: Numbers) -> list[Difference]:
    """Returns the largest difference of each kind of values.

    Variables are compared by position, because Keras numbers unnamed layers differently each time.
    """
    differences = []
    for kind, pairs in one.items():
        values = [(name, np.asarray(value, np.float64)) for name, value in pairs]
        floor = FLOOR * max((np.abs(value).max(initial=0) for _, value in values), default=0)
        relative = [
            Difference(kind, name, _largest_difference(value, other_value, floor))
            for (name, value), (_, other_value) in zip(values, other[kind], strict=True)
        ]
        differences += [max(relative, key=_size)] if relative else []
    return differences


def _largest_difference(value: np.ndarray, other: np.ndarray, floor: float) -> float:
    """Returns the largest difference of two arrays relative to the largest value, or to ``floor`` if that is larger."""
    scale = max(np.abs(value).max(initial=0), floor, 1e-30)
    return float(np.abs(np.asarray(other, np.float64) - value).max(initial=0) / scale)


def _size(difference: Difference) -> float:
    """Returns the sort key of a difference; NaN is the largest."""
    return np.inf if np.isnan(difference.value) else difference.value
