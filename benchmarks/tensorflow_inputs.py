"""TensorFlow contestants of ``input.py``: our input, the operations of the official code, decoding alone."""

import functools

import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import FileSource

BATCH = 50


def ours(paths: list[str], images: int, size: int, augment_on_host: bool = False, **views: object) -> tf.data.Dataset:
    """Yields our batches."""
    source = FileSource("jpegs", tuple(paths), None, ())
    settings = ViewSettings(size, **views)
    return TrainingInput(source, BATCH, 2, settings, 0, augment_on_host).batches(0, images // BATCH)


def decoded(paths: list[str], images: int, size: int) -> tf.data.Dataset:
    """Decodes without making views: the lower bound."""
    data = tf.data.Dataset.from_tensor_slices(paths).repeat().take(images)
    return data.map(lambda path: tf.io.decode_jpeg(tf.io.read_file(path), channels=3)[0, 0], tf.data.AUTOTUNE)


def official(paths: list[str], images: int, size: int) -> tf.data.Dataset:
    """Decodes, then crops, resizes (bicubic), flips and recolors each view, in the order of the official code."""

    def view(image: tf.Tensor) -> tf.Tensor:
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.shape(image), tf.zeros([1, 0, 4]), aspect_ratio_range=(3 / 4, 4 / 3), area_range=(0.08, 1.0),
            min_object_covered=0.1, max_attempts=100, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        crop = tf.image.resize(tf.slice(image, begin, extent), (size, size), "bicubic")
        return _colour(tf.image.random_flip_left_right(tf.reshape(crop, [size, size, 3])))

    def views(path: tf.Tensor) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        image = tf.image.convert_image_dtype(tf.ensure_shape(image, [None, None, 3]), tf.float32)
        return tf.concat([view(image), view(image)], axis=-1)

    data = tf.data.Dataset.from_tensor_slices(paths).repeat().take(images)
    return data.map(views, tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def _colour(image: tf.Tensor) -> tf.Tensor:
    """Applies jitter of strength 1 in random order with probability 0.8, grayscale with 0.2, clipped to [0, 1]."""
    operations = (
        lambda x: x * tf.random.uniform([], 0.2, 1.8),
        lambda x: tf.image.random_contrast(x, 0.2, 1.8),
        lambda x: tf.image.random_saturation(x, 0.2, 1.8),
        lambda x: tf.image.random_hue(x, 0.2),
    )

    def jittered() -> tf.Tensor:
        order, changed = tf.random.shuffle(tf.range(4)), image
        for place in range(4):
            branches = [functools.partial(operation, changed) for operation in operations]
            changed = tf.clip_by_value(tf.switch_case(order[place], branches), 0, 1)
        return changed

    def gray() -> tf.Tensor:
        return tf.tile(tf.image.rgb_to_grayscale(image), [1, 1, 3])

    image = tf.cond(tf.random.uniform([]) < 0.8, jittered, lambda: image)
    return tf.clip_by_value(tf.cond(tf.random.uniform([]) < 0.2, gray, lambda: image), 0, 1)
