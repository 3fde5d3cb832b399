"""Distillation: a fine-tuned teacher labels the unlabelled images softly for a student (paper §2, step 3)."""

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import make_views
from simclrv2_tf.distributed.collectives import replica_count
from simclrv2_tf.methods.base import Batch, Logs
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.losses import distillation_loss, l2_penalty, labelled_mean, supervised_loss
from simclrv2_tf.methods.optimizers import penalised_variables
from simclrv2_tf.models.network import Network


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class Distiller(ClassificationModel):
    """Teacher to student: ``(1 − α) · supervised + α · distillation`` (paper §2, equations 2 and 3).

    Args:
        network: the student, with a classifier.
        teacher: any network with a classifier of the same classes; it is not changed, nor saved.
        views: how views are made; teacher and student see the same view.
        temperature: of both softmaxes.
        alpha: weight of the distillation; below 1, images with a label ≥ 0 also train with it.
        weight_decay: of the L2 terms that are in the loss.

    A batch is what ``input.make_views`` takes, with one view, and int ``labels [b]``, −1 for the unlabelled images.
    """

    train_metrics = ("loss", "distillation_loss", "teacher_agreement")

    def __init__(
        self,
        network: Network,
        teacher: Network,
        views: ViewSettings,
        temperature: float = 1.0,
        alpha: float = 1.0,
        weight_decay: float = 0.0,
    ):
        super().__init__(network, views, weight_decay, name="distiller")
        teacher.trainable = False
        self.teacher = teacher
        self.temperature = temperature
        self.alpha = alpha

    def train_step(self, batch: Batch) -> Logs:
        images = make_views(batch, self.views)[:, 0]
        labels = batch["labels"]
        teacher_logits = self.teacher(images, training=False)["logits_sup"]
        with tf.GradientTape() as tape:
            logits = self(images, training=True)["logits_sup"]
            distillation = tf.reduce_mean(distillation_loss(logits, teacher_logits, self.temperature))
            loss = self.alpha * distillation + l2_penalty(penalised_variables(self), self.weight_decay)
            if self.alpha < 1:
                supervised = supervised_loss(tf.maximum(labels, 0), logits)
                loss += (1 - self.alpha) * labelled_mean(supervised, labels)
            scaled = self.optimizer.scale_loss(loss / replica_count())
        self.apply_gradients_of(tape, scaled, self.trained_variables)
        agree = tf.argmax(logits, axis=1) == tf.argmax(teacher_logits, axis=1)
        return {
            "loss": loss,
            "distillation_loss": distillation,
            "teacher_agreement": tf.reduce_mean(tf.cast(agree, tf.float32)),
        }
