"""Logits, features and accuracies of a network on a split."""

import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.input import Part, evaluation_input
from simclrv2_tf.data.layouts import NoSuchSplitError
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.inference import collect_batches, distribute
from simclrv2_tf.settings.config import Config

Features = tuple[np.ndarray, np.ndarray]

KNN_IMAGES = 50_000  # maximum number of training images that kNN compares with


def evaluation_source(config: Config) -> Source | None:
    """Opens the evaluation split; returns None if it does not exist or has no labels and the mode works without it.

    Raises:
        SettingError: if the data cannot be opened, or a mode that needs labelled evaluation images has none.
    """
    is_needed = config.mode in ("finetune", "linear_eval", "supervised", "evaluate")
    try:
        source = open_source(config, config.eval_split)
    except NoSuchSplitError:
        if is_needed or config.eval_split:
            raise
        return None
    if source.class_names or config.mode == "embed":
        return source
    if is_needed:
        raise SettingError(f"--eval_split={config.eval_split}: {source.name} has no labels to evaluate with")
    return None


def distributed_images(
    model: Method, config: Config, source: Source, max_steps: int = 0
) -> tf.distribute.DistributedDataset:
    """Returns the central crops of a split, as batches for ``inference.collect_batches``."""
    size = config.eval_batch_size

    def batches(part: Part) -> tf.data.Dataset:
        return evaluation_input(source, size, config.image_size, max_steps, config.eval_resize, part)

    return distribute(model.distribute_strategy, size, batches)


class EvaluatedSplit:
    """A split whose outputs are computed several times.

    Its data set is built once, because TensorFlow keeps every data set that is built.

    Args:
        model: the model.
        config: the settings.
        source: the images.
        max_steps: maximum number of batches; 0: all.
    """

    def __init__(self, model: Method, config: Config, source: Source, max_steps: int = 0):
        self.model, self.config, self.source = model, config, source
        self.batches = distributed_images(model, config, source, max_steps)

    def outputs(self, name: str) -> dict[str, np.ndarray]:
        """Computes an endpoint of every image; returns it with ``labels`` and ``rows``, see ``collect_batches``.

        Raises:
            SettingError: if too many images are corrupt, or all.
        """
        try:
            outputs = collect_batches(self.model, self.batches, (name,))
        finally:
            self.source.check_corrupt()
        if not len(outputs["rows"]):
            raise SettingError(f"--dataset={self.config.dataset}: no image could be read")
        return outputs

    def features(self) -> Features:
        """Computes the encoder's features ``[n, d]``, and returns them with the labels ``[n]``."""
        outputs = self.outputs("final_avg_pool")
        return outputs["final_avg_pool"], outputs["labels"]

    def logits(self) -> Features:
        """Computes the logits ``[n, classes]``, and returns them with the labels ``[n]``."""
        outputs = self.outputs("logits_sup")
        return outputs["logits_sup"], outputs["labels"]


def compute_logits(model: Method, config: Config, source: Source) -> Features:
    """Computes logits ``[n, classes]`` and returns them with the labels ``[n]`` of a split."""
    return EvaluatedSplit(model, config, source, config.eval_steps).logits()


def compute_features(model: Method, config: Config, source: Source, max_steps: int = 0) -> Features:
    """Computes the encoder's features ``[n, d]`` and returns them with the labels ``[n]`` of a split."""
    return EvaluatedSplit(model, config, source, max_steps).features()


def knn_subset(source: Source) -> Source:
    """Returns the training images that kNN compares with: the labelled ones, or a seeded choice of ``KNN_IMAGES``."""
    if source.labels is None:
        return source
    labelled = np.flatnonzero(source.labels >= 0)
    if len(labelled) == source.num_examples <= KNN_IMAGES:
        return source
    return source.subset(np.sort(np.random.default_rng(0).permutation(labelled)[:KNN_IMAGES]))


def knn_features(model: Method, config: Config, source: Source) -> Features:
    """Computes the features of a ``knn_subset``; of records only the first ``KNN_IMAGES`` are used."""
    features, labels = compute_features(model, config, source, -(-KNN_IMAGES // config.eval_batch_size))
    return features[labels >= 0], labels[labels >= 0]


def top_k(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes top-1 accuracy, and top-5 if there are more than five classes."""
    ranks = (1, 5) if logits.shape[1] > 5 else (1,)
    return {f"top{k}": metrics.top_k_accuracy(logits, labels, k) for k in ranks}
