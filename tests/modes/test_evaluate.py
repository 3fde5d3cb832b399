"""Labels of data are matched by name with those of a run in evaluation, embedding, distillation and resumed runs."""

import json
import shutil

import numpy as np
import pytest
import saved_runs
import tensorflow as tf

from simclrv2_tf import errors, modes
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.evaluate import warn_if_trained_on
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.modes.setup import build_run

pytestmark = pytest.mark.filterwarnings("ignore:Even though the `tf.config")

NAMES = ("one", "two", "zero")


@pytest.fixture(autouse=True)
def without_graphs():
    """Tracing takes longer than these few images."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def save_folder(folder, names):
    """Writes twenty images per class; those of the i-th class do not depend on its name."""
    for i, name in enumerate(names):
        saved_runs.save_images(folder, [f"{name}/{k:02}.png" for k in range(20)], seed=i)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run, the images of its classes, and the same images with other names of the classes."""
    place = tmp_path_factory.mktemp("evaluate")
    save_folder(place / "own", NAMES)
    save_folder(place / "order", ("one", "two", "Zero"))  # sorted: Zero, one, two
    save_folder(place / "german", ("eins", "zwei", "null"))  # sorted: eins, null, zwei
    save_folder(place / "fewer", NAMES[:2])
    saved_runs.save_run(place / "run", NAMES, dataset=f"folder:{place}/own")
    return place


def evaluate(place, data, out):
    return modes.run(
        {"mode": "evaluate", "checkpoint": f"{place}/run", "dataset": f"folder:{place}/{data}", "model_dir": str(out)}
    )


def test_other_order_or_case_gives_the_same_accuracies(place, tmp_path, caplog, capsys):
    expected = evaluate(place, "own", tmp_path)
    out = capsys.readouterr().out
    assert f"evaluate: {place}/run\n  data         folder:{place}/own\n  classes      3: one, two, zero\n" in out
    assert "  eval split   own/test: 12 labelled (4 per class)\n" in out and "evaluate: done\n" in out
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert (result["dataset"], result["split"], result["eval_images"]) == (f"folder:{place}/own", "test", 12)
    assert not caplog.text and 0 < expected["top1"] < 1
    actual = evaluate(place, "order", tmp_path)
    assert {name: actual[name] for name in ("top1", "knn_top1")} == {n: expected[n] for n in ("top1", "knn_top1")}
    assert "labels of order/test are matched by class name, as its classes are" in caplog.text
    fewer = evaluate(place, "fewer", tmp_path)["top1"]
    # four test images per class: the difference is the hits of the third class
    assert round(12 * expected["top1"] - 8 * fewer) in range(5) and 0 < fewer < 1


@pytest.mark.parametrize(
    ("trained", "flags", "expected"),
    [
        ("train", {}, ""),
        ("all", {}, "12 of 12 images of own/test are also trained on, in own/all: "),
        ("all", {"train_split": "train"}, "12 of 12 images of own/test are also trained on, in own/all: "),
        ("train", {"eval_split": "train"}, "48 of 48 images of own/train are also trained on, in own/train: "),
        ("train", {"dataset": "own/one", "eval_split": "all"}, "16 of 20 images of one/all are also trained on, in "),
        ("train", {"dataset": "fewer"}, ""),
    ],
)
def test_images_that_the_run_was_trained_on_are_warned_of(trained, flags, expected, place, tmp_path, caplog):
    errors.warn_once.cache_clear()
    shutil.copytree(place / "run", tmp_path / "run")
    file = tmp_path / "run/config.json"
    file.write_text(file.read_text().replace('"train_split": "train"', f'"train_split": "{trained}"'))
    if "dataset" in flags:
        flags = flags | {"dataset": f"folder:{place}/{flags['dataset']}"}
    config = resolve_config({"mode": "evaluate", "checkpoint": f"{tmp_path}/run"} | flags)
    warn_if_trained_on(config, open_source(config, config.train_split), open_source(config, config.eval_split))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == bool(expected) and all(warning.startswith(expected) for warning in warnings)


def test_other_images_are_evaluated_if_those_of_the_run_are_gone(place, caplog):
    config = resolve_config({"mode": "evaluate", "checkpoint": f"{place}/run", "dataset": f"folder:{place}/fewer"})
    images = open_source(config, "train")
    (place / "own").rename(place / "gone")
    try:
        warn_if_trained_on(config, images, images)
    finally:
        (place / "gone").rename(place / "own")
    assert not caplog.text


def test_other_classes_are_refused(place, tmp_path):
    message = r"^--checkpoint=.*run: has the classes one, two, zero; german/train has eins, null, zwei; name the "
    with pytest.raises(SettingError, match=message):
        evaluate(place, "german", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "names"),
    [pytest.param("order", NAMES, marks=pytest.mark.slow), ("german", ("eins", "null", "zwei"))],
)
def test_embeddings_have_the_numbers_of_the_run_or_else_the_names_of_the_data(data, names, place, tmp_path, capsys):
    flags = {"mode": "embed", "checkpoint": f"{place}/run", "dataset": f"folder:{place}/{data}"}
    modes.run(flags | {"model_dir": str(tmp_path)})
    assert f"embed: {place}/run\n  data         folder:{place}/{data}\n  classes      3: " in capsys.readouterr().out
    with np.load(tmp_path / "embeddings.npz") as arrays:
        assert tuple(arrays["class_names"]) == names
        folders = [path.split("/")[-2].lower() for path in arrays["path_train"]]
        assert folders == [names[label] for label in arrays["y_train"]]


def build(**settings):
    return build_run(resolve_config(saved_runs.TINY | {"train_batch_size": 8} | settings), tf.distribute.get_strategy())


def folders_of(source):
    return [path.split("/")[-2].lower() for path in source.paths]


@pytest.mark.parametrize("alpha", [1.0, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_student_has_the_classes_of_its_teacher(alpha, place, tmp_path):
    start = {"mode": "distill", "teacher": f"{place}/run", "distill_alpha": alpha, "model_dir": str(tmp_path)}
    run = build(**start, dataset=f"folder:{place}/order")
    assert run.class_names == NAMES == run.test.class_names
    for source in (run.test, run.data.source) if alpha < 1 else (run.test,):
        assert folders_of(source) == [NAMES[label] for label in source.labels]
    with pytest.raises(SettingError, match=r"^--teacher=.*run: has the classes one, .* has eins, null, zwei"):
        build(**start, dataset=f"folder:{place}/german")


@pytest.mark.slow
def test_a_student_of_unlabelled_images_has_the_names_too(place, tmp_path):
    saved_runs.save_images(tmp_path / "unlabelled", [f"{i}.png" for i in range(9)])
    start = {"mode": "distill", "teacher": f"{place}/run", "model_dir": f"{tmp_path}/run"}
    modes.run(
        saved_runs.TINY | start | {"dataset": f"folder:{tmp_path}/unlabelled", "train_steps": 1, "train_batch_size": 8}
    )
    resolved = json.loads((tmp_path / "run/config.json").read_text())["resolved"]
    assert resolved["class_names"] == list(NAMES) and resolved["num_classes"] == 3


@pytest.mark.parametrize("mode", ["supervised", pytest.param("pretrain", marks=pytest.mark.slow)])
def test_a_run_that_is_resumed_with_other_images_keeps_its_numbers(mode, place):
    settings = {"mode": mode, "model_dir": f"{place}/run", "dataset": f"folder:{place}/order"}
    run = build(**settings, override_config=True)
    assert run.class_names == NAMES
    for source in (run.data.source, run.test):
        assert folders_of(source) == [NAMES[label] for label in source.labels]
    assert build(**settings).class_names == ("Zero", "one", "two")  # `changed` refuses to resume
    with pytest.raises(SettingError, match=r"^--model_dir=.*run: has the classes one, two, zero; german/train has"):
        build(mode=mode, model_dir=f"{place}/run", dataset=f"folder:{place}/german", override_config=True)


def test_a_student_that_is_resumed_keeps_its_classes(place, tmp_path):
    saved_runs.save_run(tmp_path / "student", ("zero", "one", "two"), mode="distill", teacher="x")
    with pytest.raises(SettingError, match=r"^--teacher=.*run: has other classes than the run in --model_dir="):
        build(mode="distill", teacher=f"{place}/run", model_dir=f"{tmp_path}/student", override_config=True,
              dataset=f"folder:{place}/own")  # fmt: skip


def test_without_a_classifier_a_run_has_no_classes(place, tmp_path):
    run = build(
        mode="pretrain", dataset=f"folder:{place}/own", lineareval_while_pretraining=False, model_dir=str(tmp_path)
    )
    assert run.class_names == () and run.test.class_names == NAMES
