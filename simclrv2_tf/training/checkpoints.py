"""Saving a run, going on with it, and taking the network of another run."""

import contextlib
import json
import pathlib
import posixpath
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.config import Config, SettingError
from simclrv2_tf.nets.network import Network
from simclrv2_tf.training.distributed import ReplicatedModel


class Checkpoints:
    """The checkpoints of one model directory: network, optimizer and memory, numbered by step.

    TensorFlow writes a checkpoint's data first and names it in the file ``checkpoint`` last, by a rename: what was cut
    off half-way is never taken for a checkpoint.

    Args:
        model_dir: where they are; its sub-directory ``checkpoints`` holds them.
        model: compiled, its optimizer built.
        keep: newest ones to keep; 0: all.
    """

    def __init__(self, model_dir: str | pathlib.Path, model: ReplicatedModel, keep: int = 5):
        self.model_dir = model_dir
        parts = _network_parts(model.network) | {"optimizer": _by_path(model.optimizer.variables)}
        if getattr(model, "memory", None):
            parts["memory"] = _by_path(model.memory.variables)
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.manager = tf.train.CheckpointManager(
            self.checkpoint, str(pathlib.PurePath(model_dir) / "checkpoints"), keep or None, checkpoint_name="step"
        )

    def restore(self) -> int:
        """Restores the newest checkpoint; returns its step, or 0 if there is none.

        Raises:
            SettingError: if it is of another model.
        """
        latest = self.manager.latest_checkpoint
        if latest is None:
            return 0
        with _refusal("model_dir", self.model_dir):
            self.checkpoint.restore(latest).assert_consumed()
        return step_of(latest)

    def save(self, step: int) -> None:
        """Writes the checkpoint of ``step``."""
        self.manager.save(checkpoint_number=step)


def save_network(network: Network, model_dir: str | pathlib.Path, step: int) -> None:
    """Writes a network that no run here has trained where ``load_network`` finds it."""
    path = pathlib.PurePath(model_dir, "checkpoints")
    checkpoint = tf.train.Checkpoint(**_network_parts(network))
    tf.train.CheckpointManager(checkpoint, str(path), 1, checkpoint_name="step").save(checkpoint_number=step)


def _network_parts(network: Network) -> dict[str, dict[str, tf.Variable]]:
    """The variables of each part of a network, by name; TensorFlow's own tracking misses layers in Keras's lists."""
    parts = {"encoder": network.encoder.variables, "projection_head": network.projection_head.variables}
    if network.classifier is not None:
        parts["classifier"] = network.classifier.variables
    return {name: _by_path(variables) for name, variables in parts.items()}


def _by_path(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """By path below what all paths share: the name of a whole network says nothing about its variables."""
    shared = posixpath.commonpath([variable.path for variable in variables]) if variables else ""
    named = {posixpath.relpath(variable.path, shared or "."): variable.value for variable in variables}
    if len(named) != len(variables):
        raise ValueError("two variables have the same path: name the layers of the encoder apart")
    return named


def step_of(path: str) -> int:
    """The step in a checkpoint's name, ``…/step-1250``."""
    return int(path.rpartition("-")[2])


def find(path: str, flag: str = "checkpoint") -> str:
    """The checkpoint that a flag names.

    Args:
        path: a model directory, its ``checkpoints`` directory, or a checkpoint without suffix (``…/step-1250``).
        flag: for the message.

    Returns:
        The path that TensorFlow's readers take.

    Raises:
        SettingError: if there is none.
    """
    for folder in (path, f"{path.rstrip('/')}/checkpoints"):
        latest = tf.train.latest_checkpoint(folder) if tf.io.gfile.isdir(folder) else None
        if latest:
            return latest
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    raise SettingError(f"--{flag}={path}: there is no checkpoint")


def run_of(path: str, flag: str = "checkpoint") -> tuple[Config, dict[str, Any]]:
    """The settings of the run that wrote a checkpoint, and what had followed from them (its ``config.json``).

    Raises:
        SettingError: if there is no checkpoint, or no ``config.json`` beside it.
    """
    run = find(path, flag).rpartition("/checkpoints/")[0]
    file = pathlib.Path(run, "config.json")
    if not run or not file.is_file():
        raise SettingError(f"--{flag}={path}: its config.json is missing")
    text = file.read_text(encoding="utf-8")
    return Config.from_json(text), json.loads(text).get("resolved", {})


def load_network(network: Network, path: str, *, with_classifier: bool, flag: str = "checkpoint") -> str:
    """Loads a run's weights and moving statistics into a built network.

    Args:
        network: of the same settings.
        path: what ``find`` takes.
        with_classifier: also the classifier; otherwise that keeps its initial values.
        flag: for the message.

    Returns:
        The checkpoint that was read.

    Raises:
        SettingError: if there is none or it is of another network.
    """
    found = find(path, flag)
    parts = _network_parts(network)
    if not with_classifier:
        parts.pop("classifier", None)
    with _refusal(flag, path):
        tf.train.Checkpoint(**parts).restore(found).expect_partial().assert_existing_objects_matched()
    return found


@contextlib.contextmanager
def _refusal(flag: str, path: str | pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's ways of saying that a checkpoint is of something else into one."""
    try:
        yield
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0].partition(". ")[0]  # all the variables' values would follow
        raise SettingError(f"--{flag}={path}: does not fit this network ({reason[:200]})") from None
