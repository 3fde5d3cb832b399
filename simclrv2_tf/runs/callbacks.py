"""Callbacks for ``--callbacks`` and ``fit``."""

import pathlib

import keras
import tensorflow as tf


class Histograms(keras.callbacks.Callback):
    """Writes histograms of the network's weights for TensorBoard at the end of each interval.

    ``--callbacks=simclrv2_tf.runs.callbacks:Histograms``
    """

    def on_train_begin(self, logs: dict | None = None) -> None:
        folder = pathlib.Path(self.params["model_dir"], "tensorboard")
        self.writer = tf.summary.create_file_writer(str(folder), filename_suffix=".histograms")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        with self.writer.as_default(step=int((logs or {})["step"])):
            for variable in self.model.network.weights:
                tf.summary.histogram(variable.path, tf.cast(variable.value, tf.float32))
        self.writer.flush()
