"""Compiles the pretraining step for a TPU slice, without a TPU: does it compile, does it fit?"""

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.augment import NUM_DRAWS
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.modes.resolve import Result, resolve_config
from simclrv2_tf.modes.setup import build_network, build_views, compile_method, load_method
from simclrv2_tf.modes.summary import IMAGENET_CLASSES
from simclrv2_tf.report.console import box
from simclrv2_tf.runs.memory import format_bytes
from simclrv2_tf.settings.config import Config
from tools.tpu_preflight import compiler

NUM_IMAGES = 1_281_167  # of the training split, which is not opened; only the learning-rate schedule depends on it


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of a TPU chip, by cloud.google.com/tpu/docs/system-architecture-tpu-vm.

    Attributes:
        memory: bytes.
        operations: bfloat16 operations per second.
        bandwidth: bytes per second to its memory.
        links: bytes per second to other chips, over all its links and both directions.
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


def tpu_preflight(topology: str, flags: Mapping[str, Any]) -> Result:
    """Compiles the step that ``--mode=pretrain`` would run on each replica of a TPU slice, and prints what it needs.

    The program holds the whole step: augmentation, network, loss, gradients, optimizer and collectives. It does not
    hold the input, evaluation or checkpoints. No data is opened and no weight is allocated.

    Args:
        topology: generation and chips, such as ``v4:2x2x4``.
        flags: settings of the pretraining run, by name.

    Raises:
        SettingError: if the topology or a setting cannot be used, the compiler is not installed, or it fails.
    """
    if flags.get("mode", "pretrain") != "pretrain":
        raise SettingError(f"--mode={flags['mode']}: only the pretraining step is compiled; leave the flag out")
    config = resolve_config({**flags, "mode": "pretrain", "use_tpu": True})
    generation, replicas = parse_topology(topology)
    if config.train_batch_size % replicas:
        raise SettingError(f"--train_batch_size={config.train_batch_size}: is not divisible by the {replicas} replicas")
    for package in ("jax", "libtpu"):
        if importlib.util.find_spec(package) is None:
            raise SettingError(f"tpu_preflight needs {package}: pip install -r tools/tpu_preflight/requirements.txt")
    print(f"Compiling the training step for {topology}: this takes minutes.", flush=True)
    costs = _compile(lower_step(config, replicas), topology)
    chip = CHIPS[generation]
    fits = "limit" not in costs and costs["needed"] <= chip.memory
    title = (
        f"tpu_preflight: ResNet-{config.resnet_depth} x{config.width_multiplier:g}, SK {config.sk_ratio:g}, "
        f"{config.image_size} px, {config.train_batch_size // replicas} images on each of {replicas} {generation} chips"
    )
    print(box(title, describe_costs(costs, chip, fits, config, replicas)))
    return {"mode": "tpu_preflight", "replicas": replicas, "fits": fits, **costs}


def parse_topology(topology: str) -> tuple[str, int]:
    """Returns the generation and the number of chips, each a replica; SettingError if the text is not a topology."""
    match = re.fullmatch(rf"({'|'.join(CHIPS)}):(\d+(?:x\d+)+)", topology)
    if not match:
        raise SettingError(f"--topology={topology}: must be one of {', '.join(CHIPS)} with its chips, as v4:2x2x4")
    return match[1], math.prod(map(int, match[2].split("x")))


def lower_step(config: Config, replicas: int) -> bytes:
    """Lowers the step of one replica to a serialized HLO module."""
    method = _build_method(config)
    batch = batch_spec(config, config.train_batch_size // replicas)

    @tf.function(jit_compile=True, autograph=False)
    def step(index: tf.Tensor, *values: tf.Tensor) -> tf.Tensor:
        with Replica(index, replicas):
            return method.guarded_step(dict(zip(batch, values, strict=True)))

    return step.experimental_get_compiler_ir(tf.TensorSpec([], tf.int32), *batch.values())(stage="hlo_serialized")


def batch_spec(config: Config, images: int) -> dict[str, tf.TensorSpec]:
    """Returns the shapes of a replica's batch: large images as crops, small ones whole; see ``make_views``."""
    size = config.image_size
    spec = {"labels": tf.TensorSpec([images], tf.int32), "draws": tf.TensorSpec([images, 2, NUM_DRAWS])}
    if size <= 32:
        whole = tf.TensorSpec([images, size, size, 3], tf.uint8)
        return spec | {"images": whole, "boxes": tf.TensorSpec([images, 2, 4], tf.int32)}
    return spec | {"images": tf.TensorSpec([images, 2, size, size, 3], tf.uint8)}


def _build_method(config: Config) -> Method:
    """Builds the method with variables that have no values."""
    strategy, classes = tf.distribute.get_strategy(), IMAGENET_CLASSES * config.lineareval_while_pretraining
    with tf.variable_creator_scope(_create_empty_variable):
        network = build_network(config, strategy, classes)
        method_class = load_method(config)
        method = method_class.from_settings(network, build_views(config, method_class), config)
        compile_method(method, config, strategy, Plan.of(config, NUM_IMAGES))
    return method


def _create_empty_variable(create: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
    """Creates a variable in memory that is never written to, which the system therefore need not provide."""
    if callable(settings["initial_value"]):
        with tf.Graph().as_default():
            value = settings["initial_value"]()
        settings["initial_value"] = tf.raw_ops.Empty(shape=value.shape, dtype=value.dtype)
    return create(**settings)


class Replica(tf.distribute.ReplicaContext):
    """Context of one of many replicas, as in ``TPUStrategy``: collectives become those of the compiled program.

    Args:
        index: int32 scalar, the replica.
        count: number of replicas.
    """

    def __init__(self, index: tf.Tensor, count: int):
        super().__init__(tf.distribute.get_strategy(), index)
        self.count = count

    @property
    def num_replicas_in_sync(self) -> int:
        return self.count

    def all_reduce(self, reduce_op: tf.distribute.ReduceOp, value: Any, options: Any = None) -> Any:
        """Sums over all replicas; the gradient of a sum is a sum. (The TPU's own op does not compile without a TPU.)"""

        @tf.custom_gradient
        def all_sum(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            size, key = tf.raw_ops.CollectiveAssignGroupV2(
                group_assignment=[list(range(self.count))], device_index=0, base_key=1
            )
            keys = dict(group_size=size, group_key=key, instance_key=1, ordering_token=[])
            return tf.raw_ops.CollectiveReduceV2(input=x, merge_op="Add", final_op="Id", **keys), all_sum

        return tf.nest.map_structure(lambda x: all_sum(tf.convert_to_tensor(x)), value)


def _compile(program: bytes, topology: str) -> dict[str, float]:
    """Runs ``compiler.py`` on a program and returns its costs; SettingError if it does not compile."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "step.hlo")
        file.write_bytes(program)
        # -P: the modules beside compiler.py are not importable from it
        command = [sys.executable, "-P", compiler.__file__, str(file), topology]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"status {process.returncode}"]
        raise SettingError(f"--topology={topology}: the compiler failed ({lines[-1][:300]})")
    return json.loads(process.stdout.splitlines()[-1])


def describe_costs(costs: dict[str, float], chip: Chip, fits: bool, config: Config, replicas: int) -> dict[str, str]:
    """Returns the lines of the summary box, with what to change if the step does not fit."""
    limit = costs.get("limit", chip.memory)
    memory = f"{format_bytes(costs['needed'])} of {format_bytes(limit)} per chip"
    lines = {"memory": memory}
    if "operations" in costs:
        parts = ", ".join(
            f"{name} {format_bytes(costs[name])}" for name in ("variables and input", "temporaries", "program")
        )
        seconds = max(costs["operations"] / chip.operations, costs["moved"] / chip.bandwidth)
        lines = {
            "memory": f"{memory}: {parts}",
            "operations": f"{costs['operations'] / 1e12:,.3g} TFLOP and {format_bytes(costs['moved'])} moved per step "
            f"and replica, {costs['all-reduces']} all-reduces",
            "time": f"at least {1e3 * seconds:,.3g} ms per step, by the chip's peak figures, without its links",
        }
    return lines | {"fits": "yes" if fits else f"no; {' or '.join(list_remedies(config, replicas))}"}


def list_remedies(config: Config, replicas: int) -> list[str]:
    """Returns flags that make a step smaller, first those that do not change the results."""
    images = config.grad_cache_micro_batch or config.train_batch_size // replicas
    remedies = {
        "--remat": not config.remat,
        "--mixed_precision=bfloat16": config.mixed_precision == "float32",
        "more chips in --topology": True,
        f"--grad_cache_micro_batch={images // 2}": images % 2 == 0,
        f"--train_batch_size={config.train_batch_size // 2}": config.train_batch_size % (2 * replicas) == 0,
    }
    return [flag for flag, applies in remedies.items() if applies]
