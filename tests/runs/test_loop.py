"""Training loop: Keras callbacks, user-defined methods and encoders, also after a resume."""

import csv
import json
import time

import numpy as np
import plugins
import pytest
import saved_runs
import tensorflow as tf

from simclrv2_tf import modes
from simclrv2_tf.errors import SettingError

TOY = saved_runs.TOY | {"mode": "supervised", "report": False}


@pytest.fixture(autouse=True)
def no_events():
    plugins.events.clear()


def rows(model_dir):
    return list(csv.DictReader((model_dir / "metrics.csv").read_text().splitlines()))


def weights(model_dir):
    reader = tf.train.load_checkpoint(str(model_dir / "checkpoints"))
    return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}


def names(events):
    return [event[:2] for event in events]


FIRST_INTERVAL = [
    ("interval begins", 0),
    ("call begins", 0),
    ("call ends", 0),
    ("call begins", 1),
    ("call ends", 1),
    ("interval ends", 0),
]
SECOND_INTERVAL = [
    ("interval begins", 1),
    ("call begins", 2),
    ("call ends", 2),
    ("call begins", 3),
    ("call ends", 3),
    ("interval ends", 1),
]


def test_too_many_corrupt_images_stop_the_run_while_it_trains(tmp_path):
    """Unlabelled images, so that nothing is evaluated."""
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (9, 9, 3), np.uint8)
        (tmp_path / f"good {i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        (tmp_path / f"bad {i}.png").write_bytes(b"not an image")
    settings = TOY | {"mode": "pretrain", "dataset": f"folder:{tmp_path}", "train_batch_size": 8, "labels_per_class": 0}
    with pytest.raises(SettingError, match=r"^--max_corrupt_share=0.4: 4 of 8 images of .* are corrupt"):
        modes.run(settings | {"max_corrupt_share": 0.4, "model_dir": str(tmp_path / ".run")})
    assert not list(tmp_path.rglob("*.index"))


def test_an_interval_of_skipped_steps_stops_the_run(tmp_path):
    settings = TOY | {"mode": "pretrain", "method": "plugins:NanLoss", "on_nan": "skip", "model_dir": str(tmp_path)}
    with pytest.raises(SettingError, match=r"^--on_nan=skip: every step since the last row was skipped, up to step 2"):
        modes.run(settings)
    assert not list(tmp_path.rglob("*.index"))


def test_the_time_in_the_result_counts_every_part_of_a_resumed_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):  # after the first of two checkpoints
        modes.run(TOY | {"model_dir": str(tmp_path), "callbacks": "plugins:recorder_and_interrupt"})
    path = tmp_path / "training_time.json"
    assert json.loads(path.read_text())["seconds"] > 0
    path.write_text('{"seconds": 1000}')
    started = time.perf_counter()
    result = modes.run(TOY | {"model_dir": str(tmp_path)})
    assert 1000 < result["seconds"] <= 1000 + time.perf_counter() - started + 0.1  # it is rounded
    assert json.loads((tmp_path / "result.json").read_text())["seconds"] == result["seconds"]
    assert json.loads(path.read_text())["seconds"] == pytest.approx(result["seconds"], abs=0.11)


class TestCallbacks:
    def test_intervals_are_epochs_and_calls_are_batches_also_after_a_resume(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            modes.run(TOY | {"model_dir": str(tmp_path), "callbacks": "plugins:recorder_and_interrupt"})
        start = [("train begins", 4)]
        assert names(plugins.events) == start + FIRST_INTERVAL + SECOND_INTERVAL[:3]
        plugins.events.clear()
        modes.run(TOY | {"model_dir": str(tmp_path), "callbacks": "plugins:recorder"})
        assert names(plugins.events) == [*start, *SECOND_INTERVAL, ("train ends",)]

    def test_callbacks_get_the_metrics_and_can_add_columns(self, tmp_path):
        modes.run(TOY | {"model_dir": str(tmp_path), "callbacks": "plugins:recorder"})
        ends = [event[2] for event in plugins.events if event[0] == "interval ends"]
        calls = [event[2] for event in plugins.events if event[0] == "call ends"]
        assert [set(call) for call in calls] == [{"loss", "train_top1"}] * 4
        for interval, (logs, row) in enumerate(zip(ends, rows(tmp_path), strict=True)):
            assert float(row["from_callback"]) == 100 + interval
            assert {name: float(row[name]) for name in logs} == pytest.approx(logs, rel=1e-5)
            means = np.mean([call["loss"] for call in calls[2 * interval : 2 * interval + 2]])
            assert logs["loss"] == pytest.approx(means) and "eval_top1" in logs

    @pytest.mark.parametrize(("factory", "step"), [("stop_after_interval", 2), ("stop_in_interval", 3)])
    def test_stop_training_ends_the_run_with_a_checkpoint_and_a_result(self, factory, step, tmp_path, capsys):
        settings = TOY | {"model_dir": str(tmp_path), "callbacks": f"plugins:{factory}"}
        result = modes.run(settings)
        assert result["steps"] == step and f"Stopped at step {step} of 4" in capsys.readouterr().out
        assert (tmp_path / f"checkpoints/step-{step}.index").is_file()
        assert json.loads((tmp_path / "result.json").read_text())["steps"] == step
        modes.run(settings)
        assert "already complete" in capsys.readouterr().out

    @pytest.mark.slow
    def test_keras_profiler_callback(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        modes.run(TOY | {"model_dir": str(tmp_path / "run"), "callbacks": "plugins:profiler"})
        (trace,) = (tmp_path / "tensorboard").glob("**/plugins/profile/*/*.xplane.pb")
        assert b"run_steps" in trace.read_bytes()

    @pytest.mark.parametrize(
        ("callbacks", "message"),
        [
            ("plugins", "must look like package.module:name"),
            ("no_such_module:factory", "cannot be imported"),
            ("plugins:no_such_factory", "plugins has no no_such_factory"),
            ("plugins:not_a_callback", "must return a Keras callback, or a list of them"),
        ],
    )
    def test_an_invalid_callback_is_refused_before_anything_is_written(self, callbacks, message, tmp_path):
        with pytest.raises(SettingError, match=f"^--callbacks={callbacks}: .*{message}"):
            modes.run(TOY | {"model_dir": str(tmp_path / "run"), "callbacks": callbacks})
        assert not (tmp_path / "run").exists()


class TestUserDefinedMethod:
    SETTINGS = TOY | {"mode": "pretrain", "method": "examples.byol:BYOL", "grad_cache_micro_batch": 0}

    def test_is_trained_and_resumes_bit_by_bit_with_its_predictor(self, tmp_path):
        modes.run(self.SETTINGS | {"model_dir": str(tmp_path / "whole")})
        with pytest.raises(KeyboardInterrupt):
            interrupt = {"callbacks": "plugins:recorder_and_interrupt"}
            modes.run(self.SETTINGS | interrupt | {"model_dir": str(tmp_path / "parts")})
        modes.run(self.SETTINGS | {"model_dir": str(tmp_path / "parts")})
        whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
        np.testing.assert_equal(parts, whole)
        assert {"predictor", "target"} <= {name.partition("/")[0] for name in whole}
        first, last = (tf.train.load_checkpoint(str(tmp_path / f"whole/checkpoints/step-{n}")) for n in (2, 4))
        (kernel,) = [name for name in whole if "predictor/hidden.Skernel" in name]
        assert np.abs(first.get_tensor(kernel) - last.get_tensor(kernel)).max() > 0

    @pytest.mark.slow  # tests/methods/test_grad_cache.py compares any method with its plain step
    def test_trains_in_micro_batches(self, tmp_path):
        modes.run(self.SETTINGS | {"grad_cache_micro_batch": 10, "model_dir": str(tmp_path)})
        assert [row["step"] for row in rows(tmp_path)] == ["2", "4"]
        assert all(np.isfinite(float(row["similarity"])) for row in rows(tmp_path))

    @pytest.mark.parametrize("method", ["plugins:Recorder", "plugins:small_encoder"])
    def test_an_invalid_method_is_refused(self, method, tmp_path):
        with pytest.raises(SettingError, match=f"^--method={method}: must be a subclass of simclrv2_tf.Method"):
            modes.run(self.SETTINGS | {"method": method, "model_dir": str(tmp_path / "run")})


class TestUserDefinedEncoder:
    def test_goes_through_all_stages_with_unnamed_layers(self, tmp_path):
        """Keras numbers unnamed layers differently in each run of a process; checkpoints load all the same."""
        settings = TOY | {"encoder": "plugins:small_encoder", "train_steps": 2}
        pretrained, tuned = tmp_path / "pretrain", tmp_path / "finetune"
        modes.run(settings | {"mode": "pretrain", "model_dir": str(pretrained)})
        config = json.loads((pretrained / "config.json").read_text())
        assert config["resolved"]["encoder_description"] == "plugins:small_encoder"
        start = {"checkpoint": str(pretrained)}
        modes.run(settings | start | {"mode": "finetune", "model_dir": str(tuned), "ft_proj_selector": 1})
        assert weights(pretrained).keys() & weights(tuned).keys() >= {
            "encoder/conv2d.Skernel/.ATTRIBUTES/VARIABLE_VALUE"
        }
        linear = modes.run(settings | start | {"mode": "linear_eval", "model_dir": str(tmp_path / "linear")})
        assert linear["linear_top1"] == pytest.approx(float(rows(tmp_path / "linear")[-1]["eval_top1"]), rel=1e-5)
        np.testing.assert_equal(
            *(
                {name: value for name, value in weights(run).items() if name.startswith("encoder/")}
                for run in (pretrained, tmp_path / "linear")
            )
        )
        trust = {"trust_run_code": True}
        student = {"mode": "distill", "teacher": str(tuned), "model_dir": str(tmp_path / "distill")}
        modes.run(settings | student | trust | {"encoder": "resnet"})
        evaluation = modes.run(trust | {"mode": "evaluate", "checkpoint": str(tuned)})
        assert evaluation["top1"] == json.loads((tuned / "result.json").read_text())["finetune_top1"]
        modes.run(trust | {"mode": "export", "checkpoint": str(tuned)})
        exported = tf.saved_model.load(str(tuned / "saved_model"))
        outputs = exported.signatures["serving_default"](images=tf.zeros([2, 9, 11, 3], tf.uint8))
        assert outputs["probabilities"].shape == (2, 10)

    def test_another_encoder_than_that_of_the_checkpoint_is_refused(self, tmp_path):
        settings = TOY | {"train_steps": 1, "encoder": "plugins:small_encoder", "mode": "pretrain"}
        modes.run(settings | {"model_dir": str(tmp_path)})
        flags = {"mode": "finetune", "checkpoint": str(tmp_path), "encoder": "resnet", "trust_run_code": True}
        message = r"^--encoder=resnet: the checkpoint's network has plugins:small_encoder"
        with pytest.raises(SettingError, match=message):
            modes.run(TOY | flags)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"encoder": "plugins:not_a_callback"}, "cannot be called with image_size"),
            ({"encoder": "plugins:encoder_without_pooling"}, r"features must be \[n, d\]"),
            ({"encoder": "plugins:small_encoder", "remat": True}, "--remat=true: works with --encoder=resnet only"),
            ({"encoder": "plugins:small_encoder", "fine_tune_after_block": 2}, "fine_tune_after_block=2: this encoder"),
        ],
    )
    def test_an_unusable_encoder_is_refused_in_one_line(self, settings, message, tmp_path):
        with pytest.raises(SettingError, match=message):
            modes.run(TOY | settings | {"model_dir": str(tmp_path / "run")})
        assert not (tmp_path / "run").exists()
