"""Pretraining: two views of each image are told from all others (paper §2, step 1)."""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import make_views
from simclrv2_tf.distributed.collectives import all_gather, replica_count
from simclrv2_tf.methods.base import Batch, Logs, ReplicatedModel
from simclrv2_tf.methods.chunks import map_rows
from simclrv2_tf.methods.grad_cache import cached_gradients
from simclrv2_tf.methods.losses import l2_penalty, labelled_mean, nt_xent, supervised_loss
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.models.network import Network, built_network


class Memory(keras.layers.Layer):
    """MoCo's moving-average encoder and the queue of its outputs, further negatives (paper §2; arXiv 1911.05722).

    Args:
        network: the network that is trained, built; the average starts from its weights.
        size: rows of the queue.
        decay: of the moving average, a step.
    """

    def __init__(self, network: Network, size: int, decay: float):
        super().__init__(name="memory", dtype=statistics_dtype(network.variable_dtype).name)
        self.decay = decay
        shared = dict(trainable=False, aggregation="none")  # every replica computes the same new values
        self.averages = [
            self.add_weight(shape=weight.shape, name=f"average_{i}", **shared)
            for i, weight in enumerate(network.trainable_variables)
        ]
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(weight)
        head = network.projection_head
        width = head.settings["out_dim"] if head.depth else network.encoder.feature_dim
        self.queue = self.add_weight(shape=(size, width), initializer="random_normal", name="queue", **shared)

    def follow(self, network: Network) -> None:
        """Moves the average one step."""
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(self.decay * average.value + (1 - self.decay) * tf.cast(weight.value, average.dtype))

    def embed(self, network: Network, images: tf.Tensor) -> tf.Tensor:
        """The average's outputs for images."""
        statistics = [variable.value for variable in network.non_trainable_variables]
        endpoints, _ = network.stateless_call(
            [average.value for average in self.averages], statistics, images, training=True, whole_head=True
        )
        return tf.cast(endpoints["proj_head_output"], self.queue.dtype)

    def push(self, keys: tf.Tensor) -> None:
        """Puts outputs, of all replicas, into the queue; the oldest leave it."""
        queue = tf.concat([all_gather(keys), self.queue.value], axis=0)
        self.queue.assign(queue[: self.queue.shape[0]])

    def get_config(self) -> dict[str, Any]:
        """Without the network: ``SimCLR.from_config`` knows it."""
        return {"size": self.queue.shape[0], "decay": self.decay}


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class SimCLR(ReplicatedModel):
    """Pretraining with NT-Xent.

    Args:
        network: with a projection head; with a classifier, that is trained beside the encoder on its features, behind
            a stopped gradient (online linear evaluation). Any other Keras model from images to features ``[n, d]``
            gets a head of three layers.
        views: how views are made from a batch's images.
        temperature: of NT-Xent.
        hidden_norm: L2-normalise the projections.
        weight_decay: of the L2 terms that are in the loss.
        memory: further negatives.
        loss_tile: see ``losses.nt_xent``.
        micro_batch: images of a replica that run through the network at a time, see ``grad_cache``; 0: all of them.

    A batch is what ``input.make_views`` takes, with two views, and int ``labels [b]`` (−1 where unknown).
    """

    def __init__(
        self,
        network: Network | keras.Model,
        views: ViewSettings,
        temperature: float = 0.1,
        hidden_norm: bool = True,
        weight_decay: float = 0.0,
        memory: Memory | None = None,
        loss_tile: int = 0,
        micro_batch: int = 0,
    ):
        super().__init__(name="simclr")
        self.network = network = built_network(network, views.image_size)
        self.views = views
        self.temperature = temperature
        self.hidden_norm = hidden_norm
        self.weight_decay = weight_decay
        self.memory = memory
        self.loss_tile = loss_tile
        self.micro_batch = micro_batch
        self.train_metrics = ("loss", "contrastive_loss", "contrastive_accuracy", "contrastive_entropy")
        if network.classifier is not None:
            self.train_metrics += ("online_loss", "online_train_top1")
        self.built = True

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """Encoder, projection head and the classifier beside them."""
        network = self.network
        return network.encoder_variables + network.head_variables() + network.classifier_variables

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """The network's endpoints."""
        return self.network(images, training=training, whole_head=True, stop_gradient_to_classifier=True)

    def train_step(self, batch: Batch) -> Logs:
        variables, labels = self.trained_variables, batch["labels"]
        if not self.micro_batch:  # else each micro-batch makes its own views
            batch = {"views": make_views(batch, self.views)}
            with tf.GradientTape() as tape:
                scaled, logs = self._objective(self._embed(batch), labels)
            self.apply_gradients_of(tape, scaled, variables)
        else:
            logs, gradients = cached_gradients(
                self._embed,
                lambda outputs: self._objective(outputs, labels),
                batch,
                self.micro_batch,
                self._output_dtypes,
                self.network,
                variables,
            )
            self.optimizer.apply(gradients, variables)
        if self.memory:
            self.memory.follow(self.network)
            embed = lambda rows: self.memory.embed(self.network, make_views(rows, self.views)[:, 0])  # noqa: E731
            keys = map_rows(embed, batch, self.micro_batch, self.memory.queue.dtype, communicates=True)
            self.memory.push(keys)
        return logs

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"memory": self.memory and self.memory.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict | None = None) -> "SimCLR":
        model = super().from_config(config | {"memory": None}, custom_objects)
        model.memory = Memory(model.network, **config["memory"]) if config["memory"] else None
        return model

    @property
    def _output_dtypes(self) -> dict[str, tf.DType]:
        names = ["proj_head_output"] + ["logits_sup"] * (self.network.classifier is not None)
        return dict.fromkeys(names, statistics_dtype(self.network.compute_dtype))

    def _embed(self, batch: Batch) -> dict[str, tf.Tensor]:
        """What the objective reads, ``[b, 2, ...]`` for both views."""
        views = make_views(batch, self.views)
        endpoints = self(tf.concat([views[:, 0], views[:, 1]], axis=0), training=True)
        wide = {name: tf.cast(endpoints[name], dtype) for name, dtype in self._output_dtypes.items()}
        return {name: tf.stack(tf.split(output, 2), axis=1) for name, output in wide.items()}

    def _objective(self, outputs: dict[str, tf.Tensor], labels: tf.Tensor) -> tuple[tf.Tensor, Logs]:
        """The scalar to differentiate, and the metrics."""
        view1, view2 = tf.unstack(outputs["proj_head_output"], axis=1)
        negatives = tf.identity(self.memory.queue.value) if self.memory else None
        contrast = nt_xent(view1, view2, self.temperature, self.hidden_norm, negatives, self.loss_tile)
        logs = {
            "contrastive_loss": contrast.loss,
            "contrastive_accuracy": contrast.accuracy,
            "contrastive_entropy": contrast.entropy,
        }
        loss = contrast.loss + l2_penalty(penalised_variables(self), self.weight_decay)
        if "logits_sup" in outputs:
            logits = tf.concat(tf.unstack(outputs["logits_sup"], axis=1), axis=0)
            logs |= _online_evaluation(logits, tf.tile(labels, [2]))
            loss += logs["online_loss"]
        return self.optimizer.scale_loss(loss / replica_count()), {"loss": loss, **logs}


def _online_evaluation(logits: tf.Tensor, labels: tf.Tensor) -> Logs:
    """Loss and top-1 of the classifier beside the encoder, over the rows whose label is known."""
    hits = tf.cast(tf.argmax(logits, axis=1, output_type=labels.dtype) == labels, logits.dtype)
    return {
        "online_loss": labelled_mean(supervised_loss(tf.maximum(labels, 0), logits), labels),
        "online_train_top1": labelled_mean(hits, labels),
    }
