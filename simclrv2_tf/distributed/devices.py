"""Devices of a run: one device, several GPUs, several machines or a TPU."""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TypeAlias

import keras
import tensorflow as tf

import simclrv2_tf
from simclrv2_tf.distributed.agreement import gather_rows, has_workers, meet, worker_addresses
from simclrv2_tf.errors import LostWorkerError, SettingError, first_line
from simclrv2_tf.interrupts import waiting
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.usage import is_read

log = logging.getLogger(__name__)

Strategy: TypeAlias = tf.distribute.Strategy
Resolver: TypeAlias = tf.distribute.cluster_resolver.ClusterResolver

# Settings that may differ between workers: paths and services of one machine, and those that determine other settings.
PER_WORKER: tuple[str, ...] = ("model_dir", "data_dir", "data_service", "cache_dataset", "worker_timeout")
PER_WORKER += ("callbacks", "trust_run_code", "recipe", "stage")

_strategies: dict[int, Strategy] = {}  # by cpu_replicas


def choose_strategy(config: Config) -> Strategy:
    """Returns the distribution strategy for the flags and the environment. Call it before TensorFlow uses a device.

    It spans a TPU (``--use_tpu``), the workers of ``TF_CONFIG`` or of a Slurm step, logical CPU devices
    (``--cpu_replicas``), all visible GPUs, or the only device.

    Raises:
        SettingError: if the TPU cannot be reached, a worker does not come up, or the batch is not divisible by the
            number of replicas.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = _tpu_strategy(config) if config.use_tpu else _local_strategy(config)
    replicas = strategy.num_replicas_in_sync
    for flag in ("train_batch_size", "eval_batch_size"):
        if is_read(flag, config.mode) and getattr(config, flag) % replicas:
            raise SettingError(f"--{flag}={getattr(config, flag)}: is not divisible by the {replicas} replicas")
    return strategy


def _local_strategy(config: Config) -> Strategy:
    """Builds a strategy once: a second MirroredStrategy in a process would join the collectives of the first one."""
    strategy = _strategies.get(config.cpu_replicas) or _build_local_strategy(config)
    if strategy is not tf.distribute.get_strategy():
        _strategies[config.cpu_replicas] = strategy
    return strategy


def _build_local_strategy(config: Config) -> Strategy:
    resolver = _workers()
    gpus = tf.config.list_physical_devices("GPU")
    if config.cpu_replicas:
        if resolver is not None:
            raise SettingError(f"--cpu_replicas={config.cpu_replicas}: a worker on a CPU is one replica")
        return tf.distribute.MirroredStrategy(_logical_cpus(config.cpu_replicas))
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if resolver is not None:
        return _join_workers(resolver, config)
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


def cpu_replicas(count: int) -> Strategy:
    """Returns a strategy with ``count`` replicas on the CPU, to try several replicas without GPUs.

    Call it before TensorFlow uses a device, and build models in its scope: ``with cpu_replicas(2).scope(): …``.

    Raises:
        ValueError: if TensorFlow has already started with fewer CPU devices, or this is one of several workers.
    """
    if count < 1:
        raise ValueError(f"cpu_replicas({count}): the number of replicas must be at least 1")
    return _local_strategy(Config(cpu_replicas=count))


def _logical_cpus(count: int) -> list[str]:
    """Splits the CPU into logical devices; returns their names."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
        try:
            logical = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
            tf.config.set_logical_device_configuration(cpu, logical)
        except RuntimeError:
            raise SettingError(f"--cpu_replicas={count}: TensorFlow has already started") from None
    return [f"CPU:{i}" for i in range(count)]


def split_tpu_name(tpu_name: str) -> tuple[str | None, str | None, str]:
    """Returns project, zone and name of ``PROJECT/ZONE/NAME``; no project and zone for a plain name or an address."""
    if "://" in tpu_name or tpu_name.count("/") != 2:
        return None, None, tpu_name
    project, zone, name = tpu_name.split("/")
    return project, zone, name


def _tpu_strategy(config: Config) -> Strategy:
    project, zone, address = split_tpu_name(config.tpu_name)
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address, zone=zone, project=project)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver passes on any error of its transport
        raise SettingError(f"--tpu_name={config.tpu_name}: this TPU cannot be reached ({first_line(error)})") from None
    return tf.distribute.TPUStrategy(resolver)


def _workers() -> Resolver | None:
    """Returns the workers of ``TF_CONFIG`` or of a Slurm step and this process's place among them; None for one worker.

    Raises:
        SettingError: if the environment does not describe workers.
    """
    resolvers = tf.distribute.cluster_resolver
    slurm_tasks = _slurm_tasks()
    if "TF_CONFIG" not in os.environ and slurm_tasks < 2:
        return None
    source = "TF_CONFIG" if "TF_CONFIG" in os.environ else "SLURM_STEP_NODELIST"
    try:
        if source == "TF_CONFIG":
            resolver = resolvers.TFConfigClusterResolver()
        else:  # dummy GPU counts, as only the tasks are needed: a task's GPUs are those that it sees
            resolver = resolvers.SlurmClusterResolver(gpus_per_node=slurm_tasks, gpus_per_task=1, auto_set_gpu=False)
        cluster = resolver.cluster_spec()
        if not cluster.as_dict():
            return None
        cluster.task_address(resolver.task_type, resolver.task_id)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SettingError(f"{source}={os.environ.get(source, '')}: names no workers ({first_line(error)})") from None
    if others := set(cluster.jobs) - {"chief", "worker"}:
        raise SettingError(f"{source}: a task must be worker or chief, not {sorted(others)[0]}")
    if sum(cluster.num_tasks(job) for job in cluster.jobs) == 1:
        return None
    accelerators = {"GPU": len(tf.config.list_physical_devices("GPU"))}
    return resolvers.SimpleClusterResolver(
        cluster, task_type=resolver.task_type, task_id=resolver.task_id, num_accelerators=accelerators
    )


def _slurm_tasks() -> int:
    """Returns the number of tasks of a Slurm step; 1 outside of one, or with a warning if it is not a number."""
    text = os.environ.get("SLURM_STEP_NUM_TASKS") or "1"
    if re.fullmatch(r"[0-9]{1,6}", text):
        return int(text)
    log.warning("SLURM_STEP_NUM_TASKS=%s: not a number of tasks; ignored, as outside of a Slurm step", text)
    return 1


def _join_workers(resolver: Resolver, config: Config) -> Strategy:
    """Waits for the other workers, compares the records of all, and lets TensorFlow connect them."""
    own, addresses = f"{resolver.task_type} {resolver.task_id}", worker_addresses(resolver.cluster_spec())
    timeout, handler = config.worker_timeout, signal.getsignal(signal.SIGTERM)
    late = f"--worker_timeout={timeout}: the workers ({', '.join(addresses.values())}) were not connected"
    with waiting("another worker", timeout=timeout + 5, message=f"{late} within {timeout} s"):  # also for a name server
        meet(addresses, own, _worker_record(config), timeout)
    with waiting("another worker", timeout=timeout, message=f"{late} by TensorFlow within {timeout} s"):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # TensorFlow has just set SIGTERM to be ignored
    return strategy


def _worker_record(config: Config) -> dict[str, str]:
    """Returns the values that all workers must agree on before they connect: versions, devices and settings."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    versions = {"simclrv2_tf": simclrv2_tf.__version__, "TensorFlow": tf.__version__, "Keras": keras.__version__}
    settings = {f"--{name}": str(value) for name, value in _shared_settings(config).items()}
    for stage, of_stage in getattr(config, "stages", {}).items():
        settings |= {f"--{name} of {stage}": str(value) for name, value in _shared_settings(of_stage).items()}
    return versions | {"number of GPUs": str(gpus), "dtype policy": dtype_policy(config)} | settings


def _shared_settings(config: Config) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(Config) if field.name not in PER_WORKER]
    return {name: getattr(config, name) for name in names}


def is_chief(strategy: Strategy) -> bool:
    """Returns whether this process writes the run's files: it is the first worker, or the only one."""
    return strategy.extended.should_checkpoint


@contextlib.contextmanager
def worker_context(strategy: Strategy) -> Iterator[None]:
    """Runs its body as one of the workers: only the chief prints.

    Workers exchange heartbeats every few seconds. If one stops, TensorFlow aborts the collectives that wait for it.

    Raises:
        LostWorkerError: if the connection to another worker is lost.
    """
    if not has_workers(strategy):
        yield
        return
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(sys.stdout if is_chief(strategy) else nowhere),
        ):
            yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise LostWorkerError(
            f"lost connection to another worker ({first_line(error)}); restart to resume from the latest checkpoint "
            "(the same command on every worker)"
        ) from None


def gather_from_workers(strategy: Strategy, number: int) -> list[int]:
    """Gathers a number from each worker on every worker, repeated per replica; a barrier for all workers."""
    if not has_workers(strategy):
        return [number]
    return gather_rows(strategy)(tf.constant([number], tf.int64)).numpy().tolist()


def use_xla(config: Config, strategy: Strategy) -> bool:
    """Returns whether to compile the step with XLA; by default on TPUs and on a single GPU, as XLA is slower on CPUs.

    Raises:
        SettingError: if several CPU replicas are to be compiled; XLA has no collectives for them.
    """
    multiple, gpus = strategy.num_replicas_in_sync > 1, bool(tf.config.list_physical_devices("GPU"))
    if config.jit_compile == "auto":
        return config.use_tpu or (gpus and not multiple)
    if config.jit_compile == "true" and multiple and not (gpus or config.use_tpu):
        raise SettingError("--jit_compile=true: XLA has no collectives on CPUs; several CPU replicas need false")
    return config.jit_compile == "true"


def has_accelerator(config: Config) -> bool:
    """Returns whether the run computes on GPUs or a TPU."""
    return config.use_tpu or bool(tf.config.list_physical_devices("GPU"))


def prefetch_device(config: Config) -> str:
    """Returns the name of the GPU that batches are prefetched to; "" for none."""
    gpus = [] if config.cpu_replicas else tf.config.list_logical_devices("GPU")
    return gpus[0].name if gpus else ""


def dtype_policy(config: Config) -> str:
    """Returns the name of the Keras dtype policy; ``auto`` is bfloat16 on devices that support it."""
    if config.mixed_precision != "auto":
        return f"mixed_{config.mixed_precision}" if config.mixed_precision.endswith("16") else config.mixed_precision
    gpus = tf.config.list_physical_devices("GPU")
    ampere = bool(gpus) and all(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus
    )
    return "mixed_bfloat16" if config.use_tpu or ampere else "float32"


def default_steps_per_execution(config: Config) -> int:
    """Returns the number of training steps per host call: about a second's worth on a GPU, one step on a CPU.

    Between calls the devices are idle for a few milliseconds, while the host reads the metrics and starts the next.
    """
    if config.steps_per_execution:
        return config.steps_per_execution
    if not (config.use_tpu or tf.config.list_physical_devices("GPU")):
        return 1
    return 100 if config.image_size <= 32 else 10
