"""Checkpoints of a run: saves and restores it, and loads the network of another run."""

import collections
import contextlib
import json
import logging
import pathlib
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.data.classes import numbered_classes
from simclrv2_tf.data.sources import MAX_CLASSES
from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import ConfigVersionError, SettingError
from simclrv2_tf.files import write_atomically
from simclrv2_tf.methods.base import Method
from simclrv2_tf.models.network import Network
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)


class Checkpoints:
    """Checkpoints of one model directory by step: network, optimizer and every other variable of a run.

    TensorFlow writes a checkpoint's data first and its index last, and checks the CRC-32C of every tensor and index
    block that it reads. So truncated and damaged checkpoints are detected, and the one before is restored instead.
    All workers restore but only the chief saves, so all must see the same directory.

    Args:
        model_dir: has the checkpoints in ``checkpoints``, and the best one in ``checkpoints/best``.
        model: compiled, with a built optimizer.
        keep: number of newest checkpoints to keep; 0: all.
        extra_parts: more variables to save, by part and name.
    """

    def __init__(
        self,
        model_dir: str | pathlib.Path,
        model: Method,
        keep: int = 5,
        extra_parts: Mapping[str, Mapping[str, tf.Variable]] | None = None,
    ):
        parts = {name: _by_path(part.variables) for name, part in model.parts().items()}
        parts |= {"optimizer": _by_position(model.optimizer.variables)} | dict(extra_parts or {})
        self.model_dir = model_dir
        self.folder = pathlib.Path(model_dir, "checkpoints")
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.keep = keep
        self.is_writer = is_chief(model.distribute_strategy)

    def restore(self) -> int:
        """Restores the newest intact checkpoint and warns about damaged ones; returns its step, 0 if there are none.

        Raises:
            SettingError: if every checkpoint is damaged or belongs to another model.
        """
        errors: list[SettingError] = []
        for step in reversed(_steps_in(self.folder)):
            try:
                with _explain_read_errors("model_dir", self.model_dir):
                    self.checkpoint.read(str(self.folder / f"step-{step}")).assert_consumed()
            except SettingError as error:
                errors.append(error)
                log.warning("checkpoint step-%d cannot be used, trying the one before (%s)", step, error)
            else:
                return step
        if errors:
            raise errors[0]
        return 0

    def save(self, step: int) -> None:
        """Writes the checkpoint of ``step`` and removes the oldest ones.

        Raises:
            OSError, tf.errors.OpError: if that fails; the earlier checkpoints remain.
        """
        if self.is_writer:
            _write(self.checkpoint, self.folder, step, self.keep)

    def save_best(self, step: int) -> None:
        """Writes another copy that is not removed with the others and replaces the previous best one."""
        if self.is_writer:
            _write(self.checkpoint, self.folder / "best", step, 1)


def _write(checkpoint: tf.train.Checkpoint, folder: pathlib.Path, step: int, keep: int) -> None:
    """Writes ``folder/step-N``, names it in TensorFlow's ``checkpoint`` file, and removes all but ``keep`` of them."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint.write(str(folder / f"step-{step}"))
        newest = [other for other in _steps_in(folder) if other <= step][-keep:]
        lines = [f'model_checkpoint_path: "step-{step}"', *(f'all_model_checkpoint_paths: "step-{n}"' for n in newest)]
        write_atomically(folder / "checkpoint", "\n".join(lines) + "\n")
    except (OSError, tf.errors.OpError):
        _remove(folder, [step])
        raise
    _remove(folder, set(_steps_in(folder)) - set(newest))


def _steps_in(folder: pathlib.Path) -> list[int]:
    """Returns the sorted steps of the checkpoints that have an index, which is written after the data."""
    names = (re.fullmatch(r"step-(\d+)\.index", path.name) for path in folder.glob("step-*.index"))
    return sorted(int(match[1]) for match in names if match)


def _remove(folder: pathlib.Path, steps: Iterable[int]) -> None:
    """Removes checkpoints, the index first, and the remains of half-written ones."""
    for step in steps:
        (folder / f"step-{step}.index").unlink(missing_ok=True)
        for path in [*folder.glob(f"step-{step}.*"), *folder.glob(f"step-{step}_temp*")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def save_network(network: Network, model_dir: str | pathlib.Path, step: int) -> None:
    """Writes a network that was not trained by a run, where ``load_network`` finds it."""
    _write(tf.train.Checkpoint(**_network_parts(network)), pathlib.Path(model_dir, "checkpoints"), step, 1)


def _network_parts(network: Network) -> dict[str, dict[str, tf.Variable]]:
    """Returns the variables of each part of a network; TensorFlow's own tracking misses layers in Keras's lists."""
    return {name: _by_path(part.variables) for name, part in network.parts().items()}


def _by_path(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by path, without the common prefix.

    Keras numbers unnamed layers by how many the process has built. They are renumbered here, in order of appearance,
    so that the same network has the same paths in every process.

    Raises:
        ValueError: if two variables have the same path.
    """
    shared = posixpath.commonpath([variable.path for variable in variables]) if variables else ""
    numbered: dict[tuple[str, str], str] = {}  # (parent, Keras's name) → name
    counts: collections.Counter = collections.Counter()

    def rename(parent: str, name: str) -> str:
        if (parent, name) not in numbered:
            base = re.sub(r"_\d+$", "", name)
            numbered[parent, name] = f"{base}_{counts[parent, base]}" if counts[parent, base] else base
            counts[parent, base] += 1
        return numbered[parent, name]

    named = {}
    for variable in variables:
        path = ""
        for name in posixpath.relpath(variable.path, shared or ".").split("/"):
            path = posixpath.join(path, rename(path, name))
        named[path] = variable.value
    if len(named) != len(variables):
        raise ValueError("two variables have the same path: give the layers of the encoder different names")
    return named


def _by_position(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Returns an optimizer's variables by position, because their names contain the numbers of unnamed layers."""
    return {str(index): variable.value for index, variable in enumerate(variables)}


def step_of(path: str) -> int:
    """Returns the step in a checkpoint's path, ``…/step-1250``."""
    return int(path.rpartition("-")[2])


def find_checkpoint(path: str, flag: str = "checkpoint") -> str:
    """Finds the newest checkpoint of a run, or the one that the path names.

    Args:
        path: a model directory, its ``checkpoints`` directory, or a checkpoint without suffix (``…/step-1250``).
        flag: named in the error message.

    Returns:
        Path of the checkpoint without suffix.

    Raises:
        SettingError: if there is none.
    """
    for folder in (path, f"{path.rstrip('/')}/checkpoints"):
        latest = tf.train.latest_checkpoint(folder) if tf.io.gfile.isdir(folder) else None
        if latest and posixpath.dirname(latest) == folder.rstrip("/"):  # an untrusted one may name any place
            return latest
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    raise SettingError(f"--{flag}={path}: there is no checkpoint")


def read_run_config(path: str, flag: str = "checkpoint") -> tuple[Config, dict[str, Any]]:
    """Reads the ``config.json`` of the run that wrote a checkpoint: its settings and the values derived from them.

    Among these are always ``num_classes``, ``head_input`` and ``class_names``, one per class of the classifier: numbers
    if the run knows no names.

    Raises:
        SettingError: if there is no checkpoint, or its ``config.json`` is missing, damaged or of another version.
    """
    run = find_checkpoint(path, flag).rpartition("/checkpoints/")[0]
    file = f"{run}/config.json"
    if not run or not tf.io.gfile.exists(file):
        raise SettingError(f"--{flag}={path}: its config.json is missing")
    try:
        text = tf.io.gfile.GFile(file).read()
        config, resolved = Config.from_json(text), json.loads(text).get("resolved", {})
        network = {name: resolved.get(name, 0) for name in ("num_classes", "head_input")}
        if not (0 <= network["num_classes"] <= MAX_CLASSES and 0 <= network["head_input"] <= config.head_layers):
            raise ValueError
        class_names = list(resolved.get("class_names") or numbered_classes(network["num_classes"]))
        if len(class_names) != network["num_classes"] or not all(isinstance(name, str) for name in class_names):
            raise ValueError
    except ConfigVersionError as error:
        raise SettingError(f"--{flag}={path}: its {error}") from None
    except (SettingError, tf.errors.OpError, ValueError, AttributeError, TypeError):
        raise SettingError(f"--{flag}={path}: its config.json is damaged") from None
    return config, resolved | network | {"class_names": class_names}


def load_network(network: Network, path: str, *, with_classifier: bool, flag: str = "checkpoint") -> str:
    """Loads a run's weights and moving statistics into a built network.

    Args:
        network: built from the same settings.
        path: as for ``find_checkpoint``.
        with_classifier: load the classifier too; otherwise it keeps its initial values.
        flag: named in the error message.

    Returns:
        Path of the checkpoint that was read.

    Raises:
        SettingError: if there is none, or it is damaged or belongs to another network.
    """
    checkpoint_path = find_checkpoint(path, flag)
    parts = _network_parts(network)
    if not with_classifier:
        parts.pop("classifier", None)
    with _explain_read_errors(flag, path):
        tf.train.Checkpoint(**parts).read(checkpoint_path).expect_partial().assert_existing_objects_matched()
    return checkpoint_path


@contextlib.contextmanager
def _explain_read_errors(flag: str, path: str | pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's errors for damaged checkpoints and for those of another network into a SettingError."""
    try:
        yield
    except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
        fault = "does not fit this network" if isinstance(error, AssertionError | ValueError) else "is damaged"
        reason = str(error).strip().splitlines()[0].partition(". ")[0]  # the values of all variables would follow
        raise SettingError(f"--{flag}={path}: {fault} ({reason[-200:]})") from None
