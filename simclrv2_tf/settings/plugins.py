"""Objects of the user's own code that a flag names, as ``package.module:name``."""

import importlib
import os
import sys
from typing import Any

from simclrv2_tf.errors import SettingError


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
