"""Validation of the files that a run writes and reads again: one schema per file, used by every reader.

The files may be cut off, edited, written by another program or sent by a stranger. Only regular files of bounded size
are read; the result is content of known types, or one line that names the file. The fields of ``Config`` are the schema
of the settings in ``config.json``. Schemas are functions rather than JSON Schema: ``jsonschema`` would be a further
dependency for the forty lines of `_object` and its like, and knows neither CSV nor TensorBoard's events.
"""

import csv
import fnmatch
import io
import json
import math
import os
import pathlib
import re
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from simclrv2_tf.errors import DamagedError, SettingError, UnreadableError, first_line
from simclrv2_tf.files import read_bounded

MAX_BYTES = 2**26  # maximum size of a file
MAX_DEPTH = 20  # maximum nesting of lists and objects; a figure has 8
MAX_INTEGER = 2**53  # largest integer up to which floats, and so JavaScript, are exact

Schema = Callable[[Any, str], None]  # raises DamagedError that names the place in the file


def _kind(description: str, accepts: Callable[[Any], bool]) -> Schema:
    def check(value: Any, place: str) -> None:
        if not accepts(value):
            shown = json.dumps(value)
            raise DamagedError(f"{place} must be {description}, not {shown if len(shown) < 40 else shown[:36] + ' …'}")

    return check


def _list(schema: Schema, is_empty_allowed: bool = True) -> Schema:
    description = "a list" if is_empty_allowed else "a list that is not empty"
    is_list = _kind(description, lambda value: isinstance(value, list) and (bool(value) or is_empty_allowed))

    def check(value: Any, place: str) -> None:
        is_list(value, place)
        for index, item in enumerate(value):
            schema(item, f"{place}[{index}]")

    return check


def _object(fields: Mapping[str, Schema], others: Schema, required: Collection[str] = ()) -> Schema:
    is_object = _kind("an object", lambda value: isinstance(value, dict))

    def check(value: Any, place: str) -> None:
        is_object(value, place or "the content")
        prefix = f"{place}." if place else ""
        for name in required:
            if name not in value:
                raise DamagedError(f"{prefix}{name} is missing")
        for name, item in value.items():
            fields.get(name, others)(item, f"{prefix}{name[:40]}")

    return check


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


ANY = _kind("anything", lambda value: True)
TEXT = _kind("a text", lambda value: isinstance(value, str))
FLAG = _kind("true or false", lambda value: isinstance(value, bool))
COUNT = _kind("a whole number from 0 on", lambda value: type(value) is int and value >= 0)
NUMBER = _kind("a number", _is_number)
DURATION = _kind("a number from 0 on", lambda value: _is_number(value) and 0 <= value < math.inf)
NUMBER_OR_NONE = _kind("a number or null", lambda value: value is None or _is_number(value))
COUNT_OR_TEXT = _kind("a whole number or a text", lambda value: type(value) is int or isinstance(value, str))
SCALAR = _kind("a text, a number, true, false or null", lambda value: not isinstance(value, list | dict))
TEXTS = _list(TEXT)
JSON_OBJECT = _object({}, ANY)
TITLE = _kind(
    "a text or a list of texts",
    lambda value: all(isinstance(line, str) for line in (value if isinstance(value, list) else [value])),
)

# Entries of config.json beside the settings.
RESOLVED = _object(
    {
        **dict.fromkeys(("train_images", "num_classes", "head_input", "steps", "warmup_steps", "replicas"), COUNT),
        **dict.fromkeys(("batch_per_replica", "parameters", "trained_parameters"), COUNT),
        **dict.fromkeys(("class_names", "imported"), TEXTS),
        **dict.fromkeys(
            ("images", "eval_images", "recipe", "encoder_description", "versions", "revision", "device"), TEXT
        ),
        "peak_learning_rate": NUMBER,
        "xla": FLAG,
    },
    others=SCALAR,
)
LABEL_ROWS = _list(_object({"labels_per_class": COUNT_OR_TEXT}, NUMBER_OR_NONE, required=("labels_per_class",)))
RESULT = _object(
    {
        "mode": TEXT,
        "steps": COUNT,
        "seed": COUNT,
        "labels": COUNT_OR_TEXT,
        "seconds": DURATION,
        "corrupt_images": TEXTS,
        "table": LABEL_ROWS,
        "runs": LABEL_ROWS,
        "verdicts": TEXTS,
    },
    others=SCALAR,
    required=("mode", "seconds"),
)
TRAINING_TIME = _object({"seconds": DURATION}, ANY, required=("seconds",))
_TOOLTIP = _list(_object({"field": TEXT, "title": TEXT, "format": TEXT}, ANY, required=("field", "title")))
_ENCODING = _object({"tooltip": _TOOLTIP}, ANY)
FIGURE = _object(
    {
        "title": TITLE,
        "description": TEXT,
        "data": _object({"values": _list(_object({}, others=SCALAR))}, ANY, required=("values",)),
        "encoding": _ENCODING,
        "layer": _list(_object({"encoding": _ENCODING}, ANY)),
        "usermeta": _object({"fixed": FLAG, "recall": _list(_list(TEXT, is_empty_allowed=False))}, ANY),
    },
    others=ANY,
    required=("layer", "data"),
)


def parse_json(text: str, schema: Schema, is_finite: bool = False) -> Any:
    """Parses JSON; refuses duplicate names, huge integers, deep nesting and invalid Unicode.

    Args:
        text: the content of the file.
        schema: schema of the content.
        is_finite: refuse NaN and infinite numbers.

    Raises:
        DamagedError: with the reason why it is damaged.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(content := dict(pairs)) < len(pairs):
            raise DamagedError("it has a name twice")
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise DamagedError("it is nested too deeply") from None
    except DamagedError:
        raise
    except ValueError as error:
        raise DamagedError(first_line(error)) from None
    pending = [(content, 0)]
    while pending:
        value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise DamagedError("it is nested too deeply")
        if isinstance(value, dict):
            pending += [(item, depth + 1) for item in value.values()]
            value = "".join(value)
        if isinstance(value, list):
            pending += [(item, depth + 1) for item in value]
        elif isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise DamagedError("it is not UTF-8")
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise DamagedError(f"a whole number is above {MAX_INTEGER}")
        elif is_finite and isinstance(value, float) and not math.isfinite(value):
            raise DamagedError("a number is not finite")
    schema(content, "")
    return content


def parse_metrics(text: str) -> list[dict[str, str]]:
    """Parses ``metrics.csv``: one row per step, in order, each with a number or nothing in every column.

    Raises:
        DamagedError: with the reason why it is damaged.
    """
    if not text.endswith("\n"):
        raise DamagedError("it is cut off")
    try:
        names, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    except csv.Error as error:
        raise DamagedError(str(error)) from None
    if not names and not lines:  # all rows were removed
        return []
    if len(set(names)) < len(names) or "step" not in names or "" in names:
        raise DamagedError("its first line must name its columns, step among them")
    rows, earlier = [], -1
    for number, line in enumerate(lines, 2):
        if len(line) != len(names):
            raise DamagedError(f"line {number} has {len(line)} cells for {len(names)} columns")
        row = dict(zip(names, line, strict=True))
        for name, cell in row.items():
            if cell and not _is_numeric(cell):
                raise DamagedError(f"line {number}: {name} must be a number, not {json.dumps(cell[:40])}")
        if not re.fullmatch(r"[0-9]{1,15}", row["step"]) or int(row["step"]) <= earlier:
            raise DamagedError(f"line {number}: step must be a whole number above those before")
        earlier = int(row["step"])
        rows.append(row)
    return rows


def _is_numeric(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?|nan|[-+]?inf", cell))


# Parsers by file name pattern in a model directory.
RECORDS: Mapping[str, Callable[[str], Any]] = {
    "config.json": lambda text: parse_json(text, JSON_OBJECT),
    "result.json": lambda text: parse_json(text, RESULT),
    "metrics.csv": parse_metrics,
    "tracked_runs.json": lambda text: parse_json(text, _object({}, TEXT)),
    "corrupt_images.json": lambda text: parse_json(text, TEXTS),
    "training_time.json": lambda text: parse_json(text, TRAINING_TIME),
    "figures/*.vl.json": lambda text: parse_json(text, FIGURE, is_finite=True),
}


def read_record(model_dir: str | os.PathLike[str], name: str, flag: str = "model_dir") -> Any:
    """Reads and validates a file of a model directory.

    Args:
        model_dir: the directory.
        name: name of the file, one of ``RECORDS``.
        flag: flag to name in the error message.

    Returns:
        Its content, see ``RECORDS``; None if there is no such file.

    Raises:
        SettingError: if it is damaged, too large, or not a file.
        UnreadableError: if it cannot be read.
    """
    parse = next(parse for pattern, parse in RECORDS.items() if fnmatch.fnmatch(name, pattern))
    where = f"--{flag}={os.fspath(model_dir)}: {name}"
    try:
        return parse(decode(read_bounded(pathlib.Path(model_dir, name), MAX_BYTES)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UnreadableError(f"{where} cannot be read ({error.strerror or first_line(error)})") from None
    except DamagedError as error:
        raise SettingError(f"{where} is damaged ({first_line(error)}); delete or restore it") from None


def decode(content: bytes) -> str:
    """Decodes UTF-8; raises DamagedError for anything else."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise DamagedError("it is not UTF-8") from None


def parse_state(content: bytes) -> Any:
    """Parses TensorFlow's file ``checkpoint``; returns a ``CheckpointState``.

    Raises:
        DamagedError: with the reason why it is damaged.
    """
    import tensorflow as tf  # takes seconds, and the settings import this module
    from google.protobuf import text_format

    state = tf.compat.v1.train.generate_checkpoint_state_proto("folder", "name")
    state.Clear()
    try:
        return text_format.Parse(decode(content), state)
    except text_format.ParseError as error:
        raise DamagedError(first_line(error)) from None


def read_events(path: pathlib.Path) -> Iterator[tuple[bytes, Any]]:
    """Yields each record of a TensorBoard file, and the ``Event`` in it.

    A killed run leaves a truncated last record, which is skipped.

    Raises:
        DamagedError: with the reason, if it is damaged elsewhere, or not a regular file.
        OSError: if it cannot be read.
    """
    import tensorflow as tf

    records = tf.data.TFRecordDataset(str(path)).take(_count_whole_records(path))
    try:
        for record in records.as_numpy_iterator():
            yield record, tf.compat.v1.Event.FromString(record)
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError):
        raise DamagedError("a checksum is wrong") from None
    except tf.errors.OpError as error:
        raise OSError(first_line(error)) from None
    except Exception as error:  # protobuf's errors depend on its implementation
        if type(error).__name__ != "DecodeError":
            raise
        raise DamagedError("a record is no event of TensorBoard") from None


def _count_whole_records(path: pathlib.Path) -> int:
    """Counts the complete records of a file. TensorFlow would allocate the length that a truncated one declares.

    Raises:
        ValueError: if the length of a record is damaged, or it is not a regular file.
    """
    if not path.is_file():
        raise DamagedError("it is no regular file")
    count, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:  # length of the record, 8 bytes, and their checksum
            length, checksum = struct.unpack("<QI", header)
            if file.tell() + length + 4 > size:
                if checksum != _masked_crc32c(header[:8]):
                    raise DamagedError("a checksum is wrong")
                break
            file.seek(length + 4, os.SEEK_CUR)
            count += 1
    return count


def _masked_crc32c(data: bytes) -> int:
    """Computes the checksum of TFRecord files."""
    crc = 2**32 - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 2**32 - 1
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
