"""Pretraining: two views of each image are told from all others (paper §2, step 1)."""

import keras
import tensorflow as tf

from simclrv2_tf.collectives import all_gather, replica_count
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.pipeline import make_views
from simclrv2_tf.nets.network import Network
from simclrv2_tf.nets.normalization import statistics_dtype
from simclrv2_tf.training.distributed import Batch, Logs, ReplicatedModel
from simclrv2_tf.training.losses import l2_penalty, labelled_mean, nt_xent, supervised_loss
from simclrv2_tf.training.optimizers import penalised_variables


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
        # Every replica computes the same new values, so the first one's are as good as any.
        shared = dict(trainable=False, aggregation="only_first_replica")
        self.averages = [
            self.add_weight(shape=weight.shape, name=f"average_{i}", **shared)
            for i, weight in enumerate(network.trainable_variables)
        ]
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(weight)
        head = network.projection_head
        width = head.settings["out_dim"] if head.depth else network.encoder.feature_dim
        self.queue = self.add_weight(shape=(size, width), initializer="random_normal", name="queue", **shared)

    def update(self, network: Network, images: tf.Tensor) -> None:
        """Moves the average one step and puts its outputs for ``images``, of all replicas, into the queue."""
        for average, weight in zip(self.averages, network.trainable_variables, strict=True):
            average.assign(self.decay * average.value + (1 - self.decay) * tf.cast(weight.value, average.dtype))
        statistics = [variable.value for variable in network.non_trainable_variables]
        endpoints, _ = network.stateless_call(
            [average.value for average in self.averages], statistics, images, training=True, whole_head=True
        )
        keys = all_gather(tf.cast(endpoints["proj_head_output"], self.queue.dtype))
        self.queue.assign(tf.concat([keys, self.queue.value], axis=0)[: self.queue.shape[0]])


class SimCLR(ReplicatedModel):
    """Pretraining with NT-Xent.

    Args:
        network: with a projection head; with a classifier, that is trained beside the encoder on its features, behind
            a stopped gradient (online linear evaluation).
        views: how views are made from a batch's images.
        temperature: of NT-Xent.
        hidden_norm: L2-normalise the projections.
        weight_decay: of the L2 terms that are in the loss.
        memory: further negatives.
        loss_tile: see ``losses.nt_xent``.

    A batch is what ``pipeline.make_views`` takes, with two views, and int ``labels [b]`` (−1 where unknown).
    """

    def __init__(
        self,
        network: Network,
        views: ViewSettings,
        temperature: float = 0.1,
        hidden_norm: bool = True,
        weight_decay: float = 0.0,
        memory: Memory | None = None,
        loss_tile: int = 0,
    ):
        super().__init__(name="simclr")
        self.network = network
        self.views = views
        self.temperature = temperature
        self.hidden_norm = hidden_norm
        self.weight_decay = weight_decay
        self.memory = memory
        self.loss_tile = loss_tile
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
        views = make_views(batch, self.views)
        images = tf.concat([views[:, 0], views[:, 1]], axis=0)
        negatives = tf.identity(self.memory.queue.value) if self.memory else None
        with tf.GradientTape() as tape:
            endpoints = self(images, training=True)
            view1, view2 = tf.split(endpoints["proj_head_output"], 2)
            contrast = nt_xent(view1, view2, self.temperature, self.hidden_norm, negatives, self.loss_tile)
            logs = {
                "contrastive_loss": contrast.loss,
                "contrastive_accuracy": contrast.accuracy,
                "contrastive_entropy": contrast.entropy,
            }
            loss = contrast.loss + l2_penalty(penalised_variables(self), self.weight_decay)
            if self.network.classifier is not None:
                logs |= _online_evaluation(endpoints["logits_sup"], tf.tile(batch["labels"], [2]))
                loss += logs["online_loss"]
            scaled = self.optimizer.scale_loss(loss / replica_count())
        self.minimise(tape, scaled, self.trained_variables)
        if self.memory:
            self.memory.update(self.network, views[:, 0])
        return {"loss": loss, **logs}


def _online_evaluation(logits: tf.Tensor, labels: tf.Tensor) -> Logs:
    """Loss and top-1 of the classifier beside the encoder, over the rows whose label is known."""
    hits = tf.cast(tf.argmax(logits, axis=1, output_type=labels.dtype) == labels, logits.dtype)
    return {
        "online_loss": labelled_mean(supervised_loss(tf.maximum(labels, 0), logits), labels),
        "online_train_top1": labelled_mean(hits, labels),
    }
