"""Saving a run, going on with it, and taking the network of another run."""

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

from simclrv2_tf.data.sources import MAX_CLASSES
from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import ConfigVersionError, SettingError
from simclrv2_tf.files import write_atomically
from simclrv2_tf.methods.base import Method
from simclrv2_tf.models.network import Network
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one model directory: network, optimizer, memory and what else a run is made of, by step.

    TensorFlow writes a checkpoint's data first and its index last, and checks the CRC-32C of every tensor and index
    block that it reads: what was cut off, or damaged later, is noticed, and the checkpoint before it is taken.
    Of several workers all restore and the chief saves, so all must see the same directory.

    Args:
        model_dir: where they are; its sub-directory ``checkpoints`` holds them, and ``checkpoints/best`` the best one.
        model: compiled, its optimizer built.
        keep: newest ones to keep; 0: all.
        more: further variables to save, by part and name.
    """

    def __init__(
        self,
        model_dir: str | pathlib.Path,
        model: Method,
        keep: int = 5,
        more: Mapping[str, Mapping[str, tf.Variable]] | None = None,
    ):
        parts = {name: _by_path(part.variables) for name, part in model.parts().items()}
        parts |= {"optimizer": _by_position(model.optimizer.variables)} | dict(more or {})
        self.model_dir = model_dir
        self.folder = pathlib.Path(model_dir, "checkpoints")
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.keep = keep
        self.writing = is_chief(model.distribute_strategy)

    def restore(self) -> int:
        """Restores the newest checkpoint that is whole, telling of those that are not; returns its step, 0 for none.

        Raises:
            SettingError: if there are some, but none can be used: damaged, or of another model.
        """
        refusals: list[SettingError] = []
        for step in reversed(_steps_in(self.folder)):
            try:
                with _refusal("model_dir", self.model_dir):
                    self.checkpoint.read(str(self.folder / f"step-{step}")).assert_consumed()
            except SettingError as error:
                refusals.append(error)
                log.warning("checkpoint step-%d cannot be used, looking for the one before (%s)", step, error)
            else:
                return step
        if refusals:
            raise refusals[0]
        return 0

    def save(self, step: int) -> None:
        """Writes the checkpoint of ``step`` and removes the oldest ones.

        Raises:
            OSError, tf.errors.OpError: if that fails; the earlier ones are still there.
        """
        if self.writing:
            _write(self.checkpoint, self.folder, step, self.keep)

    def save_best(self, step: int) -> None:
        """Writes the model once more, where it outlives the others, in the place of the last best one."""
        if self.writing:
            _write(self.checkpoint, self.folder / "best", step, 1)


def _write(checkpoint: tf.train.Checkpoint, folder: pathlib.Path, step: int, keep: int) -> None:
    """Writes ``folder/step-N``, names it in the file ``checkpoint`` for TensorFlow's readers, keeps ``keep`` of all."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        checkpoint.write(str(folder / f"step-{step}"))
        kept = [other for other in _steps_in(folder) if other <= step][-keep:]
        lines = [f'model_checkpoint_path: "step-{step}"', *(f'all_model_checkpoint_paths: "step-{k}"' for k in kept)]
        write_atomically(folder / "checkpoint", "\n".join(lines) + "\n")
    except (OSError, tf.errors.OpError):
        _remove(folder, [step])
        raise
    _remove(folder, set(_steps_in(folder)) - set(kept))


def _steps_in(folder: pathlib.Path) -> list[int]:
    """The steps whose checkpoint has its index, and so its data, in order."""
    names = (re.fullmatch(r"step-(\d+)\.index", path.name) for path in folder.glob("step-*.index"))
    return sorted(int(match[1]) for match in names if match)


def _remove(folder: pathlib.Path, steps: Iterable[int]) -> None:
    """Removes checkpoints, the index first, and what was left of half-written ones."""
    for step in steps:
        (folder / f"step-{step}.index").unlink(missing_ok=True)
        for path in [*folder.glob(f"step-{step}.*"), *folder.glob(f"step-{step}_temp*")]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def save_network(network: Network, model_dir: str | pathlib.Path, step: int) -> None:
    """Writes a network that no run here has trained where ``load_network`` finds it."""
    _write(tf.train.Checkpoint(**_network_parts(network)), pathlib.Path(model_dir, "checkpoints"), step, 1)


def _network_parts(network: Network) -> dict[str, dict[str, tf.Variable]]:
    """The variables of each part of a network, by name; TensorFlow's own tracking misses layers in Keras's lists."""
    return {name: _by_path(part.variables) for name, part in network.parts().items()}


def _by_path(variables: list[keras.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by path, below what all paths share.

    Keras numbers unnamed layers by how many the process has built. So numbers are counted anew here, in order of
    appearance, and the same network has the same paths in every process.

    Raises:
        ValueError: if two variables have the same path.
    """
    shared = posixpath.commonpath([variable.path for variable in variables]) if variables else ""
    numbered: dict[tuple[str, str], str] = {}  # (parent, name as Keras has it) → name
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
    """Returns an optimizer's variables by their place, as their names contain the numbers of unnamed layers."""
    return {str(index): variable.value for index, variable in enumerate(variables)}


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
        if latest and posixpath.dirname(latest) == folder.rstrip("/"):  # a stranger's may name any other place
            return latest
    if tf.io.gfile.exists(f"{path}.index"):
        return path
    raise SettingError(f"--{flag}={path}: there is no checkpoint")


def read_run_config(path: str, flag: str = "checkpoint") -> tuple[Config, dict[str, Any]]:
    """The settings of the run that wrote a checkpoint, and what had followed from them (its ``config.json``).

    Raises:
        SettingError: if there is no checkpoint, or no ``config.json`` beside it.
    """
    run = find(path, flag).rpartition("/checkpoints/")[0]
    file = f"{run}/config.json"
    if not run or not tf.io.gfile.exists(file):
        raise SettingError(f"--{flag}={path}: its config.json is missing")
    try:
        with tf.io.gfile.GFile(file) as opened:
            text = opened.read()
        config, resolved = Config.from_json(text), json.loads(text).get("resolved", {})
        known = {name: resolved.get(name, 0) for name in ("num_classes", "head_input")}
        if not (0 <= known["num_classes"] <= MAX_CLASSES and 0 <= known["head_input"] <= config.head_layers):
            raise ValueError
    except ConfigVersionError as error:
        raise SettingError(f"--{flag}={path}: its {error}") from None
    except (SettingError, tf.errors.OpError, ValueError, AttributeError, TypeError):
        raise SettingError(f"--{flag}={path}: its config.json is damaged") from None
    return config, resolved | known


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
        SettingError: if there is none, it is damaged or of another network.
    """
    found = find(path, flag)
    parts = _network_parts(network)
    if not with_classifier:
        parts.pop("classifier", None)
    with _refusal(flag, path):
        tf.train.Checkpoint(**parts).read(found).expect_partial().assert_existing_objects_matched()
    return found


@contextlib.contextmanager
def _refusal(flag: str, path: str | pathlib.Path) -> Iterator[None]:
    """Turns TensorFlow's ways of saying that a checkpoint is damaged, or of something else, into one."""
    try:
        yield
    except (AssertionError, ValueError, IndexError, tf.errors.OpError) as error:
        fault = "does not fit this network" if isinstance(error, AssertionError | ValueError) else "is damaged"
        reason = str(error).strip().splitlines()[0].partition(". ")[0]  # all the variables' values would follow
        raise SettingError(f"--{flag}={path}: {fault} ({reason[-200:]})") from None
