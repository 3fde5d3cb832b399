"""Trackers receive settings, metrics, figures, the report and the exported network, also after a resume."""

import importlib.util
import json
import struct

import pytest
import saved_runs

from simclrv2_tf import modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.trackers import Trackers
from simclrv2_tf.settings.config import Config

TOY = saved_runs.TOY | {"mode": "supervised", "recipe": "official"}
HAS_MLFLOW, HAS_WANDB = (importlib.util.find_spec(name) is not None for name in ("mlflow", "wandb"))


def train_in_two_parts(model_dir, tracker):
    """Trains, interrupted after three steps and resumed, then exports."""
    settings = TOY | {"model_dir": str(model_dir), "tracker": tracker}
    with pytest.raises(KeyboardInterrupt):
        modes.run(settings | {"callbacks": "plugins:recorder_and_interrupt"})
    first = json.loads((model_dir / "tracked_runs.json").read_text())
    result = modes.run(settings)
    assert json.loads((model_dir / "tracked_runs.json").read_text()) == first
    modes.run({"mode": "export", "format": "litert", "checkpoint": str(model_dir)})
    return first, result


@pytest.mark.skipif(not HAS_MLFLOW, reason="MLflow is not installed (the extra mlflow)")
def test_mlflow_with_its_own_file_store(tmp_path, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    ids, _ = train_in_two_parts(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = [each for each in client.search_experiments() if each.name == "simclrv2-tf"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == ids["mlflow"] and run.info.status == "FINISHED"
    assert run.data.params["resnet_depth"] == "10" and run.data.params["num_classes"] == "10"
    history = client.get_metric_history(run.info.run_id, "loss")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {(each.step, f"{each.value:.6g}") for each in history} == {(r["step"], f"{r['loss']:.6g}") for r in rows}
    files = {each.path for folder in ("", "figures", "model") for each in client.list_artifacts(ids["mlflow"], folder)}
    assert {"config.json", "metrics.csv", "report.html", "result.json", "model/model.tflite"} <= files
    assert any(path.startswith("figures/") and path.endswith(".png") for path in files)


def wandb_records(content):
    """Yields the records of a ``.wandb`` file, a log in LevelDB's format after a header of 7 bytes."""
    position, whole = 7, b""
    while position + 7 <= len(content):
        _, size, kind = struct.unpack_from("<IHB", content, position)  # kinds: whole, first, middle and last part
        whole += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):
            yield whole
            whole = b""
        if (rest := 2**15 - position % 2**15) < 7:  # too little of the block is left for a header
            position += rest


@pytest.mark.skipif(not HAS_WANDB, reason="W&B is not installed (the extra wandb)")
def test_wandb_offline(tmp_path, monkeypatch):
    import wandb
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    ids, _ = train_in_two_parts(tmp_path / "run", "wandb")
    wandb.teardown()  # ends W&B's process, which may still write; otherwise it ends with the program
    files = sorted((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 3 and {file.stem for file in files} == {f"run-{ids['wandb']}"}
    rows, artifacts = [], []
    for file in files:
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("history"):
                items = {(each.key or each.nested_key[0]): json.loads(each.value_json) for each in record.history.item}
                rows.append(items)
            if record.HasField("artifact"):
                artifacts.append((record.artifact.type, {e.path for e in record.artifact.manifest.contents}))
            if record.HasField("request") and record.request.HasField("log_artifact"):
                artifact = record.request.log_artifact.artifact
                artifacts.append((artifact.type, {e.path for e in artifact.manifest.contents}))
    assert [row["step"] for row in rows if "loss" in row] == [2, 4]
    assert any(any(name.startswith("figures/") for name in row) for row in rows)
    assert {("report", "report.html"), ("model", "model.tflite")} <= {
        (k, path) for k, paths in artifacts for path in paths
    }


def test_tensorboard_receives_settings_and_figures(tmp_path):
    import tensorflow as tf

    modes.run(TOY | {"model_dir": str(tmp_path), "tracker": "tensorboard", "train_steps": 2})
    files = [str(path) for path in (tmp_path / "tensorboard").glob("events.*")]  # starting merges the first
    records = tf.data.TFRecordDataset(files).as_numpy_iterator()
    values = [value for record in records for value in tf.compat.v1.Event.FromString(record).summary.value]
    tags = {value.tag: value for value in values}
    assert b"| resnet_depth | 10 |" in tags["settings"].tensor.string_val[0]
    assert any(tag.startswith("figures/") for tag in tags)


class TestFailures:
    @pytest.mark.skipif(not HAS_MLFLOW, reason="MLflow is not installed (the extra mlflow)")
    def test_a_tracker_that_cannot_be_opened_is_refused_with_a_remedy(self, tmp_path, monkeypatch):
        import mlflow

        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        (tmp_path / "file").touch()
        mlflow.set_tracking_uri(f"file://{tmp_path}/file/mlruns")
        message = r"^--tracker=mlflow: cannot be opened \(.*\); set MLFLOW_TRACKING_URI to a server"
        with pytest.raises(SettingError, match=message), Trackers("mlflow", tmp_path) as trackers:
            trackers.start(Config(), {})

    def test_an_unknown_tracker_is_refused_before_anything_is_written(self, tmp_path):
        with pytest.raises(SettingError, match=r"^--tracker=mlflo: must be one or more of mlflow, wandb"):
            Trackers("mlflo", tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(HAS_WANDB, reason="W&B is installed")
    def test_a_missing_package_is_named(self, tmp_path):
        with pytest.raises(SettingError, match=r"^--tracker=wandb: wandb is not installed; pip install '.*\[wandb\]'"):
            Trackers("wandb", tmp_path)

    def test_a_tracker_that_fails_is_a_warning(self, tmp_path, caplog):
        trackers = Trackers("tensorboard", tmp_path)
        (tmp_path / "tensorboard").write_text("a file where the folder has to be")
        with trackers:
            trackers.start(Config(), {})
        (message,) = caplog.messages
        assert message.startswith("--tracker=tensorboard: failed (") and message.endswith("; the run continues")

    def test_a_damaged_file_of_ids_is_refused(self, tmp_path):
        (tmp_path / "tracked_runs.json").write_text('{"mlflow": 1}')
        message = "tracked_runs.json is damaged"
        with pytest.raises(SettingError, match=message), Trackers("tensorboard", tmp_path) as trackers:
            trackers.start(Config(), {})
