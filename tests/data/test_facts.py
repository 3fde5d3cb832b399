"""Facts about data sets: arrays, files and records."""

import numpy as np
from PIL import Image

from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.facts import data_facts
from simclrv2_tf.data.sources import ArraySource
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.recipes import DataFacts


def test_arrays():
    images = np.zeros([7, 12, 9, 3], np.uint8)
    source = ArraySource("x/train", images, np.array([0, 0, 0, 1, 1, -1, -1]), ("a", "b"))
    assert data_facts(source, True) == DataFacts(7, 2, 2, 9, True, True)
    images[6, 5, 5] = [200, 0, 0]
    assert data_facts(ArraySource("x/train", images, None, ()), False) == DataFacts(7, 0, 0, 9, False, False)


def test_a_class_without_images_has_zero():
    source = ArraySource("x/train", np.zeros([3, 8, 8, 3], np.uint8), np.array([0, 0, 2]), ("a", "b", "c"))
    assert data_facts(source, False).images_per_class == 0


def test_files_of_several_sizes_with_a_corrupt_one(tmp_path):
    rng = np.random.default_rng(0)
    for folder, side in (("cat", 20), ("dog", 60)):
        (tmp_path / folder).mkdir()
        for i in range(5):
            pixels = rng.integers(0, 256, (side, side + 10, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "dog" / "9.png").write_bytes(b"broken")
    source = open_source(Config(dataset=f"folder:{tmp_path}"), "all")
    assert data_facts(source, False) == DataFacts(11, 2, 5, 40, False, False)


def test_gray_jpegs_are_gray(tmp_path):
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (30, 30), np.uint8)
        Image.fromarray(pixels).convert("RGB").save(tmp_path / f"{i}.jpg", quality=60)
    facts = data_facts(open_source(Config(dataset=f"folder:{tmp_path}"), "all"), False)
    assert facts.is_gray and facts.is_drawing and (facts.num_classes, facts.images_per_class) == (0, 0)
