"""Views equal those recorded from the official code if nothing is random; else they have the same distribution."""

import itertools
import json
import pathlib
import runpy
import types

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.data import augment, cropping
from simclrv2_tf.data.augment import DRAWS, NUM_DRAWS, ViewSettings
from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import ArraySource

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
values = types.SimpleNamespace(**runpy.run_path(str(GOLDEN / "values.py")))
recorded = np.load(GOLDEN / "augment.npz")
recorded_tf1 = np.load(GOLDEN / "augment_tf1.npz")
STATS = json.loads((GOLDEN / "augment_stats.json").read_text())


def assert_recorded(parity, case, archive, key, actual, atol):
    actual = np.asarray(actual)
    np.testing.assert_array_equal(actual.shape, archive[f"{key}/shape"])
    if f"{key}/full" in archive:
        parity(case, actual, archive[f"{key}/full"], atol, of="one")
    else:
        sample = archive[f"{key}/sample"]
        parity(case, actual.reshape(-1)[values.sample_idx(actual.size, sample.size)], sample, atol, of="one")
    moments = [actual.mean(dtype=np.float64), actual.std(dtype=np.float64)]
    parity(case, moments, [archive[f"{key}/mean"], archive[f"{key}/std"]], 1e-6, of="one")


def photos(count, size):
    return np.stack([values.photo(f"view{i}", size, size) for i in range(count)]).astype(np.float32) / 255


def draws_of(count, **fixed):
    """Returns the draws of ``count`` views: the named ones as given, the others such that a view does not change."""
    rows = np.full((count, NUM_DRAWS), 0.5, np.float32)
    for name in ("flip", "jitter", "grayscale", "blur"):
        rows[:, DRAWS.index(name)] = 1 - 2**-23
    for name, value in fixed.items():
        rows[:, DRAWS.index(name)] = value
    return rows


def uniforms(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


# Evaluation views


@pytest.mark.parametrize("method,archive", [("bicubic", recorded), ("tf1", recorded_tf1)])
def test_evaluation_views_are_the_recorded_ones(method, archive, parity):
    for (h, w), size in itertools.product(values.AUG_EVAL_SIZES, values.AUG_EVAL_TARGETS):
        image = values.photo(f"eval{h}x{w}", h, w)
        view = cropping.center_crop_and_resize(image, size, method=method)
        assert_recorded(
            parity, f"evaluation views, {method}", archive, f"eval/{h}x{w}_to_{size[0]}x{size[1]}", view, 1e-6
        )


def test_small_evaluation_images_are_not_cropped(parity):
    image = values.photo("eval32", 32, 32)
    view = cropping.center_crop_and_resize(image, (32, 32))
    assert_recorded(parity, "evaluation views, uncropped", recorded, "eval/32x32_nocrop", view, 1e-7)
    np.testing.assert_array_equal(view, image.astype(np.float32) * np.float32(1 / 255))
    smaller = cropping.center_crop_and_resize(image, (16, 16), method="bilinear")
    np.testing.assert_allclose(smaller, tf.image.resize(image / 255, (16, 16)), atol=1e-6)


def test_centre_crop_is_the_recorded_one():
    for h, w, *expected in recorded["eval_crop_table_square_target_h_w_ch_cw"]:
        *_, crop_h, crop_w = cropping._center_crop_box(tf.constant(h), tf.constant(w), 1.0, 0.875)
        assert [int(crop_h), int(crop_w)] == expected, (h, w)
    for (h, w), size in itertools.product(values.AUG_EVAL_SIZES, values.AUG_EVAL_TARGETS):
        box = cropping._center_crop_box(tf.constant(h), tf.constant(w), size[1] / size[0], 0.875)
        names = ("off_y", "off_x", "crop_h", "crop_w")
        expected = STATS[f"eval_crop/{h}x{w}_to_{size[0]}x{size[1]}"]
        assert dict(zip(names, map(int, box), strict=True)) == expected


def test_evaluation_view_of_an_image_of_unknown_size(parity):
    view = tf.function(
        lambda image: cropping.center_crop_and_resize(image, (64, 64)),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
    )
    for h, w in ((375, 500), (100, 80)):
        image = values.photo(f"eval{h}x{w}", h, w)
        assert_recorded(parity, "evaluation views, bicubic", recorded, f"eval/{h}x{w}_to_64x64", view(image), 1e-6)


# Crops


def test_crops_are_the_recorded_ones(parity):
    for (h, w), box, size in values.AUG_BOXES:
        image = values.photo(f"box{h}x{w}", h, w)
        crop = cropping.crop_and_resize(image[np.newaxis], np.array([[box]], np.int32), size)[0, 0]
        key = "cropresize/{}x{}_{}-{}-{}-{}_to_{}".format(h, w, *box, size)
        assert_recorded(parity, "crops, bicubic", recorded, key, crop, 1e-6)


@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [7, 32, 96])
def test_crops_are_those_of_tf_image_resize(method, size):
    images = np.stack([values.photo(f"crop{i}", 40, 56) for i in range(3)])
    boxes = np.array(
        [[[3, 5, 20, 30], [0, 0, 40, 56]], [[39, 55, 1, 1], [10, 0, 30, 2]], [[8, 9, 32, 32], [0, 50, 7, 6]]]
    )
    crops = cropping.crop_and_resize(images, boxes.astype(np.int32), size, method)
    assert crops.shape == (3, 2, size, size, 3) and crops.dtype == tf.float32
    for i, v in itertools.product(range(3), range(2)):
        y, x, h, w = boxes[i, v]
        crop = images[i, y : y + h, x : x + w].astype(np.float32) / 255
        np.testing.assert_allclose(crops[i, v], tf.image.resize(crop, (size, size), method), atol=1e-5)
    in_floats = cropping.crop_and_resize(images.astype(np.float32) / 255, boxes.astype(np.int32), size, method)
    np.testing.assert_allclose(in_floats, crops, atol=1e-6)


@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    areas=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    aspects=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    seed=st.integers(0, 2**16),
)
def test_boxes_lie_in_the_image_and_obey_the_ranges(height, width, areas, aspects, seed):
    ranges = ViewSettings(
        32, crop_area_min=areas[0], crop_area_max=areas[1], crop_aspect_min=aspects[0], crop_aspect_max=aspects[1]
    )
    rows = uniforms(64, cropping.CROP_DRAWS, seed=seed)
    rows[0], rows[1] = 0, 1 - 2**-24  # the ends of [0, 1)
    y, x, h, w = cropping.random_crop_boxes(rows, height, width, ranges).numpy().T
    assert (y >= 0).all() and (x >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (y + h <= height).all() and (x + w <= width).all()
    drawn = (h != height) | (w != width)
    h, w, area = h[drawn], w[drawn], (h * w / (height * width))[drawn]
    assert (area >= max(areas[0], cropping.MIN_COVERED) - 1e-6).all() and (area <= areas[1] + 1e-6).all()
    assert (w >= h * aspects[0] - 0.501).all() and (w <= h * aspects[1] + 0.501).all()


def assert_same_mean(parity, case, sample, mean, n, std=None):
    """Asserts that two samples, the other one of size n, have the same mean within five standard errors."""
    error = (sample.std() if std is None else std) * np.sqrt(1 / sample.size + 1 / n)
    parity(case, sample.mean(), mean, 5, of=error, unit="standard errors")


def assert_like_recorded(parity, case, sample, expected):
    """Asserts that mean and quantiles agree within five standard errors of two samples of this size."""
    assert_same_mean(parity, case, sample, expected["mean"], expected["n"], expected["std"])
    for quantile in (5, 25, 50, 75, 95):
        # Share below a recorded quantile. Its standard deviation is at most 1/2; ties turn it into an interval.
        edge, share = expected[f"q{quantile:02}"], quantile / 100
        nearest = np.clip(share, (sample < edge - 1e-6).mean(), (sample <= edge + 1e-6).mean())
        error = np.sqrt(1 / sample.size + 1 / expected["n"]) / 2
        parity(case, nearest, share, 5, of=error, unit="standard errors")


def assert_same_histogram(ours, theirs):
    """Compares the bins that are not almost empty by a chi-square test."""
    ours, theirs = np.array(ours), np.array(theirs)
    full = (ours + theirs) > 20
    chi_square = ((ours - theirs)[full] ** 2 / (ours + theirs)[full]).sum()
    assert chi_square < full.sum() + 5 * np.sqrt(2 * full.sum())


@pytest.mark.parametrize(
    "height,width,target",
    [(400, 350, (224, 224)), (224, 224, (224, 224)), (32, 32, (32, 32)), (333, 500, (224, 224)), (120, 600, (224, 224)),
     (300, 300, (96, 192))],
)  # fmt: skip
def test_boxes_are_distributed_as_recorded(height, width, target, parity):
    aspect = target[1] / target[0]
    ranges = ViewSettings(32, crop_aspect_min=3 / 4 * aspect, crop_aspect_max=4 / 3 * aspect)
    rows = uniforms(20000, cropping.CROP_DRAWS, seed=height * width)
    y, x, h, w = cropping.random_crop_boxes(rows, height, width, ranges).numpy().T.astype(float)
    sample = {
        "area": h * w / (height * width),
        "aspect_w_over_h": w / h,
        "log_aspect": np.log(w / h),
        "crop_h": h,
        "crop_w": w,
        "center_y": (y + h / 2) / height,
        "center_x": (x + w / 2) / width,
    }
    expected = STATS[f"random_crop/{height}x{width}_to_{target[0]}x{target[1]}"]
    for name, drawn in sample.items():
        assert_like_recorded(parity, f"random crops: {name}", drawn, expected[name])
    whole = (h == height) & (w == width)
    share = expected["frac_whole_image"]
    assert_same_mean(parity, "random crops: whole images", whole, share, 20000, np.sqrt(share * (1 - share)) + 1e-3)
    assert_same_histogram(np.histogram(sample["area"], 20, (0, 1))[0], expected["area_hist20"])


@pytest.mark.parametrize(
    "height,width,area_min", [(16, 16, 0.6), (100, 500, 0.08), (100, 500, 0.6), (7, 9, 0.2), (31, 64, 0.08)]
)
def test_boxes_are_distributed_as_those_of_the_sampler(height, width, area_min, parity):
    count = 10000
    ranges = ViewSettings(32, crop_area_min=area_min)

    def sampled(seed):
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            [height, width, 3], [[[0.0, 0.0, 1.0, 1.0]]], tf.stack([seed, 1]), min_object_covered=0.1,
            aspect_ratio_range=(3 / 4, 4 / 3), area_range=(area_min, 1.0), max_attempts=100,
            use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        return tf.concat([begin[:2], size[:2]], axis=0)

    theirs = tf.function(lambda: tf.map_fn(sampled, tf.range(count), fn_output_signature=tf.int32))().numpy()
    ours = cropping.random_crop_boxes(uniforms(count, cropping.CROP_DRAWS), height, width, ranges).numpy()
    for column in (*range(4), lambda box: box[:, 2] * box[:, 3]):
        a, b = (column(box) if callable(column) else box[:, column] for box in (ours, theirs))
        grid = np.arange(max(a.max(), b.max()) + 1)
        distance = np.abs(np.searchsorted(np.sort(a), grid, "right") - np.searchsorted(np.sort(b), grid, "right")).max()
        # Kolmogorov–Smirnov test, p = 0.001
        parity("random crops, TensorFlow's sampler", distance / count, 0, 1.95, of=np.sqrt(2 / count), unit="√(2/n)")


def test_each_image_has_its_own_size_and_boxes():
    rows = uniforms(3, 2, cropping.CROP_DRAWS)
    heights, widths = np.array([[40], [300], [31]]), np.array([[60], [200], [17]])
    together = cropping.random_crop_boxes(rows, heights, widths, ViewSettings(32))
    assert together.shape == (3, 2, 4) and together.dtype == tf.int32
    for i, v in itertools.product(range(3), range(2)):
        alone = cropping.random_crop_boxes(rows[i, v], int(heights[i, 0]), int(widths[i, 0]), ViewSettings(32))
        np.testing.assert_array_equal(alone, together[i, v])
    assert not np.array_equal(together[:, 0], together[:, 1])


# Colour and blur


def adjusted(image, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, sequence=(0, 1, 2, 3)):
    times = tuple(np.argsort(sequence))
    order = [tuple(row) for row in augment.ORDERS].index(times)
    factors = [tf.constant([value], tf.float32) for value in (brightness, contrast, saturation, hue)]
    return augment.adjust_colors(tf.constant(image[np.newaxis]), *factors, tf.constant([order]))[0].numpy()


def test_each_colour_operation_is_the_recorded_one(parity):
    image, checked = recorded["color/input"], 0
    for key in recorded.files:
        operation, _, value = key.removeprefix("color/").partition("_")
        if operation in ("brightness", "contrast", "saturation", "hue"):
            parity(operation, adjusted(image, **{operation: float(value)}), recorded[key], 1e-6, of="one")
            checked += 1
    assert checked == 20
    parity("grayscale", augment.to_grayscale(image), recorded["color/grayscale"], 1e-6, of="one")


@pytest.mark.parametrize("sequence", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_recorded_sequences_of_colour_operations(sequence, parity):
    expected = recorded["color/perm_{}{}{}{}_b1.3_c0.5_s1.7_h-0.13".format(*sequence)]
    actual = adjusted(recorded["color/input"], 1.3, 0.5, 1.7, -0.13, sequence)
    parity("four colour operations in four orders", actual, expected, 2e-6, of="one")


@pytest.mark.parametrize("factors", [(1.3, 0.5, 1.7, -0.13), (0.4, 1.6, 0.3, 0.2)])
def test_the_order_draw_picks_one_of_all_24_sequences(factors, parity):
    """All views share one image and one set of strengths; the reference is `tf.image` in every order."""
    image = recorded["color/input"][:20]

    def reference(sequence):
        brightness, contrast, saturation, hue = factors
        operations = (
            lambda x: x * brightness,
            lambda x: tf.image.adjust_contrast(x, contrast),
            lambda x: tf.image.adjust_saturation(x, saturation),
            lambda x: tf.image.adjust_hue(x, hue),
        )
        view = tf.constant(image)
        for operation in sequence:
            view = tf.clip_by_value(operations[operation](view), 0, 1)
        return view.numpy()

    draws = draws_of(240, jitter=0, order=(np.arange(240) + 0.5) / 240)
    for name, value, low, high in zip(
        ("brightness", "contrast", "saturation", "hue"),
        factors,
        (0.2, 0.2, 0.2, -0.2),
        (1.8, 1.8, 1.8, 0.2),
        strict=True,
    ):
        draws[:, DRAWS.index(name)] = (value - low) / (high - low)
    views = augment.augment_views(np.repeat(image[np.newaxis], 240, 0), draws, ViewSettings(20)).numpy()
    assert {tuple(times) for times in augment.ORDERS} == set(itertools.permutations(range(4)))
    references = np.stack([reference(np.argsort(times)) for times in augment.ORDERS])
    parity("four colour operations in all orders, tf.image", views, np.repeat(references, 10, 0), 3e-6, of="one")


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_draws_span_the_recorded_ranges(strength):
    """The ends of each draw give the ends of the recorded range of its parameter."""
    image = recorded["color/input"][:20]
    for name in ("brightness", "contrast", "saturation", "hue"):
        parameter = "hue_delta" if name == "hue" else f"{name}_factor"
        for u, value in zip((0, 1), STATS["color_random_ranges"][f"strength{strength}"][parameter], strict=True):
            draws = draws_of(1, jitter=0, **{name: u})
            view = augment.augment_views(image[np.newaxis], draws, ViewSettings(20, color_jitter_strength=strength))
            np.testing.assert_allclose(view[0], adjusted(image, **{name: value}), atol=2e-6)


def test_blur_is_the_recorded_one(parity):
    checked = 0
    for key in (key.removesuffix("/shape") for key in recorded.files if key.startswith("blur/") and "shape" in key):
        _, shape, kernel_size, sigma = key.split("/")
        if shape == "batch2x224":
            images = np.stack([values.photo(f"blur224_{i}", 224, 224) for i in range(2)])
        else:
            images = values.photo(f"blur{shape}", *map(int, shape.split("x")))[np.newaxis]
        blurred = augment.gaussian_blur(
            tf.constant(images.astype(np.float32) / 255), tf.fill([len(images)], float(sigma[1:])), int(kernel_size[1:])
        )
        assert_recorded(parity, "blur", recorded, key, blurred if len(images) > 1 else blurred[0], 1e-6)
        checked += 1
    assert checked == 43


def test_each_image_is_blurred_by_its_own_sigma():
    impulse = np.zeros((1, 9, 9, 1), np.float32)
    impulse[0, 4, 4] = 1
    blurred = augment.gaussian_blur(tf.constant(np.repeat(impulse, 3, 0)), tf.constant([0.3, 1.0, 2.0]), 6).numpy()
    np.testing.assert_allclose(blurred[1, :, :, 0], recorded["blur/impulse9_k6_s1"], atol=1e-7)
    sigmas = np.sqrt(-1 / (2 * np.log(blurred[:, 4, 5, 0] / blurred[:, 4, 4, 0])))
    np.testing.assert_allclose(sigmas, [0.3, 1.0, 2.0], rtol=1e-4)


@pytest.mark.parametrize("image_size,radius", [(16, 0), (32, 1), (64, 3), (224, 11)])
def test_the_width_of_the_blur_follows_the_image_size_and_its_sigma_is_uniform(image_size, radius):
    impulse = np.zeros((5, image_size, image_size, 3), np.float32)
    impulse[:, image_size // 2, image_size // 2] = 1
    draw = np.linspace(0, 1, 5)
    views = augment.augment_views(impulse, draws_of(5, blur=0, sigma=draw), ViewSettings(image_size)).numpy()
    assert np.count_nonzero(views[4, :, image_size // 2, 0]) == 2 * radius + 1
    if radius:
        centre, beside = views[1:, image_size // 2, image_size // 2 : image_size // 2 + 2, 0].T
        np.testing.assert_allclose(np.sqrt(-1 / (2 * np.log(beside / centre))), 0.1 + 1.9 * draw[1:], rtol=1e-4)


# Whole views


def test_each_operation_happens_with_its_probability_and_leaves_the_other_views_alone():
    image = photos(1, 32)
    grid = (np.arange(100) + 0.5) / 100
    strong = {"brightness": 0.9, "contrast": 0.2, "saturation": 0.9, "hue": 0.1, "sigma": 0.9}
    for name, probability in {"flip": 0.5, "jitter": 0.8, "grayscale": 0.2, "blur": 0.5}.items():
        draws = draws_of(100, **strong, **{name: grid})
        views = augment.augment_views(np.repeat(image, 100, 0), draws, ViewSettings(32)).numpy()
        changed = (views != image).any(axis=(1, 2, 3))
        np.testing.assert_array_equal(changed, grid < probability, err_msg=name)
    other = ViewSettings(32, jitter_probability=0.3, grayscale_probability=0.6, blur_probability=0.1)
    for name, probability in {"jitter": 0.3, "grayscale": 0.6, "blur": 0.1}.items():
        views = augment.augment_views(np.repeat(image, 100, 0), draws_of(100, **strong, **{name: grid}), other).numpy()
        np.testing.assert_array_equal((views != image).any(axis=(1, 2, 3)), grid < probability, err_msg=name)


def test_flip_mirrors_and_grayscale_has_one_channel():
    image = photos(1, 32)
    np.testing.assert_array_equal(
        augment.augment_views(image, draws_of(1, flip=0), ViewSettings(32)), image[:, :, ::-1]
    )
    gray = augment.augment_views(image, draws_of(1, grayscale=0), ViewSettings(32)).numpy()
    assert (gray == gray[..., :1]).all()


def test_crop_and_flip_has_neither_colour_nor_blur():
    images, draws = photos(8, 16), uniforms(8, NUM_DRAWS)
    views = augment.augment_views(images, draws, ViewSettings.crop_and_flip(16))
    flipped = (draws[:, DRAWS.index("flip")] < 0.5)[:, np.newaxis, np.newaxis, np.newaxis]
    np.testing.assert_array_equal(views, np.where(flipped, images[:, :, ::-1], images))
    unflipped = augment.augment_views(images, draws, ViewSettings.crop_and_flip(16, flip=False))
    np.testing.assert_array_equal(unflipped, images)


def test_views_lie_between_0_and_1_and_8_bit_images_are_scaled():
    images = photos(16, 32)
    draws = uniforms(16, NUM_DRAWS)
    for rows, kind in ((draws, ViewSettings(32)), (draws_of(16), ViewSettings.crop_and_flip(32))):
        overshot = augment.augment_views(images * 1.4 - 0.2, rows, kind).numpy()
        assert overshot.min() == 0 and overshot.max() <= 1 and overshot.dtype == np.float32
    format_bytes = augment.augment_views((images * 255).round().astype(np.uint8), draws, ViewSettings(32))
    np.testing.assert_allclose(format_bytes, augment.augment_views(images, draws, ViewSettings(32)), atol=2e-6)


def test_a_view_depends_on_its_own_draws_alone():
    images, draws, boxes = photos(12, 32), uniforms(12, NUM_DRAWS), uniforms(12, cropping.CROP_DRAWS)

    def views(chosen):
        cropped = cropping.crop_and_resize(
            images[chosen], cropping.random_crop_boxes(boxes[chosen, np.newaxis], 32, 32, ViewSettings(32)), 32
        )[:, 0]
        return augment.augment_views(cropped, draws[chosen], ViewSettings(32)).numpy()

    together = views(np.arange(12))
    shuffled = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(views(shuffled), together[shuffled])
    for i in range(12):
        np.testing.assert_array_equal(views(np.array([i]))[0], together[i])


def test_every_replica_computes_the_views_of_a_single_device(replicas):
    images, draws = photos(8, 32), uniforms(8, NUM_DRAWS)
    strategy = replicas(4)

    def rows(array):
        split = np.split(array, 4)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(split[context.replica_id_in_sync_group])
        )

    @tf.function
    def step(images, draws):
        return strategy.run(augment.augment_views, args=(images, draws, ViewSettings(32)))

    parts = strategy.experimental_local_results(step(rows(images), rows(draws)))
    np.testing.assert_allclose(
        np.concatenate(parts), augment.augment_views(images, draws, ViewSettings(32)), rtol=0, atol=1e-6
    )


def test_xla_makes_the_same_views():
    images, draws = photos(16, 40), uniforms(16, 2, NUM_DRAWS)
    crop_draws = uniforms(16, 2, cropping.CROP_DRAWS)

    def views(images, crop_draws, draws):
        boxes = cropping.random_crop_boxes(crop_draws, 40, 40, ViewSettings(32))
        crops = cropping.crop_and_resize(images, boxes, 32)
        flat = tf.reshape(crops, [-1, 32, 32, 3])
        return boxes, crops, augment.augment_views(flat, tf.reshape(draws, [-1, NUM_DRAWS]), ViewSettings(32))

    compiled = tf.function(views, jit_compile=True)
    for ours, expected in zip(compiled(images, crop_draws, draws), views(images, crop_draws, draws), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


# Random operations, with the draws of the training input


def drawn(count, step=0):
    """Returns the draws of a step: crops ``[count, CROP_DRAWS]`` and the rest ``[count, NUM_DRAWS]``."""
    source = ArraySource("none", np.zeros((count, 1, 1, 3), np.uint8), None, ())
    stream = TrainingInput(source, count // 2, num_views=2, settings=ViewSettings(1), seed=0)
    return (np.concatenate(numbers) for numbers in stream.sampler.draws(tf.constant(step, tf.int64)))


def augmented(image, count, **changes):
    """Returns views of one image ``[h, w, 3]`` with the draws of the training input."""
    _, draws = drawn(count)
    kind = ViewSettings(image.shape[0], **changes)
    step = tf.function(lambda rows: augment.augment_views(tf.repeat(image[tf.newaxis], len(rows), 0), rows, kind))
    return np.concatenate([step(rows) for rows in np.split(draws, 10)])


def test_half_of_the_views_are_flipped(parity):
    image = photos(1, 16)[0]
    flipped = (augmented(image, 10000, color_jitter_strength=0, blur_probability=0) == image[:, ::-1]).all((1, 2, 3))
    assert_same_mean(parity, "flips", flipped, 0.5, np.inf, 0.5)


def test_colours_change_as_often_as_recorded(parity):
    image, expected = recorded["color/input"], STATS["color_jitter_stats"]
    views = augmented(image, 10000, flip=False, blur_probability=0)
    gray = (np.ptp(views, axis=-1) < 1e-6).all((1, 2))
    only_grayed = np.abs(views - augment.to_grayscale(image)).max((1, 2, 3)) < 1e-6
    unchanged = np.abs(views - image).max((1, 2, 3)) < 1e-6
    for name, happened in (("gray", gray), ("only_grayed", only_grayed), ("unchanged", unchanged)):
        share, n = expected["expected"][f"frac_{name}"], expected["n"]
        assert_same_mean(
            parity, f"colour: share {name}", happened, expected[f"frac_{name}"], n, (share * (1 - share)) ** 0.5
        )


def test_brightness_is_drawn_as_recorded(parity):
    """Uses a dark gray image, which contrast, saturation and hue do not change."""
    views = augmented(np.full((4, 4, 3), 0.01, np.float32), 10000, jitter_probability=1, blur_probability=0)
    assert_like_recorded(parity, "colour: brightness", views[:, 0, 0, 0] / 0.01, STATS["brightness_factor_strength1"])


def test_blur_is_drawn_as_recorded(parity):
    """An impulse shows frequency and sigma; each view has its own sigma; a batch of the official code shares one."""
    image, expected = np.zeros((64, 64, 3), np.float32), STATS["blur_stats_64px_kernel6"]
    image[32, 32] = 1
    centre, beside = augmented(image, 5000, flip=False, color_jitter_strength=0)[:, 32, 32:34, 0].T
    visible = centre < 1 - 1e-4
    sigma = np.sqrt(-1 / (2 * np.log(beside[visible] / centre[visible])))
    assert_same_mean(parity, "blur: share visible", visible, expected["fraction_visibly_blurred"], 3000, 0.5)
    assert_like_recorded(parity, "blur: sigma", sigma, expected["sigma_recovered"])
    neighbours = np.corrcoef(sigma[:-1], sigma[1:])[0, 1]
    assert abs(neighbours) < 5 / np.sqrt(sigma.size)


@pytest.mark.parametrize(
    "key,shape,size,strength,rounds",
    [
        ("pipeline/400x350_to_64_strength1", (400, 350), 64, 1.0, 2),
        pytest.param("pipeline/400x350_to_64_strength0", (400, 350), 64, 0.0, 2, marks=pytest.mark.slow),
        ("pipeline/32x32_to_32_strength0.5", (32, 32), 32, 0.5, 10),
    ],
)
def test_whole_views_are_distributed_as_recorded(key, shape, size, strength, rounds, parity):
    ranges = ViewSettings(size, color_jitter_strength=strength, blur_probability=0)
    image = values.photo("pipe{}x{}".format(*shape), *shape)[np.newaxis]

    @tf.function
    def views(crop_draws, draws):
        boxes = cropping.random_crop_boxes(crop_draws, *shape, ranges)
        return augment.augment_views(cropping.crop_and_resize(image, boxes[tf.newaxis], size)[0], draws, ranges)

    made = np.concatenate([views(*drawn(400, step)) for step in range(rounds)])
    expected, case = STATS[key], f"whole views, {key.partition('/')[2]}"
    n = expected["n"]
    assert_like_recorded(parity, case, made.mean((1, 2, 3)), expected["image_mean"])
    assert_like_recorded(parity, case, made.std((1, 2, 3)), expected["image_std"])
    for channel, mean in enumerate(expected["channel_mean"]):
        assert_same_mean(parity, case, made[..., channel].mean((1, 2)), mean, n)
    for value in (0, 1):
        assert_same_mean(parity, case, (made == value).mean((1, 2, 3)), expected[f"frac_pixels_{value}"], n)
    gray = (np.ptp(made, axis=-1) < 1e-6).all((1, 2))
    assert_same_mean(parity, case, gray, expected["frac_gray"], n, np.sqrt(0.2 * 0.8))


@pytest.mark.parametrize(
    "wrong,names",
    [
        ({"resize_method": "area"}, "resize_method"),
        ({"crop_area_min": 0.5, "crop_area_max": 0.2}, "crop areas"),
        ({"crop_aspect_min": 0.0}, "crop aspects"),
        ({"color_jitter_strength": -1.0}, "color_jitter_strength"),
        ({"blur_probability": 1.5}, "blur_probability"),
    ],
)
def test_invalid_settings_are_refused(wrong, names):
    with pytest.raises(ValueError, match=names):
        ViewSettings(32, **wrong)
