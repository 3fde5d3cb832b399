"""Distillation: a student learns from the soft labels of a fine-tuned teacher (paper §2, step 3)."""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.base import Batch, Logs, Outputs
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.evaluation import central_crops
from simclrv2_tf.methods.losses import distillation_loss, hits, labelled_mean, supervised_loss
from simclrv2_tf.models.network import Network, built_network
from simclrv2_tf.settings.config import check_arguments


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class Distiller(ClassificationModel):
    """Distillation from a teacher, ``(1 − α) · supervised + α · distillation`` (paper §2, equations 2 and 3).

    Args:
        network: the student, with a classifier.
        teacher: a network with a classifier of the same classes, or a model with such a network, as `load_run` returns
            it; it is not trained, and not part of checkpoints.
        views: augmentation settings; teacher and student see the same view.
        temperature: divides the logits of both.
        alpha: weight of the distillation term; below 1, known labels are used too.
        **kwargs: ``weight_decay``, ``micro_batch`` and ``name``, see ``Method``.

    Raises:
        ValueError: if temperature or alpha is out of bounds, or the teacher has other classes.

    Example:
        >>> teacher, student = (Network(ResNet(10, width, stem="cifar"), num_classes=10) for width in (0.125, 0.0625))
        >>> model = Distiller(student, teacher, ViewSettings(32), temperature=0.1)
        >>> model.compile("adam")
    """

    train_metrics = ("loss", "distillation_loss", "teacher_agreement")

    def __init__(
        self,
        network: Network,
        teacher: Network | ClassificationModel,
        views: ViewSettings,
        temperature: float = 1.0,
        alpha: float = 1.0,
        **kwargs: Any,
    ):
        check_arguments(temperature=temperature, distill_alpha=alpha)
        super().__init__(network, views, **{"name": "distiller", **kwargs})
        if isinstance(teacher, ClassificationModel):
            teacher = teacher.network
        if getattr(teacher, "num_classes", 0) != self.network.num_classes:
            raise ValueError(
                f"the teacher must have a classifier of the student's {self.network.num_classes} classes, not of "
                f"{getattr(teacher, 'num_classes', 0)}"
            )
        teacher.trainable = False
        self.teacher = built_network(teacher, views.image_size) if isinstance(teacher, Network) else teacher
        self.temperature = temperature
        self.alpha = alpha

    def forward(self, batch: Batch) -> Outputs:
        images = self.make_views(batch)[:, 0]  # [b, size, size, 3]
        return {
            "teacher_logits": self.teacher(images, training=False)["logits_sup"],  # [b, classes]
            "logits": self(images, training=True)["logits_sup"],  # [b, classes]
        }

    def objective(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, Logs]:
        logits, teacher_logits, labels = outputs["logits"], outputs["teacher_logits"], batch["labels"]
        distillation = tf.reduce_mean(distillation_loss(logits, teacher_logits, self.temperature))
        loss = self.alpha * distillation + self.weight_decay_loss()
        if self.alpha < 1:
            supervised = supervised_loss(tf.maximum(labels, 0), logits)
            loss += (1 - self.alpha) * labelled_mean(supervised, labels)
        agreement = hits(tf.argmax(teacher_logits, axis=1), logits)
        return loss, {"distillation_loss": distillation, "teacher_agreement": tf.reduce_mean(agreement)}

    def test_step(self, batch: Batch) -> Logs:
        """Computes each image's ``loss`` (without weight decay) and metrics; ``top1`` of labelled images only."""
        images, labels = central_crops(batch, self), batch["labels"]
        logits = self(images, training=False)["logits_sup"]  # [b, classes]
        teacher_logits = self.teacher(images, training=False)["logits_sup"]  # [b, classes]
        weights = self._labelled_weights(batch, logits)
        distillation = distillation_loss(logits, teacher_logits, self.temperature)
        supervised = tf.where(labels >= 0, supervised_loss(tf.maximum(labels, 0), logits), 0)
        return {
            "loss": self.alpha * distillation + (1 - self.alpha) * supervised,
            "distillation_loss": distillation,
            "teacher_agreement": hits(tf.argmax(teacher_logits, axis=1), logits),
            "top1": (hits(labels, logits), weights),
        }
