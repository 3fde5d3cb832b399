"""Callbacks for ``fit`` that measure the encoder's features on held-out images after each epoch.

They add metrics to the logs: list them before callbacks that read these, such as ``EarlyStopping``. kNN and RankMe
equal the command line's values for the same images.
"""

import keras
import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.input import Part
from simclrv2_tf.methods.evaluation import is_evaluation_batches
from simclrv2_tf.methods.inference import collect_batches, distribute


class FeatureCallback(keras.callbacks.Callback):
    """Base class: computes a metric from the features of data sets and logs it as ``log_name``.

    Args:
        *datasets: from ``evaluation_batches``, with central crops.
        every: epochs between measurements.

    Raises:
        ValueError: if a data set does not come from ``evaluation_batches``, or its batch size is not a multiple of the
            number of replicas.
    """

    log_name = ""

    def __init__(self, *datasets: tf.data.Dataset, every: int = 1):
        super().__init__()
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        for dataset in datasets:
            if not is_evaluation_batches(dataset):
                name = type(self).__name__
                raise ValueError(f"{name} takes batches of simclrv2_tf.evaluation_batches(dataset, batch_size, views)")
        self.datasets = datasets
        self.every = every
        self._distributed: list[tf.distribute.DistributedDataset] | None = None

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.every == 0 and logs is not None:
            logs[self.log_name] = self.measure()

    def measure(self) -> float:
        """Computes the metric with the current weights."""
        raise NotImplementedError

    def features(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Computes features ``[n, d]`` and labels ``[n]`` of each data set, without padding."""
        if self._distributed is None:  # built once: TensorFlow keeps every data set that it builds
            self._distributed = [_distributed(dataset, self.model.distribute_strategy) for dataset in self.datasets]
        outputs = [collect_batches(self.model, dataset, ("final_avg_pool",)) for dataset in self._distributed]
        return [(each["final_avg_pool"], each["labels"]) for each in outputs]

    def labelled_features(self) -> list[np.ndarray]:
        """Returns features and labels of the first data set, then of the next; labelled images only."""
        return [array[labels >= 0] for features, labels in self.features() for array in (features, labels)]


class KNN(FeatureCallback):
    """Logs ``val_knn_top1``, the accuracy of a kNN classifier, see ``metrics.knn_accuracy``.

    Args:
        train: labelled ``evaluation_batches`` with the neighbours.
        test: labelled ``evaluation_batches`` to classify.
        k: number of neighbours.
        temperature: a neighbour's vote has the weight exp(cosine / temperature).
        every: epochs between measurements.

    Example:
        >>> train, test = (evaluation_batches(images, 4, ViewSettings(32)) for _ in range(2))
        >>> knn = KNN(train, test, k=2)
        >>> model = SimCLR(ResNet(10, 0.0625, stem="cifar"), ViewSettings(32))
        >>> model.compile("adam", jit_compile=False)
        >>> history = model.fit(view_batches(images, 4, ViewSettings(32)), callbacks=[knn], verbose=0)
        >>> 0 <= history.history["val_knn_top1"][0] <= 1
        True
    """

    log_name = "val_knn_top1"

    def __init__(
        self, train: tf.data.Dataset, test: tf.data.Dataset, k: int = 20, temperature: float = 0.1, every: int = 1
    ):
        super().__init__(train, test, every=every)
        self.k, self.temperature = k, temperature

    def measure(self) -> float:
        train, train_labels, test, test_labels = self.labelled_features()
        return metrics.knn_accuracy(train, train_labels, test, test_labels, self.k, self.temperature)


class LinearProbe(FeatureCallback):
    """Logs ``val_linear_probe_top1``, the accuracy of a logistic regression, see ``metrics.linear_probe``.

    Args:
        train: labelled ``evaluation_batches`` to fit it on.
        test: labelled ``evaluation_batches`` to classify.
        every: epochs between measurements.

    Example:
        >>> train, test = (evaluation_batches(images, 4, ViewSettings(32)) for _ in range(2))
        >>> probe = LinearProbe(train, test, every=10)
        >>> stop = keras.callbacks.EarlyStopping("val_linear_probe_top1", mode="max", patience=3)  # after the probe
    """

    log_name = "val_linear_probe_top1"

    def __init__(self, train: tf.data.Dataset, test: tf.data.Dataset, every: int = 1):
        super().__init__(train, test, every=every)

    def measure(self) -> float:
        return metrics.linear_probe(*self.labelled_features())


class RankMe(FeatureCallback):
    """Logs ``val_rankme``, the effective rank of the features, which needs no labels, see ``metrics.rankme``.

    Args:
        images: ``evaluation_batches``, labelled or not.
        every: epochs between measurements.

    Example:
        >>> rank = RankMe(evaluation_batches(images, 4, ViewSettings(32)))
    """

    log_name = "val_rankme"

    def __init__(self, images: tf.data.Dataset, every: int = 1):
        super().__init__(images, every=every)

    def measure(self) -> float:
        ((features, _),) = self.features()
        return metrics.rankme(features)


def _distributed(dataset: tf.data.Dataset, strategy: tf.distribute.Strategy) -> tf.distribute.DistributedDataset:
    """Distributes batches over replicas; each worker gets its share of the images."""
    batch_size, replicas = dataset.element_spec["weights"].shape[0], strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise ValueError(f"evaluation_batches: batches of {batch_size} images are not divisible by {replicas} replicas")

    def share(part: Part) -> tf.data.Dataset:
        if part.count == 1:
            return dataset
        return dataset.unbatch().shard(part.count, part.index).batch(batch_size // part.count, drop_remainder=True)

    return distribute(strategy, batch_size, share)
