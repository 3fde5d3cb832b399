"""SimCLR: contrastive pretraining with NT-Xent (paper §2, step 1)."""

from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.methods.base import Batch, Logs, Outputs
from simclrv2_tf.methods.chunks import map_rows
from simclrv2_tf.methods.losses import nt_xent, nt_xent_per_image
from simclrv2_tf.methods.momentum import Memory
from simclrv2_tf.methods.pretraining import Pretraining
from simclrv2_tf.models.network import Network
from simclrv2_tf.settings.config import Config, check_arguments


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class SimCLR(Pretraining):
    """Pretraining with NT-Xent: each view must identify the other view of its image among all other images.

    Args:
        network: with a projection head; its classifier, if any, is trained beside the encoder. Any other Keras model
            from images to features ``[n, d]`` gets a head of three layers.
        views: augmentation settings.
        temperature: of NT-Xent.
        hidden_norm: L2-normalise the projections.
        memory_size: rows of the queue of further negatives; 0 for no memory.
        ema_decay: decay per step of the memory's moving average.
        loss_tile: rows of NT-Xent's similarity matrix in memory at a time, see ``losses.nt_xent``.
        **kwargs: ``weight_decay``, ``micro_batch``, ``input_range`` and ``name``, see ``Method``.

    Raises:
        ValueError: if an argument is out of bounds.

    Example:
        >>> model = SimCLR(ResNet(10, 0.0625, stem="cifar"), ViewSettings(32), temperature=0.5)
        >>> model.compile(LARS(0.1), jit_compile=False)  # True on a GPU
        >>> history = model.fit(view_batches(images, 4, ViewSettings(32)), verbose=0)
    """

    train_metrics = ("loss", "contrastive_loss", "contrastive_accuracy", "contrastive_entropy")

    def __init__(
        self,
        network: Network | keras.Model,
        views: ViewSettings,
        temperature: float = 0.1,
        hidden_norm: bool = True,
        memory_size: int = 0,
        ema_decay: float = 0.999,
        loss_tile: int = 0,
        **kwargs: Any,
    ):
        check_arguments(temperature=temperature, hidden_norm=hidden_norm, memory_size=memory_size, ema_decay=ema_decay)
        super().__init__(network, views, **{"name": "simclr", **kwargs})
        self.temperature = temperature
        self.hidden_norm = hidden_norm
        self.memory_size = memory_size
        self.ema_decay = ema_decay
        self.loss_tile = loss_tile
        self.memory = Memory(self.network, memory_size, ema_decay) if memory_size else None

    @classmethod
    def from_settings(cls, network: Network, views: ViewSettings, config: Config) -> "SimCLR":
        names = ("temperature", "hidden_norm", "memory_size", "ema_decay", "weight_decay")
        settings = {name: getattr(config, name) for name in names}
        return cls(network, views, micro_batch=config.grad_cache_micro_batch, **settings)

    def objective(self, outputs: Outputs, batch: Batch) -> tuple[tf.Tensor, Logs]:
        view1, view2 = tf.unstack(outputs["proj_head_output"], axis=1)  # [b, d] each
        negatives = tf.identity(self.memory.queue.value) if self.memory else None
        contrast = nt_xent(view1, view2, self.temperature, self.hidden_norm, negatives, self.loss_tile)
        online_loss, online_logs = self.online_evaluation(outputs, batch)
        logs = {
            "contrastive_loss": contrast.loss,
            "contrastive_accuracy": contrast.accuracy,
            "contrastive_entropy": contrast.entropy,
        }
        return contrast.loss + self.weight_decay_loss() + online_loss, logs | online_logs

    def test_step(self, batch: Batch) -> Logs:
        """Computes the contrastive loss and metrics of two views of held-out images, within their batch.

        Batch norm uses moving statistics; the memory's negatives are not used. ``loss`` is the contrastive loss alone.
        """
        outputs = self.forward(batch, training=False)
        view1, view2 = tf.unstack(outputs["proj_head_output"], axis=1)  # [b, d] each
        loss, hit, entropy = nt_xent_per_image(view1, view2, self.temperature, self.hidden_norm, None, self.loss_tile)
        contrast = {"contrastive_loss": loss, "contrastive_accuracy": hit, "contrastive_entropy": entropy}
        return {"loss": loss, **contrast, **self.online_metrics(outputs, batch)}

    def after_step(self, batch: Batch) -> None:
        """Updates the memory's moving average and adds its outputs for the first views to the queue."""
        if self.memory is None:
            return
        self.memory.update(self.network)
        project = lambda rows: self.memory.project(self.network, self.make_views(rows)[:, 0])  # noqa: E731
        self.memory.push(map_rows(project, batch, self.micro_batch, self.memory.queue.dtype, communicates=True))

    def parts(self) -> dict[str, keras.layers.Layer]:
        return super().parts() | ({"memory": self.memory} if self.memory else {})
