"""Supervised training: fine-tuning, linear evaluation, training from scratch (paper §2, step 2)."""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs
from simclrv2_tf.methods.evaluation import central_crops, update_metrics
from simclrv2_tf.methods.losses import hits, supervised_loss
from simclrv2_tf.models.network import Network


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class ClassificationModel(Method):
    """Softmax classification.

    All trainable variables that the classifier depends on are trained: call ``freeze`` before ``compile``.

    Args:
        network: with a classifier, on any tap of the projection head.
        views: augmentation settings.
        **kwargs: ``weight_decay``, ``micro_batch`` and ``name``, see ``Method``.

    Example:
        >>> network = Network(ResNet(10, 0.0625, stem="cifar"), num_classes=10)
        >>> model = ClassificationModel(network, ViewSettings(32))
        >>> model.compile("adam")
    """

    strong_augmentation = False
    train_metrics: tuple[str, ...] = ("loss", "train_top1")

    def __init__(self, network: Network, views: ViewSettings, **kwargs: Any):
        super().__init__(network, views, **{"name": "classification", **kwargs})

    def freeze(self, after_block: int, keep_head: bool = False) -> None:
        """Freezes the encoder up to a block group; the projection head too if asked or if the whole encoder is frozen.

        Frozen batch norms use their moving statistics and do not update them (the official tf2 code does).

        Args:
            after_block: −1 freezes nothing, 0 the stem, k the stem and block groups 1 to k; 4 is linear evaluation.
            keep_head: freeze the projection head.

        Raises:
            ValueError: for 0 to 3 if the encoder has no block groups.
        """
        self.network.freeze_encoder(after_block)
        self.network.projection_head.trainable = not (keep_head or after_block == 4)

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """Returns the variables that the classifier depends on and that are not frozen."""
        network = self.network
        return network.encoder_variables + network.head_variables(network.head_input) + network.classifier_variables

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the network's endpoints up to the classifier's tap, and the logits."""
        return self.network(images, training=training)

    def forward(self, batch: Batch) -> Outputs:
        if self.network.classifier is None:
            raise ValueError("the network has no classifier: build it with num_classes")
        images = self.make_views(batch)[:, 0]  # [b, size, size, 3]
        return {"logits": self(images, training=True)["logits_sup"]}  # [b, classes]

    def objective(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, Logs]:
        logits, labels = outputs["logits"], batch["labels"]
        loss = tf.reduce_mean(supervised_loss(labels, logits)) + self.weight_decay_loss()
        return loss, {"train_top1": tf.reduce_mean(hits(labels, logits))}

    def test_step(self, batch: Batch) -> Logs:
        """Computes ``loss`` (cross-entropy, without weight decay) and ``top1`` of each labelled image."""
        labels, logits = batch["labels"], self(central_crops(batch, self), training=False)["logits_sup"]
        weights = self._labelled_weights(batch, logits)
        return {
            "loss": (supervised_loss(tf.maximum(labels, 0), logits), weights),
            "top1": (hits(labels, logits), weights),
        }

    def _labelled_weights(self, batch: Batch, logits: tf.Tensor) -> tf.Tensor:
        """Updates the metrics of ``compile``; returns the weights ``[b]`` of the batch, 0 for unlabelled images."""
        update_metrics(self, batch["labels"], logits, batch["weights"])
        return batch["weights"] * tf.cast(batch["labels"] >= 0, batch["weights"].dtype)

    def update_compiled_metrics(self, outputs: Outputs, batch: Batch) -> None:
        update_metrics(self, batch["labels"], outputs["logits"])
