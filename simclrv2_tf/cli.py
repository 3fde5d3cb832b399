"""Command line: flags → settings → the function of one mode. A user error is one line and exit status 2."""

import contextlib
import dataclasses
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from absl import flags

import simclrv2_tf
from simclrv2_tf import completion, help
from simclrv2_tf.env import import_tensorflow, make_output_robust
from simclrv2_tf.errors import LostWorkerError, SettingError
from simclrv2_tf.interrupts import SignalWatch, end_process, waiting
from simclrv2_tf.settings import official_flags
from simclrv2_tf.settings.config import Config, check_bounds
from simclrv2_tf.settings.config_file import with_config_file
from simclrv2_tf.settings.recipes import format_recipes
from simclrv2_tf.settings.usage import unread_settings

log = logging.getLogger(__name__)

DEFINE: dict[type, Callable] = {
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}


def main(argv: list[str] | None = None) -> None:
    """Runs ``run.py``. Exits with 0; with 2 or 3 after one line on standard error; with 130 after Ctrl-C."""
    make_output_robust()
    argv = list(sys.argv if argv is None else argv)
    if len(argv) == 1 or help.REQUESTS & set(argv[1:]):
        print(help.help_text(argv))
        return
    if "--version" in argv[1:]:
        print(f"simclrv2-tf {simclrv2_tf.__version__}")
        return
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    values = define_flags()
    with SignalWatch(), exit_on_user_error(resume=f"python {shlex.join(argv)}"):
        settings = parse(argv, values)
        if values["completion"].present:
            print(completion.completion_script(values["completion"].value))
            return
        if settings.get("recipe") == "help":
            print(format_recipes())
            return
        quiet = values["quiet"].value
        import_tensorflow(verbose=values["v"].value > 0)  # takes seconds, so not before --help
        from simclrv2_tf import modes

        with (
            waiting("a disk or another process"),
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stdout(nowhere if quiet else sys.stdout),
        ):
            modes.run(settings)


@contextlib.contextmanager
def exit_on_user_error(resume: str = "") -> Iterator[None]:
    """Turns a user error into one line on standard error and exit status 2, a lost worker into 3, Ctrl-C into 130.

    Args:
        resume: the command that continues after Ctrl-C, if there is one.
    """
    try:
        yield
    except (SettingError, flags.Error) as error:
        print("error:", *str(error).split("\n"), file=sys.stderr)  # a value or a file name may hold several lines
        sys.exit(2)
    except LostWorkerError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        end_process(3)  # without waiting for the other workers, as TensorFlow would
    except KeyboardInterrupt:
        print("Interrupted." + (f" To resume: {resume}" if resume else ""), file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def parse(argv: list[str], values: flags.FlagValues | None = None) -> dict[str, object]:
    """Returns the settings that are given on the command line, by name, without those that are not.

    Args:
        argv: the program and its arguments.
        values: the result of ``define_flags()``; receives all flags.

    Raises:
        flags.Error: for an unknown flag, or a value that is not of the flag's type.
        SettingError: for an argument that is not a flag, a value outside its bounds, or a contradiction among flags of
            the official code, which are translated with a note.
    """
    values = define_flags() if values is None else values
    try:
        rest = values(argv)[1:]
    except UnicodeDecodeError as error:
        raise SettingError(f"--flagfile: not UTF-8 text ({error})") from None
    if rest:
        raise SettingError(f"{rest[0]}: not a flag (write --name=value)")
    names = [*official_flags.TYPES, *(field.name for field in dataclasses.fields(Config))]
    given = {name: values[name].value for name in names if values[name].present}
    for name, value in given.items():
        if isinstance(value, str) and not _is_utf8(value):
            raise SettingError(f"--{name}={value}: is not UTF-8; rename the file or folder")
    settings, notes = official_flags.translate(given)
    for note in notes:
        log.warning("note: %s", note)
    settings |= {"stage": tuple(settings["stage"])} if "stage" in settings else {}
    is_official = settings.get("mode") != given.get("mode")  # the official code has one set of flags for all modes
    flags_to_check = [] if is_official else list(settings)
    if values["config"].present:
        settings = with_config_file(values["config"].value, settings)
    check_bounds(settings)  # before TensorFlow takes seconds to start
    _warn_about_unread(settings.get("mode", "pretrain"), flags_to_check)
    return settings


def _warn_about_unread(mode: str, names: Iterable[str]) -> None:
    """Warns about flags that have no effect in this mode."""
    if unread := unread_settings(mode, names):
        flags_text = ", ".join(f"--{name}" for name in unread)
        effect = "it is ignored" if len(unread) == 1 else "they are ignored"
        log.warning("warning: --mode=%s does not read %s; %s", mode, flags_text, effect)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the command line that Python could not decode
        return False
    return True


def define_flags() -> flags.FlagValues:
    """Defines a flag for each setting and each flag of the official code, and those that are not settings."""
    values = flags.FlagValues()
    flags.DEFINE_integer("v", 0, "1: show all log messages of TensorFlow.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("quiet", False, "Print only warnings and errors.", flag_values=values)
    flags.DEFINE_string("flagfile", "", "Read flags from this file.", flag_values=values)
    flags.DEFINE_string("config", "", "Start with the settings of this config.json.", flag_values=values)
    flags.DEFINE_enum("completion", None, completion.SHELLS, "Print a completion script.", flag_values=values)
    for name, kind in official_flags.TYPES.items():
        DEFINE[kind](name, None, "A flag of the official code.", flag_values=values)
    for field in dataclasses.fields(Config):
        text = field.metadata["help"]
        if field.metadata["choices"] and field.name != "mode":  # --mode has other values in the official code
            default: Any = field.default
            flags.DEFINE_enum(field.name, default, field.metadata["choices"], text, flag_values=values)
        elif isinstance(field.default, tuple):
            flags.DEFINE_multi_string(field.name, [], text, flag_values=values)
        else:
            DEFINE[type(field.default)](field.name, field.default, text, flag_values=values)
    return values
