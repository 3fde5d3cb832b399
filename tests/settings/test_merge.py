"""What wins over what: defaults, recipe, the stage's part of it, the parent run, what the user said, --stage."""

import pytest

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import NETWORK_SETTINGS, Config
from simclrv2_tf.settings.merge import SAME_IMAGES, resolve
from simclrv2_tf.settings.recipes import RECIPES, Recipe

DEFAULT = Config()


@pytest.fixture(autouse=True)
def fresh_keras():
    """Nothing here is Keras's."""


@pytest.fixture
def recipe(monkeypatch):
    """A recipe named as the data set ``dice``."""
    made = Recipe(
        summary="Throws.",
        common={"image_size": 16, "resnet_depth": 18, "temperature": 0.5},
        stages={"pretrain": {"temperature": 0.25, "train_epochs": 3}, "finetune": {"train_epochs": 2}},
        large={"finetune": {"learning_rate": 0.5}},
        self_distill={"temperature": 2.0},
    )
    monkeypatch.setitem(RECIPES, "dice", made)
    return made


def test_flags_win_over_the_stage_over_the_recipe_over_the_defaults(recipe):
    dice = {"dataset": "dice"}
    found = resolve(dice)
    assert (found.mode, found.image_size, found.temperature, found.train_epochs) == ("pretrain", 16, 0.25, 3)
    assert found.learning_rate == DEFAULT.learning_rate
    finetuning = resolve(dice | {"mode": "finetune"})
    assert (finetuning.temperature, finetuning.train_epochs) == (0.5, 2)
    assert resolve(dice | {"mode": "semi_supervised"}, "finetune") == finetuning
    said = resolve(dice | {"temperature": 0.75, "image_size": 24})
    assert (said.temperature, said.image_size, said.resnet_depth) == (0.75, 24, 18)


def test_recipes_are_found_by_name(recipe):
    assert resolve({"dataset": "dice", "recipe": "none"}) == Config(dataset="dice", recipe="none")
    assert resolve({"dataset": "npz:x", "recipe": "dice"}).temperature == 0.25
    assert resolve({"dataset": "npz:x"}) == Config(dataset="npz:x")  # none of that name
    with pytest.raises(SettingError, match=r"^--recipe=nosuch: must be auto, none or one of .*dice"):
        resolve({"recipe": "nosuch"})


def test_settings_of_one_stage(recipe):
    said = {"dataset": "dice", "train_epochs": 9, "stage": ("finetune.train_epochs=5", "pretrain.use_blur=false")}
    assert resolve(said, "finetune").train_epochs == 5
    assert resolve(said, "pretrain").train_epochs == 9
    assert [resolve(said, stage).use_blur for stage in ("pretrain", "finetune")] == [False, True]


@pytest.mark.parametrize(
    "override, message",
    [
        ("finetune", "--stage=finetune: must look like finetune.learning_rate=0.1"),
        ("finetune.learning_rate", "must look like"),
        ("finetune.learning_rate=", "must look like"),
        ("evaluate.learning_rate=1", "must look like"),
        ("finetune.nosuch=1", "nosuch: there is no such setting"),
        ("finetune.learning_rate=fast", "--learning_rate=fast: not a value of type float"),
        ("finetune.temperature=-1", "--temperature=-1.0: must be above 0"),
    ],
)
def test_settings_of_a_stage_that_are_refused(override, message):
    with pytest.raises(SettingError) as caught:
        resolve({"stage": (override,)}, "finetune")
    assert message in str(caught.value)


def test_a_name_that_is_no_settings_is_refused():
    """As a library's user may misspell one; the command line does not let it come this far."""
    with pytest.raises(SettingError, match=r"^learning_rat: there is no such setting"):
        resolve({"learning_rat": 0.1})


PARENT = Config(
    dataset="npz:x",
    image_size=48,
    eval_resize="tf1",
    resnet_depth=101,
    proj_out_dim=64,
    sk_ratio=0.0625,
    temperature=0.3,
)


def test_a_run_takes_network_and_images_from_its_parent():
    found = resolve({"checkpoint": "run"}, "finetune", PARENT)
    same = [name for name in NETWORK_SETTINGS if name != "stem"] + ["dataset", "image_size", "eval_resize"]
    assert {name: getattr(found, name) for name in same} == {name: getattr(PARENT, name) for name in same}
    assert found.stem_kind == PARENT.stem_kind and found.temperature == DEFAULT.temperature
    other_images = resolve({"checkpoint": "run", "dataset": "digits", "recipe": "none"}, "finetune", PARENT)
    assert other_images.dataset == "digits" and other_images.resnet_depth == 101
    smaller = resolve({"checkpoint": "run", "image_size": 24}, "finetune", PARENT)
    assert smaller.stem_kind == "imagenet"  # the weights are the parent's, whatever the size of the images


@pytest.mark.parametrize("name, value", [("resnet_depth", 50), ("proj_out_dim", 128), ("sk_ratio", 0.0)])
def test_another_network_than_the_parents_is_refused(name, value):
    with pytest.raises(SettingError, match=rf"^--{name}={value}: the checkpoint's network has "):
        resolve({"checkpoint": "run", name: value}, "finetune", PARENT)
    assert resolve({"checkpoint": "run", name: getattr(PARENT, name)}, "finetune", PARENT)


def test_a_student_chooses_its_own_network():
    student = resolve({"teacher": "run", "resnet_depth": 18, "sk_ratio": 0.0}, "distill", PARENT)
    assert student.resnet_depth == 18 and student.dataset == PARENT.dataset and student.image_size == 48


def test_to_look_at_a_run_takes_all_of_its_settings():
    found = resolve({"checkpoint": "run", "mode": "evaluate", "eval_batch_size": 7}, parent=PARENT)
    own = {"mode": "evaluate", "checkpoint": "run", "eval_batch_size": 7, "stem": PARENT.stem_kind}
    assert found == PARENT.replace(**own)


def test_a_recipe_that_is_named_wins_over_the_parent_but_for_its_network(recipe):
    found = resolve({"recipe": "dice", "checkpoint": "run"}, "finetune", PARENT)
    assert (found.image_size, found.train_epochs, found.resnet_depth) == (16, 2, 101)
    assert {n: getattr(found, n) for n in SAME_IMAGES if n != "image_size"} == {
        n: getattr(PARENT, n) for n in SAME_IMAGES if n != "image_size"
    }  # the recipe says nothing of these
    said = resolve({"recipe": "dice", "checkpoint": "run", "image_size": 24}, "finetune", PARENT)
    assert said.image_size == 24
    looking = resolve({"recipe": "dice", "checkpoint": "run", "mode": "evaluate"}, parent=PARENT)
    assert (looking.image_size, looking.temperature, looking.eval_resize) == (16, 0.5, "tf1")


def test_the_parent_wins_over_a_recipe_that_came_with_the_data_set(recipe):
    found = resolve({"checkpoint": "run"}, "finetune", PARENT.replace(dataset="dice"))
    assert (found.image_size, found.train_epochs) == (48, 2)


def test_a_large_networks_changes(recipe):
    """By what the network comes to be in the end: by flag, by recipe or from the parent."""

    def rate(parent=None, **said):
        return resolve({"dataset": "dice", "recipe": "dice"} | said, said.get("mode", "finetune"), parent).learning_rate

    depth50 = {"resnet_depth": 50}
    assert (
        rate() == rate(width_multiplier=0.5) == rate(mode="supervised", width_multiplier=2.0) == DEFAULT.learning_rate
    )
    assert rate(width_multiplier=2.0) == rate(sk_ratio=0.0625, **depth50) == rate(PARENT) == 0.5
    assert rate(PARENT.replace(sk_ratio=0.0)) == DEFAULT.learning_rate
    assert rate(PARENT, learning_rate=0.125) == rate(PARENT, stage=("finetune.learning_rate=0.125",)) == 0.125


def test_changes_for_a_student_of_its_teachers_network(recipe):
    def temperature(teacher, **said):
        return resolve({"recipe": "dice", "teacher": "run"} | said, "distill", teacher).temperature

    teacher = Config(resnet_depth=18, proj_out_dim=64)
    assert temperature(teacher) == 2  # the head does not count
    assert temperature(teacher, temperature=3.0) == 3
    assert temperature(teacher, resnet_depth=34) == temperature(PARENT) == temperature(None) == 0.5
    assert temperature(teacher, width_multiplier=0.5) == temperature(teacher, se_ratio=0.25) == 0.5
