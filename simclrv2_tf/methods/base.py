"""Base class of all training methods: one training step, run on every replica, several steps per device call.

A method is a subclass of ``Method`` that defines ``forward`` and ``objective``. The base class handles the step itself,
replicas, the NaN guard and micro-batches. For examples, see ``simclr.py`` and ``classifier.py``.
"""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import make_views
from simclrv2_tf.distributed.collectives import all_sum, replica_count
from simclrv2_tf.methods import evaluation
from simclrv2_tf.methods.grad_cache import cached_gradients
from simclrv2_tf.methods.losses import l2_penalty
from simclrv2_tf.methods.nan_guard import Snapshot, all_finite
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.methods.trainer import MethodTrainer
from simclrv2_tf.models.batch_norm import BatchNorm
from simclrv2_tf.models.network import Network, built_network, check_images
from simclrv2_tf.settings.config import Config, check_arguments

Batch = dict[str, tf.Tensor]
Outputs = dict[str, tf.Tensor]
Logs = dict[str, tf.Tensor]


class Method(MethodTrainer):
    """A network together with its training step.

    A subclass defines ``forward`` and ``objective``, and if needed ``after_step``, ``test_step``, ``parts`` and
    ``trained_variables``. Keras's ``fit`` and the loop of the command line both call ``run_steps``.

    A batch is a dict with the inputs of ``input.make_views`` and int32 ``labels [b]``, −1 where unknown.

    Args:
        network: a ``Network``, or any Keras model from images to features ``[n, d]``, which gets a projection head of
            three layers.
        views: augmentation settings.
        weight_decay: factor of the L2 terms in the loss.
        micro_batch: images per replica whose activations are in memory at a time (``grad_cache.py``); 0 for all.
        input_range: values that the encoder expects, see ``Network``; None for a ``Network``, which has its own.

    Raises:
        ValueError: if an argument is out of bounds.

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
        input_range: str | None = None,
        name: str | None = None,
    ):
        check_arguments(weight_decay=weight_decay, grad_cache_micro_batch=micro_batch)
        super().__init__(name=name)
        self.network = built_network(network, views.image_size, input_range)
        self.views = views
        self.weight_decay = weight_decay
        self.micro_batch = micro_batch
        self.input_range = input_range
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

    def update_compiled_metrics(self, outputs: Outputs, batch: Batch) -> None:
        """Updates the metrics of ``compile`` with the outputs of ``forward``; a no-op without a classifier."""

    def parts(self) -> dict[str, keras.layers.Layer]:
        """Returns, by name, the layers that are saved, restored, and rolled back after a bad step."""
        return self.network.parts()

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """Returns the variables that ``train_step`` updates."""
        network = self.network
        return network.encoder_variables + network.head_variables() + network.classifier_variables

    def __call__(self, images: tf.Tensor, *args: Any, **kwargs: Any) -> dict[str, tf.Tensor]:
        """Calls the network; ValueError if the images are not RGB."""
        check_images(images)
        return super().__call__(images, *args, **kwargs)

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the network's endpoints, for evaluation."""
        return self.network(images, training=training, whole_head=True)

    # The step

    def train_step(self, batch: Batch) -> Logs:
        """Runs one training step, on one replica.

        The loss is divided by the number of replicas, because Keras's optimizers sum gradients over replicas.

        Returns:
            The replica's ``train_metrics``, scalars.
        """
        batch = evaluation.check_views(batch, self)
        if self.micro_batch:  # views are made per micro-batch
            loss, logs, gradients = cached_gradients(self, batch, self.micro_batch)
        else:
            batch = batch | {"views": self.make_views(batch)}
            with tf.GradientTape() as tape:
                outputs = self.forward(batch)
                loss, logs = self.objective(outputs, batch)
                scaled = self.scale_loss(loss)
            self.update_compiled_metrics(outputs, batch)
            gradients = tape.gradient(scaled, [variable.value for variable in self.trained_variables])
        self.optimizer.apply(gradients, self.trained_variables)
        self.after_step(batch)
        return {"loss": loss, **logs}

    def make_views(self, batch: Batch) -> tf.Tensor:
        """Returns the augmented views of a batch, float32 ``[b, num_views, size, size, 3]`` in [0, 1].

        Raises:
            ValueError: if the batch has another number of views, or no images.
        """
        return make_views(evaluation.check_views(batch, self), self.views)

    def scale_loss(self, loss: tf.Tensor) -> tf.Tensor:
        """Divides a replica's loss by the number of replicas, and multiplies it by the loss scale in float16."""
        return self.optimizer.scale_loss(loss / replica_count())

    def weight_decay_loss(self) -> tf.Tensor | float:
        """Computes the L2 penalty of the variables that the optimizer does not decay itself."""
        return l2_penalty(penalised_variables(self), self.weight_decay)

    def test_step(self, batch: Batch) -> Logs:
        """Evaluates the network on one replica, without changing it.

        The default computes the metrics of a training step with batch statistics, so padding affects its batch.

        Args:
            batch: from ``evaluation_batches``: augmented views if the method needs two, otherwise central crops.

        Returns:
            Metrics by name. Each is a value per image, float ``[b]``, averaged with the weights of the batch; a pair of
            values and their own weights, ``[b]`` each; or a scalar for the whole batch.
        """
        with keras.StatelessScope():
            loss, logs = self.objective(self.forward(batch), batch)
        return {"loss": loss, **logs}

    def predict_step(self, batch: Batch) -> Outputs:
        """Returns features and, if the network has them, projections and logits of central crops, on one replica."""
        endpoints = self(evaluation.central_crops(batch, self), training=False)
        return {name: endpoints[name] for name in evaluation.PREDICTED if name in endpoints}

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
        if (
            self.jit_compile
            and not self.run_eagerly
            and not isinstance(self.distribute_strategy, tf.distribute.TPUStrategy)
        ):
            replica_step = tf.function(replica_step, jit_compile=True, autograph=False)

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

        return run_steps if self.run_eagerly else tf.function(run_steps, reduce_retracing=True, autograph=False)

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
        """Adds device-resident images to a batch. A no-op unless ``TrainingInput`` replaces it."""
        return batch

    def average_local_statistics(self) -> None:
        """Averages the moving statistics of unsynchronized batch norms over replicas, each of which has its own."""
        layers = [layer for layer in self._flatten_layers() if isinstance(layer, BatchNorm) and not layer.synchronized]

        def average() -> None:
            for variable in (v for layer in layers for v in (layer.moving_mean, layer.moving_variance)):
                variable.assign(all_sum(variable.value) / replica_count())

        if layers and self.distribute_strategy.num_replicas_in_sync > 1:
            self.distribute_strategy.run(tf.function(average, autograph=False))
