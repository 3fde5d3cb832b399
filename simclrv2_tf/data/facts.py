"""Facts about a data set that the recipe ``own_images`` depends on."""

import numpy as np
import tensorflow as tf

from simclrv2_tf.data.description import count_labels
from simclrv2_tf.data.sources import Source
from simclrv2_tf.settings.recipes import DataFacts

SAMPLE = 48  # images that are decoded
GRAY_TOLERANCE = 12  # largest difference of the channels of a gray image: JPEG is not exact


def data_facts(source: Source, has_accelerator: bool) -> DataFacts:
    """Counts the images and labels of a source, and measures some of the images.

    Args:
        source: the training images.
        has_accelerator: whether they will be trained on with a GPU or a TPU.
    """
    sides, is_gray = _measure(source)
    num_classes = len(source.class_names)
    if source.labels is not None:
        images_per_class = int(count_labels(source).min()) if num_classes else 0
    else:  # labels of records, which are not read yet
        images_per_class = source.num_examples // (2 * num_classes) if num_classes else 0
    side = int(np.median(sides)) if len(sides) else 32
    return DataFacts(source.num_examples, num_classes, images_per_class, side, is_gray, has_accelerator)


def _measure(source: Source) -> tuple[np.ndarray, bool]:
    """Returns the smaller sides of some images ``[n]``, px, and whether all of these are gray."""

    def view(image: tf.Tensor) -> tf.Tensor:
        shape, channels = tf.shape(image), tf.cast(image, tf.int32)
        color = tf.reduce_max(tf.reduce_max(channels, -1) - tf.reduce_min(channels, -1))
        return tf.stack([tf.minimum(shape[0], shape[1]), color])

    examples = source.sample(SAMPLE).evaluation_examples(view, lambda examples: examples.take(SAMPLE))
    measured = np.array([e["images"] for e in examples.as_numpy_iterator() if e["weights"] > 0]).reshape(-1, 2)
    return measured[:, 0], bool((measured[:, 1] <= GRAY_TOLERANCE).all())
