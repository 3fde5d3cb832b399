"""Checkpoints of the official code: name-based and object-based ones are imported as runs, and exported again."""

import functools
import importlib.util
import json
import pathlib

import keras
import numpy as np
import pytest
import saved_runs
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from simclrv2_tf import cli, load_run, modes
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.data.cropping import center_crop_and_resize
from simclrv2_tf.distributed.devices import choose_strategy
from simclrv2_tf.errors import SettingError
from simclrv2_tf.models import Network, ProjectionHead, ResNet, official_names
from simclrv2_tf.modes.setup import build_network
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import load_network, read_run_config
from simclrv2_tf.settings.config import Config

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
_spec = importlib.util.spec_from_file_location("golden_values", GOLDEN / "values.py")
values = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(values)


def write(prefix, tensors):
    """Writes a checkpoint with exactly these keys."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    keys, constants = list(tensors), [tf.constant(value) for value in tensors.values()]
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=keys, shape_and_slices=[""] * len(keys), tensors=constants)
    return str(prefix)


def contents(path):
    reader = tf.train.load_checkpoint(str(path))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()}


def shapes_of(depth, width=1, sk_ratio=0.0, head=None, classes=0, stem="imagenet", se_ratio=0.0):
    """Returns official names and shapes of a network without allocating it."""
    with keras.StatelessScope(initialize_variables=False):
        network = Network(ResNet(depth, width, sk_ratio, se_ratio, stem), head, classes)
        network.build()
    return {name: tuple(variable.shape) for name, variable in official_names(network).items()}


@functools.cache
def tiny(head="nonlinear", classes=10):
    """Returns the tensors of a narrow ResNet-18 as the TF1 code would save it."""
    shapes = shapes_of(18, 1 / 16, head=ProjectionHead(head, out_dim=8), classes=classes)
    return {name: values.fill(name, shape) for name, shape in shapes.items()} | {"global_step": np.int64(7)}


def import_run(path, model_dir, **settings):
    return modes.run({"mode": "import_checkpoint", "checkpoint": str(path), "model_dir": str(model_dir)} | settings)


def network_of(model_dir):
    config, resolved = read_run_config(str(model_dir))
    network = build_network(config, choose_strategy(config), resolved["num_classes"], resolved["head_input"])
    load_network(network, str(model_dir), with_classifier=bool(resolved["num_classes"]))
    return network


def assert_holds(network, tensors):
    """Asserts that the variables of a network are bit-equal to those of an official checkpoint."""
    names = official_names(network)
    for name, variable in names.items():
        np.testing.assert_array_equal(variable, tensors[name], err_msg=name)
    return names


def test_a_tf1_checkpoint_gives_the_outputs_of_the_official_code(tmp_path, parity):
    listing = json.loads((GOLDEN / "ckpt_tf1_r50_1x_sk0_finetune_variables.json").read_text())["graph_creation_order"]
    tensors = {n: np.int64(123) if n == "global_step" else values.fill(n, shape) for n, shape, _ in listing}
    result = import_run(write(tmp_path / "model.ckpt-123", tensors), tmp_path / "run")
    assert result["step"] == 123
    assert "loaded: 281 variables, 34,277,672 numbers" in result["report"]
    assert "ignored: 161, the optimizer's state" in result["report"]
    network = network_of(tmp_path / "run")
    assert len(assert_holds(network, tensors)) == 281
    recorded = np.load(GOLDEN / "ckpt_tf1_r50_1x_sk0_outputs.npz")
    layers = {"nl_0": "proj_head_1", "nl_1": "proj_head_2", "nl_2": "proj_head_output"}
    for size in (64, 224):
        endpoints = network(values.image_input(f"ckpt_{size}", 2, size), whole_head=True)
        keys = [key for key in recorded.files if key.startswith(f"{size}px/") and key.endswith(("/full", "/sample"))]
        assert len(keys) == 11
        for key in keys:
            name = key.split("/")[1]
            actual, expected = np.asarray(endpoints[layers.get(name, name)]), recorded[key]
            if key.endswith("/sample"):
                actual = actual.reshape(-1)[values.sample_idx(actual.size, 512)]
            if name in ("nl_0", "nl_1"):  # recorded before their ReLU
                expected = np.maximum(expected, 0)
            parity(f"TF1 checkpoint, ResNet-50, {size} px", actual, expected, 5e-6)


def test_a_network_is_built_from_a_checkpoint_in_python(tmp_path, caplog):
    caplog.set_level("INFO")
    network = Network.from_official(pathlib.Path(write(tmp_path / "model.ckpt-7", tiny())))
    assert_holds(network, tiny())
    assert network.num_classes == 10 and network.head_input == 0 and "missing: 0, left over: 0" in caplog.text
    assert network(np.ones((2, 32, 32, 3), "float32"))["logits_sup"].shape == (2, 10)
    with pytest.raises(ValueError, match="nothing: there is no checkpoint"):
        Network.from_official(tmp_path / "nothing")


def test_an_object_based_tf2_checkpoint_is_imported(tmp_path):
    rows = json.loads((GOLDEN / "ckpt_tf2_r18_1x_sk0_variables.json").read_text())["key_shape_dtype_canonicalTF1name"]
    tensors = {key: values.fill(name, shape) if name else np.int64(40) for key, shape, _, name in rows}
    tensors["save_counter/.ATTRIBUTES/VARIABLE_VALUE"] = np.int64(3)
    tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = b"graph"
    result = import_run(write(tmp_path / "ckpt-40", tensors), tmp_path / "run")
    assert result["step"] == 40 and "ResNet-18 x1, sk_ratio 0, se_ratio 0, cifar stem" in result["report"]
    canonical = {name: tensors[key] for key, _, _, name in rows if name}
    assert len(assert_holds(network_of(tmp_path / "run"), canonical)) == 121
    assert read_run_config(str(tmp_path / "run"))[0].eval_resize == "bicubic"  # the TF2 code resized its images so


@pytest.mark.parametrize("sk, mode", [(0, "finetune"), (0, "pretrain"), (1, "finetune"), (1, "pretrain")])
def test_network_settings_of_recorded_listings(sk, mode):
    listing = json.loads((GOLDEN / f"ckpt_tf1_r50_1x_sk{sk}_{mode}_variables.json").read_text())
    rows = listing["graph_creation_order"]
    shapes = {name: tuple(shape) for name, shape, _ in rows if not name.endswith("/Momentum")}
    assert official.network_settings(shapes) == {
        "resnet_depth": 50,
        "width_multiplier": 1,
        "sk_ratio": 0.0625 * sk,
        "se_ratio": 0,
        "stem": "imagenet",
        "proj_head_mode": "nonlinear",
        "num_proj_layers": 3,
        "proj_out_dim": 128,
    }


@pytest.mark.parametrize(
    "network",
    [
        {"depth": 18, "stem": "cifar"},
        {"depth": 34, "width": 3, "head": ProjectionHead("none"), "classes": 5},
        {"depth": 50, "width": 4, "head": ProjectionHead("linear", out_dim=64), "classes": 1000},
        {"depth": 50, "sk_ratio": 0.0625, "stem": "cifar"},
        {"depth": 101, "width": 2, "sk_ratio": 0.0625, "head": ProjectionHead(num_layers=4)},
        {"depth": 152, "width": 3, "sk_ratio": 0.0625, "classes": 1000},
        {"depth": 200, "head": ProjectionHead(num_layers=2, out_dim=2048)},
        {"depth": 50, "sk_ratio": 0.25, "se_ratio": 0.0625},
        {"depth": 18, "width": 0.5, "se_ratio": 0.05},
    ],
    ids=lambda network: f"r{network['depth']}",
)
def test_network_settings_of_any_network(network):
    shapes = shapes_of(**network)
    settings = official.network_settings(shapes)
    head = ProjectionHead(
        settings["proj_head_mode"], settings.get("num_proj_layers", 1), settings.get("proj_out_dim", 1), name="head"
    )
    keys = ("resnet_depth", "width_multiplier", "sk_ratio", "stem", "se_ratio")
    depth, width, sk_ratio, stem, se_ratio = (settings[key] for key in keys)
    assert (depth, width, stem) == (network["depth"], network.get("width", 1), network.get("stem", "imagenet"))
    assert sk_ratio == network.get("sk_ratio", 0)
    assert shapes_of(depth, width, sk_ratio, head, network.get("classes", 0), stem, se_ratio) == shapes


def test_variables_beside_the_network_are_ignored_with_a_reason(tmp_path):
    tensors = tiny(classes=0)
    besides = {f"ema_model/{name}": 2 * value for name, value in tensors.items() if name != "global_step"}
    besides |= {"base_model/conv2d/kernel/LARSOptimizer": np.zeros(3, np.float32), "beta1_power": np.float32(0)}
    result = import_run(write(tmp_path / "published/model.ckpt-7", tensors | besides), tmp_path / "run")
    network = network_of(tmp_path / "run")
    assert len(assert_holds(network, tensors)) == len(tensors) - 1
    assert f"ignored: {len(tensors) - 1}, a second copy" in result["report"]
    assert "ignored: 2, the optimizer's state (base_model/conv2d/kernel/LARSOptimizer, beta1_power)" in result["report"]
    assert "no classifier" in result["report"]


@pytest.mark.parametrize(("classes", "first"), [(1000, "tench"), (1001, "background"), (10, "0")])
def test_classes_of_imagenet_are_named(classes, first, tmp_path):
    tensors = tiny(classes=classes)
    report = import_run(write(tmp_path / "model.ckpt-7", tensors), tmp_path / "run")["report"]
    names = read_run_config(str(tmp_path / "run"))[1]["class_names"]
    assert len(names) == classes and names[0] == first
    assert (
        (names[-1] == "toilet tissue") is ("assumed: the classes are those of ImageNet" in report) is (classes >= 1000)
    )


def test_an_imported_network_predicts_the_names_of_imagenet_and_is_evaluated_on_synset_ids(tmp_path):
    import_run(write(tmp_path / "model.ckpt-7", tiny(classes=1000)), tmp_path / "run", image_size=16)
    files = saved_runs.save_images(
        tmp_path / "in", [f"{n}/{i}.png" for n in ("n01443537", "n01440764") for i in range(5)]
    )
    run = str(tmp_path / "run")
    modes.run({"mode": "predict", "checkpoint": run, "images": str(tmp_path / "in")})
    header, first, *_ = (tmp_path / "run/predictions.csv").read_text().splitlines()
    logits = network_of(tmp_path / "run")(evaluated(sorted(files)))["logits_sup"].numpy()
    assert load_run(run).class_names[logits[0].argmax()] in first and header.startswith(
        "path,class,probability,class_2,"
    )
    result = modes.run(
        {"mode": "evaluate", "checkpoint": run, "dataset": f"folder:{tmp_path}/in", "eval_split": "train"}
    )
    labels = [0] * 4 + [1] * 4  # tench, goldfish
    kept = [i for i in range(10) if i % 5 != 4]
    assert result["top1"] == np.mean(logits.argmax(axis=1)[kept] == labels)


def evaluated(files):
    """Returns images as evaluated."""
    images = [tf.io.decode_image(path.read_bytes()) for path in files]
    return tf.stack([center_crop_and_resize(image / 255, (16, 16), method="tf1") for image in images])


def with_untrained_head(tensors):
    initial = {"gamma": np.ones_like, "beta": np.zeros_like}
    return {
        name: initial.get(name.rpartition("/")[2], np.copy)(value) if name.startswith("head_contrastive") else value
        for name, value in tensors.items()
    }


def test_a_head_that_was_never_trained_is_left_out(tmp_path):
    path = write(tmp_path / "model.ckpt-7", with_untrained_head(tiny()))
    result = import_run(path, tmp_path / "run")
    assert "ignored: 14, a projection head that was never trained" in result["report"]
    assert "assumed" not in result["report"]
    assert_holds(network_of(tmp_path / "run"), tiny())
    assert read_run_config(str(tmp_path / "run"))[0].proj_head_mode == "none"
    import_run(path, tmp_path / "with_head", ft_proj_selector=1)
    assert read_run_config(str(tmp_path / "with_head"))[0].proj_head_mode == "nonlinear"


@pytest.mark.parametrize(
    ("folder", "selector", "width", "tap"),
    [
        ("pretrained", None, 32, 0),
        ("finetuned_1pct", None, 32, 1),
        ("finetuned_10pct", None, 32, 1),
        ("finetuned_100pct", None, 32, 0),
        ("finetuned_10pct", 0, 32, 0),
        ("finetuned_100pct", 2, 32, 2),
        ("finetuned_1pct", None, 8, 3),
    ],
)
def test_the_layer_that_the_classifier_reads(folder, selector, width, tap, tmp_path):
    kernel = values.fill("kernel", (width, 10))
    path = write(tmp_path / folder / "model.ckpt-7", tiny() | {"head_supervised/linear_layer/dense/kernel": kernel})
    checkpoint = official.read(path, selector)
    assert checkpoint.head_input == tap
    assert checkpoint.taps == ([0, 1, 2] if width == 32 else [3])


def test_the_report_names_the_assumed_layer(tmp_path):
    report = import_run(write(tmp_path / "finetuned_1pct/model.ckpt-7", tiny()), tmp_path / "run")["report"]
    assert "assumed: the classifier reads layer 1 of the head. Layers [0, 1, 2] have the same width" in report
    assert read_run_config(str(tmp_path / "run"))[1]["head_input"] == 1


@pytest.mark.parametrize(
    ("change", "flags", "message"),
    [
        ({"base_model/conv2d_7/kernel": None}, [], "1 missing: base_model/conv2d_7/kernel"),
        ({"base_model/extra": np.zeros(1)}, [], "1 left over: base_model/extra"),
        ({"something/else": np.zeros(1)}, [], "1 left over: something/else"),
        ({"base_model/conv2d_7/kernel": np.zeros(3)}, [], "1 of another shape: base_model/conv2d_7/kernel"),
        ({"base_model/conv2d_30/kernel": np.zeros(3)}, [], "are not those of a SimCLR network"),
        ({"base_model/conv2d/kernel": None}, [], "are not those of a SimCLR network"),
        ({}, ["--ft_proj_selector=3"], "--ft_proj_selector=3: the classifier reads 32 numbers"),
        ({}, ["--resnet_depth=50"], "--resnet_depth=50: the checkpoint's network has 18"),
    ],
)
def test_an_unexplained_checkpoint_is_refused_and_nothing_is_written(change, flags, message, tmp_path, capsys):
    tensors = {name: value for name, value in (tiny() | change).items() if value is not None}
    path = write(tmp_path / "model.ckpt-7", tensors)
    with pytest.raises(SystemExit) as exit:
        cli.main(["run.py", "--mode=import_checkpoint", f"--checkpoint={path}", f"--model_dir={tmp_path}/run", *flags])
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_or_damaged_checkpoint_is_refused(tmp_path):
    with pytest.raises(SettingError, match="there is no checkpoint"):
        official.read(str(tmp_path / "model.ckpt-7"))
    (tmp_path / "model.ckpt-7.index").write_bytes(b"not a checkpoint")
    with pytest.raises(SettingError, match="cannot be read"):
        official.read(str(tmp_path / "model.ckpt-7"))
    with pytest.raises(SettingError, match="--checkpoint="):
        modes.run({"mode": "import_checkpoint", "model_dir": str(tmp_path / "run")})


@pytest.mark.parametrize("layer", ["streams", "squeeze", "first", "last"])
def test_kernels_in_another_order_of_axes_are_refused(layer, tmp_path):
    """A transposed squeeze layer of the selective kernels gave a squeeze ratio of 16."""
    shapes = shapes_of(50, 1 / 4, 0.0625, classes=10)
    kernels = [name for name in shapes if name.startswith("base_model/conv2d") and len(shapes[name]) == 4]
    name = {
        "streams": "base_model/conv2d_5/kernel",
        "squeeze": kernels[-3],
        "first": "base_model/conv2d/kernel",
        "last": kernels[-1],
    }[layer]
    shapes[name] = (*shapes[name][:2], *shapes[name][:1:-1])
    path = write(tmp_path / "model.ckpt-7", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    with pytest.raises(ValueError, match=rf"^--checkpoint={path}: (its variables are not those|not a complete SimCLR)"):
        official.read(path)


@pytest.mark.parametrize(
    "change",
    [
        {"head_supervised/linear_layer/dense/bias": np.float32(1)},
        {"head_supervised/linear_layer/dense/kernel": np.zeros(0, np.float32)},
        {"base_model/conv2d/kernel": np.zeros([7, 7, 0, 4], np.float32)},
        {"base_model/conv2d/kernel": np.zeros([1, 1], np.float32)},
        {"base_model/conv2d/kernel": b"text"},
        {"head_contrastive/nl_0/dense/kernel": np.float32(0)},
        {"head_contrastive/nl_2/dense/kernel": np.zeros([32, 0], np.float32)},
        {"global_step": np.zeros([2], np.int64)},
        {"global_step": b"text"},
    ],
)
def test_variables_of_other_shapes_and_types_are_refused_or_ignored(change, tmp_path):
    path = write(tmp_path / "model.ckpt-7", tiny() | change)
    if "global_step" in change:
        assert official.read(path).step == 0
    else:
        with pytest.raises(SettingError, match=rf"^--checkpoint={path}: ") as caught:
            official.read(path)
        assert "\n" not in str(caught.value)


def test_a_network_that_a_few_variables_describe_is_refused_before_it_is_built(tmp_path):
    """Its first kernel implies a width multiplier of 64: 100 billion weights."""
    kernel = np.zeros([7, 7, 3, 4096], np.float32)
    path = write(tmp_path / "model.ckpt-7", tiny(classes=0) | {"base_model/conv2d/kernel": kernel})
    with pytest.raises(SettingError, match=r"not a complete SimCLR network \(\d+ of another shape"):
        official.read(path)


def test_a_checkpoint_that_is_damaged_at_random_is_loaded_as_before_or_refused(tmp_path):
    path = write(tmp_path / "model.ckpt-7", tiny())
    network = Network(ResNet(18, 1 / 16), ProjectionHead(out_dim=8), 10)
    network.build()
    files = sorted(tmp_path.iterdir())

    @given(st.data())
    @settings(max_examples=12)
    def is_loaded_or_refused(data):
        file = data.draw(st.sampled_from(files))
        whole = file.read_bytes()
        place = data.draw(st.integers(0, len(whole) - 1))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(data.draw(st.sampled_from([bytes(flipped), whole[:place], whole[place:], whole + whole])))
        try:
            official.load(network, official.read(path))
            assert_holds(network, tiny())
        except SettingError as error:
            assert str(error).startswith(f"--checkpoint={path}: ") and "\n" not in str(error)
        finally:
            file.write_bytes(whole)

    is_loaded_or_refused()


def test_a_directory_of_several_checkpoints_in_any_path(tmp_path):
    folder = tmp_path / "lr[0.1]*"
    for step in (7, 8):
        write(folder / f"model.ckpt-{step}", tiny())
    with pytest.raises(SettingError, match="there is no checkpoint"):
        official.read(str(folder))
    (folder / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model.ckpt-7"\n')  # since moved
    assert import_run(folder, tmp_path / "run")["checkpoint"] == str(folder / "model.ckpt-7")
    assert_holds(network_of(tmp_path / "run"), tiny())


def test_a_file_name_that_tensorflow_reads_as_a_pattern_is_refused(tmp_path):
    path = write(tmp_path / "model", tiny())
    for file in tmp_path.iterdir():
        file.rename(file.with_name(file.name.replace("model", "model[1]")))
    with pytest.raises(SettingError, match=r"model\[1\]: TensorFlow cannot read this name; rename the files"):
        official.read(f"{path}[1]")


@pytest.mark.parametrize("head", ["nonlinear", "linear", "none"])
def test_import_and_export_are_bit_equal(head, tmp_path):
    tensors = tiny(head)
    import_run(write(tmp_path / "model.ckpt-7", tensors), tmp_path / "run")
    modes.run({"mode": "export", "format": "tf1_checkpoint", "checkpoint": str(tmp_path / "run")})
    exported = tmp_path / "run/tf1_checkpoint"
    actual = contents(exported)
    assert actual.keys() == tensors.keys()
    for name, value in tensors.items():
        assert actual[name].dtype == value.dtype
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
    assert tf.train.latest_checkpoint(str(exported)) == str(exported / "model.ckpt-7")
    import_run(exported, tmp_path / "run2")
    assert_holds(network_of(tmp_path / "run2"), tensors)


def test_a_tf1_graph_restores_the_export(tmp_path):
    import_run(write(tmp_path / "model.ckpt-7", tiny()), tmp_path / "run")
    modes.run({"mode": "export", "format": "tf1_checkpoint", "checkpoint": str(tmp_path / "run")})
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        variables = {n: v1.get_variable(n, value.shape, value.dtype) for n, value in tiny().items()}
        v1.train.Saver().restore(session, str(tmp_path / "run/tf1_checkpoint/model.ckpt-7"))
        for name, value in session.run(variables).items():
            np.testing.assert_array_equal(value, tiny()[name], err_msg=name)


def evaluation_images():
    """Returns the test images of the digits at 16 px, as evaluation crops them, and their labels."""
    source = open_source(Config(dataset="digits"), "test")
    views = [center_crop_and_resize(tf.constant(image), (16, 16), method="tf1") for image in source.images]
    return tf.stack(views), source.labels


@pytest.mark.slow  # an import and its numbers are tested above
def test_other_modes_start_from_an_imported_run(tmp_path):
    start = import_run(write(tmp_path / "model.ckpt-7", tiny()), tmp_path / "run", dataset="digits", image_size=16)
    assert start["step"] == 7
    run = str(tmp_path / "run")
    toy = {"train_batch_size": 50, "train_steps": 2, "checkpoint_steps": 2, "labels_per_class": 5, "report": False}
    toy |= {"recipe": "none", "warmup_epochs": 0.0}
    evaluation = modes.run({"mode": "evaluate", "checkpoint": run})
    images, labels = evaluation_images()
    predictions = np.argmax(network_of(run)(images)["logits_sup"], axis=1)
    assert evaluation["top1"] == np.mean(predictions == labels) and evaluation["knn_top1"] > 0.3
    finetuned = str(tmp_path / "finetuned")
    modes.run(toy | {"mode": "finetune", "checkpoint": run, "model_dir": finetuned, "ft_proj_selector": 1})
    config, resolved = read_run_config(finetuned)
    assert (config.width_multiplier, config.stem, config.image_size) == (0.0625, "imagenet", 16)
    assert config.eval_resize == read_run_config(run)[0].eval_resize == "tf1"
    assert resolved["head_input"] == 1
    name = "base_model/conv2d/kernel"
    moved = np.abs(official_names(network_of(finetuned))[name] - tiny()[name]).max()
    assert 0 < moved < 0.1 * np.abs(tiny()[name]).max()
    distilled = {"mode": "distill", "teacher": run, "resnet_depth": 18, "width_multiplier": 0.0625, "dataset": "digits"}
    result = modes.run(toy | distilled | {"model_dir": str(tmp_path / "distilled")})
    predictions = np.argmax(network_of(tmp_path / "distilled")(images)["logits_sup"], axis=1)
    assert result["distill_top1"] == np.mean(predictions == labels)
