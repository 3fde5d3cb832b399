"""BYOL (arXiv 2006.07733) as a method of your own: one class, trained by the command line.

    python run.py --mode=pretrain --dataset=digits --method=examples.byol:BYOL --model_dir=runs/byol

An online network predicts what a slowly moving average of itself, the target, makes of the other view of an image.
There are no negatives.
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
        views: how views are made from the images of a batch.
        decay: per step, of the target's moving average.
        hidden_dim: width of the predictor's hidden layer.
        **kwargs: as of ``Method``.
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

    def forward(self, batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        outputs = super().forward(batch)  # proj_head_output [b, 2, d], and logits_sup with labels
        views = tf.unstack(self.make_views(batch), axis=1)
        targets = [self.target.project(self.network, images) for images in views]  # [b, d] each
        rows = tf.concat(tf.unstack(outputs["proj_head_output"], axis=1), axis=0)  # [2b, d]
        predictions = tf.split(self.predictor(rows, training=True), 2)
        return outputs | {"prediction": tf.stack(predictions, axis=1), "target": tf.stack(targets, axis=1)}

    def objective(
        self, outputs: dict[str, tf.Tensor], batch: dict[str, tf.Tensor]
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        prediction = tf.math.l2_normalize(tf.cast(outputs["prediction"], tf.float32), axis=-1)
        target = tf.math.l2_normalize(tf.stop_gradient(tf.cast(outputs["target"], tf.float32)), axis=-1)
        cosine = tf.reduce_sum(prediction * target[:, ::-1], axis=-1)  # [b, 2], each view with the other's target
        online_loss, online_logs = self.online_evaluation(outputs, batch)
        loss = tf.reduce_mean(tf.reduce_sum(2 - 2 * cosine, axis=1))
        return loss + self.weight_decay_loss() + online_loss, {"similarity": tf.reduce_mean(cosine), **online_logs}

    def after_step(self, batch: dict[str, tf.Tensor]) -> None:
        self.target.update(self.network)

    def parts(self) -> dict[str, keras.layers.Layer]:
        return super().parts() | {"predictor": self.predictor, "target": self.target}

    @property
    def trained_variables(self) -> list[keras.Variable]:
        return super().trained_variables + self.predictor.trainable_variables
