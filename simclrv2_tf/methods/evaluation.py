"""``evaluate`` and ``predict`` of methods, on any number of replicas; padding, which has weight 0, is ignored."""

import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.input import ordered_options
from simclrv2_tf.distributed.collectives import all_gather, all_sum
from simclrv2_tf.distributed.devices import has_workers

if TYPE_CHECKING:
    from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs

# Endpoints with one vector per image: the feature maps of a whole data set would not fit in memory.
PREDICTED = ("final_avg_pool", "proj_head_output", "logits_sup")


def build_test_function(method: "Method") -> Callable[[Iterator], "Logs"]:
    """Builds the function that ``evaluate`` calls with an iterator; it returns the metrics of all batches so far."""

    def metric_sums(data: Any) -> "Logs":
        batch = evaluation_batch(data)
        batch = check_views(batch, method) if method.num_views > 1 else batch
        weight = tf.reduce_sum(batch["weights"])
        results = method.test_step(batch)
        return {name: all_sum(_weighted_sum(result, batch["weights"], weight)) for name, result in results.items()}

    run = _on_replicas(method, metric_sums)

    def test_function(iterator: Iterator) -> "Logs":
        iterator, steps = iterate(iterator, method)
        for batch in _next_batches(iterator, steps):
            method.add_metrics(run(batch)[0])
        return method.get_metrics_result()

    return test_function


def build_predict_function(method: "Method") -> Callable[[list], "Outputs"]:
    """Builds the function that ``predict`` calls with a list of batches; it returns their outputs without padding."""

    def outputs_and_weights(data: Any) -> "Outputs":
        batch = evaluation_batch(data)
        return collected(method, method.predict_step(batch) | {"weights": batch["weights"]})

    run = _on_replicas(method, outputs_and_weights)

    def predict_function(batches: list) -> "Outputs":
        parts = [part for batch in batches for part in local_parts(method, run(batch))]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        is_image = outputs.pop("weights") > 0
        return {name: tf.convert_to_tensor(values[is_image]) for name, values in outputs.items()}

    return predict_function


def collected(method: "Method", outputs: "Outputs") -> "Outputs":
    """Casts outputs ``[b, ...]`` to dtypes that NumPy has; gathers those of all replicas if there are workers."""
    half = (tf.bfloat16, tf.float16)
    outputs = {name: tf.cast(value, tf.float32) if value.dtype in half else value for name, value in outputs.items()}
    return {n: all_gather(v) for n, v in outputs.items()} if has_workers(method.distribute_strategy) else outputs


def local_parts(method: "Method", parts: tuple) -> tuple:
    """Selects the local replicas whose ``collected`` outputs together contain each row of a batch once."""
    return parts[:1] if has_workers(method.distribute_strategy) else parts


def evaluation_batch(data: Any) -> "Batch":
    """Converts what Keras passes to a batch with images, labels and weights.

    Args:
        data: a batch from ``evaluation_batches``, or ``(images,)``, ``(images, labels)`` or ``(images, labels,
            weights)``.

    Returns:
        ``images [b, h, w, 3]``, floats in [0, 1], or two views with their entries for ``make_views``; int ``labels
        [b]``, −1 where unknown; ``weights [b]``, 0 for padding.

    Raises:
        ValueError: if the images are missing or not RGB.
    """
    if tf.is_tensor(data):
        data = (data,)
    if isinstance(data, tuple):
        images, labels, weights = (*data, None, None)[:3]
        data = images if isinstance(images, dict) else {"images": images, "labels": labels, "weights": weights}
    batch = {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else {}
    images = batch.get("views", batch.get("images", data))
    if not batch or not tf.is_tensor(images) or images.shape.rank not in (4, 5) or images.shape[-1] != 3:
        raise ValueError(f"not batches of RGB images: {tf.nest.map_structure(_describe, data)}; {_hint()}")
    if images.shape.rank == 4:
        batch["images"] = _unit_range(images)
    batch.setdefault("labels", tf.fill([tf.shape(images)[0]], -1))
    batch.setdefault("weights", tf.ones([tf.shape(images)[0]]))
    return batch


def is_evaluation_batches(dataset: Any) -> bool:
    """Returns whether a data set comes from ``evaluation_batches``, with central crops."""
    spec = getattr(dataset, "element_spec", None)
    return isinstance(spec, dict) and spec.keys() == {"images", "labels", "weights"} and spec["images"].shape.rank == 4


def central_crops(batch: "Batch", method: "Method") -> tf.Tensor:
    """Returns the images of an ``evaluation_batch``, ``[b, h, w, 3]``.

    Raises:
        ValueError: if it has augmented views instead.
    """
    if "images" not in batch or batch["images"].shape.rank != 4:
        raise ValueError(f"{type(method).__name__} is evaluated on central crops, not on augmented views; {_hint()}")
    return batch["images"]


def check_views(batch: Any, method: "Method") -> "Batch":
    """Returns a batch of augmented views, to train or to evaluate on.

    Raises:
        ValueError: if it does not come from ``view_batches`` with the method's number of views.
    """
    if isinstance(batch, tuple) and batch and isinstance(batch[0], dict):  # Keras wraps dicts of arrays
        batch = batch[0]
    name, num_views = type(method).__name__, method.num_views
    needs = f"{name} needs batches of simclrv2_tf.view_batches(dataset, batch_size, views, num_views={num_views})"
    needs += " (to evaluate: evaluation_batches, with the same arguments)" if num_views > 1 else ""
    if not isinstance(batch, dict) or not ("views" in batch or {"images", "draws"} <= batch.keys()):
        content = sorted(batch) if isinstance(batch, dict) else tf.nest.map_structure(_describe, batch)
        raise ValueError(f"{needs}, not {content}")
    views = batch["views" if "views" in batch else "draws" if "boxes" in batch else "images"]  # [b, v, ...]
    if views.shape[1] not in (num_views, None):
        raise ValueError(f"{needs}; these have {views.shape[1]}")
    return batch


def check_shared_batches(batches: Any, method: "Method") -> None:
    """Raises ValueError if the batch size is not a multiple of the replicas: Keras then splits batches unevenly."""
    replicas = method.distribute_strategy.num_replicas_in_sync
    specs = tf.nest.flatten(getattr(batches, "element_spec", ()), expand_composites=True) if replicas > 1 else []
    if any(spec.shape.rank and spec.shape[0] is None for spec in specs):
        raise ValueError(
            f"{type(method).__name__} needs batches of simclrv2_tf.view_batches(dataset, batch_size, …) with a "
            f"batch_size that is a multiple of the {replicas} replicas"
        )


def refuse_arguments(method: "Method", **arguments: Any) -> None:
    """Raises ValueError for arguments of Keras's ``fit`` that a method does not support, unless they are None."""
    if given := [name for name, value in arguments.items() if value is not None]:
        raise ValueError(
            f"{given[0]}=: {type(method).__name__} takes images and labels as one data set, "
            f"simclrv2_tf.view_batches(dataset, batch_size, views, num_views={method.num_views}), and no {given[0]}"
        )


def iterate(iterator: Iterator, method: "Method") -> tuple[Iterator, int]:
    """Returns an iterator over distributed batches and the number of batches per call.

    ``train_on_batch`` and ``test_on_batch`` yield a single batch ``(x, y, sample_weight)``, which is distributed here.
    """
    if not isinstance(iterator, types.GeneratorType):
        return iterator, method.steps_per_execution
    values = tuple(value for value in next(iterator) if value is not None)
    data = tf.data.Dataset.from_tensors(values[0] if isinstance(values[0], dict) else values)
    return iter(method.distribute_strategy.experimental_distribute_dataset(data.with_options(ordered_options()))), 1


def update_metrics(method: "Method", labels: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor | None = None) -> None:
    """Updates the metrics of ``compile``, on one replica; unlabelled images are ignored."""
    if method.has_compiled_metrics:
        is_labelled = tf.cast(labels >= 0, tf.float32)
        weights = is_labelled if weights is None else is_labelled * weights
        method._compile_metrics.update_state(tf.maximum(labels, 0), tf.cast(logits, tf.float32), weights)


def _next_batches(iterator: Iterator, count: int) -> list:
    batches: list = []
    try:
        while len(batches) < count:
            batches.append(next(iterator))
    except (StopIteration, tf.errors.OutOfRangeError):
        if not batches:
            raise
    return batches


def _on_replicas(method: "Method", step: Callable[[Any], Any]) -> Callable[[Any], tuple]:
    """Returns a function that runs a step on each replica's part of a batch and returns the local replicas' results."""
    strategy = method.distribute_strategy

    def run(batch: Any) -> tuple:
        return strategy.experimental_local_results(strategy.run(step, args=(batch,)))

    return run if method.run_eagerly else tf.function(run, reduce_retracing=True, autograph=False)


def _weighted_sum(result: Any, weights: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """Returns ``[Σ w·v, Σ w]`` of a metric that ``Method.test_step`` returns."""
    values, weights = result if isinstance(result, tuple) else (result, weights)
    values = tf.cast(values, tf.float32)
    if values.shape.rank == 0:  # of the whole batch
        return tf.stack([tf.math.multiply_no_nan(values, total), total])
    return tf.stack([tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), tf.reduce_sum(weights)])


def _unit_range(images: tf.Tensor) -> tf.Tensor:
    """Returns images as floats in [0, 1]."""
    if not images.dtype.is_floating:
        return tf.image.convert_image_dtype(images, keras.config.floatx())
    message = "Floating-point images must be in [0, 1]: divide by 255, or cast to uint8. The greatest value is"
    is_in_range = tf.reduce_all((images > -1) & (images < 2))  # resizing overshoots slightly
    with tf.control_dependencies([tf.debugging.Assert(is_in_range, [message, tf.reduce_max(images)])]):
        return tf.identity(images)


def _describe(value: Any) -> str:
    return f"{value.dtype.name} {tuple(value.shape)}" if tf.is_tensor(value) else str(value)


def _hint() -> str:
    return "use simclrv2_tf.evaluation_batches(dataset, batch_size, views), or view_batches to train"
