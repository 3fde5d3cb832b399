"""Order of defaults, recipe, parent run and flags; the configs of all stages of a semi-supervised run."""

import dataclasses

import pytest

from simclrv2_tf.errors import SettingError
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.merge import resolve, resolve_stages
from simclrv2_tf.settings.recipes import RECIPES, Recipe

DEFAULT = Config()
# Settings that a run inherits from its parent: the network always, the images unless flags or a recipe differ.
NETWORK = (
    *("encoder", "resnet_depth", "width_multiplier", "sk_ratio", "se_ratio"),
    *("proj_head_mode", "num_proj_layers", "proj_out_dim"),
)
IMAGES = (
    *("dataset", "data_dir", "image_size", "crop_area_min", "use_flip"),
    *("resize_method", "jpeg_scaling", "eval_resize", "image_bits"),
)


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


def finetune(run):
    return {"train_epochs": 2} | ({"learning_rate": 0.5} if run.is_large else {})


@pytest.fixture
def recipe(monkeypatch):
    """A recipe named as the data set ``dice``."""
    dice = Recipe(
        common={"image_size": 16, "resnet_depth": 18, "temperature": 0.5},
        pretrain=lambda run: {"temperature": 0.25, "train_epochs": 3},
        linear_eval=lambda run: {},
        supervised=lambda run: {"weight_decay": 0.25} if run.labels_per_class == 7 else {},
        finetune=finetune,
        distill=lambda run: {"temperature": 2.0} if run.is_self_distillation else {},
        label_counts=(3, 6),
    )
    monkeypatch.setitem(RECIPES, "dice", dice)
    return dice


def test_flags_override_the_stage_overrides_the_recipe_overrides_the_defaults(recipe):
    dice = {"dataset": "dice"}
    config = resolve(dice)
    assert (config.mode, config.image_size, config.temperature, config.train_epochs) == ("pretrain", 16, 0.25, 3)
    assert config.learning_rate == DEFAULT.learning_rate
    finetuning = resolve(dice | {"mode": "finetune"})
    assert (finetuning.temperature, finetuning.train_epochs) == (0.5, 2)
    assert resolve(dice | {"mode": "semi_supervised"}, "finetune") == finetuning
    flags = resolve(dice | {"temperature": 0.75, "image_size": 24})
    assert (flags.temperature, flags.image_size, flags.resnet_depth) == (0.75, 24, 18)


def test_recipes_are_found_by_name(recipe):
    assert resolve({"dataset": "dice", "recipe": "none"}) == Config(dataset="dice", recipe="none")
    assert resolve({"dataset": "npz:x", "recipe": "dice"}).temperature == 0.25
    assert resolve({"dataset": "npz:x"}) == Config(dataset="npz:x")  # no recipe of that name
    with pytest.raises(SettingError, match=r"^--recipe=nosuch: must be auto or one of official, own_images, .*dice"):
        resolve({"recipe": "nosuch"})


def test_a_recipe_sees_the_flags(recipe):
    flags = {"dataset": "dice", "mode": "supervised"}
    assert resolve(flags | {"labels_per_class": 7}).weight_decay == 0.25
    assert resolve(flags | {"labels_per_class": 8}).weight_decay == DEFAULT.weight_decay
    assert resolve(flags | {"labels_per_class": 7, "weight_decay": 0.5}).weight_decay == 0.5


def test_settings_of_one_stage(recipe):
    flags = {"dataset": "dice", "train_epochs": 9, "stage": ("finetune.train_epochs=5", "pretrain.use_blur=false")}
    assert resolve(flags, "finetune").train_epochs == 5
    assert resolve(flags, "pretrain").train_epochs == 9
    assert [resolve(flags, stage).use_blur for stage in ("pretrain", "finetune")] == [False, True]


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
        ("finetune.recipe=none", "--stage=finetune.recipe=none: recipe cannot be set for one stage alone"),
        ("finetune.checkpoint=x", "--stage=finetune.checkpoint=x: checkpoint cannot be set for one stage alone"),
    ],
)
def test_settings_of_a_stage_that_are_refused(override, message):
    with pytest.raises(SettingError) as caught:
        resolve({"stage": (override,)}, "finetune")
    assert message in str(caught.value)


def test_an_unknown_name_is_refused():
    """Users of the library may misspell one; the command line rejects it earlier."""
    with pytest.raises(SettingError, match=r"^learning_rat: there is no such setting"):
        resolve({"learning_rat": 0.1})


def test_epochs_of_a_flag_override_the_steps_of_a_recipe():
    config = resolve({"mode": "supervised", "dataset": "digits", "train_epochs": 3, "checkpoint_epochs": 2})
    assert (config.train_epochs, config.train_steps, config.checkpoint_epochs, config.checkpoint_steps) == (3, 0, 2, 0)
    stage = resolve({"dataset": "digits", "stage": ("finetune.train_epochs=7",)}, "finetune")
    assert (stage.train_epochs, stage.train_steps) == (7, 0)
    both = resolve({"mode": "supervised", "dataset": "digits", "train_epochs": 3, "train_steps": 5})
    assert (both.train_epochs, both.train_steps) == (3, 5)


# The parent run

PARENT = Config(
    dataset="npz:x",
    data_dir="tfds",
    image_size=48,
    crop_area_min=0.5,
    use_flip=False,
    resize_method="bilinear",
    jpeg_scaling=True,
    eval_resize="tf1",
    image_bits=12,
    resnet_depth=101,
    width_multiplier=0.5,
    proj_head_mode="linear",
    num_proj_layers=2,
    proj_out_dim=64,
    sk_ratio=0.0625,
    se_ratio=0.25,
    temperature=0.3,
    seed=3,
)


def test_a_run_takes_network_and_images_from_its_parent():
    config = resolve({"checkpoint": "run"}, "finetune", PARENT)
    inherited = [*NETWORK, *IMAGES]
    assert {name: getattr(config, name) for name in inherited} == {name: getattr(PARENT, name) for name in inherited}
    others = {field.name for field in dataclasses.fields(Config)} - {*inherited, "stem", "mode", "checkpoint"}
    assert {name: getattr(config, name) for name in others} == {name: getattr(DEFAULT, name) for name in others}
    assert config.stem == PARENT.stem_kind == "imagenet"
    other_images = resolve({"checkpoint": "run", "dataset": "digits", "recipe": "none"}, "finetune", PARENT)
    assert other_images.dataset == "digits" and other_images.resnet_depth == 101
    smaller = resolve({"checkpoint": "run", "image_size": 24}, "finetune", PARENT)
    assert smaller.stem_kind == "imagenet"  # the weights are the parent's, whatever the size of the images


@pytest.mark.parametrize("name, value", [("resnet_depth", 50), ("proj_out_dim", 128), ("sk_ratio", 0.0)])
def test_another_network_than_the_parents_is_refused(name, value):
    with pytest.raises(SettingError, match=rf"^--{name}={value}: the checkpoint's network has "):
        resolve({"checkpoint": "run", name: value}, "finetune", PARENT)
    with pytest.raises(SettingError, match=rf"^--{name}={value}: the checkpoint's network has "):
        resolve({"checkpoint": "run", "stage": (f"finetune.{name}={value}",)}, "finetune", PARENT)
    assert resolve({"checkpoint": "run", name: getattr(PARENT, name)}, "finetune", PARENT)


@pytest.mark.parametrize("stem", ["auto", "cifar"])
def test_the_stem_of_the_parent_may_be_given_either_way(stem):
    small = Config(image_size=32)
    assert resolve({"checkpoint": "run", "stem": stem, "image_size": 48}, "finetune", small).stem == "cifar"
    with pytest.raises(SettingError, match=r"^--stem=imagenet: the checkpoint's network has cifar"):
        resolve({"checkpoint": "run", "stem": "imagenet"}, "finetune", small)


@pytest.mark.parametrize(("mode", "flag"), [("finetune", "checkpoint"), ("distill", "teacher")])
def test_code_that_only_a_run_names_is_not_trusted(mode, flag):
    parent, start = PARENT.replace(encoder="some.module:build"), {flag: "run"}
    with pytest.raises(
        SettingError, match=rf"^--{flag}=run: .* built by some.module:build; pass --trust_run_code, or "
    ):
        resolve(start, mode, parent)
    allowed = {"encoder": "resnet"} if mode == "distill" else {}  # a student chooses its own
    assert resolve(start | allowed | {"trust_run_code": True}, mode, parent)
    assert resolve(start | {"encoder": "some.module:build"}, mode, parent).encoder == "some.module:build"


@pytest.mark.parametrize("encoder", ["keras_hub:preset", "model.keras", "/models/exported", "gs://models/exported"])
def test_presets_and_files_that_only_a_run_names_are_not_trusted_either(encoder):
    with pytest.raises(SettingError, match=f"built by {encoder}; pass --trust_run_code"):
        resolve({"checkpoint": "run"}, "evaluate", PARENT.replace(encoder=encoder))


def test_models_of_keras_need_no_trust():
    parent = PARENT.replace(encoder="keras.applications:ResNet50:/some/file.weights.h5")
    assert resolve({"checkpoint": "run"}, "evaluate", parent).encoder == parent.encoder


def test_a_run_inherits_no_code_but_its_encoder():
    parent = PARENT.replace(encoder="some.module:build", method="some.module:Method", callbacks="some.module:callback")
    with pytest.raises(SettingError, match=r"^--encoder=resnet: the checkpoint's network has some.module:build"):
        resolve({"checkpoint": "run", "encoder": "resnet"}, "finetune", parent)
    config = resolve({"checkpoint": "run", "mode": "evaluate", "trust_run_code": True}, parent=parent)
    assert (config.encoder, config.method, config.callbacks) == ("some.module:build", "simclr", "")


def test_a_student_chooses_its_own_network():
    student = resolve({"teacher": "run", "resnet_depth": 18, "sk_ratio": 0.0}, "distill", PARENT)
    assert student.resnet_depth == 18 and student.dataset == PARENT.dataset and student.image_size == 48
    assert student.use_flip is False and student.proj_out_dim == DEFAULT.proj_out_dim


@pytest.mark.parametrize("mode", ["evaluate", "predict", "embed", "export", "summary"])
def test_to_look_at_a_run_takes_all_of_its_settings(mode):
    parent = PARENT.replace(model_dir="runs/parent", format="npz", stage=("finetune.seed=1",), recipe="digits")
    own = {"mode": mode, "checkpoint": "run", "eval_batch_size": 7, "images": "photos"}
    config = resolve(own, parent=parent)
    own |= {"stem": "imagenet"}
    own |= {"model_dir": "", "format": "auto", "stage": (), "recipe": "auto"}
    assert config == parent.replace(**own)


def test_a_recipe_that_is_named_overrides_the_parent_but_for_its_network(recipe):
    config = resolve({"recipe": "dice", "checkpoint": "run"}, "finetune", PARENT)
    assert (config.image_size, config.train_epochs, config.resnet_depth) == (16, 2, 101)
    rest = set(IMAGES) - {"image_size"}  # the recipe does not set these
    assert {name: getattr(config, name) for name in rest} == {name: getattr(PARENT, name) for name in rest}
    assert resolve({"recipe": "dice", "checkpoint": "run", "image_size": 24}, "finetune", PARENT).image_size == 24
    looking = resolve({"recipe": "dice", "checkpoint": "run", "mode": "evaluate"}, parent=PARENT)
    assert (looking.image_size, looking.temperature, looking.eval_resize) == (16, 0.5, "tf1")


def test_the_parent_overrides_a_recipe_that_is_named_as_the_data_set(recipe):
    config = resolve({"checkpoint": "run"}, "finetune", PARENT.replace(dataset="dice"))
    assert (config.image_size, config.train_epochs) == (48, 2)


def test_changes_for_a_large_network(recipe):
    """Depends on the final network, whether from a flag, the recipe or the parent."""

    def rate(parent=None, **flags):
        flags = {"dataset": "dice", "recipe": "dice"} | flags
        return resolve(flags, flags.get("mode", "finetune"), parent).learning_rate

    depth50 = {"resnet_depth": 50}
    assert (
        rate() == rate(width_multiplier=0.5) == rate(mode="supervised", width_multiplier=2.0) == DEFAULT.learning_rate
    )
    assert rate(width_multiplier=2.0) == rate(sk_ratio=0.0625, **depth50) == rate(PARENT) == 0.5
    assert rate(PARENT.replace(sk_ratio=0.0)) == DEFAULT.learning_rate
    assert rate(PARENT, learning_rate=0.125) == rate(PARENT, stage=("finetune.learning_rate=0.125",)) == 0.125


def test_changes_for_a_student_of_its_teachers_network(recipe):
    def temperature(teacher, **flags):
        return resolve({"recipe": "dice", "teacher": "run"} | flags, "distill", teacher).temperature

    teacher = Config(resnet_depth=18, proj_out_dim=64)
    assert temperature(teacher) == 2  # the head does not matter
    assert temperature(teacher, temperature=3.0) == 3
    assert temperature(teacher, resnet_depth=34) == temperature(PARENT) == temperature(None) == 0.5
    assert temperature(teacher, width_multiplier=0.5) == temperature(teacher, se_ratio=0.25) == 0.5
    assert temperature(teacher, encoder="some.module:build") == 0.5


# Semi-supervised runs


def test_stages_start_from_each_other(recipe):
    config = resolve_stages({"dataset": "dice", "model_dir": "runs/dice", "checkpoint": "x", "seed": 5})
    assert config.mode == "semi_supervised" and config.model_dir == "runs/dice" and config.rows == (3, 6)
    rows = [f"{mode}_{row}" for row in (3, 6) for mode in ("supervised", "finetune", "distill")]
    assert list(config.stages) == ["pretrain", "linear_eval", *rows]
    pretrain, linear, supervised, finetune, distill = (config.stages[name] for name in list(config.stages)[:5])
    assert {name: stage.model_dir for name, stage in config.stages.items()} == {
        name: f"runs/dice/{name}" for name in config.stages
    }
    starts = [(stage.mode, stage.checkpoint, stage.teacher) for stage in (pretrain, linear, supervised, finetune)]
    assert starts == [
        ("pretrain", "", ""),
        ("linear_eval", "runs/dice/pretrain", ""),
        ("supervised", "", ""),
        ("finetune", "runs/dice/pretrain", ""),
    ]
    assert (distill.checkpoint, distill.teacher) == ("runs/dice/pretrain", "runs/dice/finetune_3")
    labels = [stage.labels_per_class for stage in config.stages.values()]
    assert labels == [0, 0, 3, 3, 3, 6, 6, 6]
    assert {stage.seed for stage in config.stages.values()} == {5}
    assert distill.temperature == 2  # self-distillation
    assert "stages" not in config.to_json()


def test_the_recipe_of_the_data_set_overrides_the_parent_in_every_stage():
    """The crops of Fashion-MNIST are smaller in pretraining than in the other stages."""
    stages = resolve_stages({"dataset": "fashion_mnist"}).stages
    assert [stages[name].crop_area_min for name in ("pretrain", "supervised_1", "finetune_1")] == [0.2, 0.9, 0.6]
    assert resolve({"dataset": "fashion_mnist", "checkpoint": "x"}, "finetune", stages["pretrain"]).crop_area_min == 0.2


@pytest.mark.parametrize(
    "flags, rows",
    [
        ({"labels_per_class": 9}, (9,)),
        ({"label_fraction": 0.125}, ("12.5%",)),
        ({}, (3, 6)),
        ({"labels_per_class": 0}, ("all",)),
        ({"label_fraction": 1.0}, ("all",)),
        ({"recipe": "none"}, ("all",)),
        ({"recipe": "imagenet"}, ("all",)),
    ],
)
def test_rows_of_labels(recipe, flags, rows):
    config = resolve_stages({"dataset": "dice"} | flags)
    assert config.rows == rows
    assert list(config.stages)[2:5] == [f"{mode}_{rows[0]}" for mode in ("supervised", "finetune", "distill")]
    finetune = config.stages[f"finetune_{rows[0]}"]
    labels = flags or {"labels_per_class": 3}
    assert all(getattr(finetune, name) == value for name, value in labels.items())
    for name in ("pretrain", "linear_eval"):
        assert (config.stages[name].labels_per_class, config.stages[name].label_fraction) == (0, 1)


def test_a_bad_setting_of_a_late_stage_is_refused(recipe):
    with pytest.raises(SettingError, match=r"^--ft_proj_selector=7: "):
        resolve_stages({"dataset": "dice", "stage": ("finetune.ft_proj_selector=7",)})
    with pytest.raises(SettingError, match=r"^--resnet_depth=34: the checkpoint's network has 18"):
        resolve_stages({"dataset": "dice", "stage": ("finetune.resnet_depth=34",)})
    smaller = resolve_stages({"dataset": "dice", "stage": ("distill.width_multiplier=0.5",)})
    assert smaller.stages["distill_3"].width_multiplier == 0.5 and smaller.stages["distill_3"].temperature == 0.5


def test_seeds_draw_the_labels_of_all_stages_but_pretraining_is_shared():
    flags = {"dataset": "digits", "recipe": "digits", "model_dir": "m", "labels_per_class": 5, "seed": 7}
    config = resolve_stages(flags | {"seeds": "0,2,0"})
    draws = [f"{mode}_5_seed{seed}" for seed in (0, 2) for mode in ("linear_eval", "supervised", "finetune", "distill")]
    assert list(config.stages) == ["pretrain", "linear_eval", *draws] and config.draws == (0, 2)
    assert [stage.seed for stage in config.stages.values()] == [7, 7, 0, 0, 0, 0, 2, 2, 2, 2]
    assert config.stages["distill_5_seed2"].teacher == "m/finetune_5_seed2"
    assert all(stage.checkpoint == "m/pretrain" for name, stage in config.stages.items() if "finetune" in name)
    assert config.stages["linear_eval_5_seed2"].labels_per_class == 5
    assert all(stage.seeds == "" for stage in config.stages.values())
    assert list(resolve_stages(flags).stages) == ["pretrain", "linear_eval", "supervised_5", "finetune_5", "distill_5"]


@pytest.mark.parametrize("seeds", ["1,x", "0,,2", "-1", "1.5", str(2**32)])
def test_seeds_that_are_no_numbers_are_refused(seeds):
    with pytest.raises(SettingError, match=f"--seeds={seeds}: must be whole numbers, separated by commas"):
        Config(mode="semi_supervised", seeds=seeds)
