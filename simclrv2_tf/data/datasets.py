"""Training and evaluation batches from any ``tf.data.Dataset`` of images, for library users with their own data."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from simclrv2_tf.data import cropping, pixels
from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.decoding import graph_code, views_of_image
from simclrv2_tf.data.input import ordered_options
from simclrv2_tf.data.sampling import uniform_draws
from simclrv2_tf.settings.config import check_arguments


def view_batches(
    dataset: tf.data.Dataset, batch_size: int, settings: ViewSettings, seed: int = 0, num_views: int = 2
) -> tf.data.Dataset:
    """Returns batches of randomly cropped views, for ``fit`` of ``SimCLR`` and (one view) ``ClassificationModel``.

    Each pass over the result draws new crops and augmentations; they are the same in every process.

    >>> images = tf.data.Dataset.from_tensors(np.zeros([40, 30, 3], "uint8")).repeat(512)
    >>> batches = view_batches(images, batch_size=256, settings=ViewSettings(32))
    >>> batches.element_spec["images"].shape
    TensorShape([256, 2, 32, 32, 3])

    Args:
        dataset: images, pairs ``(image, label)``, or dicts with ``image`` and maybe ``label``, shuffled, single or
            batched. Images are ``[h, w, c]`` of any sizes: gray, gray and alpha, RGB or RGBA (shown on white), uint8,
            uint16 (65,535 is white) or floats in [0, 1]; labels are integers, −1 where unknown.
        batch_size: images per batch over all replicas; the remainder at the end of a pass is dropped.
        settings: crop and augmentation of a view. Crops are computed here; flip, colour and blur in the model's step.
        seed: seed of the random numbers.
        num_views: 2 to pretrain, 1 to train on labels.

    Returns:
        Dicts of uint8 ``images [b, num_views, size, size, 3]``, int32 ``labels [b]`` and float32 ``draws``, as
        ``input.make_views`` takes them.

    Raises:
        ValueError: if a number is below 1, there are fewer images than a batch needs, or the elements are not images
            and integer labels.
        tf.errors.InvalidArgumentError: while iterating, for floats outside [0, 1].
    """
    _check_numbers(batch_size, num_views, seed)
    dataset = _checked_images(dataset, batch_size)
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
    examples = tf.data.Dataset.zip(dataset, seeds).map(_cropped_views(settings, num_views), tf.data.AUTOTUNE)
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    dataset: tf.data.Dataset, batch_size: int, settings: ViewSettings, num_views: int = 1, seed: int = 0
) -> tf.data.Dataset:
    """Returns batches with every image once, the same on each pass, for ``evaluate``, ``predict`` and callbacks.

    >>> images = tf.data.Dataset.from_tensors(np.zeros([40, 30, 3], "uint8")).repeat(10)
    >>> batches = evaluation_batches(images, batch_size=4, settings=ViewSettings(32))
    >>> [int(tf.reduce_sum(batch["weights"])) for batch in batches]
    [4, 4, 2]

    Args:
        dataset: as for ``view_batches``, in a fixed order.
        batch_size: images per batch over all replicas.
        settings: size of the images; with two views also crop and augmentation.
        num_views: 1 for central crops; 2 for augmented views, which the contrastive loss needs.
        seed: seed of the random numbers of two views.

    Returns:
        Dicts of ``images``, int32 ``labels [b]`` and float32 ``weights [b]``: float32 ``images [b, size, size, 3]`` in
        [0, 1], or two views as ``view_batches`` returns them. All batches are of one shape: the last one is filled up
        with images of weight 0, which are zeros, or the first images again for two views, so that a view has the same
        number of negatives in every batch.

    Raises:
        ValueError: as ``view_batches`` does, for an endless data set, or for two views of fewer images than a batch.
    """
    _check_numbers(batch_size, num_views, seed)
    dataset = _checked_images(dataset, batch_size if num_views > 1 else 0)
    if dataset.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError("the data set repeats for ever; evaluation_batches needs each image once")
    size = settings.image_size

    @graph_code
    def central_crop(*element: Any) -> dict[str, tf.Tensor]:
        image, label = _image_and_label(element if len(element) > 1 else element[0])
        image = tf.image.convert_image_dtype(_as_uint8_rgb(image), tf.float32)
        image = tf.ensure_shape(cropping.center_crop_and_resize(image, (size, size)), [size, size, 3])
        return {"images": image, "labels": tf.cast(label, tf.int32)}

    if num_views == 1:
        examples = dataset.map(central_crop, tf.data.AUTOTUNE)
        zeros = {"images": tf.zeros([size, size, 3]), "labels": -1}
        padding = tf.data.Dataset.from_tensors(zeros).repeat(batch_size - 1)
    else:
        seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=False).batch(2, drop_remainder=True)
        examples = tf.data.Dataset.zip(dataset, seeds).map(_cropped_views(settings, num_views), tf.data.AUTOTUNE)
        padding = examples.take(batch_size - 1)
    weighted = [each.map(lambda x, w=weight: x | {"weights": w}) for each, weight in ((examples, 1.0), (padding, 0.0))]
    batches = weighted[0].concatenate(weighted[1]).batch(batch_size, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE).with_options(ordered_options())


def _check_numbers(batch_size: int, num_views: int, seed: int) -> None:
    check_arguments(seed=seed)
    for name, value in (("batch_size", batch_size), ("num_views", num_views)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: must be a whole number, 1 or more")


def _checked_images(dataset: tf.data.Dataset, min_images: int) -> tf.data.Dataset:
    """Returns a data set of single images.

    Raises:
        ValueError: if it has fewer than ``min_images``, or its elements are not images and integer labels.
    """
    if _image_and_label(dataset.element_spec)[0].shape.rank == 4:
        dataset = dataset.unbatch()
    image, label = _image_and_label(dataset.element_spec)
    is_image = image.shape.rank == 3 and (image.dtype.is_floating or image.dtype in (tf.uint8, tf.uint16))
    is_image = is_image and image.shape[-1] in (None, 1, 2, 3, 4)
    if not is_image or label.shape.rank != 0 or not label.dtype.is_integer:
        raise ValueError(f"images [h, w, channels] and integer labels are needed, not {dataset.element_spec}")
    if 0 <= dataset.cardinality() < min_images:
        raise ValueError(f"a batch of {min_images} needs more images than the {dataset.cardinality()} of the data set")
    return dataset


def _cropped_views(settings: ViewSettings, num_views: int) -> Callable[[tuple, tf.Tensor], dict[str, tf.Tensor]]:
    def example(element: tuple, seed: tf.Tensor) -> dict[str, tf.Tensor]:
        image, label = _image_and_label(element)
        crops, draws = uniform_draws([num_views], seed)
        views = views_of_image(_as_uint8_rgb(image), crops, settings)
        views = tf.ensure_shape(views, [num_views, settings.image_size, settings.image_size, 3])
        return {"images": views, "labels": tf.cast(label, tf.int32), "draws": draws}

    return example


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
