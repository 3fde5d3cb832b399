"""``--config``: starts a run with the settings of another run's ``config.json``."""

import logging
from collections.abc import Mapping
from typing import Any

from simclrv2_tf.errors import DamagedError, SettingError
from simclrv2_tf.files import read_bounded
from simclrv2_tf.schemas import MAX_BYTES, decode
from simclrv2_tf.settings.config import Config

log = logging.getLogger(__name__)

OWN = ("model_dir", "override_config", "trust_run_code", "compare", "recipe", "stage")  # not taken from the file
CODE = ("method", "encoder", "callbacks")  # settings that may name code as package.module:name
REPLACES = {  # a flag for one of these also drops the other from the file
    "train_epochs": "train_steps",
    "checkpoint_epochs": "checkpoint_steps",
    "labels_per_class": "label_fraction",
    "label_fraction": "labels_per_class",
}


def with_config_file(path: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a ``config.json``, overridden by flags.

    They are complete, so that no recipe applies. The directory of the run is not taken over.

    Raises:
        SettingError: if the file cannot be read, is that of a semi-supervised run, names code that the flags do not
            allow, or is combined with a recipe.
    """
    flag = f"--config={path}"
    try:
        config = Config.from_json(decode(read_bounded(path, MAX_BYTES)))
    except OSError as error:
        raise SettingError(f"{flag}: cannot be read ({error.strerror}); give the config.json of a run") from None
    except (SettingError, DamagedError) as error:
        raise SettingError(f"{flag}: {error}") from None
    if config.mode == "semi_supervised":
        raise SettingError(f"{flag}: is that of a semi-supervised run; give one of a stage, in a sub-directory")
    if flags.get("recipe", "official") not in ("official", "none"):
        raise SettingError(f"--recipe={flags['recipe']}: cannot be combined with --config, which has every setting")
    dropped = {*OWN, *(other for name, other in REPLACES.items() if name in flags and other not in flags)}
    settings = {name: value for name, value in vars(config).items() if name not in dropped}
    for name in CODE:
        if ":" in settings[name] and name not in flags and not flags.get("trust_run_code"):
            raise SettingError(
                f"{flag}: has --{name}={settings[name]}; pass --trust_run_code, or that flag, to import that code"
            )
    changed = [f"--{name}={value}" for name, value in flags.items() if settings.get(name) != value]
    log.warning("note: the settings of %s, but %s", path, " ".join(changed) or "for the directory")
    return {**settings, "recipe": "official", **flags}
