"""Checks of an untrusted run, made before a network is built from it or memory is allocated."""

import errno
import math
import os
import stat
from collections.abc import Iterable, Mapping
from typing import Any

import tensorflow as tf

from simclrv2_tf.data.classes import numbered_classes
from simclrv2_tf.data.sources import MAX_CLASSES
from simclrv2_tf.errors import DamagedError
from simclrv2_tf.files import read_bounded
from simclrv2_tf.models.resnet import BLOCKS_PER_GROUP
from simclrv2_tf.schemas import JSON_OBJECT, MAX_BYTES, decode, parse_json
from simclrv2_tf.settings.config import Config


def read_bytes(path: str) -> bytes:
    """Returns the content of a small file, local or on ``gs://``.

    Raises:
        DamagedError: with the reason, if it is too large or no regular file.
        OSError, tf.errors.OpError: if it cannot be read.
    """
    if "://" not in path:
        return read_bounded(path, MAX_BYTES)
    with tf.io.gfile.GFile(path, "rb") as file:
        if file.size() > MAX_BYTES:
            raise DamagedError(f"it has more than {MAX_BYTES >> 20} MB")
        return file.read()


def total_bytes(paths: Iterable[str]) -> int:
    """Returns the size of files together.

    Raises:
        OSError: if one is a pipe or a device, which would block; reading a folder raises an error itself.
    """
    total = 0
    for path in paths:
        if "://" in path:
            total += tf.io.gfile.stat(path).length
            continue
        status = os.stat(path)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise OSError(errno.EINVAL, f"{os.path.basename(path)} is no regular file")
        total += status.st_size
    return total


def check_declared_bytes(reader: Any, num_bytes: int) -> None:
    """Checks that the variables of a checkpoint fit into its files: TensorFlow allocates what their shapes declare.

    Args:
        reader: TensorFlow's ``CheckpointReader``.
        num_bytes: size of the files.

    Raises:
        tf.errors.DataLossError: if they do not.
    """
    dtypes, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    declared = sum(math.prod(shape) * dtypes[key].size for key, shape in shapes.items())
    if declared > num_bytes:
        raise tf.errors.DataLossError(None, None, f"it declares {declared:,} bytes of variables, but has {num_bytes:,}")


def parse_run_config(content: bytes) -> tuple[Config, dict[str, Any]]:
    """Parses a ``config.json``: the settings, and the derived values with ``num_classes``, ``head_input``,
    ``class_names``.

    Raises:
        ConfigVersionError: if it is of another version.
        DamagedError: with the reason why it is damaged.
    """
    values = parse_json(decode(content), JSON_OBJECT)
    config, resolved = Config.from_content(values), values.get("resolved", {})
    network = {name: resolved.get(name, 0) for name in ("num_classes", "head_input")}
    if network["num_classes"] > MAX_CLASSES or network["head_input"] > config.head_layers:
        raise DamagedError(f"there are {network['num_classes']} classes on layer {network['head_input']} of the head")
    class_names = resolved.get("class_names") or numbered_classes(network["num_classes"])
    if len(class_names) != network["num_classes"]:
        raise DamagedError(f"there are {len(class_names)} names of {network['num_classes']} classes")
    return config, resolved | network | {"class_names": list(class_names)}


def check_network_size(reader: Any, config: Config, resolved: Mapping[str, Any]) -> None:
    """Checks that a checkpoint is at least as large as a lower bound of the network of a ``config.json``.

    Args:
        reader: TensorFlow's ``CheckpointReader``.
        config: the settings of the run.
        resolved: its ``num_classes`` and ``head_input``.

    Raises:
        DamagedError: if it is smaller.
    """
    features, least = 1, 0
    if config.encoder == "resnet":
        width = round(512 * config.width_multiplier)
        features = max(width * (4 if config.resnet_depth >= 50 else 1), 1)
        least += 9 * BLOCKS_PER_GROUP[config.resnet_depth][-1] * width**2  # one 3x3 convolution per block
    if layers := config.head_layers:
        least += (layers - 1) * features**2 + features * config.proj_out_dim
    is_on_output = 0 < resolved["head_input"] == layers
    least += resolved["num_classes"] * (config.proj_out_dim if is_on_output else features)
    stored = sum(map(math.prod, reader.get_variable_to_shape_map().values()))
    if least > stored:
        raise DamagedError(f"its network has at least {least:,} weights, its checkpoint {stored:,} numbers")
