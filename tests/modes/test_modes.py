"""Every mode end to end, at toy size on the digits; resumed runs; runs that are refused."""

import contextlib
import csv
import json
import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from PIL import Image
from saved_runs import TOY

from simclrv2_tf import cli, modes
from simclrv2_tf.errors import SettingError, explained_errors
from simclrv2_tf.modes import preview, train
from simclrv2_tf.runs import loop, memory
from simclrv2_tf.runs.run_dir import RunDirectory


def rows(model_dir):
    return (model_dir / "metrics.csv").read_text().splitlines()


def weights(model_dir):
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    """Runs semi-supervised learning once for this file.

    Returns:
        Its model directory and result, and for each report of a stage the stage, the number of rows of metrics.csv when
        it was written, whether it is large, and the figures without a PNG.
    """
    write_report, reports = loop.write_report, []

    def recorded(model_dir, **arguments):
        path, figures = write_report(model_dir, **arguments), model_dir / "figures"
        names, drawn = ({file.name.split(".")[0] for file in figures.glob(f"*.{kind}")} for kind in ("json", "png"))
        reports.append((model_dir.name, len(rows(model_dir)) - 1, path.stat().st_size > 1e5, names - drawn))
        return path

    model_dir = tmp_path_factory.mktemp("runs") / "semi"
    with pytest.MonkeyPatch.context() as patch:
        for module in (loop, train):
            patch.setattr(module, "write_report", recorded)
        result = modes.run(TOY | {"mode": "semi_supervised", "model_dir": str(model_dir)})
    return model_dir, result, reports


@pytest.fixture(scope="module")
def whole_run(recorded_run):
    """Returns the model directory and the result of the semi-supervised run."""
    return recorded_run[:2]


def test_semi_supervised_runs_every_stage_and_reports(whole_run):
    model_dir, result = whole_run
    stages = {path.name for path in model_dir.iterdir() if (path / "checkpoints").is_dir()}
    assert stages == {"pretrain", "linear_eval", "supervised_5", "finetune_5", "distill_5"}
    (row,) = result["table"]
    assert set(row) == {"labels_per_class", "supervised_top1", "finetune_top1", "distill_top1"}
    assert result["knn_top1"] > 0.3  # chance is 0.1
    columns = {("linear_eval", "eval_top1"): "linear_top1", ("pretrain", "online_top1"): "online_top1"}
    for (stage, column), name in columns.items():
        *_, last_row = csv.DictReader(rows(model_dir / stage))
        assert result[name] == pytest.approx(float(last_row[column]), rel=1e-5)
    assert json.loads((model_dir / "result.json").read_text()) == result
    page = (model_dir / "report.html").read_text()
    assert page.count("<figure>") >= 1 + 5 + 4 * 4
    for name in ("views", "neighbours", "embedding", "curve_loss"):
        assert (model_dir / f"pretrain/figures/{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_semi_supervised_draws_the_labels_once_per_seed(tmp_path):
    flags = TOY | {"mode": "semi_supervised", "train_steps": 2, "checkpoint_steps": 2, "report": False}
    result = modes.run(flags | {"seeds": "0,3", "model_dir": str(tmp_path)})
    stages = {path.name for path in tmp_path.iterdir() if (path / "checkpoints").is_dir()}
    per_seed = {
        f"{mode}_5_seed{seed}" for mode in ("linear_eval", "supervised", "finetune", "distill") for seed in (0, 3)
    }
    assert stages == {"pretrain", "linear_eval"} | per_seed
    labelled = [json.loads((tmp_path / f"finetune_5_seed{seed}/config.json").read_text()) for seed in (0, 3)]
    assert [config["seed"] for config in labelled] == [0, 3]
    assert len({config["resolved"]["images"] for config in labelled}) == 2  # other labels
    assert [run["seed"] for run in result["runs"]] == [0, 3] and len(result["verdicts"]) == 3
    more = modes.run(flags | {"seeds": "0,3,4", "model_dir": str(tmp_path)})  # adds a seed to the existing ones
    assert more["runs"][:2] == result["runs"] and [run["seed"] for run in more["runs"]] == [0, 3, 4]


@pytest.mark.parametrize("stage", ["pretrain", "supervised_5", "distill_5"])
def test_the_report_is_written_at_each_evaluation_and_at_the_end(stage, recorded_run):
    reports = [report[1:3] for report in recorded_run[2] if report[0] == stage]
    assert reports == [(1, True), (2, True), (2, True)]  # two evaluations and the end


@pytest.mark.parametrize(("stage", "figure"), [("pretrain", "embedding"), ("supervised_5", "confusion")])
def test_figures_are_drawn_as_png_at_the_end_alone(stage, figure, recorded_run):
    """The renderer's memory grows over hundreds of pictures."""
    first, second, end = (report[3] for report in recorded_run[2] if report[0] == stage)
    assert figure in first and {figure, "curve_loss"} <= second and not end


@pytest.mark.filterwarnings("ignore:Even though the `tf.config")
class TestPreview:
    @pytest.fixture(autouse=True)
    def without_graphs(self, whole_run):
        """Tracing takes longer than these few steps."""
        tf.config.run_functions_eagerly(True)
        yield
        tf.config.run_functions_eagerly(False)

    def test_shows_a_run_and_trains_nothing(self, tmp_path, capsys):
        result = modes.run(TOY | {"mode": "preview", "model_dir": str(tmp_path)})
        out = capsys.readouterr().out
        assert "before pretrain" in out and "4 steps of" in out and "3 steps of 50 images" in out
        files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.suffix in (".png", ".html")}
        assert files == {"preview.html"} | {f"preview/{name}.png" for name in ("views", "batch", "labels")}
        page = (tmp_path / "preview.html").read_text()
        assert "50 labelled images: 5 per class, 10 classes" in page and result["memory"].split(":")[0] in page
        few = {"train_steps": 1, "checkpoint_steps": 1, "report": False}
        modes.run(TOY | few | {"mode": "pretrain", "model_dir": str(tmp_path)})  # the directory can still be used

    @pytest.mark.slow  # the preview of pretraining takes the same path
    def test_of_fine_tuning_and_distillation(self, whole_run, tmp_path, capsys):
        start = {"mode": "preview", "model_dir": str(tmp_path), "train_batch_size": 20, "train_steps": 3}
        modes.run(start | {"checkpoint": str(whole_run[0] / "pretrain"), "labels_per_class": 2})
        assert "before finetune" in (out := capsys.readouterr().out) and "20 to train on" in out
        modes.run(start | {"teacher": str(whole_run[0] / "finetune_5")})
        assert "before distill" in capsys.readouterr().out

    def test_a_large_step_is_timed_with_fewer_images_and_scaled_to_the_batch(self, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(preview, "TIMED_BYTES", 1e5)
        monkeypatch.setattr(preview, "_seconds_per_step", lambda *_: 2.0)
        modes.run(TOY | {"mode": "preview", "model_dir": str(tmp_path)})
        seconds, timed = re.search(r"steps of ([\d.]+) s, by 3 steps of (\d+) images", capsys.readouterr().out).groups()
        assert 0 < int(timed) < 50
        assert float(seconds) == pytest.approx(2 * 50 / int(timed), rel=1e-2)

    def test_an_impossible_run_is_refused(self, tmp_path):
        with pytest.raises(SettingError, match="--train_batch_size=5000"):
            modes.run(TOY | {"mode": "preview", "train_batch_size": 5000, "model_dir": str(tmp_path / "run")})
        assert not list(tmp_path.iterdir())


class TestReport:
    def test_is_written_again(self, whole_run):
        page = whole_run[0] / "supervised_5" / "report.html"
        page.unlink()
        assert modes.run({"mode": "report", "model_dir": str(page.parent)})["path"] == str(page)
        assert page.is_file()

    def test_compares_runs(self, whole_run, tmp_path):
        runs = [str(whole_run[0] / name) for name in ("supervised_5", "finetune_5")]
        modes.run({"mode": "report", "compare": ",".join(runs), "model_dir": str(tmp_path / "new")})
        text = (tmp_path / "new/comparison.html").read_text()
        assert "supervised_5: Confusion" in text and "finetune_5: Confusion" in text and "ft_proj_selector" in text
        assert json.loads((whole_run[0] / "finetune_5/result.json").read_text())["mode"] == "finetune"

    @pytest.mark.parametrize(
        "setting", [{}, {"model_dir": "nowhere"}, {"compare": "nowhere,{run}"}, {"compare": "{run}"}]
    )
    def test_a_directory_without_a_run_is_refused(self, setting, whole_run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        setting = {name: value.format(run=whole_run[0]) for name, value in setting.items()}
        flag = "compare" if "compare" in setting else "model_dir"
        with pytest.raises(SettingError, match=f"^--{flag}="):
            modes.run({"mode": "report"} | setting)
        assert not list(tmp_path.iterdir())


def test_each_stage_writes_its_settings_and_metrics(whole_run):
    model_dir, _ = whole_run
    config = json.loads((model_dir / "finetune_5/config.json").read_text())
    assert config["labels_per_class"] == 5 and config["mode"] == "finetune"
    assert config["resolved"]["train_images"] == 50 and config["resolved"]["steps"] == 4
    header, *body = rows(model_dir / "pretrain")
    assert header.startswith("step,epoch,loss") and "online_top1" in header and "images_per_second" in header
    assert [line.split(",")[0] for line in body] == ["2", "4"]


def test_the_same_command_again_trains_nothing(whole_run, capsys):
    model_dir, result = whole_run
    before = weights(model_dir / "pretrain")
    again = modes.run(TOY | {"mode": "semi_supervised", "model_dir": str(model_dir)})
    assert "Training already complete" in capsys.readouterr().out
    assert again["table"] == result["table"] and again["knn_top1"] == result["knn_top1"]
    np.testing.assert_equal(weights(model_dir / "pretrain"), before)


def test_other_settings_in_the_same_directory_are_refused(whole_run):
    model_dir, _ = whole_run
    with pytest.raises(SettingError, match=r"temperature 0\.5 -> 0\.3"):
        modes.run(TOY | {"mode": "pretrain", "temperature": 0.3, "model_dir": str(model_dir / "pretrain")})


def test_other_settings_resume_with_override_config(tmp_path, caplog, capsys):
    settings = TOY | {"mode": "supervised", "model_dir": str(tmp_path), "report": False}
    modes.run(settings | {"keep_best": "loss"})
    assert list((tmp_path / "checkpoints/best").glob("step-*.index"))
    with pytest.raises(SettingError, match=r"train_steps 4 -> 6\); pass --override_config to resume anyway"):
        modes.run(settings | {"train_steps": 6})
    modes.run(settings | {"train_steps": 6, "override_config": True})
    out = capsys.readouterr().out
    assert "train_steps 4 -> 6" in caplog.text and "Resuming from step 4 of 6" in out
    assert re.search(r"Memory: about [\d.]+ MB of [\d.,]+ GB: .*activations and gradients [\d.]+ MB", out)
    assert "--grad_cache_micro_batch" not in out  # only suggested if memory is short, see TestMemory
    assert [line.split(",")[0] for line in rows(tmp_path)] == ["step", "2", "4", "6"]
    modes.run(settings | {"train_steps": 6})  # they are now the settings of the run


def test_a_damaged_config_or_one_of_another_version_is_refused(whole_run):
    model_dir, _ = whole_run
    file = model_dir / "supervised_5/config.json"
    text = file.read_text()
    try:
        for damaged in (text.replace('"config_version": 1', '"config_version": 2'), text.replace('"config_ver', '"x')):
            file.write_text(damaged)
            with pytest.raises(
                SettingError, match=r"^--model_dir=.*: its config.json has config_version (2|None), .*again"
            ):
                modes.run(TOY | {"mode": "supervised", "model_dir": str(file.parent)})
        file.write_text(text[:100])
        with pytest.raises(SettingError, match=r"^--model_dir=.*: config.json is damaged"):
            modes.run(TOY | {"mode": "supervised", "model_dir": str(file.parent)})
    finally:
        file.write_text(text)


def test_the_stages_of_a_semi_supervised_run_start_from_each_other(whole_run):
    model_dir, _ = whole_run
    stages = ("pretrain", "linear_eval", "supervised_5", "finetune_5", "distill_5")
    configs = [json.loads((model_dir / f"{stage}/config.json").read_text()) for stage in stages]
    assert [config["labels_per_class"] for config in configs] == [0, 0, 5, 5, 5]
    assert [config["resolved"]["train_images"] for config in configs] == [1297, 1297, 50, 50, 1297]
    checkpoints = [config["checkpoint"].removeprefix(str(model_dir)) for config in configs]
    assert checkpoints == ["", "/pretrain", "", "/pretrain", "/pretrain"]
    assert [config["teacher"].removeprefix(str(model_dir)) for config in configs] == ["", "", "", "", "/finetune_5"]


@pytest.fixture(scope="module")
def runs_on_files(tmp_path_factory):
    """Returns a folder of data sets, and the settings of complete runs on each of them."""
    folder = tmp_path_factory.mktemp("files")
    pixels, labels = np.random.default_rng(0).integers(0, 256, (70, 8, 8, 3), np.uint8), np.arange(70) % 10
    np.savez(folder / "a.npz", x_train=pixels[:60], y_train=labels[:60], x_test=pixels[60:], y_test=labels[60:])
    for i, label in enumerate(labels):
        path = folder / ("train" if i < 60 else "test") / f"class{label}" / f"{i}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i]).save(path)
    (folder / "data").mkdir()
    for split in ("train", "test"):
        (folder / split).rename(folder / "data" / split)
    settings = TOY | {"mode": "supervised", "labels_per_class": 0, "train_steps": 2, "report": False}
    settings |= {"eval_batch_size": 10, "recipe": "none"}
    places = {"npz": f"npz:{folder}/a.npz", "folder": f"folder:{folder}/data"}
    runs = {kind: settings | {"dataset": place, "model_dir": f"{folder}/{kind}"} for kind, place in places.items()}
    for run in runs.values():
        modes.run(run)
    return folder, runs


@contextlib.contextmanager
def changed_byte(folder, kind, split):
    """Changes a byte of an image of a split, and restores it; neither sizes nor names change."""
    if kind == "folder":
        path = sorted((folder / "data" / split / "class3").iterdir())[0]
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    else:
        path = folder / "a.npz"
        original = path.read_bytes()
        with np.load(path) as arrays:
            arrays = dict(arrays)
        arrays[f"x_{split}"][3, 0, 0, 0] ^= 1
        np.savez(path, **arrays)
    yield
    path.write_bytes(original)


@pytest.mark.parametrize("is_finished", [True, False], ids=["finished", "resumed"])
@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("test", "evaluation")])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_other_images_in_the_same_directory_are_refused(kind, split, name, is_finished, runs_on_files):
    folder, runs = runs_on_files
    result = folder / kind / "result.json"
    text = result.read_text()
    if not is_finished:
        result.unlink()
    with (
        changed_byte(folder, kind, split),
        pytest.raises(SettingError, match=rf"the {name} images have changed: (\d+) \(\w+\) -> \1 \(\w+\)\); pass"),
    ):
        modes.run(runs[kind])
    result.write_text(text)
    assert modes.run(runs[kind]) == json.loads(text)


def test_images_that_change_between_the_stages_are_refused(runs_on_files, tmp_path, monkeypatch):
    """Including those that no later stage trains on, and when the same command is repeated."""
    folder, runs = runs_on_files
    settings = runs["npz"] | {"mode": "semi_supervised", "labels_per_class": 1, "model_dir": str(tmp_path / "run")}
    settings |= {"train_batch_size": 10, "lineareval_while_pretraining": False}
    with contextlib.ExitStack() as stack, pytest.raises(SettingError) as error:
        write_result = RunDirectory.write_result
        change = lambda *args: write_result(*args) or stack.enter_context(changed_byte(folder, "npz", "train"))  # noqa: E731
        monkeypatch.setattr(RunDirectory, "write_result", change)
        modes.run(settings)
    message = rf"--model_dir={tmp_path}/run/pretrain: .*\(the training images have changed: 60 \(\w+\) -> 60 \(\w+\)\)"
    assert re.match(message, str(error.value)) and not (tmp_path / "run/linear_eval").exists()
    with changed_byte(folder, "npz", "test"), pytest.raises(SettingError, match="the evaluation images have changed"):
        modes.run(settings)


@pytest.mark.parametrize("left", [{"checkpoints"}, {"result.json"}, {"metrics.csv"}], ids=str)
def test_records_without_a_config_are_refused(left, runs_on_files, tmp_path):
    folder, runs = runs_on_files
    shutil.copytree(folder / "npz", tmp_path / "run")
    for path in (tmp_path / "run").iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SettingError, match=rf"^--model_dir=.*/run: has {min(left)}, but its config.json is missing"):
        modes.run(runs["npz"] | {"model_dir": str(tmp_path / "run")})


def test_evaluate_gives_the_result_of_the_run(whole_run, tmp_path, capsys):
    model_dir, result = whole_run
    evaluation = modes.run({"mode": "evaluate", "checkpoint": f"{model_dir}/finetune_5", "model_dir": str(tmp_path)})
    assert evaluation["top1"] == result["table"][0]["finetune_top1"]
    capsys.readouterr()
    cli.main(["run.py", "--mode=evaluate", f"--checkpoint={model_dir}/pretrain", f"--model_dir={tmp_path}", "--quiet"])
    assert capsys.readouterr() == ("", "")
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["knn_top1"] == result["knn_top1"] and evaluation["top1"] == result["online_top1"]


def test_embed_writes_both_splits(whole_run, tmp_path):
    model_dir, _ = whole_run
    settings = {"mode": "embed", "checkpoint": str(model_dir / "pretrain")}
    modes.run(settings | {"model_dir": str(tmp_path)})
    modes.run(settings | {"model_dir": str(tmp_path / "tf1"), "eval_resize": "tf1", "format": "parquet"})
    others = pq.read_table(tmp_path / "tf1/embeddings.parquet").to_pydict()
    with np.load(tmp_path / "embeddings.npz") as arrays:
        features = np.array(others["features"][1297:])
        assert features.shape == (500, 32) and others["split"] == ["train"] * 1297 + ["test"] * 500
        assert np.abs(arrays["x_test"] - features).max() > 1e-3  # other views of the same images
        assert arrays["x_train"].shape == (1297, 32) and arrays["x_test"].shape == (500, 32)
        assert list(arrays["class_names"]) == [str(digit) for digit in range(10)]
        assert set(arrays["y_test"]) == set(range(10))
        assert np.isfinite(arrays["x_test"]).all() and arrays["x_test"].std() > 0


@pytest.mark.slow  # tests/runs/test_survival.py and test_loop.py resume runs, too
def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, capsys):
    """With callbacks too, and with images that are not in device memory."""
    settings = TOY | {"mode": "pretrain", "report": False}
    modes.run(settings | {"model_dir": str(tmp_path / "whole")})

    class Killed(Exception):
        pass

    def stop_after_two_steps(*_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr("simclrv2_tf.runs.loop.Progress.show", stop_after_two_steps)
        modes.run(settings | {"model_dir": str(tmp_path / "parts"), "steps_per_execution": 2})
    assert "step-2" not in str(list((tmp_path / "parts").rglob("*.index")))
    changes = {"callbacks": "simclrv2_tf.runs.callbacks:Histograms", "resident_mb": 0, "steps_per_execution": 2}
    modes.run(settings | changes | {"model_dir": str(tmp_path / "parts")})
    assert list((tmp_path / "parts/tensorboard").glob("*.histograms"))
    capsys.readouterr()
    np.testing.assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.slow  # tests/runs/test_survival.py does the same with kills
def test_resuming_at_a_checkpoint_is_exact(tmp_path, capsys):
    settings = TOY | {"mode": "pretrain", "report": False, "memory_size": 100}
    modes.run(settings | {"model_dir": str(tmp_path / "whole")})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write_row = RunDirectory.write_row

        def killed_in_the_second_interval(self, row):
            if row["step"] == 4:
                raise KeyboardInterrupt
            write_row(self, row)

        patch.setattr(RunDirectory, "write_row", killed_in_the_second_interval)
        modes.run(settings | {"model_dir": str(tmp_path / "parts")})
    capsys.readouterr()
    modes.run(settings | {"model_dir": str(tmp_path / "parts")})
    assert "Resuming from step 2 of 4" in capsys.readouterr().out
    np.testing.assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    speed = rows(tmp_path / "whole")[0].split(",").index("images_per_second")
    for part, whole in zip(rows(tmp_path / "parts"), rows(tmp_path / "whole"), strict=True):
        part, whole = part.split(","), whole.split(",")
        assert part[:speed] + part[speed + 1 :] == whole[:speed] + whole[speed + 1 :]


@pytest.mark.slow  # tests/modes/test_foundation_models.py evaluates an encoder, too
def test_linear_evaluation_on_a_folder_of_files(whole_run, tmp_path):
    """Pretrained on the digits, evaluated on digits in PNG files."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for index in range(0, 300):
        folder = tmp_path / "images" / f"class {digits.target[index]}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.kron(digits.images[index] * 15.9, np.ones((4, 4)))[..., None]
        (folder / f"{index}.png").write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
    broken = [tmp_path / f"images/class 3/broken {i}.png" for i in range(5)]  # one is held out for evaluation
    for path in broken:
        path.write_bytes(b"not a picture")
    result = modes.run(
        TOY
        | {
            "mode": "linear_eval",
            "dataset": f"folder:{tmp_path / 'images'}",
            "checkpoint": str(whole_run[0] / "pretrain"),
            "labels_per_class": 0,
            "model_dir": str(tmp_path / "run"),
            "report": False,
        }
    )
    before, after = weights(whole_run[0] / "pretrain"), weights(tmp_path / "run")
    encoder = [name for name in after if name.startswith("encoder/")]
    assert len(encoder) > 10
    np.testing.assert_equal({name: after[name] for name in encoder}, {name: before[name] for name in encoder})
    evaluation = modes.run({"mode": "evaluate", "checkpoint": str(tmp_path / "run")})
    assert evaluation["top1"] == result["linear_top1"] and evaluation["knn_top1"] > 0.3
    assert result["corrupt_images"] == [str(path) for path in broken]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--mode=finetune", "--checkpoint=/no/such/run"], "--checkpoint=/no/such/run: there is no checkpoint"),
        (["--mode=evaluate"], "--checkpoint="),
        (["--mode=distill"], "--teacher="),
        (["--mode=pretrain", "--dataset=digits", "--train_batch_size=5000"], "--train_batch_size=5000"),
        (["--mode=finetune", "--dataset=digits"], "--checkpoint="),
        (["--mode=supervised", "--dataset=digits", "--checkpoint=runs/x"], "--checkpoint=runs/x"),
        (["--mode=supervised", "--dataset=digits", "--labels_per_class=500"], "--labels_per_class=500"),
        (["--mode=pretrain", "--dataset=folder:/no/such/folder"], "--dataset=folder:/no/such/folder"),
        (["--mode=pretrain", "--dataset=digits", "--cpu_replicas=3", "--train_batch_size=256"], "--train_batch_size"),
        (["--mode=pretrain", "--recipe=nonsense"], "--recipe=nonsense"),
        (["--mode=semi_supervised", "--dataset=digits", "--stage=distill.temperature=0"], "--temperature=0"),
        (["--mode=semi_supervised", "--dataset=digits", "--stage=finetune.ft_proj_selector=7"], "--ft_proj_selector=7"),
        (["--mode=semi_supervised", "--dataset=digits", "--labels_per_class=500"], "--labels_per_class=500"),
    ],
)
def test_an_impossible_run_is_refused_in_one_line_and_writes_nothing(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["run.py", *flags, f"--model_dir={tmp_path / 'run'}"])
    assert exit.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_distillation_needs_neither_labels_nor_an_evaluation_split(whole_run, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(50):
        pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    model_dir = tmp_path / "run"
    settings = {"mode": "distill", "teacher": str(whole_run[0] / "finetune_5"), "dataset": f"folder:{tmp_path}"}
    settings |= {"resnet_depth": 10, "width_multiplier": 0.0625, "train_steps": 2, "train_batch_size": 10}
    modes.run(settings | {"model_dir": str(model_dir)})
    assert [line.split(",")[0] for line in rows(model_dir)[1:]] == ["2"]


def test_a_non_finite_loss_stops_the_run_and_saves_nothing(tmp_path):
    settings = TOY | {"mode": "supervised", "optimizer": "momentum", "learning_rate": 1e30, "train_steps": 30}
    with pytest.raises(
        SettingError, match=r"--on_nan=stop: the loss or a gradient is not finite at step \d+ of 30 .*--learning_rate"
    ):
        modes.run(settings | {"model_dir": str(tmp_path / "run"), "warmup_epochs": 0.0, "checkpoint_steps": 30})
    assert not list(tmp_path.rglob("*.index"))


class TestSummary:
    def test_of_flags_opens_no_data_and_writes_nothing(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        result = modes.run({"mode": "summary", "resnet_depth": 10, "image_size": 32, "memory_size": 4096})
        text = capsys.readouterr().out
        assert "ResNet-10 x1, 32 px, cifar stem, 1,000 classes, float32" in text
        assert f"{result['parameters']:,}" in text and f"{result['multiply_adds'] / 1e9:.3g}" in text
        assert re.search(
            r"A step \(pretrain, 512 images x 2 views, all replicas\) keeps [\d.]+ GB of activations", text
        )
        assert "NT-Xent: 1,024 x 5,120 similarities, 20.97 MB in float32" in text
        assert not list(tmp_path.iterdir())

    def test_of_a_run(self, whole_run, capsys):
        model_dir, _ = whole_run
        config = json.loads((model_dir / "pretrain/config.json").read_text())
        result = modes.run({"mode": "summary", "checkpoint": str(model_dir / "pretrain"), "train_batch_size": 7})
        out = capsys.readouterr().out
        assert "10 classes, float32" in out and "A step (pretrain, 7 images x 2 views" in out
        statistics = sum(v.size for name, v in weights(model_dir / "pretrain").items() if "moving_" in name)
        assert result["parameters"] == config["resolved"]["parameters"] + statistics
        modes.run({"mode": "summary", "checkpoint": str(model_dir / "linear_eval")})
        rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
        assert rows["total"][1] == rows["classifier"][1] == "330" and rows["block_group4"][-2:] == ["0.00", "MB"]

    def test_of_another_network_than_that_of_the_run_is_refused(self, whole_run):
        model_dir, _ = whole_run
        with pytest.raises(SettingError, match="resnet_depth=50"):
            modes.run({"mode": "summary", "checkpoint": str(model_dir / "pretrain"), "resnet_depth": 50})


class TestMemory:
    def test_the_estimate_is_printed_with_remedies_if_it_exceeds_the_memory(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(memory, "device_memory", lambda: 500_000)
        settings = TOY | {"mode": "supervised", "train_steps": 1, "report": False}
        modes.run(settings | {"model_dir": str(tmp_path)})
        assert re.search(r"of 0.50 MB.* EXCEEDS AVAILABLE MEMORY; .*--remat", capsys.readouterr().out)

    def test_running_out_of_memory_names_the_flags_that_help(self, tmp_path):
        """The queue is larger than any address space."""
        settings = TOY | {"memory_size": 10_000_000, "proj_out_dim": 2**16, "model_dir": str(tmp_path / "run")}
        with pytest.raises(SettingError, match=r"out of memory \(OOM .*--remat.*--grad_cache_micro_batch"):
            modes.run(settings | {"mode": "pretrain"})

    def test_a_full_disk_is_not_mistaken_for_a_full_memory(self):
        with pytest.raises(SettingError, match=r"^--model_dir=x: .*\(No space left"), explained_errors("x"):
            tf.io.write_file("/dev/full", "x" * 100_000)
