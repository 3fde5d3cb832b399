"""``--tracker``: sends settings, metrics, figures, the report and exported networks of a run to experiment trackers.

Each tracker is a Keras callback around the official client. ``tracked_runs.json`` in the model directory has the ids of
the tracked runs, so that a resumed run continues in them and an export is added to them.
"""

import importlib.util
import json
import logging
import os
import pathlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.errors import SettingError, first_line
from simclrv2_tf.files import write_atomically
from simclrv2_tf.schemas import read_record
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

FILES = ("config.json", "metrics.csv", "result.json", "report.html")
PROJECT = "simclrv2-tf"  # name of the MLflow experiment and of the W&B project, unless the environment names another


class Tracker(keras.callbacks.Callback):
    """Base class of trackers: metrics are sent at the end of each interval, which is an epoch to Keras.

    Args:
        model_dir: directory of the run.

    Attributes:
        remedy: fix to suggest if the tracked run cannot be opened.
        location: of the tracked run, once it is open.
    """

    remedy = "check that its folder is writable"
    location = "tensorboard in the model directory"

    def __init__(self, model_dir: pathlib.Path):
        super().__init__()
        self.model_dir = model_dir

    def open(self, run_id: str) -> str:
        """Opens the tracked run with this id, or a new one; returns its id."""
        raise NotImplementedError

    def write_settings(self, settings: dict[str, Any]) -> None:
        """Sends the settings of a new run."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Sends a row of ``metrics.csv``."""

    def write_files(self) -> None:
        """Sends the files and figures of the run."""

    def write_model(self, path: pathlib.Path) -> None:
        """Sends an exported network, a file or a folder."""

    def close(self, status: str) -> None:
        """Ends the tracked run: FINISHED, KILLED (to be resumed) or FAILED."""

    def figures(self) -> list[pathlib.Path]:
        """Returns the figures of the run, PNG files."""
        return sorted((self.model_dir / "figures").glob("*.png"))


class Mlflow(Tracker):
    """Tracks a run in MLflow, in the store ``MLFLOW_TRACKING_URI`` and the experiment ``MLFLOW_EXPERIMENT_NAME``."""

    remedy = (
        "set MLFLOW_TRACKING_URI to a server; without one, pip install mlflow, or set MLFLOW_TRACKING_URI=file:mlruns "
        "MLFLOW_ALLOW_FILE_STORE=true"
    )

    def open(self, run_id: str) -> str:
        import mlflow

        self.client = mlflow.MlflowClient()
        if run_id:
            try:
                self.client.set_terminated(run_id, status="RUNNING")
                self.run_id, self.location = run_id, f"run {run_id} in {mlflow.get_tracking_uri()}"
                return run_id
            except mlflow.MlflowException as error:
                log.warning("--tracker=mlflow: run %s not found (%s); starting a new one", run_id, first_line(error))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self.client.create_experiment(name)
        self.run_id = self.client.create_run(experiment_id, run_name=str(self.model_dir)).info.run_id
        self.location = f"run {self.run_id} in {mlflow.get_tracking_uri()}"
        return self.run_id

    def write_settings(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:6000]) for name, value in settings.items()]
        for first in range(0, len(params), 100):  # the maximum per request
            self.client.log_batch(self.run_id, params=params[first : first + 100])

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now, step = int(time.time() * 1000), int(logs["step"])
        metrics = [Metric(name, float(value), now, step) for name, value in logs.items() if name != "step"]
        self.client.log_batch(self.run_id, metrics=metrics)

    def write_files(self) -> None:
        for name in FILES:
            if (self.model_dir / name).is_file():
                self.client.log_artifact(self.run_id, str(self.model_dir / name))
        for path in self.figures():
            self.client.log_artifact(self.run_id, str(path), "figures")

    def write_model(self, path: pathlib.Path) -> None:
        if path.is_dir():
            self.client.log_artifacts(self.run_id, str(path), f"model/{path.name}")
        else:
            self.client.log_artifact(self.run_id, str(path), "model")

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status=status)


class WandB(Tracker):
    """Tracks a run in Weights & Biases; its local files are in ``wandb`` in the model directory."""

    remedy = "run wandb login, or set WANDB_MODE=offline"

    def open(self, run_id: str) -> str:
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        project, name = os.environ.get("WANDB_PROJECT") or PROJECT, str(self.model_dir)
        where = {"project": project, "name": name, "dir": name, "settings": settings}
        self.run = wandb.init(id=run_id or None, resume="allow" if run_id else None, **where)
        self.run.define_metric("*", step_metric="step")  # also after a resume, which repeats some steps
        self.location = f"run {self.run.dir if self.run.offline else self.run.url}"
        return self.run.id

    def write_settings(self, settings: dict[str, Any]) -> None:
        self.run.config.update(settings, allow_val_change=True)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.run.log(dict(logs))

    def write_files(self) -> None:
        import wandb

        artifact = wandb.Artifact(f"report-{self.run.id}", type="report")
        for path in (path for name in FILES if (path := self.model_dir / name).is_file()):
            artifact.add_file(str(path))
        self.run.log_artifact(artifact)
        self.run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in self.figures()})

    def write_model(self, path: pathlib.Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{self.run.id}", type="model")
        artifact.add_dir(str(path), name=path.name) if path.is_dir() else artifact.add_file(str(path))
        self.run.log_artifact(artifact)

    def close(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)


class TensorBoard(Tracker):
    """Adds settings and figures to the run's own TensorBoard files, which always have its metrics."""

    def open(self, run_id: str) -> str:
        return str(self.model_dir)

    def write_settings(self, settings: dict[str, Any]) -> None:
        rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
        with self._writer().as_default(step=0):
            tf.summary.text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def write_files(self) -> None:
        with self._writer().as_default(step=0):
            for path in self.figures():
                tf.summary.image(f"figures/{path.stem}", tf.io.decode_png(path.read_bytes(), channels=3)[None])

    def _writer(self) -> tf.summary.SummaryWriter:
        """Opens a new file: resuming merges the existing ones."""
        return tf.summary.create_file_writer(str(self.model_dir / "tensorboard"), filename_suffix=".tracker")


TRACKERS: dict[str, tuple[type[Tracker], str]] = {  # class, and the module that its extra installs
    "mlflow": (Mlflow, "mlflow"),
    "wandb": (WandB, "wandb"),
    "tensorboard": (TensorBoard, "tensorboard"),
}


class Trackers:
    """Context manager for the trackers of a run. Only at the start a failing tracker is an error, later a warning.

    Args:
        names: value of ``--tracker``, separated by commas.
        model_dir: directory of the run.

    Raises:
        SettingError: if a tracker is unknown, its package is not installed, or it cannot be opened.
    """

    def __init__(self, names: str, model_dir: pathlib.Path):
        self.path = model_dir / "tracked_runs.json"
        self.trackers: dict[str, Tracker] = {}
        self.opened: dict[str, Tracker] = {}
        for name in filter(None, names.split(",")):
            if name not in TRACKERS:
                raise SettingError(f"--tracker={name}: must be one or more of {', '.join(TRACKERS)}, comma-separated")
            tracker_class, module = TRACKERS[name]
            if importlib.util.find_spec(module) is None:
                raise SettingError(f"--tracker={name}: {module} is not installed; pip install '{PROJECT}[{name}]'")
            self.trackers[name] = tracker_class(model_dir)

    def __enter__(self) -> "Trackers":
        return self

    @property
    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Callback for the training loop; none without trackers."""
        return [_Metrics(self)] if self.trackers else []

    def start(self, config: Config, resolved: dict[str, Any]) -> None:
        """Opens the tracked runs of a resumed run, or starts new ones with the settings."""
        known = self._open()
        for name, tracker in self.opened.items():
            print(f"Tracker {name}: {tracker.location}{', resumed' if name in known else ''}")
        settings = {**vars(config), **resolved}
        self._each(lambda name, tracker: None if name in known else tracker.write_settings(settings))

    def _open(self) -> dict[str, str]:
        """Opens all trackers; returns the ids of those that resume a tracked run."""
        known = read_record(self.path.parent, self.path.name) or {}
        ids = {}
        for name, tracker in self.trackers.items():
            try:
                ids[name] = tracker.open(known.get(name, ""))
            except Exception as error:  # whatever the client raises
                message = f"--tracker={name}: cannot be opened ({first_line(error)}); {tracker.remedy}"
                raise SettingError(message) from None
            self.opened[name] = tracker
        if ids.items() - known.items():
            write_atomically(self.path, json.dumps({**known, **ids}, indent=1))
        return {name: run_id for name, run_id in known.items() if ids.get(name) == run_id}

    def finish(self) -> None:
        """Sends the files of the finished run."""
        self._each(lambda name, tracker: tracker.write_files())

    def add_model(self, path: pathlib.Path) -> None:
        """Sends an exported network to the tracked runs."""
        if self.trackers:
            self._open()
            self._each(lambda name, tracker: tracker.write_model(path))

    def write_metrics(self, epoch: int, logs: dict[str, float]) -> None:
        """Sends a row of ``metrics.csv``."""
        self._each(lambda name, tracker: tracker.on_epoch_end(epoch, logs))

    def _each(self, call: Callable[[str, Tracker], None]) -> None:
        for name, tracker in self.opened.items():
            try:
                call(name, tracker)
            except Exception as error:  # a server that is down must not stop the run
                log.warning("--tracker=%s: failed (%s); the run continues", name, first_line(error))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        is_killed = isinstance(error, KeyboardInterrupt | SystemExit)
        status = "FINISHED" if error is None else "KILLED" if is_killed else "FAILED"
        self._each(lambda name, tracker: tracker.close(status))


class _Metrics(keras.callbacks.Callback):
    """Passes each row of ``metrics.csv`` to all trackers."""

    def __init__(self, trackers: Trackers):
        super().__init__()
        self.trackers = trackers

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.trackers.write_metrics(epoch, logs or {})
