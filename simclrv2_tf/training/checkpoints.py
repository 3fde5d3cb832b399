"""Saving a run, going on with it, and taking the network of another run."""

import pathlib
from typing import Any

import tensorflow as tf

from simclrv2_tf.config import NETWORK_SETTINGS, Config, SettingError
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
        parts: dict[str, Any] = {"network": model.network, "optimizer": model.optimizer}
        if getattr(model, "memory", None):
            parts["memory"] = model.memory
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.manager = tf.train.CheckpointManager(
            self.checkpoint, str(pathlib.PurePath(model_dir) / "checkpoints"), keep or None, checkpoint_name="step"
        )

    def restore(self) -> int:
        """Restores the newest checkpoint; returns its step, or 0 if there is none."""
        latest = self.manager.latest_checkpoint
        if latest is None:
            return 0
        self.checkpoint.restore(latest).assert_existing_objects_matched()
        return step_of(latest)

    def save(self, step: int) -> None:
        """Writes the checkpoint of ``step``."""
        self.manager.save(checkpoint_number=step)


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


def config_of(path: str, flag: str = "checkpoint") -> Config:
    """The settings of the run that wrote a checkpoint (its ``config.json``).

    Raises:
        SettingError: if there is none beside it.
    """
    run = find(path, flag).rpartition("/checkpoints/")[0]
    text = pathlib.Path(run, "config.json")
    if not run or not text.is_file():
        raise SettingError(f"--{flag}={path}: its config.json is missing")
    return Config.load(text)


def with_network_of(config: Config, source: Config) -> Config:
    """The settings with ``source``'s network, which the checkpoint dictates."""
    return config.replace(**{name: getattr(source, name) for name in NETWORK_SETTINGS})


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
    parts = {"encoder": network.encoder, "projection_head": network.projection_head}
    if with_classifier:
        parts["classifier"] = network.classifier
    try:
        status = tf.train.Checkpoint(network=tf.train.Checkpoint(**parts)).restore(found)
        status.expect_partial().assert_existing_objects_matched()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise SettingError(f"--{flag}={path}: does not fit this network ({reason[:200]})") from None
    return found
