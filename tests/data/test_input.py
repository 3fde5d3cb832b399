"""Batches are a function of (seed, step) for all sources; evaluation uses each image once and skips corrupt ones."""

import dataclasses
import doctest
import functools
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from simclrv2_tf.data import augment, datasets, sources
from simclrv2_tf.data import input as input_module
from simclrv2_tf.data.augment import NUM_DRAWS, ViewSettings
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.cropping import center_crop_and_resize
from simclrv2_tf.data.input import Part, TrainingInput, evaluation_input, make_views
from simclrv2_tf.data.sampling import uniform_draws
from simclrv2_tf.data.sources import SUBSTITUTES, ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config

tfds.disable_progress_bar()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Overrides the fixture for all tests: nothing here uses Keras, and clearing its session takes long."""


COUNT, BATCH, SIZE = 12, 5, 16  # an epoch ends in the third batch and in the fifth
VIEWS = ViewSettings(SIZE)
KINDS = ("array", "files", "records")
# For tests that arrays and records cover: files share their code with one or the other. A pipeline takes a second.
KINDS_BUT_FILES_SLOW = ("array", pytest.param("files", marks=pytest.mark.slow), "records")

# In all sources the label of an image is its index, so that labels identify the images of a batch.
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24, 3), np.uint8)


def sized(i):
    """Returns an image of several sizes, for the sources that allow it."""
    return IMAGES[i, : 16 + i % 5]


class NumberedPhotos(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        image, label = tfds.features.Image(), tfds.features.ClassLabel(num_classes=COUNT)
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": image, "label": label})
        )

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(COUNT):
            yield i, {"image": sized(i), "label": i}


def save_photos(folder):
    folder.mkdir(parents=True)
    for i in range(COUNT):
        Image.fromarray(sized(i)).save(folder / f"{i:02}.png")
    return folder


def photos(folder, **changes):
    paths = tuple(str(path) for path in sorted(folder.iterdir()))
    return FileSource("photos", paths, np.arange(len(paths), dtype=np.int32), tuple(paths), **changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """One source of each kind."""
    place = tmp_path_factory.mktemp("data")
    config = tfds.download.DownloadConfig(num_shards=3)
    NumberedPhotos(data_dir=str(place)).download_and_prepare(download_config=config)
    labels = np.arange(COUNT, dtype=np.int32)
    return {
        "array": ArraySource("arrays", IMAGES, labels, tuple(map(str, labels))),
        "files": photos(save_photos(place / "files")),
        "records": open_source(Config(dataset="numbered_photos", data_dir=str(place)), "train"),
    }


@pytest.fixture(scope="module")
def batches_of(data):
    """``batches_of(kind, batch_size)``: the first batches, read once for all tests, because set-up is slow."""

    @functools.cache
    def read(kind, batch_size=BATCH):
        tf.random.set_seed(0)
        return take(training(data[kind], batch_size=batch_size).batches(0, COUNT if batch_size == BATCH else 5))

    return read


@pytest.fixture(scope="module")
def evaluated(data):
    """``evaluated(kind, batch_size, max_steps)``: the batches of an evaluation, read once for all tests."""

    @functools.cache
    def read(kind, batch_size, max_steps=0):
        return take(evaluation_input(data[kind], batch_size, SIZE, max_steps))

    return read


def training(source, **changes):
    settings = dict(batch_size=BATCH, num_views=2, settings=VIEWS, seed=0) | changes
    return TrainingInput(source, **settings)


def take(dataset):
    return list(dataset.as_numpy_iterator())


def labels_of(batches):
    return np.concatenate([batch["labels"] for batch in batches])


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


# The training stream


@pytest.mark.parametrize("kind", KINDS)
def test_every_epoch_is_another_permutation(batches_of, kind):
    labels = labels_of(batches_of(kind))
    epochs = [tuple(epoch) for epoch in np.split(labels, BATCH)]  # most of them end within a batch
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) == BATCH and tuple(range(COUNT)) not in epochs


@given(st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))), st.integers(0, 2**32 - 1))
def test_any_epoch_of_any_source_is_a_permutation(sizes, seed):
    count, batch_size = sizes
    source = ArraySource("some", np.zeros((count, 1, 1, 3), np.uint8), np.zeros(count, np.int32), ("",))
    stream = training(source, batch_size=batch_size, seed=seed)
    steps = range(-(-2 * count // batch_size))
    indices = np.concatenate([stream.sampler.indices(tf.constant(step, tf.int64)) for step in steps])
    for epoch in (indices[:count], indices[count : 2 * count]):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_function_of_seed_and_step(data, batches_of, kind):
    whole = batches_of(kind)[:6]
    tf.random.set_seed(99)  # only the seed of the settings counts
    parts = [*take(training(data[kind]).batches(0, 3)), *take(training(data[kind]).batches(3, 3))]
    assert_equal(parts, whole)


@pytest.mark.parametrize("kind", KINDS_BUT_FILES_SLOW)
def test_other_seeds_give_other_orders_and_numbers(data, batches_of, kind):
    runs = [take(training(data[kind], seed=seed).batches(0, 3)) for seed in (1, 4_000_000_000)]
    runs.append(batches_of(kind)[:3])  # seed 0
    assert len({tuple(labels_of(run)) for run in runs}) == 3
    for one, other in itertools.combinations(runs, 2):
        assert not (one[0]["draws"] == other[0]["draws"]).any()


def test_orders_are_random_in_a_large_source():
    """Neighbours are separated, an image's positions in two epochs are uncorrelated, no order repeats."""
    count = 20_000
    source = ArraySource("many", np.zeros((count, 1, 1, 3), np.uint8), np.arange(count, dtype=np.int32), ("",))
    stream = training(source, batch_size=count, num_views=1, settings=ViewSettings(1))
    indices = tf.function(stream.sampler.indices, autograph=False)

    def orders_of(epochs):
        return np.stack([indices(tf.constant(epoch, tf.int64)) for epoch in epochs])

    orders = orders_of(range(40))
    steps, counts = np.unique(np.diff(orders), return_counts=True)
    assert counts.max() < 40 + 8 * 40**0.5 and steps[0] < -0.98 * count
    correlations = np.corrcoef(orders)[np.triu_indices(40, 1)]
    assert correlations.std() < 1.2 / count**0.5 and np.abs(correlations).max() < 6 / count**0.5
    assert not (orders_of([256]) == orders[:1]).all()
    other_seed = dataclasses.replace(stream, seed=256)
    assert not (other_seed.sampler.indices(tf.constant(0, tf.int64)) == orders[0]).numpy().all()


def test_drawn_numbers_are_uniform_and_independent():
    """Independent across draws, images, the views of an image, and steps."""
    source = ArraySource("none", np.zeros((500, 1, 1, 3), np.uint8), None, ())
    stream = training(source, batch_size=500, settings=ViewSettings(1))
    steps = [np.concatenate(stream.sampler.draws(tf.constant(step, tf.int64)), axis=-1) for step in range(20)]
    numbers = np.concatenate(steps)  # [images, views, draws]
    count, _, draws = numbers.shape
    assert numbers.min() >= 0 and numbers.max() < 1
    ranks = (np.arange(count) + 0.5)[:, np.newaxis, np.newaxis] / count
    distance = np.abs(np.sort(numbers, axis=0) - ranks).max()
    assert distance < 2.7 / count**0.5  # Kolmogorov and Smirnov, p = 1e-6: there are hundreds of draws
    flat = numbers.reshape(count, -1)
    others = np.abs(np.corrcoef(flat.T))[np.triu_indices(2 * draws, 1)]
    next_image, next_step = (np.corrcoef(flat[:-lag].ravel(), flat[lag:].ravel())[0, 1] for lag in (1, 500))
    assert others.max() < 6 / count**0.5
    assert max(abs(next_image), abs(next_step)) < 5 / flat.size**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_images_belong_to_their_labels(data, kind):
    """Uses resized whole images as views: each is nearest to the image that its label names."""
    settings = ViewSettings.crop_and_flip(SIZE, crop_area_min=1.0, flip=False)
    (batch,) = take(training(data[kind], batch_size=COUNT, num_views=1, settings=settings).batches(0, 1))
    views = make_views({name: tf.constant(value) for name, value in batch.items()}, settings).numpy()[:, 0]
    shown = [sized(i) if kind != "array" else IMAGES[i] for i in range(COUNT)]
    expected = np.stack([tf.image.resize(image / np.float32(255), (SIZE, SIZE), "bicubic") for image in shown])
    distances = np.abs(views[:, None] - expected).mean((2, 3, 4))
    np.testing.assert_array_equal(distances.argmin(1), batch["labels"])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_static(data, kind):
    expected = {"labels": (BATCH,), "draws": (BATCH, 2, NUM_DRAWS)}
    if kind == "array":
        expected |= {"images": (BATCH, 20, 24, 3), "boxes": (BATCH, 2, 4)}
    else:
        expected |= {"images": (BATCH, 2, SIZE, SIZE, 3)}
    batches = training(data[kind]).batches(0, 4)
    assert {name: tuple(spec.shape) for name, spec in batches.element_spec.items()} == expected
    assert int(batches.cardinality()) == 4


@pytest.mark.parametrize("kind", ["array", "files", pytest.param("records", marks=pytest.mark.slow)])
def test_views_are_the_same_computed_on_the_host(data, batches_of, kind):
    on_device = [make_views(batch, VIEWS) for batch in batches_of(kind)[:2]]
    batches = training(data[kind], augment_on_host=True).batches(0, 2)
    assert batches.element_spec["views"] == tf.TensorSpec((BATCH, 2, SIZE, SIZE, 3), tf.float32)
    on_host = take(batches)
    for device, host in zip(on_device, on_host, strict=True):
        assert set(host) == {"views", "labels"}
        np.testing.assert_allclose(host["views"], device, rtol=0, atol=1e-6)
        assert host["views"].min() >= 0 and host["views"].max() <= 1
        assert (np.abs(host["views"][:, 0] - host["views"][:, 1]).mean((1, 2, 3)) > 0.01).all()  # two different views


def test_files_and_arrays_of_the_same_images_give_the_same_views(tmp_path, data):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    settings = ViewSettings.crop_and_flip(SIZE)
    from_files, from_array = (
        take(training(source, settings=settings, augment_on_host=True).batches(0, 3))
        for source in (photos(tmp_path), data["array"])
    )
    for file, array in zip(from_files, from_array, strict=True):
        np.testing.assert_array_equal(file["labels"], array["labels"])
        # crops of files travel as uint8
        np.testing.assert_allclose(file["views"], array["views"], rtol=0, atol=0.501 / 255)


@pytest.mark.parametrize("part", [Part(), Part(1, 2)])
def test_resident_images_complete_the_same_batches(data, part):
    """Batches then carry indices instead of images."""
    plain = training(data["array"], batch_size=6, part=part)
    resident = dataclasses.replace(plain, resident=tf.Variable(IMAGES.reshape(len(IMAGES), -1)))
    batches = resident.batches(1, 4)
    assert not any(spec.dtype == tf.uint8 for spec in batches.element_spec.values())
    completed = [{name: value.numpy() for name, value in resident.completed(batch).items()} for batch in batches]
    assert_equal(completed, take(plain.batches(1, 4)))
    assert resident.resident_bytes == IMAGES.nbytes and plain.resident_bytes == 0


@pytest.mark.slow
def test_arrays_may_exceed_what_a_graph_can_hold():
    images, labels = np.zeros((720, 1000, 1000, 3), np.uint8), np.arange(720, dtype=np.int32)
    assert images.nbytes > 2**31
    images[:, 0, 0, 0] = labels % 256
    source = ArraySource("big", images, labels, tuple(map(str, labels)))
    batch = next(iter(training(source, batch_size=8).batches(0, 1)))
    np.testing.assert_array_equal(batch["images"][:, 0, 0, 0], batch["labels"] % 256)


@pytest.mark.parametrize("kind", ["array", pytest.param("files", marks=pytest.mark.slow)])
def test_replicas_share_the_same_global_batch(data, batches_of, kind, replicas):
    strategy = replicas(2)
    distributed = strategy.experimental_distribute_dataset(training(data[kind], batch_size=6).batches(0, 3))
    for whole, shared in zip(batches_of(kind, 6)[:3], distributed, strict=True):
        for name, value in shared.items():
            parts = [part.numpy() for part in strategy.experimental_local_results(value)]
            assert [len(part) for part in parts] == [3, 3]
            np.testing.assert_array_equal(np.concatenate(parts), whole[name])


def joined(parts: list[list[dict]]) -> list[dict]:
    """Concatenates the rows of several workers' batches, in the workers' order."""
    return [
        {k: np.concatenate([batch[k] for batch in of_step]) for k in of_step[0]} for of_step in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("count", [3, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS_BUT_FILES_SLOW)
def test_the_parts_of_several_workers_are_the_whole_batch(data, batches_of, kind, count):
    """No image is doubled or lost, across the end of an epoch and for any first step."""
    whole = training(data[kind], batch_size=6)
    parts = [take(whole.of(Part(index, count)).batches(1, 4)) for index in range(count)]
    assert {len(batch["labels"]) for part in parts for batch in part} == {6 // count}
    assert_equal(joined(parts), batches_of(kind, 6)[1:])


SIZES = [(6, 0), (18, 0), (30, 0), (6, 1)]  # batch size, maximum number of batches
BY_KIND = [("array", *size) for size in SIZES] + [("files", 18, 0), ("records", 6, 1)]
ALL_KINDS = [(kind, *size) for kind in KINDS for size in SIZES]


@pytest.mark.parametrize(
    ("kind", "batch_size", "max_steps"),
    [*BY_KIND, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL_KINDS if case not in BY_KIND)],
)
def test_the_parts_of_an_evaluation_are_the_whole(data, evaluated, kind, batch_size, max_steps):
    """Also if the last batch is short and one or two parts of it have no image."""
    make = functools.partial(evaluation_input, data[kind], batch_size, SIZE, max_steps)
    parts = [take(make(part=Part(index, 3))) for index in range(3)]
    assert_equal(joined(parts), evaluated(kind, batch_size, max_steps))


def test_a_worker_decodes_only_its_own_images(jpegs):
    bad = damage(jpegs, 0, 5)
    for part, images in ((Part(0, 2), (0, 1, 4, 5, 8, 9)), (Part(1, 2), (2, 3, 6, 7, 10, 11))):
        jpegs.corrupt.clear()
        take(evaluation_input(jpegs, 4, SIZE, part=part))
        assert jpegs.corrupt == bad & {jpegs.paths[i] for i in images}


@pytest.mark.parametrize("kind", KINDS_BUT_FILES_SLOW)
def test_unknown_labels_are_minus_one(data, kind):
    source = data[kind].with_labels() if kind == "records" else data[kind]
    few = source.mask_labels_except(np.array([3, 7]))
    known = set(source.labels[[3, 7]])
    labels = labels_of(take(training(few, batch_size=COUNT).batches(0, 1)))
    assert set(labels) == known | {-1} and (labels == -1).sum() == COUNT - 2
    if kind != "records":
        without = dataclasses.replace(source, labels=None, class_names=())
        (batch,) = take(evaluation_input(without, COUNT, SIZE))
        assert set(batch["labels"]) == {-1} and set(batch["weights"]) == {1}  # an image, though unlabelled


# Data in memory


def test_cached_files_are_read_once_and_give_the_same_batches(tmp_path, evaluated, batches_of):
    source = photos(save_photos(tmp_path / "files"))  # the same images as in data["files"]
    expected = batches_of("files")[:4], evaluated("files", BATCH)
    cached = source.cached()
    subset = cached.subset(np.array([2, 5]))
    for path in source.paths:
        pathlib.Path(path).unlink()
    assert_equal(take(training(cached).batches(0, 4)), expected[0])
    assert_equal(take(evaluation_input(cached, BATCH, SIZE)), expected[1])
    np.testing.assert_array_equal(labels_of(take(evaluation_input(subset, 2, SIZE))), [2, 5])


def test_cached_records_are_read_once(tmp_path):
    NumberedPhotos(data_dir=str(tmp_path)).download_and_prepare()
    config = Config(dataset="numbered_photos", data_dir=str(tmp_path), cache_dataset=True)
    cached = training(open_source(config, "train"), batch_size=COUNT)
    first = labels_of(take(cached.batches(0, 2)))
    for path in tmp_path.rglob("*.tfrecord*"):
        path.unlink()
    later = labels_of(take(cached.batches(2, 2)))
    epochs = [*np.split(first, 2), *np.split(later, 2)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


# Evaluation


@pytest.mark.parametrize("kind, batch_size", [("array", 5), ("array", 6), ("array", 20), ("files", 5), ("records", 5)])
def test_evaluation_sees_every_image_once_in_order(data, evaluated, kind, batch_size):
    source = data[kind]
    order = np.arange(COUNT) if kind != "records" else [int(label) for _, label in source.stream()]
    dataset = evaluation_input(source, batch_size, SIZE)
    assert dataset.element_spec == {
        "images": tf.TensorSpec((batch_size, SIZE, SIZE, 3), tf.float32),
        "labels": tf.TensorSpec((batch_size,), tf.int32),
        "weights": tf.TensorSpec((batch_size,), tf.float32),
    }
    batches = evaluated(kind, batch_size)
    assert len(batches) == -(-COUNT // batch_size)
    weights = np.concatenate([batch["weights"] for batch in batches])
    np.testing.assert_array_equal(weights, np.arange(len(weights)) < COUNT)
    np.testing.assert_array_equal(labels_of(batches)[:COUNT], order)
    images = np.concatenate([batch["images"] for batch in batches])
    for i, image in zip(order, images, strict=False):
        whole = tf.image.convert_image_dtype(sized(i) if kind != "array" else IMAGES[i], tf.float32)
        expected = np.clip(tf.image.resize(whole, (SIZE, SIZE), "bicubic"), 0, 1)  # small views are not cropped
        np.testing.assert_allclose(image, expected, atol=1e-6)
    assert not images[COUNT:].any()
    assert_equal(take(evaluation_input(source, batch_size, SIZE, max_steps=1)), batches[:1])


@pytest.mark.parametrize("method", ["bilinear", "tf1"])
def test_evaluation_uses_the_resize_method(data, method):
    (batch,) = take(evaluation_input(data["array"], COUNT, SIZE, resize_method=method))
    expected = [center_crop_and_resize(image, (SIZE, SIZE), method=method) for image in IMAGES]
    np.testing.assert_allclose(batch["images"], expected, atol=1e-6)
    (bicubic,) = take(evaluation_input(data["array"], COUNT, SIZE))
    assert np.abs(batch["images"] - bicubic["images"]).max() > 0.01


def test_replicas_share_an_evaluation_batch(data, replicas):
    strategy = replicas(2)
    batches = evaluation_input(data["files"], 8, SIZE)
    distributed = strategy.experimental_distribute_dataset(batches)
    labels = [
        np.concatenate([p.numpy() for p in strategy.experimental_local_results(b["labels"])]) for b in distributed
    ]
    np.testing.assert_array_equal(np.concatenate(labels)[:COUNT], np.arange(COUNT))


# Corrupt images

# how each image is damaged
DAMAGE = {
    0: lambda path: path.write_bytes(path.read_bytes()[:-400]),
    3: lambda path: path.write_bytes(b""),
    5: lambda path: path.write_text("This is not an image.\n"),
    7: lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    11: lambda path: path.unlink(),
}


@pytest.fixture
def jpegs(tmp_path):
    for i in range(COUNT):
        Image.fromarray(sized(i)).save(tmp_path / f"{i:02}.jpg", quality=95)
    return photos(tmp_path, max_corrupt_share=0.4)


def damage(source, *indices):
    for i in indices:
        DAMAGE[i](pathlib.Path(source.paths[i]))
    return {source.paths[i] for i in indices}


def test_another_image_stands_in_for_a_corrupt_one(jpegs, caplog):
    sound = take(training(jpegs).batches(0, 4))  # more than an epoch
    bad = damage(jpegs, *DAMAGE)
    batches = take(training(jpegs).batches(0, 4))
    assert len(batches) == 4
    for ours, theirs in zip(batches, sound, strict=True):
        np.testing.assert_array_equal(ours["draws"], theirs["draws"])
        replaced = np.isin(theirs["labels"], list(DAMAGE))
        stand_ins = [{11: 1}.get(label, (label + 1) % COUNT) for label in theirs["labels"]]  # 0 is corrupt too
        np.testing.assert_array_equal(ours["labels"], np.where(replaced, stand_ins, theirs["labels"]))
        np.testing.assert_array_equal(ours["images"][~replaced], theirs["images"][~replaced])
        assert (ours["images"][replaced].std((1, 2, 3, 4)) > 10).all()  # a picture
    assert jpegs.corrupt == bad
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == len(bad)
    for path in bad:
        assert sum(message.startswith(f"corrupt image {path} (") for message in messages) == 1
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0\.4: 5 of 12 images"):
        jpegs.check_corrupt()


@pytest.mark.parametrize("chunk", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_the_size_of_a_chunk_changes_no_batch(jpegs, chunk, monkeypatch):
    damage(jpegs, 5, 11)
    expected = take(training(jpegs, batch_size=6).batches(0, 3)), take(evaluation_input(jpegs, BATCH, SIZE))
    monkeypatch.setattr(sources, "CHUNK", chunk)
    assert_equal(take(training(jpegs, batch_size=6).batches(0, 3)), expected[0])
    assert_equal(take(evaluation_input(jpegs, BATCH, SIZE)), expected[1])


def test_evaluation_leaves_corrupt_images_out(jpegs):
    bad = damage(jpegs, *DAMAGE)
    batches = take(evaluation_input(jpegs, 4, SIZE))
    weights = np.concatenate([batch["weights"] for batch in batches])
    np.testing.assert_array_equal(labels_of(batches)[weights > 0], [1, 2, 4, 6, 8, 9, 10])
    assert jpegs.corrupt == bad


def test_a_cached_corrupt_image_is_counted_too(jpegs):
    bad = damage(jpegs, 0, 5)
    (batch,) = take(evaluation_input(jpegs.cached(), COUNT, SIZE))
    np.testing.assert_array_equal(batch["labels"][batch["weights"] > 0], [1, 2, 3, 4, 6, 7, 8, 9, 10, 11])
    assert jpegs.corrupt == bad


def test_batches_stay_full_if_all_substitutes_are_corrupt(jpegs):
    run = range(2, 2 + SUBSTITUTES + 2)
    for i in run:
        pathlib.Path(jpegs.paths[i]).write_bytes(b"")
    batches = take(training(jpegs, augment_on_host=True).batches(0, 3))
    assert [len(batch["labels"]) for batch in batches] == [BATCH] * 3
    assert all(np.isfinite(batch["views"]).all() for batch in batches)
    assert jpegs.corrupt == {jpegs.paths[i] for i in run}


def test_an_unreadable_file_is_corrupt_cached_or_not(jpegs):
    (gone, unreadable), names = (pathlib.Path(path) for path in jpegs.paths[:2]), set(jpegs.paths[:2])
    gone.unlink()
    unreadable.unlink()
    gone.symlink_to("nowhere")
    unreadable.symlink_to("/proc/self/mem")  # not even root can read its beginning
    for source in (photos(gone.parent), photos(gone.parent).cached()):
        batches = take(evaluation_input(source, COUNT, SIZE))
        np.testing.assert_array_equal(batches[0]["weights"], [0, 0] + [1] * (COUNT - 2))
        assert source.corrupt == names


@pytest.fixture
def records(tmp_path):
    """``records(3)``: records in which the image with label 3 is cut off."""
    NumberedPhotos(data_dir=str(tmp_path)).download_and_prepare()
    (path,) = map(str, tmp_path.rglob("*.tfrecord*"))

    def damaged(*labels):
        examples = [tf.train.Example.FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()]
        with tf.io.TFRecordWriter(path) as writer:
            for example in examples:
                features = example.features.feature
                if features["label"].int64_list.value[0] in labels:
                    image = features["image"].bytes_list.value
                    image[0] = image[0][:-50]
                writer.write(example.SerializeToString())
        config = Config(dataset="numbered_photos", data_dir=str(tmp_path), max_corrupt_share=0.2)
        return open_source(config, "train")

    return damaged


def test_a_neighbour_stands_in_for_a_corrupt_record(records, caplog):
    sound = take(training(records()).batches(0, 4))
    source = records(3, 5)
    for ours, theirs in zip(take(training(source).batches(0, 4)), sound, strict=True):
        bad = np.isin(theirs["labels"], [3, 5])
        assert not np.isin(ours["labels"], [3, 5]).any() and np.isin(ours["labels"], theirs["labels"]).all()
        for name in ("labels", "images", "draws"):
            np.testing.assert_array_equal(ours[name][~bad], theirs[name][~bad])
    assert len(source.corrupt) == len(caplog.records) == 2
    source.check_corrupt()


def test_evaluation_leaves_corrupt_records_out(records):
    source = records(0, 4, 11)
    batches = take(evaluation_input(source, 4, SIZE))
    weights = np.concatenate([batch["weights"] for batch in batches])
    assert sorted(labels_of(batches)[weights > 0]) == [1, 2, 3, 5, 6, 7, 8, 9, 10]
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0\.2: 3 of 12 images of numbered_photos/train"):
        source.check_corrupt()


def test_an_evaluation_without_corrupt_records_can_be_indexed(records):
    source = records(0, 4, 11)
    (batch,) = take(evaluation_input(source, COUNT, SIZE))
    readable = batch["labels"][batch["weights"] > 0]
    subset = source.readable_subset(np.array([1, 5, 8]))
    assert [int(label) for _, label in subset.stream()] == readable[[1, 5, 8]].tolist()
    assert source.readable_subset(np.array([], int)).num_examples == 0


@pytest.mark.parametrize("module", [augment, datasets, input_module, sources])
def test_examples_of_the_docstrings_run(module):
    examples = doctest.testmod(module, extraglobs={"np": np, "ArraySource": ArraySource})
    assert examples.attempted and not examples.failed


def test_an_appended_draw_changes_no_other():
    seed = tf.constant([3, 7], tf.int64)
    crops, draws = uniform_draws([4, 2], seed)
    more_crops, more_draws = uniform_draws([4, 2], seed, NUM_DRAWS + 2)
    np.testing.assert_array_equal(more_crops, crops)
    np.testing.assert_array_equal(more_draws[..., :NUM_DRAWS], draws)
    appended = more_draws[..., NUM_DRAWS:].numpy()
    assert appended.shape == (4, 2, 2) and len(np.unique(appended)) == appended.size
    assert not np.isin(appended, np.concatenate([crops.numpy().ravel(), draws.numpy().ravel()])).any()
