"""What a network and a training step cost, what memory the device has, and what to say when that is not enough."""

import contextlib
import os
import pathlib
import subprocess
from collections.abc import Iterator

import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.nt_xent_tiled import tile_rows
from simclrv2_tf.models import Network, Summary, summarize
from simclrv2_tf.modes.setup import build_network, freeze
from simclrv2_tf.settings.config import Config

REMEDIES = (
    "what needs less: in pretraining --grad_cache_micro_batch=N, the same contrastive batch with N images in memory at "
    "a time, and a smaller --loss_tile; in training --remat, --mixed_precision=bfloat16, a smaller --train_batch_size; "
    "in evaluation a smaller --eval_batch_size"
)


def network_cost(config: Config, classes: int, tap: int) -> Summary:
    """What the network of a run costs; nothing is allocated."""

    def make_network() -> Network:
        network = build_network(config, tf.distribute.get_strategy(), classes, tap)
        if config.mode in ("finetune", "linear_eval", "supervised"):
            freeze(ClassificationModel(network, ViewSettings(config.image_size)), config)
        return network

    return summarize(make_network, config.image_size, whole_head=config.mode == "pretrain")


def step_memory(found: Summary, config: Config, replicas: int) -> dict[str, int]:
    """Bytes that a training step needs on each replica, by what for; what the libraries need for themselves is more."""
    total, images = found.total, config.train_batch_size // replicas
    at_once = min(images, config.grad_cache_micro_batch or images) * (2 if config.mode == "pretrain" else 1)
    slots = 2 if config.optimizer == "adam" else 1
    memory = {
        "weights": 4 * total.parameters,
        "gradients and optimizer": 4 * (1 + slots) * total.trained,
        "activations": (total.activations + found.recomputed) * at_once * found.itemsize,
    }
    if config.mode == "pretrain":
        _, columns, held = similarities(config)
        memory["similarities of NT-Xent"] = 4 * columns * held // replicas
    if config.memory_size:
        memory["averages of --memory_size"] = 4 * total.trained
    return memory


def similarities(config: Config) -> tuple[int, int, int]:
    """Rows and columns of NT-Xent's matrix, and how many of its rows are in memory at a time."""
    rows, columns = 2 * config.train_batch_size, 2 * config.train_batch_size + config.memory_size
    return rows, columns, min(tile_rows(columns, 0), rows)


def format_memory_estimate(network: Network, config: Config, replicas: int, resident: int = 0) -> str:
    """What a step of this network needs, with so many bytes of resident images; if that is too much, what to do."""
    found = summarize(lambda: network, config.image_size, whole_head=config.mode == "pretrain")
    memory, there = step_memory(found, config, replicas), device_memory()
    if resident:
        memory["images of --resident_mb"] = resident
    needed, each = sum(memory.values()), f" on each of {replicas} replicas" if replicas > 1 else ""
    of = f" of {format_bytes(there)}" if there else ""
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items())
    told = (
        f"about {format_bytes(needed)}{of}{each}, by the shapes of the layers: {parts}; the libraries' own comes on top"
    )
    enough = there is None or needed * max(config.cpu_replicas, 1) <= there
    return told if enough else f"{told}. MORE THAN THERE IS; {REMEDIES}"


def device_memory() -> int | None:
    """Bytes of the smallest GPU, or of this machine for a CPU; None where they cannot be told."""
    if tf.config.list_physical_devices("GPU"):
        query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        with contextlib.suppress(OSError, subprocess.CalledProcessError, ValueError):
            found = subprocess.run(query, capture_output=True, text=True, check=True).stdout
            return 2**20 * min(map(int, found.split()))
    elif not tf.config.list_logical_devices("TPU"):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not on Windows
            machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            container = pathlib.Path("/sys/fs/cgroup/memory.max")
            limit = container.read_text().strip() if container.exists() else "max"
            return machine if limit == "max" else min(machine, int(limit))
    return None


@contextlib.contextmanager
def explain_out_of_memory() -> Iterator[None]:
    """Turns TensorFlow's error for memory that is not there into a SettingError that names the flags that help."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        reason = first_line(error)
        if "oom" not in reason.lower() and "memory" not in reason.lower():  # a full disk has the same class
            raise
        raise SettingError(f"out of memory ({reason}); {REMEDIES}") from None


def format_bytes(count: int) -> str:
    """Such as 1.25 GB."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
