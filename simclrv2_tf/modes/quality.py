"""Quality of pretrained features without labels: their effective rank, and the contrastive task on held-out images."""

import logging

import numpy as np
import tensorflow as tf

from simclrv2_tf import metrics
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.input import Part, TrainingInput, make_views
from simclrv2_tf.data.layouts import NoSuchSplitError
from simclrv2_tf.data.sources import Source
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.inference import collect
from simclrv2_tf.modes.measure import compute_features
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

RANKED_IMAGES = 2048
CONTRASTED_IMAGES = 512
MIN_IMAGES = 100  # a smaller data set without an evaluation split is not divided
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


def feature_quality(method: Method, config: Config, data: TrainingInput, held_out: Source) -> dict[str, float]:
    """Computes ``rankme`` and ``val_contrastive_accuracy``; warns if the features have collapsed.

    Args:
        method: a pretraining method.
        config: the settings.
        data: the training images, with the augmentation of the views.
        held_out: images that are not trained on.

    Returns:
        ``rankme``: effective rank of the features of at most 2,048 held-out images (arXiv 2210.02885), from 1 to the
        smaller of the number of images and of dimensions. ``val_contrastive_accuracy``: how often a view of a held-out
        image is most similar to the other view of that image, among batches of the training's size.
    """
    features, _ = compute_features(method, config, held_out.sample(RANKED_IMAGES))
    rank = metrics.rankme(features)
    if rank < min(COLLAPSED_RANK, *features.shape):
        log.warning(
            "the features have collapsed: their effective rank (RankMe) is %.2f. Try a lower --learning_rate, more "
            "--warmup_epochs, a larger --train_batch_size or another --temperature",
            rank,
        )
    accuracy = _contrastive_accuracy(method, data, held_out.sample(CONTRASTED_IMAGES))
    return {"rankme": rank} | ({} if accuracy is None else {"val_contrastive_accuracy": accuracy})


def _contrastive_accuracy(method: Method, data: TrainingInput, held_out: Source) -> float | None:
    """Returns the contrastive accuracy on held-out images; None if there are too few of them for the replicas."""
    replicas = method.distribute_strategy.num_replicas_in_sync
    batch_size = min(data.batch_size, held_out.num_examples // replicas * replicas)
    if batch_size < 2:
        return None
    views = TrainingInput(held_out, batch_size, 2, data.settings, seed=0)
    steps = held_out.num_examples // batch_size

    def project(view: int) -> np.ndarray:
        def batches(part: Part) -> tf.data.Dataset:
            return views.of(part).batches(0, steps).map(lambda batch: _select(batch, view), tf.data.AUTOTUNE)

        return collect(method, batches, batch_size, ("proj_head_output",))["proj_head_output"]

    def _select(batch: dict[str, tf.Tensor], view: int) -> dict[str, tf.Tensor]:
        images = make_views(batch, data.settings)[:, view]  # [b, size, size, 3]
        return {"images": images, "labels": batch["labels"], "weights": tf.ones_like(batch["labels"], tf.float32)}

    from sklearn.preprocessing import normalize

    first, second = (np.split(normalize(project(view)), steps) for view in (0, 1))  # [b, d] each
    hits = [np.argmax(a @ b.T, axis=1) == np.arange(batch_size) for a, b in zip(first, second, strict=True)]
    return float(np.mean(hits))
