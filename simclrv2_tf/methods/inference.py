"""Distributes batches over replicas, and collects a model's outputs for a whole data set."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.input import Part
from simclrv2_tf.methods.base import Batch, Method
from simclrv2_tf.methods.evaluation import collected, local_parts

MakeBatches = Callable[[Part], tf.data.Dataset]


def distribute(
    strategy: tf.distribute.Strategy, batch_size: int, make_batches: MakeBatches, prefetch_to: str = ""
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Builds a data set of global batches; each worker makes its own rows, and each replica gets its share of them.

    TensorFlow's ``experimental_distribute_dataset`` would give every worker the same rows.

    Args:
        strategy: its replicas get the rows in replica order.
        batch_size: images per global batch; a multiple of the number of replicas.
        make_batches: returns the batches of a part's rows, of one static shape and the same number for every part.
        prefetch_to: device to which two batches are copied ahead if there is only one replica (with several, TensorFlow
            does so itself).
    """

    def for_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        data = make_batches(Part(context.input_pipeline_id, context.num_input_pipelines))
        if context.num_replicas_in_sync > context.num_input_pipelines:
            return data.rebatch(batch_size // context.num_replicas_in_sync, drop_remainder=True)
        if context.num_replicas_in_sync == 1 and prefetch_to:
            return data.apply(tf.data.experimental.prefetch_to_device(prefetch_to, 2))
        return data

    return strategy.distribute_datasets_from_function(for_worker)


def collect(
    method: Method, make_batches: MakeBatches, batch_size: int, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Runs ``method.call`` on a whole data set and returns its outputs, on every worker.

    Args:
        method: the model.
        make_batches: returns the batches of a part (``evaluation_input``) with ``images``, ``labels`` and
            ``weights``; images of weight 0 are padding.
        batch_size: images per global batch.
        names: endpoints of ``call``.

    Returns:
        The endpoints and ``labels``, ``[n, ...]`` in the order of the images for any number of replicas, without
        corrupt images; and ``rows``, int64 ``[n]``: their positions among all images.
    """
    return collect_batches(method, distribute(method.distribute_strategy, batch_size, make_batches), names)


def collect_batches(
    method: Method, batches: tf.distribute.DistributedDataset, names: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Like `collect`, for batches that are already distributed; they may be iterated several times."""
    # Names are bound, not passed: arguments are sent to a TPU. The function is cached, so it is traced once.
    key = f"_forward{names}"
    if key not in method.__dict__:
        method.__dict__[key] = tf.function(lambda batch: _endpoints(method, batch, names), autograph=False)
    forward = method.__dict__[key]
    method.average_local_statistics()
    strategy = method.distribute_strategy
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "labels", "weights")}
    for batch in batches:
        for name, value in strategy.run(forward, args=(batch,)).items():
            local = strategy.experimental_local_results(value)
            parts[name].append(np.concatenate(local_parts(method, local)))
    outputs = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    rows = np.flatnonzero(outputs.pop("weights") > 0)
    return {name: values[rows] for name, values in outputs.items()} | {"rows": rows}


def _endpoints(method: Method, batch: Batch, names: tuple[str, ...]) -> dict[str, tf.Tensor]:
    endpoints = method(batch["images"], training=False)
    outputs = {name: endpoints[name] for name in names} | {name: batch[name] for name in ("labels", "weights")}
    return collected(method, outputs)
