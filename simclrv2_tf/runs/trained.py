"""Trained models: the network of a run, with class names and predictions of image files."""

import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import Part, evaluation_input
from simclrv2_tf.data.sources import FileSource, Source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.inference import collect
from simclrv2_tf.models.network import Network

Paths = Iterable[str | os.PathLike[str]]


@keras.saving.register_keras_serializable(package="simclrv2_tf")
class TrainedModel(ClassificationModel):
    """The network of a run with its weights. ``load_run`` builds it.

    Args:
        network: the network.
        views: size of the images and augmentation settings, to train it further.
        class_names: one per class, "0", "1" and so on if the run knows no names; empty without a classifier.
        eval_resize: interpolation, see ``cropping.center_crop_and_resize``.
        image_bits: bits in use of images with 16 bits per channel, see ``decoding.decode``.
        **kwargs: see ``ClassificationModel``.
    """

    def __init__(
        self,
        network: Network,
        views: ViewSettings,
        class_names: tuple[str, ...] = (),
        eval_resize: str = "bicubic",
        image_bits: int = 0,
        **kwargs: Any,
    ):
        super().__init__(network, views, **{"name": "trained", **kwargs})
        self.class_names = tuple(class_names)
        self.eval_resize = eval_resize
        self.image_bits = image_bits

    @property
    def image_size(self) -> int:
        """Height and width of the images that the network gets, px."""
        return self.views.image_size

    def predict_images(self, paths: Paths, batch_size: int = 256) -> tuple[list[str], np.ndarray]:
        """Classifies image files of any size, prepared as evaluation does.

        Args:
            paths: n files; formats as for ``--dataset=folder:``.
            batch_size: images in memory at a time, over all replicas.

        Returns:
            The most probable class of each file, and the probabilities of all classes, float32 ``[n, classes]``. Of a
            corrupt file the class is "" and the probabilities are NaN; it is logged.

        Raises:
            ValueError: if there is no classifier, a file does not exist, or the network has diverged.
        """
        if self.network.classifier is None:
            raise SettingError("this run has no classifier; train one with --mode=finetune or linear_eval first")
        logits = self.image_outputs(self._open_files(paths), "logits_sup", batch_size)
        probabilities = tf.nn.softmax(logits).numpy()
        best = probabilities.argmax(axis=1)
        is_read = np.isfinite(probabilities).all(axis=1)
        return [self.class_names[i] if ok else "" for i, ok in zip(best, is_read, strict=True)], probabilities

    def features(self, paths: Paths, batch_size: int = 256) -> np.ndarray:
        """Computes the encoder's features of n image files, float32 ``[n, d]``; NaN for corrupt ones.

        Raises:
            ValueError: if a file does not exist, or the network has diverged.
        """
        return self.image_outputs(self._open_files(paths), "final_avg_pool", batch_size)

    def image_outputs(self, source: Source, endpoint: str, batch_size: int) -> np.ndarray:
        """Computes an endpoint of every image of a source, float32 ``[n, ...]``; NaN for corrupt images.

        Raises:
            SettingError: if the outputs are not finite.
        """
        replicas = self.distribute_strategy.num_replicas_in_sync
        batch_size = min(batch_size, -(-source.num_examples // replicas) * replicas)  # padding costs time

        def batches(part: Part) -> tf.data.Dataset:
            return evaluation_input(source, batch_size, self.image_size, 0, self.eval_resize, part)

        outputs = collect(self, batches, batch_size, (endpoint,))
        if not np.isfinite(outputs[endpoint]).all():
            raise SettingError("the network's outputs are NaN or infinite: its training has diverged")
        values = np.full((source.num_examples, *outputs[endpoint].shape[1:]), np.nan, np.float32)
        values[outputs["rows"]] = outputs[endpoint]
        return values

    def _open_files(self, paths: Paths) -> FileSource:
        """Returns a source of files that exist."""
        if isinstance(paths, str | os.PathLike):
            raise ValueError(
                f"{os.fspath(paths)}: give a list of files, such as pathlib.Path(folder).glob('*.jpg') yields"
            )
        names = tuple(os.fspath(path) for path in paths)
        if not names:
            raise ValueError("the list of files is empty")
        if missing := [name for name in names if not os.path.isfile(name)]:
            raise ValueError(f"{missing[0]}: there is no such file")
        return FileSource("files", names, None, (), image_bits=self.image_bits)
