"""Callbacks that measure features: they log the values that the command line computes, before later callbacks run."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf import KNN, LinearProbe, RankMe, SimCLR, ViewSettings, evaluation_batches, metrics, view_batches
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.modes.measure import compute_features, knn_features
from simclrv2_tf.modes.quality import FeatureQuality
from simclrv2_tf.settings.config import Config

CROPS = ViewSettings.crop_and_flip(tiny.SIZE)


def source(count: int, seed: int) -> ArraySource:
    """Returns images of three classes that are larger than the views; some training images have no label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype="int32") % tiny.CLASSES
    pixels = rng.integers(0, 120, (count, 12, 10, 3)) + 40 * labels[:, None, None, None]
    labels[1::7] = -1 if seed == 0 else labels[1::7]
    return ArraySource("test", pixels.astype("uint8"), labels, tuple("abc"))


def dataset(source: ArraySource) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((source.images, source.labels))


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_logs_equal_the_values_of_the_command_line(count, replicas):
    train, test = source(30, seed=0), source(11, seed=1)
    with (replicas(count) if count > 1 else tf.distribute.get_strategy()).scope():
        model = tiny.compiled(SimCLR(tiny.network(), CROPS))
    batches = [evaluation_batches(dataset(each), 4, CROPS) for each in (train, test)]
    callbacks = [KNN(*batches, k=5), LinearProbe(*batches, every=2), RankMe(batches[1])]
    stop = keras.callbacks.EarlyStopping("val_rankme", mode="max", min_delta=1e9, patience=1)
    fit = model.fit(view_batches(dataset(train), 4, CROPS), epochs=3, callbacks=[*callbacks, stop], verbose=0)
    assert stop.stopped_epoch == 1  # it reads the log of RankMe
    config = Config(image_size=tiny.SIZE, eval_batch_size=4, train_batch_size=4)
    features, held_out = knn_features(model, config, train), compute_features(model, config, test)
    assert fit.history["val_knn_top1"][-1] == metrics.knn_accuracy(*features, *held_out, k=5)
    assert fit.history["val_linear_probe_top1"] == [metrics.linear_probe(*features, *held_out)]
    quality = FeatureQuality(model, config, TrainingInput(train, 4, 2, CROPS, seed=0), test)
    assert fit.history["val_rankme"][-1] == quality.measure()["rankme"]
    assert len(fit.history["val_knn_top1"]) == 2


def test_wrong_batches_are_refused(replicas):
    images = dataset(source(8, seed=1))
    with pytest.raises(ValueError, match=r"RankMe takes batches of simclrv2_tf\.evaluation_batches"):
        RankMe(view_batches(images, 4, CROPS))
    with pytest.raises(ValueError, match="every must be at least 1, not 0"):
        RankMe(evaluation_batches(images, 4, CROPS), every=0)
    with replicas(2).scope():
        model = tiny.compiled(SimCLR(tiny.network(), CROPS))
    callback = RankMe(evaluation_batches(images, 3, CROPS))
    callback.set_model(model)
    with pytest.raises(ValueError, match="batches of 3 images are not divisible by 2 replicas"):
        callback.measure()
