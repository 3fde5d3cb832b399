"""User code that a flag names as ``package.module:name``."""

import importlib
import os
import re
import sys
from typing import Any

from simclrv2_tf.errors import SettingError

APPLICATION, HUB = "keras.applications:", "keras_hub:"  # values of --encoder before the name of a model


def is_function(encoder: str) -> bool:
    """Returns whether a value of ``--encoder`` names a function of the user, ``package.module:function``."""
    return re.fullmatch(r"[\w.]+:\w+", encoder) is not None and not encoder.startswith((APPLICATION, HUB))


def is_file(model: str) -> bool:
    """Returns whether a value of ``--encoder`` or ``--teacher`` is a ``.keras`` file or a SavedModel directory."""
    is_saved_model = os.path.isfile(os.path.join(model, "saved_model.pb"))
    return model.endswith(".keras") or is_saved_model


def brings_weights(encoder: str) -> bool:
    """Returns whether a value of ``--encoder`` is a preset or a file, whose weights are always loaded."""
    return encoder != "resnet" and not encoder.startswith(APPLICATION) and not is_function(encoder)


def is_trusted(encoder: str) -> bool:
    """Returns whether a value of ``--encoder`` that a run names reads no file and runs only our or Keras's code."""
    return encoder == "resnet" or encoder.startswith(APPLICATION)


def load_plugin(flag: str, reference: str) -> Any:
    """Imports ``package.module:name``, also from the current directory.

    Raises:
        SettingError: naming the flag, if there is no such object.
    """
    module_name, _, name = reference.partition(":")
    if not module_name or not name:
        raise SettingError(f"--{flag}={reference}: must look like package.module:name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingError(
            f"--{flag}={reference}: cannot be imported ({error}); run from the directory that {module_name} is in"
        ) from None
    if not hasattr(module, name):
        raise SettingError(f"--{flag}={reference}: {module_name} has no {name}")
    return getattr(module, name)
