"""User code for --callbacks, --method and --encoder."""

import math

import keras

from simclrv2_tf import BatchNorm, SimCLR

events: list[tuple] = []
"""Calls of the callbacks of ``recorder``, in order."""


class Recorder(keras.callbacks.Callback):
    """Records every call."""

    def on_train_begin(self, logs=None):
        events.append(("train begins", self.params["steps"]))

    def on_train_end(self, logs=None):
        events.append(("train ends",))

    def on_epoch_begin(self, epoch, logs=None):
        events.append(("interval begins", epoch))

    def on_epoch_end(self, epoch, logs=None):
        events.append(("interval ends", epoch, dict(logs)))
        logs["from_callback"] = 100 + epoch

    def on_train_batch_begin(self, batch, logs=None):
        events.append(("call begins", batch))

    def on_train_batch_end(self, batch, logs=None):
        events.append(("call ends", batch, dict(logs)))


class StopAt(keras.callbacks.Callback):
    """Stops the run at the end of the first interval, or after the first call of the second one."""

    def __init__(self, mid_interval: bool):
        super().__init__()
        self.mid_interval = mid_interval

    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = not self.mid_interval

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.mid_interval and batch == 2


class InterruptAtSecondInterval(keras.callbacks.Callback):
    """Interrupts the run, as a kill would, in its second interval."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            raise KeyboardInterrupt


def recorder():
    return Recorder()


def recorder_and_interrupt():
    return [Recorder(), InterruptAtSecondInterval()]


def stop_after_interval():
    return StopAt(mid_interval=False)


def stop_in_interval():
    return StopAt(mid_interval=True)


class NanLoss(SimCLR):
    """Has a loss that is never finite."""

    def objective(self, outputs, batch):
        loss, logs = super().objective(outputs, batch)
        return loss * math.nan, logs


def not_a_callback():
    return "callback"


def profiler():
    """Returns Keras's TensorBoard callback, which profiles the second and third call."""
    return keras.callbacks.TensorBoard("tensorboard", profile_batch=(2, 3), write_graph=False)


def small_encoder(image_size: int) -> keras.Model:
    """Returns an encoder of Keras's own layers, without names."""
    layers = []
    for filters in (8, 16):
        layers += [
            keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
        ]
    return keras.Sequential([keras.Input((image_size, image_size, 3)), *layers, keras.layers.GlobalAveragePooling2D()])


def synchronized_encoder(image_size: int) -> keras.Model:
    """Returns an encoder whose batch norm sees the images of all replicas."""
    layers = [keras.layers.Conv2D(6, 3, strides=2, use_bias=False), BatchNorm(), keras.layers.ReLU()]
    return keras.Sequential([keras.Input((image_size, image_size, 3)), *layers, keras.layers.GlobalAveragePooling2D()])


def encoder_without_pooling(image_size: int) -> keras.Model:
    return keras.Sequential([keras.Input((image_size, image_size, 3)), keras.layers.Conv2D(8, 3)])
