"""The recipe ``own_images``: settings that fit any number and size of images."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import STAGES
from simclrv2_tf.settings.merge import resolve, resolve_stages
from simclrv2_tf.settings.recipes import DataFacts, describe_recipe, needs_facts
from simclrv2_tf.settings.recipes.own_images import build_recipe

PHOTOS = DataFacts(1200, 8, 120, 350, False, False)
DIGITS = DataFacts(1297, 10, 120, 8, True, False)


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


FACTS = st.builds(
    DataFacts,
    num_images=st.integers(2, 2_000_000),
    num_classes=st.integers(0, 1000),
    images_per_class=st.integers(0, 2000),
    side=st.integers(1, 5000),
    is_gray=st.booleans(),
    has_accelerator=st.booleans(),
)


@given(FACTS, st.sampled_from(STAGES), st.sampled_from([0, 1, 5, 100]))
def test_every_data_set_gets_valid_settings(data, mode, labels):
    flags = {"dataset": "folder:x", "checkpoint": "run", "teacher": "run", "labels_per_class": labels}
    config = resolve(flags, mode, data=data)
    for name, value in build_recipe(data).common.items():
        assert type(value) is type(getattr(Config(), name))
    if mode in ("pretrain", "distill"):
        assert 2 <= config.train_batch_size <= data.num_images
        assert config.warmup_epochs < config.train_epochs and config.checkpoint_epochs <= config.train_epochs
    if mode in ("supervised", "finetune"):
        assert 200 <= config.train_steps <= 2000 and config.checkpoint_steps <= config.train_steps


@pytest.mark.parametrize(
    "data, expected",
    [
        (DIGITS, {"image_size": 16, "width_multiplier": 0.25, "use_flip": False, "train_epochs": 300}),
        (DIGITS, {"checkpoint_epochs": 30, "warmup_epochs": 10.0, "crop_area_min": 0.4, "use_blur": False}),
        (PHOTOS, {"image_size": 64, "width_multiplier": 0.5, "use_flip": True, "train_epochs": 187}),
        (PHOTOS, {"checkpoint_epochs": 18, "warmup_epochs": 10.0, "crop_area_min": 0.2, "use_blur": True}),
        (
            dataclasses.replace(PHOTOS, num_images=60_000, side=28),
            {"image_size": 32, "train_epochs": 10, "checkpoint_epochs": 1, "warmup_epochs": 1.0},
        ),
        (dataclasses.replace(PHOTOS, has_accelerator=True), {"image_size": 224, "resnet_depth": 18}),
        (
            dataclasses.replace(PHOTOS, num_images=50_000, has_accelerator=True),
            {"image_size": 224, "resnet_depth": 50, "train_epochs": 100, "train_batch_size": 256},
        ),
        (dataclasses.replace(PHOTOS, side=100, has_accelerator=True), {"image_size": 128, "train_epochs": 1000}),
        (dataclasses.replace(PHOTOS, num_images=169), {"train_batch_size": 64, "train_epochs": 300}),
        (dataclasses.replace(PHOTOS, num_images=3), {"train_batch_size": 2}),
    ],
)
def test_size_network_and_epochs_follow_from_the_data_and_the_device(data, expected):
    config = resolve({"dataset": "folder:x"}, data=data)
    assert {name: getattr(config, name) for name in expected} == expected


def test_flags_override_the_recipe_and_its_rules_see_them():
    larger = resolve({"dataset": "folder:x", "image_size": 128}, data=PHOTOS)
    assert larger.image_size == 128 and larger.train_epochs == 187 // 4  # four times the work per image
    assert resolve({"dataset": "folder:x", "train_epochs": 7}, data=PHOTOS).train_epochs == 7


@pytest.mark.parametrize(
    "mode, labels, expected",
    [
        ("linear_eval", 0, {"train_steps": 100, "checkpoint_steps": 100, "train_batch_size": 256}),
        ("supervised", 10, {"train_steps": 200, "checkpoint_steps": 50, "train_batch_size": 50, "learning_rate": 0.04}),
        ("supervised", 0, {"train_steps": 200, "checkpoint_steps": 50, "learning_rate": 0.013}),
        ("finetune", 100, {"train_steps": 200, "train_batch_size": 128, "learning_rate": 0.0126}),
        ("finetune", 50, {"train_batch_size": 50, "learning_rate": 0.003, "crop_area_min": 0.7}),
        ("distill", 0, {"train_epochs": 37, "checkpoint_epochs": 9, "temperature": 1.0}),
    ],
)
def test_lengths_and_rates_of_the_other_stages(mode, labels, expected):
    flags = {"dataset": "folder:x", "checkpoint": "run", "teacher": "run", "labels_per_class": labels}
    config = resolve(flags, mode, data=PHOTOS)
    assert {name: getattr(config, name) for name in expected} == expected


def test_few_labels_are_read_from_the_first_layer_of_the_head():
    def finetune(**labels):
        return resolve({"dataset": "folder:x", "checkpoint": "run"} | labels, "finetune", data=PHOTOS)

    assert [finetune(labels_per_class=n).ft_proj_selector for n in (1, 59, 60)] == [1, 1, 0]
    assert finetune().ft_proj_selector == 0 and finetune(label_fraction=0.1).ft_proj_selector == 1


@pytest.mark.parametrize("images_per_class, rows", [(9, ("all",)), (10, (5,)), (40, (5, 20)), (1000, (5, 20))])
def test_numbers_of_labels_are_chosen_from_what_is_there(images_per_class, rows):
    data = dataclasses.replace(PHOTOS, images_per_class=images_per_class)
    assert resolve_stages({"dataset": "folder:x"}, data).rows == rows


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({"dataset": "folder:x"}, True),
        ({"dataset": "npz:x"}, True),
        ({"dataset": "beans"}, True),
        ({"dataset": "digits"}, False),
        ({"dataset": "imagenet2012"}, False),
        ({}, False),
        ({"dataset": "folder:x", "recipe": "official"}, False),
        ({"dataset": "folder:x", "recipe": "none"}, False),
        ({"dataset": "folder:x", "recipe": "digits"}, False),
        ({"dataset": "digits", "recipe": "own_images"}, True),
    ],
)
def test_it_is_the_recipe_of_data_sets_without_one(flags, expected):
    assert needs_facts(flags) == expected
    config = Config(**flags)
    assert describe_recipe(config).startswith("own_images (") == expected
