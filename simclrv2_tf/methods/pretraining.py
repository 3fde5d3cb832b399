"""Base class of methods that learn from two views of each image, without labels."""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.base import Batch, Logs, Method, Outputs
from simclrv2_tf.methods.evaluation import update_metrics
from simclrv2_tf.methods.losses import hits, labelled_mean, supervised_loss
from simclrv2_tf.models.batch_norm import statistics_dtype
from simclrv2_tf.models.network import Network


class Pretraining(Method):
    """Method that runs the network on two views of each image, and trains a linear classifier if there are labels.

    The classifier reads features whose gradient is stopped, so it does not move the encoder (online linear evaluation).
    A subclass defines ``objective`` and adds ``online_evaluation`` to its loss.

    Args:
        network: with a projection head, and a classifier if there are labels.
        views: augmentation settings.
        **kwargs: ``weight_decay``, ``micro_batch`` and ``name``, see ``Method``.

    Example:
        >>> class Agreement(Pretraining):
        ...     def objective(self, outputs, batch):
        ...         first, second = tf.unstack(outputs["proj_head_output"], axis=1)  # [b, d] each
        ...         online_loss, online_logs = self.online_evaluation(outputs, batch)
        ...         return tf.reduce_mean((first - second) ** 2) + online_loss, online_logs
        >>> model = Agreement(ResNet(10, 0.0625, stem="cifar"), ViewSettings(32))
        >>> model.compile("adam")
    """

    num_views = 2

    def __init__(self, network: Network | keras.Model, views: ViewSettings, **kwargs: Any):
        super().__init__(network, views, **kwargs)
        if self.network.classifier is not None:
            self.train_metrics = (*self.train_metrics, "online_loss", "online_train_top1")

    def call(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Returns the network's endpoints; no gradient flows from the classifier into the encoder."""
        return self.network(images, training=training, whole_head=True, stop_gradient_to_classifier=True)

    def forward(self, batch: Batch, training: bool = True) -> Outputs:
        """Runs both views through the network.

        Args:
            batch: see ``Method``.
            training: normalise with batch statistics.

        Returns:
            ``proj_head_output [b, 2, d]`` and, with a classifier, ``logits_sup [b, 2, classes]``.
        """
        views = self.make_views(batch)  # [b, 2, size, size, 3]
        endpoints = self(tf.concat([views[:, 0], views[:, 1]], axis=0), training=training)  # [2b, ...]
        names = ["proj_head_output"] + ["logits_sup"] * (self.network.classifier is not None)
        dtype = statistics_dtype(self.network.compute_dtype)  # losses are computed in float32 at least
        return {name: tf.stack(tf.split(tf.cast(endpoints[name], dtype), 2), axis=1) for name in names}

    def online_evaluation(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor | float, Logs]:
        """Computes the classifier's loss and top-1 accuracy over the labelled images; 0 without a classifier."""
        if "logits_sup" not in outputs:
            return 0.0, {}
        labels, logits = _rows(outputs, batch)
        loss = labelled_mean(supervised_loss(tf.maximum(labels, 0), logits), labels)
        top1 = labelled_mean(tf.cast(hits(labels, logits), logits.dtype), labels)
        return loss, {"online_loss": loss, "online_train_top1": top1}

    def online_metrics(self, outputs: Outputs, batch: Batch) -> Logs:
        """Returns the classifier's loss and top-1 accuracy for ``test_step``; none without a classifier."""
        if "logits_sup" not in outputs:
            return {}
        labels, logits = _rows(outputs, batch)
        weights = tf.tile(batch["weights"], [2])  # [2b]
        update_metrics(self, labels, logits, weights)
        weights *= tf.cast(labels >= 0, weights.dtype)
        loss = supervised_loss(tf.maximum(labels, 0), logits)
        return {"online_loss": (loss, weights), "online_top1": (hits(labels, logits), weights)}

    def update_compiled_metrics(self, outputs: Outputs, batch: Batch) -> None:
        if "logits_sup" in outputs:
            update_metrics(self, *_rows(outputs, batch))


def _rows(outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the labels ``[2b]`` and logits ``[2b, classes]`` of the first views, then of the second views."""
    return tf.tile(batch["labels"], [2]), tf.concat(tf.unstack(outputs["logits_sup"], axis=1), axis=0)
