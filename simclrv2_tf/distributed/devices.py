"""Which devices a run uses: one, several GPUs, several machines, a TPU."""

import contextlib
import errno
import functools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from simclrv2_tf.distributed.collectives import all_gather
from simclrv2_tf.errors import LostWorkerError, SettingError, first_line
from simclrv2_tf.settings.config import Config

Strategy = tf.distribute.Strategy
Resolver = tf.distribute.cluster_resolver.ClusterResolver


def choose_strategy(config: Config) -> Strategy:
    """The strategy that the flags and the environment ask for. Call it before anything else touches a device.

    A TPU (``--use_tpu``), the workers of ``TF_CONFIG`` or of a Slurm step, logical CPU devices (``--cpu_replicas``),
    all visible GPUs, or the one device there is.

    Raises:
        SettingError: if the TPU cannot be reached, a worker does not come, or the batch does not divide by the
            replicas.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = _tpu_strategy(config) if config.use_tpu else _local_strategy(config.cpu_replicas, config.worker_timeout)
    replicas = strategy.num_replicas_in_sync
    for flag in ("train_batch_size", "eval_batch_size"):
        if getattr(config, flag) % replicas:
            raise SettingError(f"--{flag}={getattr(config, flag)}: does not divide by the {replicas} replicas")
    return strategy


@functools.cache  # a second MirroredStrategy in a process would join the collectives of the first one
def _local_strategy(cpu_replicas: int, worker_timeout: int) -> Strategy:
    resolver = _workers()
    gpus = tf.config.list_physical_devices("GPU")
    if cpu_replicas:
        if resolver is not None:
            raise SettingError(f"--cpu_replicas={cpu_replicas}: a worker on a CPU is one replica")
        return tf.distribute.MirroredStrategy(_logical_cpus(cpu_replicas))
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if resolver is not None:
        _wait_for_workers(resolver, worker_timeout)
        strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # which TensorFlow has just begun to ignore
        return strategy
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


def _logical_cpus(count: int) -> list[str]:
    """Splits the CPU into devices and names them."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    if len(tf.config.get_logical_device_configuration(cpu) or ()) < count:
        try:
            logical = [tf.config.LogicalDeviceConfiguration() for _ in range(count)]
            tf.config.set_logical_device_configuration(cpu, logical)
        except RuntimeError:
            raise SettingError(f"--cpu_replicas={count}: TensorFlow has already started") from None
    return [f"CPU:{i}" for i in range(count)]


def _tpu_strategy(config: Config) -> Strategy:
    address = config.tpu_name
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=address, zone=config.tpu_zone or None, project=config.gcp_project or None
        )
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises whatever its transport raises
        raise SettingError(f"--tpu_name={address}: this TPU cannot be reached ({first_line(error)})") from None
    return tf.distribute.TPUStrategy(resolver)


def _workers() -> Resolver | None:
    """The workers of ``TF_CONFIG`` or of a Slurm step, and which one this process is; None where it is alone.

    Raises:
        SettingError: if the environment makes no sense.
    """
    resolvers = tf.distribute.cluster_resolver
    slurm_tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if "TF_CONFIG" not in os.environ and slurm_tasks < 2:
        return None
    source = "TF_CONFIG" if "TF_CONFIG" in os.environ else "SLURM_STEP_NODELIST"
    try:
        if source == "TF_CONFIG":
            found = resolvers.TFConfigClusterResolver()
        else:  # is asked for the tasks alone: the GPUs of a task are those it sees, and there may be none
            found = resolvers.SlurmClusterResolver(gpus_per_node=slurm_tasks, gpus_per_task=1, auto_set_gpu=False)
        cluster = found.cluster_spec()
        if not cluster.as_dict():
            return None
        cluster.task_address(found.task_type, found.task_id)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise SettingError(f"{source}={os.environ.get(source, '')}: names no workers ({first_line(error)})") from None
    if others := set(cluster.jobs) - {"chief", "worker"}:
        raise SettingError(f"{source}: a task must be worker or chief, not {sorted(others)[0]}")
    if sum(cluster.num_tasks(job) for job in cluster.jobs) == 1:
        return None
    accelerators = {"GPU": len(tf.config.list_physical_devices("GPU"))}
    return resolvers.SimpleClusterResolver(
        cluster, task_type=found.task_type, task_id=found.task_id, num_accelerators=accelerators
    )


def _wait_for_workers(resolver: Resolver, timeout: int) -> None:
    """Waits until every worker's address answers: TensorFlow's own waiting neither ends nor can be interrupted.

    Until then this worker listens at its own address, where TensorFlow's server will.

    Raises:
        SettingError: naming the worker that has not come after ``timeout`` seconds, or an address of no use.
    """
    cluster, own = resolver.cluster_spec(), (resolver.task_type, resolver.task_id)
    tasks = [(job, index) for job in cluster.jobs for index in cluster.task_indices(job)]
    deadline = time.monotonic() + timeout
    with contextlib.closing(_listen(cluster.task_address(*own))):
        for job, index in tasks:
            address = cluster.task_address(job, index)
            while (job, index) != own and not _answers(address):
                if time.monotonic() > deadline:
                    raise SettingError(f"--worker_timeout={timeout}: {job} {index} ({address}) has not come")
                time.sleep(0.2)


def _listen(address: str) -> socket.socket:
    port = address.rpartition(":")[2]
    try:
        return socket.create_server(("", int(port)), backlog=1024)
    except (OSError, ValueError, OverflowError) as error:
        raise SettingError(f"{address}: this worker cannot listen there ({first_line(error)})") from None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    except socket.gaierror as error:
        raise SettingError(f"{address}: a worker's name does not resolve ({error.strerror})") from None
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH) or isinstance(error, TimeoutError):
            time.sleep(0.8)
        return False


def is_chief(strategy: Strategy) -> bool:
    """Whether this process is the one that writes: the first of several workers, or alone."""
    return strategy.extended.should_checkpoint


@contextlib.contextmanager
def worker_context(strategy: Strategy) -> Iterator[None]:
    """What a process does within it, it does as one of the workers: all but the chief keep silent.

    Workers tell each other every few seconds that they live. When one falls silent, TensorFlow ends the collectives
    that wait for it.

    Raises:
        LostWorkerError: if another worker has gone.
    """
    if not has_workers(strategy):
        yield
        return
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(sys.stdout if is_chief(strategy) else nowhere),
        ):
            yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise LostWorkerError(
            f"another worker is gone ({first_line(error)}). Start the same command again on every worker: it goes on "
            "at the newest checkpoint."
        ) from None


def has_workers(strategy: Strategy) -> bool:
    """Whether other processes take part."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def gather_from_workers(strategy: Strategy, number: int) -> list[int]:
    """Each worker's ``number``, on every worker, once for each of its replicas; returns when all have told theirs."""
    if not has_workers(strategy):
        return [number]
    return _gather(strategy)(tf.constant([number], tf.int64)).numpy().tolist()


@functools.cache
def _gather(strategy: Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    return tf.function(lambda value: strategy.experimental_local_results(strategy.run(all_gather, args=(value,)))[0])


def use_xla(config: Config, strategy: Strategy) -> bool:
    """Whether the replica's step is compiled: always on TPUs, by default on one GPU (on CPUs XLA is slower).

    Raises:
        SettingError: if it is to be on several CPU replicas, whose collectives XLA does not have.
    """
    several, gpus = strategy.num_replicas_in_sync > 1, bool(tf.config.list_physical_devices("GPU"))
    if config.jit_compile == "auto":
        return config.use_tpu or (gpus and not several)
    if config.jit_compile == "true" and several and not (gpus or config.use_tpu):
        raise SettingError("--jit_compile=true: XLA has no collectives on CPUs; several replicas there need false")
    return config.jit_compile == "true"


def prefetch_device(config: Config) -> str:
    """Name of the GPU that batches are copied to while it computes; "" for none."""
    gpus = [] if config.cpu_replicas else tf.config.list_logical_devices("GPU")
    return gpus[0].name if gpus else ""


def dtype_policy(config: Config) -> str:
    """Keras dtype policy: bfloat16 where the device computes in it, unless told."""
    if config.mixed_precision != "auto":
        return f"mixed_{config.mixed_precision}" if config.mixed_precision.endswith("16") else config.mixed_precision
    gpus = tf.config.list_physical_devices("GPU")
    ampere = bool(gpus) and all(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus
    )
    return "mixed_bfloat16" if config.use_tpu or ampere else "float32"


def default_steps_per_execution(config: Config) -> int:
    """Steps that the devices run in one go, in the order of a second on a GPU; one step on a CPU.

    Between two calls they stand idle for a few milliseconds, while the host looks at the metrics and starts the next.
    """
    if config.steps_per_execution:
        return config.steps_per_execution
    if not (config.use_tpu or tf.config.list_physical_devices("GPU")):
        return 1
    return 100 if config.image_size <= 32 else 10
