"""Batches of views from any data set of images."""

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf.data.augment import ViewSettings
from simclrv2_tf.data.cropping import center_crop_and_resize
from simclrv2_tf.data.datasets import evaluation_batches, view_batches
from simclrv2_tf.data.decoding import decode
from simclrv2_tf.data.input import make_views

SIZE = 8
SETTINGS = ViewSettings(SIZE)
RAMP = np.arange(12 * 14 * 3, dtype="uint8").reshape(12, 14, 3)


def single(element, **kwargs) -> dict[str, np.ndarray]:
    batches = view_batches(tf.data.Dataset.from_tensors(element), 1, SETTINGS, **kwargs)
    return next(batches.as_numpy_iterator())


def test_images_of_mixed_sizes_are_batches_for_a_step():
    sizes = [(9, 30), (12, 14), (40, 8), (8, 8)]
    images = [np.full((height, width, 3), 40 * i, "uint8") for i, (height, width) in enumerate(sizes)]
    dataset = tf.data.Dataset.from_generator(
        lambda: zip(images, range(4), strict=True),
        output_signature=(tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int64)),
    )
    batches = view_batches(dataset, 2, SETTINGS)
    assert batches.element_spec["images"].shape == (2, 2, SIZE, SIZE, 3)
    first, second = batches
    np.testing.assert_array_equal(tf.concat([first["labels"], second["labels"]], 0), range(4))
    np.testing.assert_array_equal(second["images"], np.broadcast_to([[[[[80]]]], [[[[120]]]]], (2, 2, SIZE, SIZE, 3)))
    views = make_views(second, SETTINGS)
    assert views.shape == (2, 2, SIZE, SIZE, 3) and views.dtype == tf.float32


@pytest.mark.parametrize(
    "element",
    [
        {"image": RAMP, "label": 3, "id": "a"},
        (RAMP / np.float32(255), np.int64(3)),
        (RAMP.astype("uint16") * 257, np.uint8(3)),
    ],
)
def test_other_forms_of_the_same_image_give_the_same_views(element):
    plain = single((RAMP, 3))
    for name, value in single(element).items():
        np.testing.assert_array_equal(value, plain[name], err_msg=name)


def test_without_labels_and_colours():
    batch = single(RAMP[..., :1])
    assert batch["labels"] == [-1]
    np.testing.assert_array_equal(batch["images"], single(np.repeat(RAMP[..., :1], 3, axis=-1))["images"])


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_transparent_arrays_show_white_as_files_do(channels, dtype):
    image = np.concatenate([RAMP[..., : channels - 1], RAMP[..., ::-1][..., :1]], axis=-1)
    expected = decode(tf.io.encode_png(image)).numpy()
    assert (expected != RAMP).any()
    scaled = {"uint8": image, "uint16": image * np.uint16(257), "float32": image / np.float32(255)}[dtype]
    np.testing.assert_array_equal(single(scaled)["images"], single(expected)["images"])


def test_the_number_of_channels_may_be_known_late():
    images = [RAMP[..., :1], np.concatenate([RAMP, RAMP[..., :1]], axis=-1), RAMP]
    spec = tf.TensorSpec([None, None, None], tf.uint8)
    batches = view_batches(tf.data.Dataset.from_generator(lambda: images, output_signature=spec), 3, SETTINGS)
    (views,) = [batch["images"] for batch in batches]
    for i, image in enumerate(images):
        (same,) = view_batches(tf.data.Dataset.from_tensors(image).repeat(3), 3, SETTINGS)
        np.testing.assert_array_equal(views[i], same["images"][i])


def test_every_pass_draws_new_numbers_which_depend_on_the_seed_alone():
    images = tf.data.Dataset.from_tensors(RAMP).repeat(4)

    def passes(seed: int) -> list[np.ndarray]:
        batches = view_batches(images, 2, SETTINGS, seed)
        return [np.concatenate([batch["draws"] for batch in batches]) for _ in range(2)]

    first, second = passes(1)
    draws = np.concatenate([first, second]).reshape(-1, first.shape[-1])
    assert len(np.unique(draws, axis=0)) == len(draws) == 2 * 4 * 2
    np.testing.assert_array_equal(passes(1), [first, second])
    assert not np.any(passes(2)[0] == first)


def test_a_batched_data_set_is_unbatched():
    labelled = tf.data.Dataset.from_tensor_slices((np.stack([RAMP] * 6), np.arange(6))).batch(4)
    (batch,) = view_batches(labelled, 5, SETTINGS, num_views=1).as_numpy_iterator()
    assert batch["images"].shape == (5, 1, SIZE, SIZE, 3)
    np.testing.assert_array_equal(batch["labels"], range(5))


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (np.zeros((8, 8), "uint8"), "channels"),
        (np.zeros((8, 8, 3), "int32"), "channels"),
        (np.zeros((8, 8, 5), "uint8"), "channels"),
        ((RAMP, np.zeros(10, "float32")), "labels"),
        (RAMP, "a batch of 2"),
    ],
)
def test_unusable_data_sets_are_refused(element, message):
    with pytest.raises(ValueError, match=message):
        view_batches(tf.data.Dataset.from_tensors(element), 2, SETTINGS)


def test_floats_up_to_255_are_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in \[0, 1\].*255"):
        single(RAMP[:7].astype("float32"))


def of_each(batches: tf.data.Dataset, name: str) -> np.ndarray:
    return np.concatenate([batch[name] for batch in batches])


class TestEvaluationBatches:
    SIZES = ((9, 30), (12, 14), (40, 8), (8, 8), (50, 60))
    CHANNELS = (3, 1, 3, 4, 3)

    def dataset(self) -> tf.data.Dataset:
        """Five images of mixed sizes, including gray and RGBA; the number is unknown to TensorFlow."""
        rng = np.random.default_rng(0)
        images = [
            rng.integers(0, 256, (*size, channels), "uint8")
            for size, channels in zip(self.SIZES, self.CHANNELS, strict=True)
        ]
        spec = (tf.TensorSpec([None, None, None], tf.uint8), tf.TensorSpec([], tf.int64))
        return tf.data.Dataset.from_generator(lambda: zip(images, range(5), strict=True), output_signature=spec)

    @pytest.mark.parametrize("size", [8, 40])
    def test_central_crops_are_those_of_evaluation_and_padding_has_weight_0(self, size):
        batches = evaluation_batches(self.dataset(), 2, ViewSettings(size))
        assert batches.element_spec["images"].shape == (2, size, size, 3)
        np.testing.assert_array_equal(of_each(batches, "labels"), [0, 1, 2, 3, 4, -1])
        np.testing.assert_array_equal(of_each(batches, "weights"), [1, 1, 1, 1, 1, 0])
        image = next(iter(self.dataset()))[0]
        expected = center_crop_and_resize(tf.image.convert_image_dtype(image, tf.float32), (size, size))
        np.testing.assert_array_equal(of_each(batches, "images")[0], expected)
        assert not np.any(of_each(batches, "images")[5])

    def test_two_views_are_the_same_on_each_pass_and_the_first_images_fill_the_last_batch(self):
        batches = evaluation_batches(self.dataset(), 3, SETTINGS, num_views=2)
        first = [of_each(batches, name) for name in ("images", "draws", "labels", "weights")]
        for before, after in zip(first, [of_each(batches, name) for name in ("images", "draws")], strict=False):
            np.testing.assert_array_equal(after, before)
        images, draws, labels, weights = first
        np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4, 0])
        np.testing.assert_array_equal(weights, [1, 1, 1, 1, 1, 0])
        np.testing.assert_array_equal(images[5], images[0])
        assert np.any(images[0, 0] != images[0, 1]) and np.any(draws[0] != draws[1])
        assert np.any(of_each(evaluation_batches(self.dataset(), 3, SETTINGS, 2, seed=1), "draws") != draws)

    def test_full_batches_are_not_padded(self):
        assert len(list(evaluation_batches(self.dataset().take(4), 2, SETTINGS))) == 2

    def test_endless_or_too_small_data_is_refused(self):
        dataset = tf.data.Dataset.from_tensors(RAMP)
        with pytest.raises(ValueError, match="repeats for ever"):
            evaluation_batches(dataset.repeat(), 2, SETTINGS)
        with pytest.raises(ValueError, match="a batch of 2 needs more images than the 1 of"):
            evaluation_batches(dataset, 2, SETTINGS, num_views=2)
        assert len(list(evaluation_batches(dataset, 2, SETTINGS))) == 1
