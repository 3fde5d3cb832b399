"""Evaluation settings: the views, the images used, and the output of ``evaluate`` and ``embed``."""

import json

import keras
import numpy as np
import pytest
import saved_runs
import tiny

from simclrv2_tf import modes
from simclrv2_tf.data.input import TrainingInput, evaluation_input
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import Network, ProjectionHead
from simclrv2_tf.modes import measure
from simclrv2_tf.modes.quality import FeatureQuality
from simclrv2_tf.settings.config import Config

NAMES = ("crow", "robin", "wren")


@pytest.fixture
def pixels():
    """A model whose features are the pixels of the view, ``[n, 8 * 8 * 3]``."""
    encoder = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    network = Network(encoder, ProjectionHead("none"), num_classes=3)
    network.build((None, 8, 8, 3))
    return ClassificationModel(network, tiny.VIEWS)


def edges(count, columns, dark=51, bright=204):
    """Returns ``count`` images of 16 px, dark on the left and bright from a column on; the columns are repeated."""
    images = np.full([count, 16, 16, 3], dark, np.uint8)
    for i in range(count):
        images[i, :, columns[i % len(columns)] :] = bright
    return ArraySource("edges/test", images, np.arange(count, dtype=np.int32) % 3, NAMES)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        # The pixel at column 3 of 8 is between the columns 6 and 7 of 16. Bicubic weights: -1/16, 9/16, 9/16, -1/16.
        ("bicubic", [0.2 - 0.6 / 16, 0.5]),
        ("bilinear", [0.2, 0.5]),
        ("tf1", [0.2, 0.2]),  # without half-pixel centres it is column 6 itself
    ],
)
def test_images_are_resized_as_the_settings_say(method, expected, pixels):
    config = Config(image_size=8, eval_resize=method, eval_batch_size=2)
    features, labels = measure.compute_features(pixels, config, edges(2, (8, 7)))
    np.testing.assert_allclose(features.reshape(2, 8, 8, 3)[:, 4, 3, 0], expected, atol=0.003)
    assert labels.tolist() == [0, 1]
    held_out = TrainingInput(edges(4, (8,)), 2, 2, tiny.VIEWS, seed=0)
    quality = FeatureQuality(SimCLR(tiny.network(classes=0), tiny.VIEWS), config, held_out, edges(4, (8, 7)))
    images = next(iter(quality.images))["images"]  # in batches of eval_batch_size
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_allclose(images[:, 4, 3, 0], expected, atol=0.003)


@pytest.mark.parametrize(
    ("batch_size", "steps", "count"), [(3, 0, 10), (3, 2, 6), (4, 1, 4), (4, 3, 10), (4, 9, 10), (256, 1, 10)]
)
def test_logits_of_some_steps(batch_size, steps, count, pixels):
    config = Config(image_size=8, eval_batch_size=batch_size, eval_steps=steps)
    logits, labels = measure.compute_logits(pixels, config, edges(10, (8,)))
    assert logits.shape == (count, 3) and labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0][:count]
    assert len(measure.compute_features(pixels, config, edges(10, (8,)))[1]) == 10  # of all images
    batches = list(evaluation_input(edges(10, (8,)), batch_size, 8, steps))
    assert len(batches) == -(-count // batch_size)  # none of padding alone


@pytest.mark.parametrize(("batch_size", "count"), [(2, 6), (3, 6), (4, 8), (256, 10)])
def test_knn_compares_with_whole_batches_of_the_first_images(batch_size, count, pixels, monkeypatch):
    monkeypatch.setattr(measure, "KNN_IMAGES", 5)
    config = Config(image_size=8, eval_batch_size=batch_size)
    features, labels = measure.knn_features(pixels, config, edges(10, (8,)))
    assert len(features) == len(labels) == count


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, and folders of images: those of the run; with a damaged one, a file of 1.5 MB, a split of one class."""
    place = tmp_path_factory.mktemp("settings")
    saved_runs.save_run(place / "run", NAMES, dataset=f"folder:{place}/own", encoder="plugins:small_encoder")
    for folder in ("own", "odd"):
        for split, count in (("train", 4), ("val", 3)):
            saved_runs.save_images(place / folder / split, [f"{n}/{i}.png" for n in NAMES for i in range(count)])
    saved_runs.save_images(place / "odd/test", ["wren/1.png", "wren/2.png"])
    (place / "odd/val/wren/2.png").write_bytes(b"not an image")
    with (place / "odd/train/wren/2.png").open("ab") as file:
        file.write(bytes(1_500_000))
    return place


@pytest.fixture
def look(place):
    """Returns a function that runs a mode on the run."""

    def look_at_run(mode, **settings):
        flags = {"checkpoint": f"{place}/run", "model_dir": f"{place}/out", "trust_run_code": True}
        data = {"dataset": f"folder:{place}/odd"} if settings else {}
        return modes.run({"mode": mode} | flags | data | settings)

    return look_at_run


@pytest.mark.parametrize(
    ("settings", "folder", "split", "count"),
    [({}, "own", "validation", 9), ({"train_split": "test", "eval_split": "train"}, "odd", "train", 12)],
)
def test_evaluate(settings, folder, split, count, place, look):
    look("evaluate", **settings)
    result = json.loads((place / "out/evaluation.json").read_text())
    assert (result["dataset"], result["split"], result["eval_images"]) == (f"folder:{place}/{folder}", split, count)
    assert (result["knn_top1"] == pytest.approx(1 / 3)) == (folder == "odd")  # all are compared to wrens


@pytest.mark.parametrize(
    ("mode", "settings", "path"),
    [
        ("evaluate", {"eval_split": "val"}, "val/wren/2.png"),
        ("evaluate", {"eval_split": "train", "max_file_mb": 1}, "train/wren/2.png"),
        ("embed", {"train_split": "val"}, "val/wren/2.png"),
        ("embed", {"max_file_mb": 1}, "train/wren/2.png"),
    ],
)
def test_more_corrupt_images_than_the_settings_allow(mode, settings, path, look):
    with pytest.raises(SettingError, match=rf"^--max_corrupt_share=0.05: 1 of (9|12) images of .*/{path}$"):
        look(mode, **settings)


def test_embed(place, look):
    look("embed", train_split="val", eval_split="test", max_corrupt_share=0.2)
    with np.load(place / "out/embeddings.npz") as arrays:
        names = {name: len(arrays[name]) for name in arrays.files if name.startswith("x_")}
    assert names == {"x_validation": 8, "x_test": 2}


@pytest.mark.parametrize("mode", ["pretrain", "distill", "embed", "evaluate"])
def test_a_split_that_does_not_exist(mode, tmp_path):
    """Some modes work without an evaluation split, unless it is requested explicitly."""
    np.savez(tmp_path / "x.npz", x_train=np.zeros([3, 8, 8, 3], np.uint8), y_train=np.arange(3))
    config = Config(mode=mode, dataset=f"npz:{tmp_path}/x.npz", checkpoint="run", teacher="run")
    if mode == "evaluate":
        with pytest.raises(SettingError, match=r"^--eval_split=validation: .* has only train"):
            measure.evaluation_source(config)
    else:
        assert measure.evaluation_source(config) is None
    with pytest.raises(SettingError, match=r"^--eval_split=val: .* has only train"):
        measure.evaluation_source(config.replace(eval_split="val"))
