"""Which devices, and the base of every model that is trained: a step on every replica."""

import functools
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.collectives import all_sum, replica_count
from simclrv2_tf.config import Config, SettingError
from simclrv2_tf.training.finiteness import Undo, all_finite

Batch = dict[str, tf.Tensor]
Logs = dict[str, tf.Tensor]


def choose_strategy(config: Config) -> tf.distribute.Strategy:
    """The strategy that the flags and the environment ask for. Call it before anything else touches a device.

    A TPU (``--use_tpu``), the workers of ``TF_CONFIG``, logical CPU devices (``--cpu_replicas``), all visible GPUs, or
    the one device there is.

    Raises:
        SettingError: if the TPU cannot be reached, or the batch does not divide by the replicas.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    strategy = _tpu_strategy(config) if config.use_tpu else _local_strategy(config.cpu_replicas)
    replicas = strategy.num_replicas_in_sync
    for flag in ("train_batch_size", "eval_batch_size"):
        if getattr(config, flag) % replicas:
            raise SettingError(f"--{flag}={getattr(config, flag)}: does not divide by the {replicas} replicas")
    return strategy


@functools.cache  # a second MirroredStrategy in a process would join the collectives of the first one
def _local_strategy(cpu_replicas: int) -> tf.distribute.Strategy:
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if cpu_replicas:
        cpu = tf.config.list_physical_devices("CPU")[0]
        if len(tf.config.get_logical_device_configuration(cpu) or ()) < cpu_replicas:
            try:
                logical = [tf.config.LogicalDeviceConfiguration() for _ in range(cpu_replicas)]
                tf.config.set_logical_device_configuration(cpu, logical)
            except RuntimeError:
                raise SettingError(f"--cpu_replicas={cpu_replicas}: TensorFlow has already started") from None
        return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(cpu_replicas)])
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


def _tpu_strategy(config: Config) -> tf.distribute.Strategy:
    address = config.master or config.tpu_name
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(
            tpu=address, zone=config.tpu_zone or None, project=config.gcp_project or None
        )
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except Exception as error:  # the resolver raises whatever its transport raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SettingError(f"--tpu_name={address}: this TPU cannot be reached ({reason})") from None
    return tf.distribute.TPUStrategy(resolver)


def use_xla(config: Config, strategy: tf.distribute.Strategy) -> bool:
    """Whether the replica's step is compiled: always on TPUs, by default on one GPU (on CPUs XLA is slower)."""
    if config.jit_compile != "auto":
        return config.jit_compile == "true"
    one_gpu = strategy.num_replicas_in_sync == 1 and bool(tf.config.list_physical_devices("GPU"))
    return config.use_tpu or one_gpu


def dtype_policy(config: Config) -> str:
    """Keras dtype policy: bfloat16 where the device computes in it, unless told."""
    if config.mixed_precision != "auto":
        return "float32" if config.mixed_precision == "float32" else f"mixed_{config.mixed_precision}"
    gpus = tf.config.list_physical_devices("GPU")
    ampere = bool(gpus) and all(
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) >= (8, 0) for gpu in gpus
    )
    return "mixed_bfloat16" if config.use_tpu or ampere else "float32"


def steps_a_call(config: Config) -> int:
    """Steps that the devices run in one go, in the order of a second on a GPU; one step on a CPU.

    Between two calls they stand idle for a few milliseconds, while the host looks at the metrics and starts the next.
    """
    if config.steps_per_execution:
        return config.steps_per_execution
    if not (config.use_tpu or tf.config.list_physical_devices("GPU")):
        return 1
    return 100 if config.image_size <= 32 else 10


class ReplicatedModel(keras.Model):
    """A ``keras.Model`` whose ``fit`` runs ``train_step`` on every replica, several steps a call.

    Keras 3's own train function fails under distribution with ``steps_per_execution`` above 1, with ``jit_compile``,
    and on several workers; this one takes its place. A subclass names its ``train_metrics``, the loss first, and writes
    ``train_step(batch)``, which sees one replica's part of the batch, scales its loss by ``1 / replica_count()``
    (optimizers sum the gradients over replicas) and returns its replica's mean of each metric.
    """

    train_metrics: tuple[str, ...] = ("loss",)
    skip_bad_steps = False
    _forward = None
    _run_steps = None

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """What ``train_step`` updates."""
        raise NotImplementedError

    def train_step(self, batch: Batch) -> Logs:
        """One update on one replica; returns its ``train_metrics``, scalars."""
        raise NotImplementedError

    def compile(self, *args: Any, skip_bad_steps: bool = False, **kwargs: Any) -> None:
        """As Keras's; and builds the optimizer, whose variables belong to the strategy's scope and to checkpoints.

        Args:
            *args: as Keras's.
            skip_bad_steps: a step whose loss or gradient is not finite changes nothing.
            **kwargs: as Keras's.

        Raises:
            SettingError: for float16 on several replicas, where Keras's loss scaling fails.
        """
        super().compile(*args, **kwargs)
        scaling = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scaling and self.distribute_strategy.num_replicas_in_sync > 1:
            raise SettingError("--mixed_precision=float16: works on one replica only; take bfloat16 or float32")
        self.optimizer.build(self.trained_variables)
        self.skip_bad_steps = skip_bad_steps

    def make_train_function(self, force: bool = False) -> Any:
        """The function of an iterator that ``fit`` calls: ``steps_per_execution`` steps, then their mean metrics."""
        if self.train_function is None or force:
            self._run_steps = None
            self.train_function = self._run_usual_steps
        return self.train_function

    def _run_usual_steps(self, iterator: Any) -> Logs:
        logs = self.run_steps(iterator, self.steps_per_execution)
        return {name: logs[name] for name in self.train_metrics}

    def run_steps(self, iterator: Any, steps: int) -> Logs:
        """Runs the next batches of a distributed iterator through ``train_step``.

        Returns:
            The mean metrics, of the good steps alone if bad ones are skipped; ``bad_steps``, how many had a loss or a
            gradient that was not finite; and ``first_bad_step``, counted from 0, −1 for none.
        """
        if self._run_steps is None:
            self._run_steps = self._make_run_steps()
        return self._run_steps(iterator, tf.constant(steps))

    def _make_run_steps(self) -> Any:
        # Nothing in a step needs autograph, whose conversion takes longer than the tracing.
        replica_step = tf.autograph.experimental.do_not_convert(self._guarded_step)
        if self.jit_compile:
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

        @tf.function(reduce_retracing=True)
        def run_steps(iterator: Any, steps: tf.Tensor) -> Logs:
            total = tf.zeros([len(self.train_metrics)])
            bad, first = tf.constant(0), tf.constant(-1)
            for step in tf.range(steps):
                logs = self.distribute_strategy.run(replica_step, args=(next(iterator),))
                logs = self.distribute_strategy.experimental_local_results(logs)[0]
                good = logs[-1] > 0
                total += tf.where(good, logs[:-1], tf.zeros_like(total)) if self.skip_bad_steps else logs[:-1]
                first = tf.where(good | (first >= 0), first, step)
                bad += tf.cast(~good, tf.int32)
            counted = tf.maximum(steps - bad, 1) if self.skip_bad_steps else steps
            means = dict(zip(self.train_metrics, tf.unstack(total / tf.cast(counted, tf.float32)), strict=True))
            return {**means, "bad_steps": bad, "first_bad_step": first}

        return run_steps

    def _guarded_step(self, batch: Batch) -> tf.Tensor:
        """One step on a replica: its ``train_metrics``, over all replicas, and 1 if all was finite, else 0."""
        undo = self._undo() if self.skip_bad_steps else None
        logs = self.train_step(batch)
        stacked = tf.stack([tf.cast(logs[name], tf.float32) for name in self.train_metrics])
        stacked = all_sum(stacked) / replica_count()
        good = all_finite(stacked[0], self.trained_variables)
        if undo is not None:
            undo.unless(good)
        return tf.concat([stacked, [tf.cast(good, tf.float32)]], axis=0)

    def _undo(self) -> Undo:
        """All that a step changes but the count of steps, which the learning rate goes by."""
        slots = [
            variable for variable in self.optimizer.variables if variable.name not in ("iteration", "step_counter")
        ]
        memory = self.memory.variables if getattr(self, "memory", None) else []
        by_optimizer = [*self.trained_variables, *slots]
        return Undo(by_optimizer, [*self.network.non_trainable_variables, *memory])

    def collect(self, batches: tf.data.Dataset, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Runs ``pipeline.evaluation_batches`` through the model and brings its endpoints back.

        Args:
            batches: with ``images``, ``labels`` and ``weights``; images of weight 0 are left out.
            names: endpoints of ``call``.

        Returns:
            The endpoints and ``labels``, in the order of the images, whatever the number of replicas.

        Raises:
            SettingError: if there are no images.
        """
        if self._forward is None:
            self._forward = tf.function(self._endpoints, autograph=False)
        strategy = self.distribute_strategy
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "labels", "weights")}
        for batch in strategy.experimental_distribute_dataset(batches):
            values = strategy.run(self._forward, args=(batch["images"], names))
            values |= {name: batch[name] for name in ("labels", "weights")}
            for name, value in values.items():
                local = strategy.experimental_local_results(value)
                everywhere = len(local) == strategy.num_replicas_in_sync
                found[name].append(np.concatenate(local) if everywhere else np.asarray(strategy.gather(value, axis=0)))
        if not found["labels"]:
            raise SettingError("--dataset: no image could be read")
        joined = {name: np.concatenate(parts) for name, parts in found.items()}
        kept = joined.pop("weights") > 0
        return {name: value[kept] for name, value in joined.items()}

    def _endpoints(self, images: tf.Tensor, names: tuple[str, ...]) -> dict[str, tf.Tensor]:
        """The named endpoints, in a type that numpy has."""
        endpoints = self(images, training=False)
        half = (tf.bfloat16, tf.float16)
        return {n: tf.cast(endpoints[n], tf.float32) if endpoints[n].dtype in half else endpoints[n] for n in names}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing: our models are built when they are made. Keras would take a batch and average its integers."""

    def minimise(self, tape: tf.GradientTape, loss: tf.Tensor, variables: list[keras.Variable]) -> None:
        """Applies the gradients of a replica's share of the loss. Variables outside its graph stay as they are."""
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
