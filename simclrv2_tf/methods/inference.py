"""Batches for every replica, and outputs of a model for a whole data set."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.input import Part
from simclrv2_tf.distributed.collectives import all_gather
from simclrv2_tf.distributed.devices import has_workers
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Batch, Method

MakeBatches = Callable[[Part], tf.data.Dataset]


def distribute(
    strategy: tf.distribute.Strategy, batch_size: int, make_batches: MakeBatches, prefetch_to: str = ""
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """Builds a data set of global batches, of which each worker makes its own rows and each replica gets its share.

    TensorFlow's ``experimental_distribute_dataset`` gives every worker the same rows if files cannot be sharded.

    Args:
        strategy: whose replicas are fed, in their order.
        batch_size: images of a global batch; a multiple of the number of replicas.
        make_batches: from a part to the batches of its rows, of one static shape and equally many for each part.
        prefetch_to: device to which two batches are copied ahead of their step, if there is one replica and no other
            worker (TensorFlow does so itself if there are several).
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
    """Runs ``input.evaluation_batches`` through a model and returns its endpoints on every worker.

    Args:
        method: whose ``call`` is run.
        make_batches: from a part to its batches, with ``images``, ``labels`` and ``weights``; images of weight 0 are
            left out.
        batch_size: images of a batch, over all parts.
        names: endpoints of ``call``.

    Returns:
        The endpoints and ``labels``, ``[n, ...]`` in the order of the images, for any number of replicas.

    Raises:
        SettingError: if there are no images.
    """
    # The names are not an argument, which a TPU would be sent; and each function is traced once.
    forward = tf.function(lambda batch: _endpoints(method, batch, names), autograph=False)
    forward = vars(method).setdefault(f"_forward{names}", forward)
    method.average_local_statistics()
    strategy = method.distribute_strategy
    parts: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "labels", "weights")}
    for batch in distribute(strategy, batch_size, make_batches):
        for name, value in strategy.run(forward, args=(batch,)).items():
            local = strategy.experimental_local_results(value)
            parts[name].append(local[0].numpy() if has_workers(strategy) else np.concatenate(local))
    outputs = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    is_image = outputs.pop("weights") > 0
    if not is_image.any():
        raise SettingError("--dataset: no image could be read")
    return {name: values[is_image] for name, values in outputs.items()}


def _endpoints(method: Method, batch: Batch, names: tuple[str, ...]) -> dict[str, tf.Tensor]:
    """Returns the named endpoints, in a dtype that NumPy has; from all replicas if this worker does not have them."""
    endpoints = method(batch["images"], training=False)
    half = (tf.bfloat16, tf.float16)
    outputs = {n: tf.cast(endpoints[n], tf.float32) if endpoints[n].dtype in half else endpoints[n] for n in names}
    outputs |= {name: batch[name] for name in ("labels", "weights")}
    return {n: all_gather(v) for n, v in outputs.items()} if has_workers(method.distribute_strategy) else outputs
