"""Training with labels: fine-tuning, linear evaluation, from scratch (paper §2, step 2)."""

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import make_views
from simclrv2_tf.distributed.collectives import replica_count
from simclrv2_tf.methods.base import Batch, Logs, ReplicatedModel
from simclrv2_tf.methods.losses import l2_penalty, supervised_loss
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.models.network import Network, built_network


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class ClassificationModel(ReplicatedModel):
    """Softmax classification by a network with a classifier.

    What is trained is what is trainable: ``freeze`` the lower part before ``compile``.

    Args:
        network: with a classifier, on any tap of the projection head.
        views: how views are made from a batch's images.
        weight_decay: of the L2 terms that are in the loss.

    A batch is what ``input.make_views`` takes, with one view, and int ``labels [b]``.
    """

    train_metrics = ("loss", "train_top1")

    def __init__(self, network: Network, views: ViewSettings, weight_decay: float = 0.0, name: str = "classification"):
        super().__init__(name=name)
        self.network = built_network(network, views.image_size)
        self.views = views
        self.weight_decay = weight_decay
        self.built = True

    def freeze(self, after_block: int, keep_head: bool = False) -> None:
        """Freezes the encoder up to a block group, and the kept head layers if told or if all of the encoder is frozen.

        Frozen batch norms use their moving statistics and do not move them (the official tf2 code moved them).

        Args:
            after_block: −1 nothing, 0 the stem, k the stem and block groups 1 to k; 4 is linear evaluation.
            keep_head: leave the projection head as it is.
        """
        self.network.encoder.freeze_after_block(after_block)
        self.network.projection_head.trainable = not (keep_head or after_block == 4)

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """What the classifier's gradient reaches and is not frozen."""
        network = self.network
        return network.encoder_variables + network.head_variables(network.head_input) + network.classifier_variables

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """The network's endpoints, up to the tap that the classifier reads."""
        return self.network(images, training=training)

    def train_step(self, batch: Batch) -> Logs:
        images = make_views(batch, self.views)[:, 0]
        labels = batch["labels"]
        with tf.GradientTape() as tape:
            logits = self(images, training=True)["logits_sup"]
            loss = tf.reduce_mean(supervised_loss(labels, logits))
            loss += l2_penalty(penalised_variables(self), self.weight_decay)
            scaled = self.optimizer.scale_loss(loss / replica_count())
        self.apply_gradients_of(tape, scaled, self.trained_variables)
        hits = tf.argmax(logits, axis=1, output_type=labels.dtype) == labels
        return {"loss": loss, "train_top1": tf.reduce_mean(tf.cast(hits, tf.float32))}
