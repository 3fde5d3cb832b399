"""Checkpoints of a run: saves and restores it, and loads the network of another run."""

import collections
import contextlib
import errno
import logging
import os
import pathlib
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from simclrv2_tf.distributed.devices import is_chief
from simclrv2_tf.errors import ConfigVersionError, DamagedError, SettingError, UnreadableError, first_line
from simclrv2_tf.files import is_plain, link_files, plain_path, replacing, write_atomically
from simclrv2_tf.methods.base import Method
from simclrv2_tf.models.network import Network
from simclrv2_tf.runs import integrity
from simclrv2_tf.schemas import parse_state
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

COMPLETE = ".complete"  # folder of a checkpoint that is completely written but not yet in its place


class Checkpoints:
    """Checkpoints of one model directory by step: network, optimizer and every other variable of a run.

    A checkpoint is written under another name and then renamed. TensorFlow checks the CRC-32C of every tensor and index
    block that it reads. So truncated and damaged checkpoints are detected, and the one before is restored instead. One
    that cannot be read for another reason, such as a missing permission, ends the run.
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
        parts: dict[str, Mapping[str, Any]] = {name: _by_path(part.variables) for name, part in model.parts().items()}
        parts |= {"optimizer": _by_position(model.optimizer.variables)} | dict(extra_parts or {})
        self.model_dir = model_dir
        self.folder = pathlib.Path(model_dir, "checkpoints")
        self.checkpoint = tf.train.Checkpoint(**parts)
        self.keep = keep
        self.is_writer = is_chief(model.distribute_strategy)

    def restore(self) -> int:
        """Restores the newest intact checkpoint and warns about damaged ones; returns its step, 0 if there are none.

        Raises:
            SettingError: if a checkpoint cannot be read, or every one is damaged or belongs to another model.
        """
        errors: list[SettingError] = []
        with _explain_read_errors("model_dir", self.model_dir):
            if self.is_writer:
                _complete(self.folder)
            steps = _steps_in(str(self.folder))
        for step in reversed(steps):
            path = str(self.folder / f"step-{step}")
            try:
                with _explain_read_errors("model_dir", self.model_dir, path):
                    open_checkpoint(path)
                    self.checkpoint.read(readable_path(path)).assert_consumed()
            except UnreadableError:
                raise
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
    _complete(folder)
    is_new = step not in _steps_in(str(folder))
    with replacing(folder / COMPLETE) as unfinished:
        unfinished.mkdir()
        checkpoint.write(str(unfinished / f"step-{step}"))
    try:
        _complete(folder)
        newest = [other for other in _steps_in(str(folder)) if other <= step][-keep:]
        lines = [f'model_checkpoint_path: "step-{step}"', *(f'all_model_checkpoint_paths: "step-{n}"' for n in newest)]
        write_atomically(folder / "checkpoint", "\n".join(lines) + "\n")
    except OSError:
        if is_new:
            _remove(folder, [step])
        raise
    # by any of their files, because a kill may have left the data without the index
    names = (re.fullmatch(r"step-(\d+)\..+", name) for name in list_folder(str(folder)))
    _remove(folder, {int(match[1]) for match in names if match} - set(newest))


def _complete(folder: pathlib.Path) -> None:
    """Moves a completely written checkpoint to its place: the data first, because readers look for the index.

    A process that is killed in between leaves the rest to the next one.
    """
    complete = folder / COMPLETE
    if complete.is_symlink() or not complete.is_dir():
        return
    for path in sorted(complete.iterdir(), key=lambda path: path.name.endswith(".index")):
        os.replace(path, folder / path.name)
    complete.rmdir()


def _steps_in(folder: str) -> list[int]:
    """Returns the sorted steps of the checkpoints in a folder, also of one that is not yet completely moved there."""
    names = (re.fullmatch(r"step-(\d+)\.index", name) for name in (*list_folder(folder), *_unmoved_files(folder)))
    return sorted({int(match[1]) for match in names if match})


def _unmoved_files(folder: str) -> list[str]:
    """Returns the names in ``COMPLETE``: after a kill, of the files that were not moved."""
    complete = f"{folder}/{COMPLETE}"
    return [] if "://" in folder or os.path.islink(complete) else list_folder(complete)


def list_folder(folder: str) -> list[str]:
    """Returns the names in a folder, local or on ``gs://``; none if it does not exist.

    Raises:
        OSError, tf.errors.OpError: if it cannot be read.
    """
    if "://" in folder:
        return tf.io.gfile.listdir(folder) if tf.io.gfile.isdir(folder) else []
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove(folder: pathlib.Path, steps: Iterable[int]) -> None:
    """Removes checkpoints, the index first."""
    for step in steps:
        (folder / f"step-{step}.index").unlink(missing_ok=True)
        for path in folder.glob(f"step-{step}.*"):
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
        SettingError: if there is none, or the folder cannot be read.
    """
    path = path.replace(os.sep, "/")  # of Windows, too
    with _explain_read_errors(flag, path):
        for folder in (path.rstrip("/"), f"{path.rstrip('/')}/checkpoints"):
            if steps := _steps_in(folder):
                return f"{folder}/step-{steps[-1]}"
            if name := _name_in_state_file(folder, flag):
                return f"{folder}/{name}"
        folder = posixpath.dirname(path) or "."
        if f"{posixpath.basename(path)}.index" in (*list_folder(folder), *_unmoved_files(folder)):
            return path
    raise SettingError(f"--{flag}={path}: there is no checkpoint")


def _name_in_state_file(folder: str, flag: str) -> str:
    """Returns the checkpoint that TensorFlow's ``checkpoint`` file names, if it is in the folder itself; else "".

    Raises:
        SettingError: if the file is damaged.
    """
    names = list_folder(folder)
    if "checkpoint" not in names:
        return ""
    try:
        state = parse_state(integrity.read_bytes(f"{folder}/checkpoint"))
    except DamagedError as error:
        raise SettingError(
            f"--{flag}={folder}: its file checkpoint is damaged ({error}); delete or restore it"
        ) from None
    name = posixpath.basename(state.model_checkpoint_path)
    return name if f"{name}.index" in names else ""


def open_checkpoint(checkpoint_path: str) -> Any:
    """Opens a checkpoint to look at the names and shapes of its variables, after `integrity.check_declared_bytes`.

    Returns:
        TensorFlow's ``CheckpointReader``.

    Raises:
        OSError, tf.errors.OpError: if it is damaged or cannot be read.
    """
    path = readable_path(checkpoint_path)
    folder, name = posixpath.split(path)
    names = [other for other in list_folder(folder or ".") if other.startswith((f"{name}.index", f"{name}.data-"))]
    num_bytes = integrity.total_bytes([posixpath.join(folder, other) for other in names])
    reader = tf.compat.v1.train.NewCheckpointReader(path)
    integrity.check_declared_bytes(reader, num_bytes)
    return reader


def readable_path(checkpoint_path: str) -> str:
    """Returns a path of a whole checkpoint that TensorFlow does not read as a pattern.

    If a process was killed while it moved the files to their place, the path is that of links to all of them.

    Raises:
        UnreadableError: if the name of the files has such characters, which no link can hide.
        OSError: if there is no temporary directory.
    """
    folder, name = posixpath.split(checkpoint_path)
    if not is_plain(name):
        raise UnreadableError(f"{checkpoint_path}: TensorFlow cannot read this name; rename the files without *?[\\")
    if f"{name}.index" not in (unmoved := _unmoved_files(folder)):
        return posixpath.join(plain_path(folder), name)
    paths = {file: f"{folder}/{file}" for file in list_folder(folder) if file.startswith(f"{name}.data-")}
    paths |= {file: f"{folder}/{COMPLETE}/{file}" for file in unmoved if file.startswith(f"{name}.")}
    return posixpath.join(link_files(paths.values()), name)


def read_run_config(
    path: str, flag: str = "checkpoint", *, checks_network: bool = False
) -> tuple[Config, dict[str, Any]]:
    """Reads the ``config.json`` of the run that wrote a checkpoint: its settings and the values derived from them.

    Among these are always ``num_classes``, ``head_input`` and ``class_names``, one per class of the classifier: numbers
    if the run knows no names.

    Args:
        path: as for ``find_checkpoint``.
        flag: named in the error message.
        checks_network: refuse a network that is larger than the checkpoint; set it before building the network.

    Raises:
        SettingError: if there is no checkpoint, or its ``config.json`` is missing, damaged or of another version, or
            cannot be read.
    """
    checkpoint_path = find_checkpoint(path, flag)
    run = checkpoint_path.rpartition("/checkpoints/")[0]
    try:
        with _explain_read_errors(flag, path):
            is_missing = not run or "config.json" not in list_folder(run)
            content = b"" if is_missing else integrity.read_bytes(f"{run}/config.json")
        if is_missing:
            raise SettingError(f"--{flag}={path}: its config.json is missing")
        config, resolved = integrity.parse_run_config(content)
        if checks_network:
            with _explain_read_errors(flag, path, checkpoint_path):
                reader = open_checkpoint(checkpoint_path)
            integrity.check_network_size(reader, config, resolved)
    except ConfigVersionError as error:
        raise SettingError(f"--{flag}={path}: its {error}") from None
    except DamagedError as error:
        raise SettingError(f"--{flag}={path}: its config.json is damaged ({error}); restore it") from None
    return config, resolved


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
        SettingError: if there is none, or it is damaged, cannot be read or belongs to another network.
        ValueError: if the network is not built.
    """
    if not network.built:
        raise ValueError("the network must be built before its weights are loaded: call network.build()")
    parts = _network_parts(network)
    if not with_classifier:
        parts.pop("classifier", None)
    checkpoint = tf.train.Checkpoint(**parts)
    for is_last_try in (False, False, True):
        checkpoint_path = find_checkpoint(path, flag)
        files = _files_beside(checkpoint_path)
        try:
            with _explain_read_errors(flag, path, checkpoint_path):
                open_checkpoint(checkpoint_path)
                status = checkpoint.read(readable_path(checkpoint_path))
                status.expect_partial().assert_existing_objects_matched()
            break
        except SettingError:  # a training may have moved or removed the files in between
            if is_last_try or _files_beside(checkpoint_path) == files:
                raise
    return checkpoint_path


def _files_beside(checkpoint_path: str) -> list[str]:
    folder = posixpath.dirname(checkpoint_path)
    return sorted((*list_folder(folder), *_unmoved_files(folder)))


@contextlib.contextmanager
def _explain_read_errors(flag: str, path: str | pathlib.Path, checkpoint_path: str = "") -> Iterator[None]:
    """Turns errors of reading into a SettingError: damaged, of another network, or an UnreadableError.

    Args:
        flag: named in the error message.
        path: its value.
        checkpoint_path: the checkpoint that is read; "" for other files, which are never called damaged.
    """
    try:
        yield
    except (SettingError, DamagedError):
        raise
    except (AssertionError, ValueError, IndexError, OSError, tf.errors.OpError) as error:
        is_other = isinstance(error, AssertionError | ValueError)
        if not is_other and (reason := _file_error(error, checkpoint_path)):
            raise UnreadableError(f"--{flag}={path}: cannot be read ({reason})") from None
        fault = "does not fit this network" if is_other else "is damaged"
        reason = str(error).strip().splitlines()[0].partition(". ")[0]  # the values of all variables would follow
        raise SettingError(f"--{flag}={path}: {fault} ({reason[-200:]})") from None


def _file_error(error: Exception, checkpoint_path: str) -> str:
    """Returns why files cannot be read; "" if they can, so that the content of the checkpoint must be damaged.

    TensorFlow reports some of these errors as missing or damaged files, so all files are read once more.
    """
    if isinstance(error, OSError):
        return error.strerror or first_line(error)
    numbers = errno.errorcode.keys() - {errno.ENOENT}
    if reasons := [os.strerror(number) for number in numbers if f"; {os.strerror(number)}" in str(error)]:
        return reasons[0]
    if not checkpoint_path or "://" in checkpoint_path:
        return "" if isinstance(error, tf.errors.DataLossError | tf.errors.OutOfRangeError) else first_line(error)
    folder, name = posixpath.split(checkpoint_path)
    try:
        for other in list_folder(folder):
            if other.startswith((f"{name}.index", f"{name}.data-")):
                with open(os.path.join(folder, other), "rb") as file:
                    while file.read(1 << 20):
                        pass
    except OSError as fault:
        return fault.strerror or first_line(fault)
    return ""
