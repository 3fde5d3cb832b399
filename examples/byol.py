"""BYOL (arXiv 2006.07733) as a method of your own: one class, trained by the command line.

    python run.py --mode=pretrain --dataset=digits --method=examples.byol:BYOL --model_dir=runs/byol

The online network predicts the target network's projection of an image's other view. The target is a moving average of
the online network. There are no negatives.
"""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf import BatchNorm, MovingAverage, Network, Pretraining, ViewSettings


@keras.saving.register_keras_serializable(package="examples")
class BYOL(Pretraining):
    """Bootstrap your own latent.

    Args:
        network: encoder and projection head.
        views: augmentation settings.
        decay: of the target's moving average, per step.
        hidden_dim: width of the predictor's hidden layer.
        **kwargs: see ``Method``.
    """

    train_metrics = ("loss", "similarity")

    def __init__(
        self, network: Network, views: ViewSettings, decay: float = 0.99, hidden_dim: int = 256, **kwargs: Any
    ):
        super().__init__(network, views, **{"name": "byol", **kwargs})
        self.decay, self.hidden_dim = decay, hidden_dim
        dim = self.network.projection_dim
        self.target = MovingAverage(self.network, decay, name="target")
        self.predictor = keras.Sequential(
            [
                keras.Input((dim,)),
                keras.layers.Dense(hidden_dim, use_bias=False, name="hidden"),
                BatchNorm(name="batch_norm"),
                keras.layers.ReLU(name="relu"),
                keras.layers.Dense(dim, name="output"),
            ],
            name="predictor",
        )

    def forward(self, batch: dict[str, tf.Tensor], training: bool = True) -> dict[str, tf.Tensor]:
        outputs = super().forward(batch, training)  # proj_head_output [b, 2, d], and logits_sup with labels
        views = tf.unstack(self.make_views(batch), axis=1)
        targets = [self.target.project(self.network, images) for images in views]  # [b, d] each
        rows = tf.concat(tf.unstack(outputs["proj_head_output"], axis=1), axis=0)  # [2b, d]
        predictions = tf.split(self.predictor(rows, training=training), 2)
        return outputs | {"prediction": tf.stack(predictions, axis=1), "target": tf.stack(targets, axis=1)}

    def objective(
        self, outputs: dict[str, tf.Tensor], batch: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        similarity = self.similarity(outputs)  # [b, 2]
        online_loss, online_logs = self.online_evaluation(outputs, batch)
        loss = tf.reduce_mean(tf.reduce_sum(2 - 2 * similarity, axis=1))
        logs = {"similarity": tf.reduce_mean(similarity), **online_logs}
        return loss + self.weight_decay_loss() + online_loss, logs

    def similarity(self, outputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """Cosine of each view's prediction with the other view's target, ``[b, 2]``."""
        prediction = tf.math.l2_normalize(tf.cast(outputs["prediction"], tf.float32), axis=-1)
        target = tf.math.l2_normalize(tf.stop_gradient(tf.cast(outputs["target"], tf.float32)), axis=-1)
        return tf.reduce_sum(prediction * target[:, ::-1], axis=-1)

    def test_step(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = self.forward(batch, training=False)
        similarity = self.similarity(outputs)
        loss = tf.reduce_sum(2 - 2 * similarity, axis=1)  # [b]
        return {"loss": loss, "similarity": tf.reduce_mean(similarity, axis=1), **self.online_metrics(outputs, batch)}

    def after_step(self, batch: dict[str, tf.Tensor]) -> None:
        self.target.update(self.network)

    def parts(self) -> dict[str, keras.layers.Layer]:
        return super().parts() | {"predictor": self.predictor, "target": self.target}

    @property
    def trained_variables(self) -> list[keras.Variable]:
        return super().trained_variables + self.predictor.trainable_variables
