"""The base of every model that is trained: a step on every replica, each with its share of the batch."""

import inspect
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.input import Part
from simclrv2_tf.distributed.collectives import all_gather, all_sum, replica_count
from simclrv2_tf.distributed.devices import has_workers
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.lars import LARS
from simclrv2_tf.methods.nan_guard import Undo, all_finite
from simclrv2_tf.models.batch_norm import BatchNorm

Batch = dict[str, tf.Tensor]
Logs = dict[str, tf.Tensor]


def distribute(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    make: Callable[[Part], tf.data.Dataset],
    device: str = "",
    ahead: int = 0,
) -> tf.data.Dataset | tf.distribute.DistributedDataset:
    """A data set of global batches, of which each worker makes its own rows, and each replica gets an equal share.

    TensorFlow's ``experimental_distribute_dataset`` gives every worker the same rows where files cannot be sharded.

    Args:
        strategy: whose replicas it feeds, in their order.
        batch_size: rows of a global batch; divides by the replicas.
        make: from a part to the batches of its rows, of one static shape and equally many for each part.
        device: to which batches are copied before their step asks for them, where there is one replica and no other
            worker (TensorFlow does so itself where there are several).
        ahead: how many of them.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        data = make(Part(context.input_pipeline_id, context.num_input_pipelines))
        if context.num_replicas_in_sync > context.num_input_pipelines:
            return data.rebatch(batch_size // context.num_replicas_in_sync, drop_remainder=True)
        if context.num_replicas_in_sync == 1 and device and ahead:
            return data.apply(tf.data.experimental.prefetch_to_device(device, ahead))
        return data

    return strategy.distribute_datasets_from_function(of_worker)


class ReplicatedModel(keras.Model):
    """A ``keras.Model`` whose ``fit`` runs ``train_step`` on every replica, several steps a call.

    Keras 3's own train function fails under distribution with ``steps_per_execution`` above 1, with ``jit_compile``,
    and on several workers; this one takes its place. A subclass names its ``train_metrics``, the loss first, and writes
    ``train_step(batch)``, which sees one replica's part of the batch, scales its loss by ``1 / replica_count()``
    (optimizers sum the gradients over replicas) and returns its replica's mean of each metric.
    """

    train_metrics: tuple[str, ...] = ("loss",)
    skip_bad_steps = False
    _run_steps = None

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """What ``train_step`` updates."""
        raise NotImplementedError

    def train_step(self, batch: Batch) -> Logs:
        """One update on one replica; returns its ``train_metrics``, scalars."""
        raise NotImplementedError

    def completed(self, batch: Batch) -> Batch:
        """The batch that ``train_step`` sees, from what the input sends; ``TrainingInput.completed`` may take over."""
        return batch

    def compile(self, *args: Any, skip_bad_steps: bool = False, **kwargs: Any) -> None:
        """As Keras's; and builds the optimizer, whose variables belong to the strategy's scope and to checkpoints.

        LARS neither decays nor adapts the classifier.

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
        inner = self.optimizer.inner_optimizer if scaling else self.optimizer
        if isinstance(inner, LARS) and not inner.built:
            inner.exclude(self.network.classifier_variables)
        self.optimizer.build(self.trained_variables)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Each replica counts the steps. Keras would broadcast the first one's count, which XLA cannot compile.
            self.optimizer.iterations.value._aggregation = tf.VariableAggregation.NONE
        self.skip_bad_steps = skip_bad_steps

    def get_compile_config(self) -> dict[str, Any]:
        """What a saved model is compiled with when it is loaded."""
        names = ("optimizer", "jit_compile", "steps_per_execution", "skip_bad_steps")
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names if self.compiled}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as it was."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self) -> dict[str, Any]:
        """The arguments that the model was made with, which are its attributes."""
        return {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in inspect.signature(type(self)).parameters
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "ReplicatedModel":
        """The inverse of ``get_config``."""
        return cls(**{k: keras.saving.deserialize_keras_object(v, custom_objects) for k, v in config.items()})

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
        # Nothing here needs AutoGraph, whose conversion takes longer than the tracing, and room for temporary files.
        replica_step = self.guarded_step
        if self.jit_compile and not isinstance(self.distribute_strategy, tf.distribute.TPUStrategy):
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

        @tf.function(reduce_retracing=True, autograph=False)
        def run_steps(iterator: Any, steps: tf.Tensor) -> Logs:
            def run_step(step: tf.Tensor, total: tf.Tensor, bad: tf.Tensor, first: tf.Tensor) -> tuple[tf.Tensor, ...]:
                logs = self.distribute_strategy.run(replica_step, args=(next(iterator),))
                logs = self.distribute_strategy.experimental_local_results(logs)[0]
                good = logs[-1] > 0
                total += tf.where(good, logs[:-1], tf.zeros_like(total)) if self.skip_bad_steps else logs[:-1]
                return step + 1, total, bad + tf.cast(~good, tf.int32), tf.where(good | (first >= 0), first, step)

            nothing = tf.constant(0), tf.zeros([len(self.train_metrics)]), tf.constant(0), tf.constant(-1)
            _, total, bad, first = tf.while_loop(lambda step, *_: step < steps, run_step, nothing)
            counted = tf.maximum(steps - bad, 1) if self.skip_bad_steps else steps
            means = dict(zip(self.train_metrics, tf.unstack(total / tf.cast(counted, tf.float32)), strict=True))
            return {**means, "bad_steps": bad, "first_bad_step": first}

        return run_steps

    def guarded_step(self, batch: Batch) -> tf.Tensor:
        """One step on a replica: its ``train_metrics``, over all replicas, and 1 if all was finite, else 0."""
        undo = self._undo() if self.skip_bad_steps else None
        logs = self.train_step(self.completed(batch))
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

    def average_local_statistics(self) -> None:
        """Where the replicas have moving statistics of their own (local batch norm), all get the mean of them."""
        layers = [layer for layer in self._flatten_layers() if isinstance(layer, BatchNorm) and not layer.synchronized]

        def average() -> None:
            for variable in (v for layer in layers for v in (layer.moving_mean, layer.moving_variance)):
                variable.assign(all_sum(variable.value) / replica_count())

        if layers and self.distribute_strategy.num_replicas_in_sync > 1:
            self.distribute_strategy.run(tf.function(average, autograph=False))

    def collect(
        self, make: Callable[[Part], tf.data.Dataset], batch_size: int, names: tuple[str, ...]
    ) -> dict[str, np.ndarray]:
        """Runs ``input.evaluation_batches`` through the model and brings its endpoints back, to every worker.

        Args:
            make: from a part to its batches, with ``images``, ``labels`` and ``weights``; images of weight 0 are left
                out.
            batch_size: images of a batch, over all parts.
            names: endpoints of ``call``.

        Returns:
            The endpoints and ``labels``, in the order of the images, whatever the number of replicas.

        Raises:
            SettingError: if there are no images.
        """
        # The names are not an argument, which a TPU would be sent; and each function is traced once.
        forward = tf.function(lambda batch: self._endpoints(batch, names), autograph=False)
        forward = vars(self).setdefault(f"_forward{names}", forward)
        self.average_local_statistics()
        strategy = self.distribute_strategy
        found: dict[str, list[np.ndarray]] = {name: [] for name in (*names, "labels", "weights")}
        for batch in distribute(strategy, batch_size, make):
            for name, value in strategy.run(forward, args=(batch,)).items():
                local = strategy.experimental_local_results(value)
                found[name].append(local[0].numpy() if has_workers(strategy) else np.concatenate(local))
        joined = {name: np.concatenate(parts) for name, parts in found.items()}
        kept = joined.pop("weights") > 0
        if not kept.any():
            raise SettingError("--dataset: no image could be read")
        return {name: value[kept] for name, value in joined.items()}

    def _endpoints(self, batch: Batch, names: tuple[str, ...]) -> dict[str, tf.Tensor]:
        """The named endpoints of a batch, in a type that numpy has; of all replicas, where not all are at hand."""
        endpoints = self(batch["images"], training=False)
        half = (tf.bfloat16, tf.float16)
        found = {n: tf.cast(endpoints[n], tf.float32) if endpoints[n].dtype in half else endpoints[n] for n in names}
        found |= {name: batch[name] for name in ("labels", "weights")}
        return {n: all_gather(v) for n, v in found.items()} if has_workers(self.distribute_strategy) else found

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing: our models are built when they are made. Keras would take a batch and average its integers."""

    def apply_gradients_of(self, tape: tf.GradientTape, loss: tf.Tensor, variables: list[keras.Variable]) -> None:
        """Applies the gradients of a replica's share of the loss. Variables outside its graph stay as they are."""
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        self.optimizer.apply(gradients, variables)
