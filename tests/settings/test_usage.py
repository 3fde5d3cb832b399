"""A setting that a mode does not read changes no setting that the mode reads."""

import dataclasses

import pytest

from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.fields import LOOKS, MODES, STAGES
from simclrv2_tf.settings.merge import resolve, resolve_stages
from simclrv2_tf.settings.recipes import RECIPES
from simclrv2_tf.settings.usage import unread_settings

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NEEDED = {"distill": {"teacher": "run"}, "predict": {"checkpoint": "run", "images": "photos"}}
NEEDED |= {mode: {"checkpoint": "run"} for mode in ("linear_eval", "finetune", *LOOKS) if mode not in NEEDED}
OTHER_VALUES = {"stage": ("finetune.seed=9",), "seeds": "0,1", "label_fraction": 0.01, "image_bits": 12}


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


def other_value(name):
    """Returns a value of a setting that is not its default."""
    default, choices = FIELDS[name].default, FIELDS[name].metadata["choices"]
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if choices:
        return next(choice for choice in choices if choice not in (default, "auto"))
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return "other"
    return default + 1 if isinstance(default, int) else default / 2


def resolved(mode, flags):
    """Returns the settings of a mode, or of each stage of a semi-supervised run."""
    if mode == "semi_supervised":
        return {name: vars(stage) for name, stage in resolve_stages(flags).stages.items()}
    has_parent = mode in NEEDED
    return {mode: vars(resolve({"mode": mode} | flags, parent=Config(dataset="digits") if has_parent else None))}


@pytest.mark.parametrize("recipe", ["none", *RECIPES])
@pytest.mark.parametrize("mode", [*STAGES, *LOOKS, "semi_supervised"])
def test_a_setting_that_is_not_read_changes_no_other(mode, recipe):
    flags = {"recipe": recipe} | NEEDED.get(mode, {})
    expected, unread = resolved(mode, flags), unread_settings(mode, FIELDS)
    assert "compare" in unread
    for name in unread:
        for place, settings in resolved(mode, flags | {name: other_value(name)}).items():
            changed = {other for other, value in settings.items() if value != expected[place][other]}
            assert changed <= {name}, place


def test_every_setting_is_read_by_a_mode():
    assert set.intersection(*(set(unread_settings(mode, FIELDS)) for mode in MODES)) == set()
