"""Quality of pretrained features without labels: their effective rank, and the contrastive task on held-out images."""

import logging

import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.input import Part, TrainingInput, make_views
from simclrv2_tf.data.layouts import NoSuchSplitError
from simclrv2_tf.data.sources import Source
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.inference import collect_batches, distribute
from simclrv2_tf.modes.measure import distributed_images
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

RANKED_IMAGES = 2048
CONTRASTED_IMAGES = 512
MIN_IMAGES = 100  # a smaller data set without an evaluation split is not split
HELD_OUT_STEP, MAX_HELD_OUT = 20, 512
COLLAPSED_RANK = 2.0


def split_held_out(config: Config, source: Source, test: Source | None) -> tuple[Source, Source | None]:
    """Returns the training images, and images that are not trained on.

    These are the evaluation split, labelled or not. Without one, every 20th training image is held out, at most 512.

    Args:
        config: the settings.
        source: the training images.
        test: the labelled evaluation split, if there is one.
    """
    if test is not None:
        return source, test
    try:
        return source, open_source(config, config.eval_split)
    except NoSuchSplitError:
        if source.num_examples < MIN_IMAGES:
            return source, None
    rows = np.arange(source.num_examples)
    held_out = rows[HELD_OUT_STEP - 1 :: HELD_OUT_STEP][:MAX_HELD_OUT]
    print(f"There is no evaluation split: {len(held_out):,} of {len(rows):,} images are held out to measure progress.")
    return source.subset(np.delete(rows, held_out)), source.subset(held_out)


class FeatureQuality:
    """Measures features on held-out images. Data sets are built once, because TensorFlow keeps all of them.

    Args:
        method: a pretraining method.
        config: the settings.
        data: the training images, with the augmentation of the views.
        held_out: images that are not trained on.
    """

    def __init__(self, method: Method, config: Config, data: TrainingInput, held_out: Source):
        strategy = method.distribute_strategy
        ranked, contrasted = held_out.sample(RANKED_IMAGES), held_out.sample(CONTRASTED_IMAGES)
        self.method = method
        self.images = distributed_images(method, config, ranked)
        replicas = strategy.num_replicas_in_sync
        self.batch_size = min(data.batch_size, contrasted.num_examples // replicas * replicas)
        if self.batch_size < 2:
            self.pairs = None
            return
        views = TrainingInput(contrasted, self.batch_size, 2, data.settings, seed=0)
        steps = contrasted.num_examples // self.batch_size

        def pairs(part: Part) -> tf.data.Dataset:
            return views.of(part).batches(0, steps).map(lambda batch: _rows(batch, data.settings), tf.data.AUTOTUNE)

        self.pairs = distribute(strategy, 2 * self.batch_size, pairs)

    def measure(self) -> dict[str, float]:
        """Computes ``rankme`` and ``val_contrastive_accuracy``; warns if the features have collapsed.

        Returns:
            ``rankme``: effective rank of the features of at most 2,048 images (arXiv 2210.02885), from 1 to the smaller
            of the number of images and of dimensions. ``val_contrastive_accuracy``, unless there are too few images for
            the replicas: how often a view is most similar to the other view of its image, in batches as large
            as in training.
        """
        features = collect_batches(self.method, self.images, ("final_avg_pool",))["final_avg_pool"]
        rank = metrics.rankme(features)
        if rank < min(COLLAPSED_RANK, *features.shape):
            log.warning(
                "the features have collapsed: their effective rank (RankMe) is %.2f. Try a lower --learning_rate, more "
                "--warmup_epochs, a larger --train_batch_size or another --temperature",
                rank,
            )
        return {"rankme": rank} | ({"val_contrastive_accuracy": self._contrastive_accuracy()} if self.pairs else {})

    def _contrastive_accuracy(self) -> float:
        from sklearn.preprocessing import normalize

        rows = collect_batches(self.method, self.pairs, ("proj_head_output",))["proj_head_output"]  # [2n, d]
        batches = normalize(rows).reshape(-1, self.batch_size, 2, rows.shape[1])
        hits = [np.argmax(b[:, 0] @ b[:, 1].T, axis=1) == np.arange(self.batch_size) for b in batches]
        return float(np.mean(hits))


def _rows(batch: dict[str, tf.Tensor], settings: ViewSettings) -> dict[str, tf.Tensor]:
    """Returns both views of each image as rows, one after the other, as batches of ``collect_batches``."""
    views = make_views(batch, settings)  # [b, 2, size, size, 3]
    labels = tf.repeat(batch["labels"], 2)  # [2b]
    images = tf.reshape(views, [-1, *views.shape[2:]])  # [2b, size, size, 3]
    return {"images": images, "labels": labels, "weights": tf.ones_like(labels, tf.float32)}
