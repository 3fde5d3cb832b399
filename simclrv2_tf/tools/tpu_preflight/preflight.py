"""The mode that compiles the pretraining step of the settings for a TPU, without one: does it compile, does it fit?"""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.augment import NUM_DRAWS
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes.costs import format_bytes
from simclrv2_tf.modes.resolve import Result, resolve_config
from simclrv2_tf.modes.setup import build_network, build_views, compile_method, load_method
from simclrv2_tf.modes.summary import IMAGENET_CLASSES
from simclrv2_tf.report.console import box
from simclrv2_tf.settings.config import Config
from simclrv2_tf.tools.tpu_preflight import compiler as tpu_compiler

ANY_IMAGES = 1_281_167  # of the data, which are not opened: they only move constants of the learning rate
Spec = dict[str, tf.TensorSpec]


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a chip has, by cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
        memory: bytes.
        operations: of bfloat16, a second, at best.
        bandwidth: bytes a second to its memory.
        links: bytes a second to other chips, over all its links and both directions.
    """

    memory: float
    operations: float
    bandwidth: float
    links: float


CHIPS = {
    "v4": Chip(32e9, 275e12, 1228e9, 300e9),
    "v5e": Chip(16e9, 197e12, 819e9, 200e9),
    "v5p": Chip(95e9, 459e12, 2765e9, 600e9),
    "v6e": Chip(32e9, 918e12, 1640e9, 448e9),
}


def tpu_preflight(explicit: dict[str, Any]) -> Result:
    """Compiles the step that ``--mode=pretrain`` with the same flags would run on each replica of ``--tpu_topology``.

    The compiled program is the whole step: augmentation, network, loss, gradients, optimizer, and what the replicas
    say to each other. Not in it: the input, evaluation, checkpoints. No data are opened and no weight is allocated.
    """
    config = resolve_config(explicit | {"mode": "pretrain", "use_tpu": True})
    chip, replicas = chips_of(config.tpu_topology)
    if config.train_batch_size % replicas:
        raise SettingError(f"--train_batch_size={config.train_batch_size}: does not divide by the {replicas} replicas")
    for package in ("jax", "libtpu"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(f"--mode=tpu_preflight: needs {package}: pip install -r requirements-tpu-preflight.txt")
    print(f"Compiling the training step for {config.tpu_topology}: minutes.", flush=True)
    found = _compile(lower(config, replicas), config.tpu_topology)
    fits = "limit" not in found and found["needed"] <= CHIPS[chip].memory
    title = (
        f"tpu_preflight: ResNet-{config.resnet_depth} x{config.width_multiplier:g}, SK {config.sk_ratio:g}, "
        f"{config.image_size} px, {config.train_batch_size // replicas} images on each of {replicas} {chip} chips"
    )
    print(box(title, told(found, CHIPS[chip], fits, config, replicas)))
    return {"mode": "tpu_preflight", "replicas": replicas, "fits": fits, **found}


def chips_of(topology: str) -> tuple[str, int]:
    """Generation and number of chips, each a replica, of such as ``v4:2x2x4``; SettingError if it is not one."""
    found = re.fullmatch(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+)+)", topology)
    if not found:
        raise SettingError(f"--tpu_topology={topology}: must be one of {', '.join(CHIPS)} and its chips, as v4:2x2x4")
    return found[1], math.prod(map(int, found[2].split("x")))


def lower(config: Config, replicas: int) -> bytes:
    """The step of one of so many replicas as a serialised HLO module."""
    model = _model(config)
    images = config.train_batch_size // replicas
    batch = batch_spec(config, images)

    @tf.function(jit_compile=True, autograph=False)
    def step(index: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
        with Replica(index, replicas):
            return model.guarded_step(dict(zip(batch, values, strict=True)))

    return step.experimental_get_compiler_ir(tf.TensorSpec([], tf.int32), *batch.values())(stage="hlo_serialized")


def batch_spec(config: Config, images: int) -> Spec:
    """What a replica's batch is: of large images their crops, of small ones the whole images; see ``make_views``."""
    size = config.image_size
    spec = {"labels": tf.TensorSpec([images], tf.int32)}
    if config.augment_on == "host":
        return spec | {"views": tf.TensorSpec([images, 2, size, size, 3])}
    spec["draws"] = tf.TensorSpec([images, 2, NUM_DRAWS])
    if size <= 32:
        return spec | {
            "images": tf.TensorSpec([images, size, size, 3], tf.uint8),
            "boxes": tf.TensorSpec([images, 2, 4], tf.int32),
        }
    return spec | {"images": tf.TensorSpec([images, 2, size, size, 3], tf.uint8)}


def _model(config: Config) -> Method:
    """The model, whose variables have no values."""
    strategy, classes = tf.distribute.get_strategy(), IMAGENET_CLASSES * config.lineareval_while_pretraining
    with tf.variable_creator_scope(_without_value):
        network = build_network(config, strategy, classes)
        method_class = load_method(config)
        model = method_class.from_settings(network, build_views(config, method_class), config)
        compile_method(model, config, strategy, Plan.of(config, ANY_IMAGES))
    return model


def _without_value(make: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
    """A variable in memory that nothing has been written to, so that the system need not provide it."""
    if callable(settings["initial_value"]):
        with tf.Graph().as_default():
            value = settings["initial_value"]()
        settings["initial_value"] = tf.raw_ops.Empty(shape=value.shape, dtype=value.dtype)
    return make(**settings)


class Replica(tf.distribute.ReplicaContext):
    """One of many replicas, as ``TPUStrategy`` makes them: its collectives are those of the compiled program.

    Args:
        index: which, an int32 scalar.
        count: of how many.
    """

    def __init__(self, index: tf.Tensor, count: int):
        super().__init__(tf.distribute.get_strategy(), index)
        self.count = count

    @property
    def num_replicas_in_sync(self) -> int:
        return self.count

    def all_reduce(self, reduce_op: tf.distribute.ReduceOp, value: Any, options: Any = None) -> Any:
        """Sums over all replicas; the gradient of a sum is a sum. (TPUs' own op does not compile without one.)"""

        @tf.custom_gradient
        def all_sum(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            size, key = tf.raw_ops.CollectiveAssignGroupV2(
                group_assignment=[list(range(self.count))], device_index=0, base_key=1
            )
            total = tf.raw_ops.CollectiveReduceV2(
                input=x,
                group_size=size,
                group_key=key,
                instance_key=1,
                ordering_token=[],
                merge_op="Add",
                final_op="Id",
            )
            return total, all_sum

        return tf.nest.map_structure(lambda x: all_sum(tf.convert_to_tensor(x)), value)


def _compile(program: bytes, topology: str) -> dict[str, float]:
    """What ``tpu_compiler`` tells about a program; SettingError if it cannot be compiled."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "step.hlo")
        file.write_bytes(program)
        command = [
            sys.executable,
            "-P",
            tpu_compiler.__file__,
            str(file),
            topology,
        ]  # -P: its neighbours are no modules
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise SettingError(f"--tpu_topology={topology}: the compiler stopped ({lines[-1][:300]})")
    return json.loads(done.stdout.splitlines()[-1])


def told(found: dict[str, float], chip: Chip, fits: bool, config: Config, replicas: int) -> dict[str, str]:
    """The compiler's findings in words; what to change if the step does not fit."""
    limit = found.get("limit", chip.memory)
    memory = f"{format_bytes(found['needed'])} of {format_bytes(limit)} on each chip"
    if "operations" in found:
        parts = ", ".join(
            f"{name} {format_bytes(found[name])}" for name in ("variables and input", "temporaries", "program")
        )
        seconds = max(found["operations"] / chip.operations, found["moved"] / chip.bandwidth)
        lines = {
            "memory": f"{memory}: {parts}",
            "operations": f"{found['operations'] / 1e12:,.3g} TFLOP and {format_bytes(found['moved'])} moved per step "
            f"and replica, {found['all-reduces']} all-reduces",
            "time": f"at least {1e3 * seconds:,.3g} ms a step, by the chip's peaks, links left out",
        }
    else:
        lines = {"memory": memory}
    return lines | {"fits": "yes" if fits else f"no; {' or '.join(remedies(config, replicas))}"}


def remedies(config: Config, replicas: int) -> list[str]:
    """Flags that make a step smaller, those first that change no result."""
    images = config.grad_cache_micro_batch or config.train_batch_size // replicas
    found = [] if config.remat else ["--remat"]
    if config.mixed_precision == "float32":
        found.append("--mixed_precision=bfloat16")
    found.append("more chips in --tpu_topology")
    if images % 2 == 0:
        found.append(f"--grad_cache_micro_batch={images // 2}")
    if config.train_batch_size % (2 * replicas) == 0:
        found.append(f"--train_batch_size={config.train_batch_size // 2}")
    return found
