"""Base class of all training methods: one training step, run on every replica, several steps per device call.

A method is a subclass of ``Method`` that defines ``forward`` and ``objective``. The base class handles the step itself,
replicas, the NaN guard and micro-batches. For examples, see ``simclr.py`` and ``classifier.py``.
"""

import inspect
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import make_views
from simclrv2_tf.distributed.collectives import all_sum, replica_count
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.grad_cache import cached_gradients
from simclrv2_tf.methods.lars import LARS
from simclrv2_tf.methods.losses import l2_penalty
from simclrv2_tf.methods.nan_guard import Snapshot, all_finite
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.models.batch_norm import BatchNorm
from simclrv2_tf.models.network import Network, built_network
from simclrv2_tf.settings.config import Config

Batch = dict[str, tf.Tensor]
Outputs = dict[str, tf.Tensor]
Logs = dict[str, tf.Tensor]


class Method(keras.Model):
    """A network together with its training step.

    A subclass defines ``forward`` and ``objective``, and if needed ``after_step``, ``parts`` and ``trained_variables``.
    Keras's ``fit`` and the loop of the command line both call ``run_steps``.

    A batch is a dict with the inputs of ``input.make_views`` and int32 ``labels [b]``, −1 where unknown.

    Args:
        network: a ``Network``, or any Keras model from images to features ``[n, d]``, which gets a projection head of
            three layers.
        views: augmentation settings.
        weight_decay: factor of the L2 terms in the loss.
        micro_batch: images per replica whose activations are in memory at a time (``grad_cache.py``); 0 for all.

    Attributes:
        num_views: number of views of each image in a batch.
        strong_augmentation: distort colors and blur in addition to crop and flip, as for pretraining.
        train_metrics: names of the scalars that a step returns, the loss first.

    Example:
        >>> class BarlowTwins(Method):  # arXiv 2103.03230 with λ = 1
        ...     num_views = 2
        ...
        ...     def forward(self, batch):
        ...         views = self.make_views(batch)  # [b, 2, size, size, 3]
        ...         rows = tf.reshape(views, [-1, *views.shape[2:]])  # [2b, size, size, 3]
        ...         projections = self(rows, training=True)["proj_head_output"]  # [2b, d]
        ...         return {"projections": tf.reshape(projections, [-1, 2, projections.shape[1]])}
        ...
        ...     def objective(self, outputs, batch):
        ...         first, second = tf.unstack(outputs["projections"], axis=1)  # [b, d] each
        ...         correlation = tf.matmul(first, second, transpose_a=True) / first.shape[0]  # [d, d]
        ...         return tf.reduce_sum((correlation - tf.eye(first.shape[1])) ** 2), {}
        >>> model = BarlowTwins(ResNet(10, 0.0625, stem="cifar"), ViewSettings(32))
        >>> model.compile("adam", jit_compile=False)  # True on a GPU
        >>> history = model.fit(view_batches(images, 4, ViewSettings(32)), verbose=0)
    """

    num_views = 1
    strong_augmentation = True
    train_metrics: tuple[str, ...] = ("loss",)
    skip_bad_steps = False
    _run_steps = None

    def __init__(
        self,
        network: Network | keras.Model,
        views: ViewSettings,
        weight_decay: float = 0.0,
        micro_batch: int = 0,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.network = built_network(network, views.image_size)
        self.views = views
        self.weight_decay = weight_decay
        self.micro_batch = micro_batch
        self.built = True

    @classmethod
    def from_settings(cls, network: Network, views: ViewSettings, config: Config) -> "Method":
        """Builds the method from the settings of a run. Call it in the strategy's scope."""
        return cls(network, views, weight_decay=config.weight_decay, micro_batch=config.grad_cache_micro_batch)

    # Defined by subclasses

    def forward(self, batch: Batch) -> Outputs:
        """Runs the network on a replica's part of the batch.

        Returns:
            The inputs of ``objective``: float tensors ``[b, ...]``, one row per image.
        """
        raise NotImplementedError

    def objective(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, Logs]:
        """Computes the replica's scalar loss and the other ``train_metrics``, each a mean over the replica's images."""
        raise NotImplementedError

    def after_step(self, batch: Batch) -> None:
        """Runs after the update, for example to update a moving average. A no-op by default."""

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Returns, by name, the layers that are saved, restored, and rolled back after a bad step."""
        return self.network.parts()

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """Returns the variables that ``train_step`` updates."""
        network = self.network
        return network.encoder_variables + network.head_variables() + network.classifier_variables

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the network's endpoints, for evaluation."""
        return self.network(images, training=training, whole_head=True)

    # The step

    def train_step(self, batch: Batch) -> Logs:
        """Makes one update, on one replica.

        The loss is divided by the number of replicas, because Keras's optimizers sum gradients over replicas.

        Returns:
            The replica's ``train_metrics``, scalars.
        """
        if self.micro_batch:  # views are made per micro-batch
            loss, logs, gradients = cached_gradients(self, batch, self.micro_batch)
        else:
            batch = batch | {"views": self.make_views(batch)}
            with tf.GradientTape() as tape:
                loss, logs = self.objective(self.forward(batch), batch)
                scaled = self.scale_loss(loss)
            gradients = tape.gradient(scaled, [variable.value for variable in self.trained_variables])
        self.optimizer.apply(gradients, self.trained_variables)
        self.after_step(batch)
        return {"loss": loss, **logs}

    def make_views(self, batch: Batch) -> tf.Tensor:
        """Returns the augmented views of a batch, float32 ``[b, num_views, size, size, 3]`` in [0, 1]."""
        return make_views(batch, self.views)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Divides a replica's loss by the number of replicas, and multiplies it by the loss scale in float16."""
        return self.optimizer.scale_loss(loss / replica_count())

    def weight_decay_loss(self) -> tf.Tensor | float:
        """Computes the L2 penalty of the variables that the optimizer does not decay itself."""
        return l2_penalty(penalised_variables(self), self.weight_decay)

    # Several steps on every replica

    def run_steps(self, iterator: Any, steps: int) -> Logs:
        """Trains on the next batches of a distributed iterator, in one device call.

        Returns:
            The mean ``train_metrics`` over steps and replicas (over good steps if bad ones are skipped); ``bad_steps``,
            the number of steps whose loss or gradient was not finite; ``first_bad_step``, counted from 0, −1 if none.
        """
        if self._run_steps is None:
            self._run_steps = self._make_run_steps()
        return self._run_steps(iterator, tf.constant(steps))

    def trace_steps(self, iterator: Any) -> tf.Graph:
        """Traces ``run_steps`` for the batches of an iterator without running it; the first ``run_steps`` reuses it."""
        if self._run_steps is None:
            self._run_steps = self._make_run_steps()
        return self._run_steps.get_concrete_function(iterator, tf.constant(1)).graph

    def _make_run_steps(self) -> Any:
        # Without AutoGraph: nothing here needs it, and it takes longer than tracing and writes temporary files.
        replica_step = self.guarded_step
        if self.jit_compile and not isinstance(self.distribute_strategy, tf.distribute.TPUStrategy):
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

        @tf.function(reduce_retracing=True, autograph=False)
        def run_steps(iterator: Any, steps: tf.Tensor) -> Logs:
            def run_step(
                step: tf.Tensor, total: tf.Tensor, num_bad: tf.Tensor, first_bad: tf.Tensor
            ) -> tuple[tf.Tensor, ...]:
                logs = self.distribute_strategy.run(replica_step, args=(next(iterator),))
                logs = self.distribute_strategy.experimental_local_results(logs)[0]  # equal on all replicas
                good = logs[-1] > 0
                total += tf.where(good, logs[:-1], tf.zeros_like(total)) if self.skip_bad_steps else logs[:-1]
                num_bad += tf.cast(~good, tf.int32)
                return step + 1, total, num_bad, tf.where(good | (first_bad >= 0), first_bad, step)

            start = tf.constant(0), tf.zeros([len(self.train_metrics)]), tf.constant(0), tf.constant(-1)
            _, total, num_bad, first_bad = tf.while_loop(lambda step, *_: step < steps, run_step, start)
            count = tf.maximum(steps - num_bad, 1) if self.skip_bad_steps else steps
            means = dict(zip(self.train_metrics, tf.unstack(total / tf.cast(count, tf.float32)), strict=True))
            return {**means, "bad_steps": num_bad, "first_bad_step": first_bad}

        return run_steps

    def guarded_step(self, batch: Batch) -> tf.Tensor:
        """Runs ``train_step``, and rolls it back if it is bad and bad steps are skipped.

        Returns:
            ``[metrics + 1]``, float32: the ``train_metrics`` averaged over replicas, then 1 for a good step, 0 for a
            bad one, whose loss or gradient was not finite.
        """
        snapshot = self._snapshot() if self.skip_bad_steps else None
        logs = self.train_step(self.complete_batch(batch))
        metrics = tf.stack([tf.cast(logs[name], tf.float32) for name in self.train_metrics])
        metrics = all_sum(metrics) / replica_count()
        good = all_finite(metrics[0], self.trained_variables)
        if snapshot is not None:
            snapshot.restore_unless(good)
        return tf.concat([metrics, [tf.cast(good, tf.float32)]], axis=0)

    def _snapshot(self) -> Snapshot:
        """Copies everything that a step changes, except the step count, which the learning rate depends on."""
        counters = ("iteration", "step_counter")
        slots = [variable for variable in self.optimizer.variables if variable.name not in counters]
        trained = {id(variable) for variable in self.trained_variables}
        state = [v for part in self.parts().values() for v in part.variables if id(v) not in trained]
        return Snapshot([*self.trained_variables, *slots], state)

    def complete_batch(self, batch: Batch) -> Batch:
        """Adds images that reside on the device to a batch. A no-op, unless replaced by ``TrainingInput``'s method."""
        return batch

    def average_local_statistics(self) -> None:
        """Averages the moving statistics of unsynchronized batch norms over replicas, each of which has its own."""
        layers = [layer for layer in self._flatten_layers() if isinstance(layer, BatchNorm) and not layer.synchronized]

        def average() -> None:
            for variable in (v for layer in layers for v in (layer.moving_mean, layer.moving_variance)):
                variable.assign(all_sum(variable.value) / replica_count())

        if layers and self.distribute_strategy.num_replicas_in_sync > 1:
            self.distribute_strategy.run(tf.function(average, autograph=False))

    # Keras

    def compile(self, *args: Any, skip_bad_steps: bool = False, **kwargs: Any) -> None:
        """Compiles as Keras does, and builds the optimizer, whose variables belong to the strategy and to checkpoints.

        The classifier is excluded from LARS's weight decay and adaptation.

        Args:
            *args: as in Keras.
            skip_bad_steps: roll back steps whose loss or gradient is not finite.
            **kwargs: as in Keras.

        Raises:
            SettingError: for float16 on several replicas, where Keras's loss scaling fails.
        """
        super().compile(*args, **kwargs)
        scaling = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scaling and self.distribute_strategy.num_replicas_in_sync > 1:
            raise SettingError("--mixed_precision=float16: works on one replica only; use bfloat16 or float32")
        inner = self.optimizer.inner_optimizer if scaling else self.optimizer
        if isinstance(inner, LARS) and not inner.built:
            inner.exclude(self.network.classifier_variables)
        self.optimizer.build(self.trained_variables)
        if self.distribute_strategy.num_replicas_in_sync > 1:
            # Each replica counts steps itself. Keras would broadcast the first one's count, which XLA cannot compile.
            self.optimizer.iterations.value._aggregation = tf.VariableAggregation.NONE
        self.skip_bad_steps = skip_bad_steps

    def make_train_function(self, force: bool = False) -> Any:
        """Returns the function that ``fit`` calls.

        Keras's own fails on several replicas with ``steps_per_execution`` above 1 or ``jit_compile``, and on several
        workers.
        """
        if self.train_function is None or force:
            self._run_steps = None
            self.train_function = self._train_function
        return self.train_function

    def _train_function(self, iterator: Any) -> Logs:
        logs = self.run_steps(iterator, self.steps_per_execution)
        return {name: logs[name] for name in self.train_metrics}

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Does nothing: methods are built by their constructor. Keras's would take a batch and average integers."""

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments with which a loaded model is compiled."""
        names = ("optimizer", "jit_compile", "steps_per_execution", "skip_bad_steps")
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names if self.compiled}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles a loaded model as it was compiled when saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments, from the attributes of the same names."""
        classes = [cls for cls in type(self).__mro__ if issubclass(cls, Method)]
        parameters = [p for cls in classes for p in list(inspect.signature(cls.__init__).parameters.values())[1:]]
        names = dict.fromkeys(p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL))
        return {name: keras.saving.serialize_keras_object(getattr(self, name)) for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "Method":
        """Builds a method from its config."""
        return cls(**{k: keras.saving.deserialize_keras_object(v, custom_objects) for k, v in config.items()})
