"""The batch size is capped to the labelled images, in multiples of the replicas; the recipe depends on the images."""

import numpy as np
import pytest
from PIL import Image

from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import cap_batch_size, resolve_config


@pytest.fixture
def config(tmp_path):
    """Settings of supervised training on seven images of seven classes."""
    images = np.zeros([14, 8, 8, 3], np.uint8)
    np.savez(tmp_path / "seven.npz", x_train=images, y_train=np.arange(14) % 7)
    flags = {"mode": "supervised", "dataset": f"npz:{tmp_path / 'seven.npz'}", "labels_per_class": 1}
    return resolve_config(flags | {"train_batch_size": 512})


@pytest.mark.parametrize(("count", "batch_size"), [(1, 7), (2, 6), (4, 4)])
def test_the_batch_is_a_multiple_of_the_replicas(count, batch_size, config, replicas):
    assert cap_batch_size(config, replicas(count)).train_batch_size == batch_size


def test_a_small_batch_is_not_changed(config, replicas):
    assert cap_batch_size(config.replace(train_batch_size=2), replicas(2)).train_batch_size == 2


def test_other_modes_keep_their_batch(config, replicas):
    config = config.replace(mode="pretrain", labels_per_class=0)
    assert cap_batch_size(config, replicas(2)) is config


def test_fewer_images_than_replicas_are_refused(tmp_path, replicas):
    images = np.zeros([6, 8, 8, 3], np.uint8)
    np.savez(tmp_path / "three.npz", x_train=images, y_train=np.arange(6) % 3)
    flags = {"mode": "supervised", "dataset": f"npz:{tmp_path / 'three.npz'}", "labels_per_class": 1}
    with pytest.raises(SettingError, match=r"^--labels_per_class=1: 3 images for 4 replicas"):
        cap_batch_size(resolve_config(flags), replicas(4))


def test_the_recipe_reads_the_images_with_their_bits(tmp_path, caplog):
    for i in range(3):
        Image.fromarray(np.full((9, 9), 4095, np.uint16)).save(tmp_path / f"{i}.png")
    flags = {"mode": "pretrain", "dataset": f"folder:{tmp_path}"}
    resolve_config(flags | {"image_bits": 12})
    assert not caplog.text
    resolve_config(flags)
    assert "--image_bits=12 uses the whole range" in caplog.text
