"""Bounds and contradictions, each refused in one line that names the flag and the value; tags; ``config.json``."""

import contextlib
import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf.errors import ConfigVersionError, SettingError
from simclrv2_tf.settings.config import Config, check_bounds, parse_value, tagged
from simclrv2_tf.settings.fields import STAGES

FIELDS = {field.name: field for field in dataclasses.fields(Config)}


@pytest.fixture(autouse=True)
def fresh_keras():
    """These tests do not use Keras."""


def refusal(**settings):
    with pytest.raises(SettingError) as caught:
        Config(**settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def beyond(field):
    """Yields the nearest values outside the bounds of a setting, each with a part of its error message."""
    bounds, step = field.metadata, 1 if isinstance(field.default, int) else 1e-6
    if bounds["minimum"] is not None:
        yield bounds["minimum"] - step, "or more"
    if bounds["above"] is not None:
        yield bounds["above"], "must be above"
    if bounds["below"] is not None:
        yield bounds["below"], "must be below"
    if bounds["maximum"] is not None:
        yield bounds["maximum"] + step, "or less"
    elif type(field.default) is int and not bounds["choices"]:
        yield 10**9 + 1, "must be 1000000000 or less"
    if bounds["choices"]:
        yield "nonsense", "must be one of"
    if isinstance(field.default, float):
        yield from ((value, "must be a finite number") for value in (math.nan, math.inf, -math.inf))


def at(field):
    """Yields the values on the bounds of a setting."""
    bounds = field.metadata
    yield from bounds["choices"]
    yield from (bounds[bound] for bound in ("minimum", "maximum") if bounds[bound] is not None)


OUTSIDE = [(name, value, why) for name, field in FIELDS.items() for value, why in beyond(field)]
ON_BOUNDS = [(name, value) for name, field in FIELDS.items() for value in at(field)]


@pytest.mark.parametrize("name, value, why", OUTSIDE)
def test_values_outside_their_bounds_are_refused(name, value, why):
    message = refusal(**{name: value})
    assert message.startswith(f"--{name}={value}: ") and why in message
    with pytest.raises(SettingError, match=f"--{name}="):
        check_bounds({name: value})


@pytest.mark.parametrize("name, value", ON_BOUNDS)
def test_values_on_their_bounds_are_accepted(name, value):
    needs = {
        "teacher": "run",
        "checkpoint": "run",
        "images": "folder",
        "train_steps": 1,
        "memory_size": 1,
    }  # values that another mode or zero epochs would require
    assert getattr(Config(**needs | {name: value}), name) == value


# The bounds again, so that a test fails if one is lost: name, a value below or above it, the message.
BOUNDS = [
    ("seed", -1, "0 or more"),
    ("seed", 2**32, "4294967295 or less"),
    ("label_fraction", 0.0, "above 0"),
    ("label_fraction", 1.1, "1 or less"),
    ("labels_per_class", -1, "0 or more"),
    ("max_corrupt_share", 1.1, "1 or less"),
    ("max_file_mb", 0, "1 or more"),
    ("image_bits", -1, "0 or more"),
    ("image_bits", 17, "16 or less"),
    ("width_multiplier", 0.0, "above 0"),
    ("sk_ratio", -0.1, "0 or more"),
    ("image_size", 7, "8 or more"),
    ("image_size", 4097, "4096 or less"),
    ("num_proj_layers", 0, "1 or more"),
    ("proj_out_dim", 0, "1 or more"),
    ("batch_norm_decay", 1.0, "below 1"),
    ("train_batch_size", 0, "1 or more"),
    ("train_epochs", 10**6 + 1, "1000000 or less"),
    ("train_steps", 10**9 + 1, "1000000000 or less"),
    ("learning_rate", -0.1, "0 or more"),
    ("warmup_epochs", -0.1, "0 or more"),
    ("weight_decay", -0.1, "0 or more"),
    ("momentum", 1.0, "below 1"),
    ("temperature", 0.0, "above 0"),
    ("ema_decay", 1.1, "1 or less"),
    ("memory_size", -1, "0 or more"),
    ("crop_area_min", 0.0, "above 0"),
    ("crop_area_min", 1.1, "1 or less"),
    ("color_jitter_strength", -0.1, "0 or more"),
    ("ft_proj_selector", -2, "-1 or more"),
    ("fine_tune_after_block", -2, "-1 or more"),
    ("fine_tune_after_block", 5, "4 or less"),
    ("distill_alpha", -0.1, "0 or more"),
    ("distill_alpha", 1.1, "1 or less"),
    ("eval_batch_size", 0, "1 or more"),
    ("grad_cache_micro_batch", -1, "0 or more"),
]


@pytest.mark.parametrize("name, value, bound", BOUNDS)
def test_bounds(name, value, bound):
    assert refusal(**{name: value}) == f"--{name}={value}: must be {bound}"


def test_every_number_has_a_lower_bound():
    """Except the depth, which has a list of values."""
    numbers = {name for name, field in FIELDS.items() if type(field.default) in (int, float)}
    bounded = {name for name, value, why in OUTSIDE if why in ("or more", "must be above")}
    assert numbers - bounded == {"resnet_depth"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"image_bits": 7}, "--image_bits=7: must be 8 to 16, or 0 for all 16"),
        (dict(resnet_depth=42), "--resnet_depth=42: must be 10, 18, 34, 50, 101, 152 or 200"),
        (dict(resnet_depth=18, sk_ratio=0.0625), "--sk_ratio=0.0625: selective kernels need --resnet_depth of 50"),
        (dict(sk_ratio=0.0625, stem="cifar", image_size=64), "--stem=cifar: "),
        (dict(mode="embed", checkpoint="x", format="onnx"), "--format=onnx: embed writes npz, parquet"),
        (dict(ft_proj_selector=4), "--ft_proj_selector=4: the projection head has only 3 layers"),
        (dict(ft_proj_selector=2, proj_head_mode="linear"), "--ft_proj_selector=2: the projection head has only 1"),
        (dict(ft_proj_selector=1, proj_head_mode="none"), "--ft_proj_selector=1: the projection head has only 0"),
        (
            dict(labels_per_class=5, label_fraction=0.1),
            "--label_fraction=0.1: cannot be combined with --labels_per_class=5; give one",
        ),
        (dict(train_batch_size=1), "--train_batch_size=1: pretrain contrasts"),
        (dict(model_dir="gs://bucket/run"), "--model_dir=gs://bucket/run: must be a local or mounted directory"),
        (dict(dataset="folder:caf\udce9"), "--dataset='folder:caf\\udce9': must be UTF-8"),
        (dict(train_epochs=0), "--train_epochs=0: set --train_epochs or --train_steps above 0"),
        (dict(mode="distill"), "--teacher=: distill needs"),
        (dict(mode="evaluate"), "--checkpoint=: evaluate needs"),
        (dict(mode="embed"), "--checkpoint=: embed needs"),
        (dict(mode="export"), "--checkpoint=: export needs"),
        (dict(mode="predict"), "--checkpoint=: predict needs"),
        (dict(mode="predict", checkpoint="x"), "--images=: predict needs a folder"),
        (
            dict(mode="predict", checkpoint="x", images="y", format="npz"),
            "--format=npz: predict writes csv, parquet, j",
        ),
        (dict(mode="linear_eval"), "--checkpoint=: linear_eval needs"),
    ],
)
def test_contradictions_are_refused(settings, message):
    assert refusal(**settings).startswith(message)


def test_settings_that_do_not_contradict():
    Config(train_epochs=0, train_steps=10)
    Config(ft_proj_selector=3)
    Config(resnet_depth=50, sk_ratio=0.0625, stem="cifar", image_size=32)
    Config(mode="finetune")  # from scratch


def test_changed_copies_are_checked():
    config = Config()
    assert config.replace(temperature=0.5).temperature == 0.5 and config.temperature == 0.1
    with pytest.raises(SettingError, match=r"^--temperature=0: must be above 0$"):
        config.replace(temperature=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.temperature = 0.5


def test_derived_settings():
    assert [Config(image_size=size).stem_kind for size in (32, 33)] == ["cifar", "imagenet"]
    assert Config(image_size=32, stem="imagenet").stem_kind == "imagenet"
    layers = [Config(proj_head_mode=mode, num_proj_layers=5).head_layers for mode in ("none", "linear", "nonlinear")]
    assert layers == [0, 1, 5]


def test_default_model_directory():
    assert Config(dataset="folder:/a b", mode="supervised").run_dir == "runs/a b-supervised"
    assert Config(dataset="folder:/data/v1.0/").run_dir == "runs/v1.0-pretrain"
    assert Config(dataset="folder:.").run_dir == "runs/images-pretrain"
    assert Config(dataset="npz:/data/cells.npz").run_dir == "runs/cells-pretrain"
    assert Config(dataset="imagenet2012_subset/1pct").run_dir == "runs/imagenet2012_subset_1pct-pretrain"
    assert Config(dataset="digits", recipe="none").run_dir == "runs/digits-pretrain"
    assert Config(recipe="imagenet", dataset="npz:x").run_dir == "runs/imagenet-pretrain"
    assert Config(recipe="imagenet", model_dir="here").run_dir == "here"


def test_settings_survive_json():
    config = Config(stage=("finetune.learning_rate=0.1",), use_blur=False, learning_rate=1e-7, dataset="folder:/ä b")
    text = config.to_json()
    assert Config.from_json(text) == config
    assert list(json.loads(text)) == ["config_version", *FIELDS]  # every setting, in order
    assert json.loads(text)["config_version"] == 1


def test_unknown_and_missing_settings_in_json_are_ignored():
    text = json.dumps({"config_version": 1, "temperature": 0.7, "an_unknown_name": [1, 2], "resolved": {"steps": 3}})
    assert Config.from_json(text) == Config(temperature=0.7)
    with pytest.raises(SettingError, match=r"^config.json is damaged \(--temperature=-1: "):
        Config.from_json('{"config_version": 1, "temperature": -1}')


@pytest.mark.parametrize("version", [{}, {"config_version": 0}, {"config_version": 2}, {"config_version": "1"}])
def test_json_of_another_version_is_refused(version):
    text = json.dumps(version | {"temperature": "another type by then"})
    with pytest.raises(ConfigVersionError) as caught:
        Config.from_json(text)
    number = version.get("config_version")
    assert str(caught.value) == (
        f"config.json has config_version {number}, but this version of simclrv2_tf reads 1; train again, or use the "
        "version that wrote it"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": "0.7"},
        {"temperature": None},
        {"temperature": True},
        {"train_epochs": 1.0},
        {"train_epochs": True},
        {"use_blur": 1},
        {"dataset": 1},
        {"stage": "finetune.seed=1"},
        {"stage": 1},
    ],
)
def test_json_with_a_value_of_another_type_is_refused(settings):
    (name,) = settings
    reason = rf"\({name} must be .*\); restore the file or delete the model directory$"
    with pytest.raises(SettingError, match=rf"^config.json is damaged {reason}"):
        Config.from_json(json.dumps({"config_version": 1} | settings))


def test_whole_numbers_in_json_are_fractions_too():
    assert Config.from_json('{"config_version": 1, "temperature": 1}').temperature == 1


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("learning_rate", "1e-3", 1e-3),
        ("train_epochs", "7", 7),
        ("dataset", "digits", "digits"),
        ("use_blur", "False", False),
        ("use_blur", "1", True),
    ],
)
def test_values_from_text(name, text, value):
    assert parse_value(name, text) == value and type(parse_value(name, text)) is type(value)


@pytest.mark.parametrize(
    "name, text",
    [("learning_rate", "fast"), ("train_epochs", "1.5"), ("use_blur", "maybe"), ("nosuch", "1"), ("stage", "x")],
)
def test_text_that_is_not_a_value_is_refused(name, text):
    with pytest.raises(SettingError, match=name):
        parse_value(name, text)


TAGS = {
    "network": "encoder input_range resnet_depth width_multiplier sk_ratio se_ratio stem proj_head_mode "
    "num_proj_layers proj_out_dim",
    "encoder": "encoder resnet_depth width_multiplier sk_ratio se_ratio",
    "images": "dataset data_dir image_size crop_area_min use_flip crop_sampler resize_method jpeg_scaling eval_resize "
    "image_bits",
    "not_inherited": "mode model_dir checkpoint recipe stage seeds format images select_count select_by method "
    "callbacks trust_run_code",
    "resume_ok": "model_dir recipe stage seeds format images select_count select_by compare checkpoint_epochs "
    "checkpoint_steps keep_checkpoint_max keep_best on_checkpoint_error override_config report "
    "callbacks data_dir cache_dataset max_corrupt_share max_file_mb on_nan steps_per_execution "
    "resident_mb deterministic remat cpu_replicas worker_timeout data_service use_tpu tpu_name "
    "tracker trust_run_code",
}


@pytest.mark.parametrize("tag", TAGS)
def test_tags(tag):
    assert set(tagged(tag)) == set(TAGS[tag].split())


def test_only_these_tags_are_used():
    assert set().union(*(field.metadata["tags"] for field in FIELDS.values())) == set(TAGS)
    assert set(STAGES) < set(FIELDS["mode"].metadata["choices"])
    assert all(field.metadata["help"].strip() for field in FIELDS.values())


def values_of(field):
    """Returns values of a setting, some of them outside its bounds."""
    if field.metadata["choices"]:
        return st.sampled_from(field.metadata["choices"])
    kinds = {bool: st.booleans(), int: st.integers(-2, 5000), float: st.floats(-0.1, 1.1), str: st.text(max_size=5)}
    return kinds.get(type(field.default), st.tuples(st.text(max_size=5)))


@given(st.data())
def test_any_settings_are_refused_by_name_or_survive_json(data):
    names = data.draw(st.lists(st.sampled_from(list(FIELDS)), max_size=4, unique=True))
    values = {name: data.draw(values_of(FIELDS[name])) for name in names}
    try:
        config = Config(**values)
    except SettingError as error:
        assert str(error).startswith("--")
    else:
        assert Config.from_json(config.to_json()) == config
        check_bounds(values)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3), st.lists, max_leaves=3
)


@given(JSON | st.dictionaries(st.sampled_from(["config_version", *FIELDS]), JSON, max_size=3), st.integers(0, 5))
def test_damaged_json_raises_no_other_error(content, cut):
    text = json.dumps(content | {"config_version": 1} if isinstance(content, dict) else content)
    with contextlib.suppress(SettingError):
        Config.from_json(text[: len(text) - cut])


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_json_that_was_cut_off_is_refused(cut):
    with pytest.raises(SettingError, match=r"^config.json is damaged"):
        Config.from_json(Config().to_json()[:-cut])
