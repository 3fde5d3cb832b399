"""Training batches from any ``tf.data.Dataset`` of images, for library users with their own data."""

from typing import Any

import tensorflow as tf

from simclrv2_tf.data import pixels
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.decoding import views_of_image
from simclrv2_tf.data.sampling import uniform_draws


def view_batches(
    dataset: tf.data.Dataset, batch_size: int, settings: ViewSettings, seed: int = 0, num_views: int = 2
) -> tf.data.Dataset:
    """Returns batches of randomly cropped views, for ``fit`` of ``SimCLR`` and (one view) ``ClassificationModel``.

    Each pass over the result draws new crops and augmentations; they are the same in every program.

    >>> images = tf.data.Dataset.from_tensors(np.zeros([40, 30, 3], "uint8")).repeat(512)
    >>> batches = view_batches(images, batch_size=256, settings=ViewSettings(32))
    >>> batches.element_spec["images"].shape
    TensorShape([256, 2, 32, 32, 3])

    Args:
        dataset: images, pairs ``(image, label)``, or dicts with ``image`` and maybe ``label``, shuffled, single or
            batched. Images are ``[h, w, c]`` of any sizes: gray, gray and alpha, RGB or RGBA (shown on white), uint8,
            uint16 or floats in [0, 1]; labels are integers, −1 where unknown.
        batch_size: images per batch over all replicas; the remainder at the end of a pass is dropped.
        settings: crop and augmentation of a view. Crops are computed here; flip, colour and blur in the model's step.
        seed: of the random numbers.
        num_views: 2 to pretrain, 1 to train on labels.

    Returns:
        Dicts of uint8 ``images [b, num_views, size, size, 3]``, int32 ``labels [b]`` and float32 ``draws``, as
        ``input.make_views`` takes them.

    Raises:
        ValueError: if there are fewer images than a batch needs, or the elements are not images and integer labels.
        tf.errors.InvalidArgumentError: while iterating, for floats outside [0, 1].
    """
    if _image_and_label(dataset.element_spec)[0].shape.rank == 4:
        dataset = dataset.unbatch()
    image, label = _image_and_label(dataset.element_spec)
    is_image = image.shape.rank == 3 and (image.dtype.is_floating or image.dtype in (tf.uint8, tf.uint16))
    is_image = is_image and image.shape[-1] in (None, 1, 2, 3, 4)
    if not is_image or label.shape.rank != 0 or not label.dtype.is_integer:
        raise ValueError(f"images [h, w, channels] and integer labels are needed, not {dataset.element_spec}")
    if 0 <= dataset.cardinality() < batch_size:
        raise ValueError(f"a batch of {batch_size} needs more images than the {dataset.cardinality()} of the data set")

    def example(element: tuple, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = _image_and_label(element)
        crops, draws = uniform_draws([num_views], seed)
        views = views_of_image(_as_uint8_rgb(image), crops, settings)
        views = tf.ensure_shape(views, [num_views, settings.image_size, settings.image_size, 3])
        return {"images": views, "labels": tf.cast(label, tf.int32), "draws": draws}

    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    examples = tf.data.Dataset.zip(dataset, seeds).map(example, tf.data.AUTOTUNE)
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def _image_and_label(element: Any) -> tuple[Any, Any]:
    if isinstance(element, dict):
        element = element["image"], element.get("label", tf.constant(-1))
    return element if isinstance(element, tuple) else (element, tf.constant(-1))


def _as_uint8_rgb(image: tf.Tensor) -> tf.Tensor:
    if image.dtype.is_floating:
        in_range = tf.debugging.Assert(
            tf.reduce_all((image > -1) & (image < 2)),  # resizing overshoots slightly
            [
                "Floating-point images must be in [0, 1]: divide by 255, or cast to uint8. The greatest value is",
                tf.reduce_max(image),
            ],
        )
        with tf.control_dependencies([in_range]):
            image = tf.identity(image)
    return pixels.rgb_on_white(tf.image.convert_image_dtype(image, tf.uint8, saturate=True))
