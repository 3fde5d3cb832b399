"""Memory of a training step and of the device, and the flags that help if the device has too little."""

import contextlib
import subprocess
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.reading import host_memory
from simclrv2_tf.errors import MEMORY_REMEDIES
from simclrv2_tf.methods.base import Method
from simclrv2_tf.models.cost import peak_bytes

MIRRORED = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)


def trace_step(model: Method, batch_spec: Any) -> tf.Graph:
    """Traces a training step on every replica without running it.

    Args:
        model: a compiled model.
        batch_spec: type of a batch: ``element_spec`` of a data set that ``distribute`` returns.
    """
    strategy = model.distribute_strategy
    step = tf.function(lambda batch: strategy.run(model.guarded_step, args=(batch,)), autograph=False)
    return step.get_concrete_function(batch_spec).graph


def step_memory(model: Method, graph: tf.Graph, resident_bytes: int = 0) -> dict[str, int]:
    """Computes the bytes that training needs on each replica, by use, without the libraries' workspace.

    Args:
        model: a compiled model, whose variables include those of a teacher or a moving average.
        graph: its traced step, with the operations of all replicas of this process.
        resident_bytes: of the images that are kept on the device.
    """
    strategy = model.distribute_strategy
    traces_each_replica = isinstance(strategy, MIRRORED)  # a TPUStrategy traces one for all
    replicas = len(strategy.extended.worker_devices) if traces_each_replica else 1
    memory = {
        "weights": _total_bytes(model.variables),
        "optimizer": _total_bytes(model.optimizer.variables),
        "activations and gradients": peak_bytes(graph) // replicas,
    }
    return memory | ({"images of --resident_mb": resident_bytes} if resident_bytes else {})


def format_memory_estimate(memory: dict[str, int], replicas: int = 1, replicas_per_device: int = 1) -> str:
    """Formats the memory of a step per replica; if the device has less, adds a warning and the flags that help."""
    needed, available = sum(memory.values()), device_memory()
    each = " on each replica" if replicas > 1 else ""
    limit = f" of {format_bytes(available)}" if available else ""
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    estimate = f"about {format_bytes(needed)}{limit}{each}: {parts}; library workspace comes on top"
    if available is None or needed * replicas_per_device <= available:
        return estimate
    return f"{estimate}. EXCEEDS AVAILABLE MEMORY; {MEMORY_REMEDIES}"


def device_memory() -> int | None:
    """Memory of the smallest GPU, or of this machine for a CPU, in bytes; None if unknown."""
    if tf.config.list_physical_devices("GPU"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
            output = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            return 2**20 * min(map(int, output.split()))
    elif not tf.config.list_logical_devices("TPU"):
        return host_memory()
    return None


def format_bytes(count: int) -> str:
    """Formats a number of bytes. For example "1.25 GB"."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"


def _total_bytes(variables: Iterable[keras.Variable]) -> int:
    return sum(tf.TensorShape(v.shape).num_elements() * tf.as_dtype(v.dtype).size for v in variables)
