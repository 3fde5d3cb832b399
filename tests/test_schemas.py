"""Files of a run, damaged in any way, are read as before, or refused with one line that names the file."""

import copy
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import saved_runs
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import changed, finished_result
from simclrv2_tf.report import charts, format_table, write_report
from simclrv2_tf.runs import official
from simclrv2_tf.runs.checkpoints import find_checkpoint, load_network, read_run_config
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.schemas import MAX_BYTES, read_record
from simclrv2_tf.settings.config import Config

NAMES = ("result.json", "metrics.csv", "config.json", "corrupt_images.json", "figures/labels.vl.json")
NAMES += ("training_time.json",)
RESULT = {"mode": "supervised", "steps": 3, "labels": 20, "seconds": 61.5, "corrupt_images": ["a.png"], "top1": 0.5}
RESULT |= {"table": [{"labels_per_class": 5, "supervised_top1": 0.25, "distill_top1": None}]}
VALUES = (5, -1, 2**63, 0.5, float("nan"), float("inf"), "text", True, None, [], {}, [1], {"a": 1}, "\ud800", "é")
EVENTS, STATE = "tensorboard/events.out.tfevents.0", "checkpoints/checkpoint"


@pytest.fixture(autouse=True)
def fresh_keras():
    """One network serves all tests."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model directory with every file that is read again."""
    run = tmp_path_factory.mktemp("runs") / "run"
    saved_runs.save_run(run, ["cat", "dog"])
    run_dir = RunDirectory(run)
    for step in (1, 2, 3):
        run_dir.write_row({"step": step, "loss": 1 / step, "eval_top1": 0.1 * step})
    (file,) = (run / "tensorboard").iterdir()
    file.rename(run / EVENTS)
    run_dir.write_corrupt_images(["a.png", "b.png"])
    run_dir.write_seconds()
    run_dir.write_result(RESULT)
    (run / "figures").mkdir()
    figure = charts.confusion(np.eye(2, dtype=int), ["cat", "dog"])
    (run / "figures/labels.vl.json").write_text(json.dumps(figure))
    return run


def use(run: pathlib.Path, name: str) -> None:
    """Reads a file as each of its readers does."""
    run_dir = RunDirectory(run)
    if name == "result.json":
        format_table(run_dir.result() or {})
        finished_result(read_run_config(str(run))[0].replace(report=False), {})
    elif name == "metrics.csv":
        charts.curves({"run": run_dir.rows()})
        run_dir.rewind(2)
        run_dir.last_row_is_best((("eval_top1", "loss"), True))
        run_dir.write_row({"step": 10**9, "loss": 0.5})
    elif name == "config.json":
        changed(Config(override_config=True), run)
        config, resolved = read_run_config(str(run), checks_network=True)
        assert config.width_multiplier <= 1 and len(resolved["class_names"]) == resolved["num_classes"]
    elif name == "corrupt_images.json":
        run_dir.write_corrupt_images(["a.png"])
    elif name in (EVENTS, "training_time.json"):
        run_dir.rewind(2)
    if name in ("config.json", "figures/labels.vl.json"):
        write_report(run)


def check(run: pathlib.Path, name: str, content: bytes, folder: pathlib.Path) -> None:
    """Asserts that a run with this content of a file is read, or refused with one line that names the file."""
    copy = folder / "run"
    shutil.rmtree(copy, ignore_errors=True)
    ignored = [] if name == EVENTS else ["tensorboard"]
    ignored += [] if name in ("config.json", "result.json") else ["checkpoints"]
    ignored += [] if name in (*NAMES[2:3], *NAMES[4:]) else ["figures"]
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns(*ignored))
    if name in ("config.json", "figures/labels.vl.json"):  # nothing is drawn
        for other in ("metrics.csv", "result.json"):
            (copy / other).unlink()
    (copy / name).write_bytes(content)
    try:
        use(copy, name)
    except SettingError as error:
        message = str(error)
        assert "\n" not in message and str(copy) in message and len(message) < 900
        assert name in message or "config.json" in message or "holds a run with other settings" in message


def damaged_bytes(content: bytes) -> st.SearchStrategy[bytes]:
    """Cuts content off, flips some of its bits, inserts bytes, or writes it twice."""
    places = st.integers(0, len(content) - 1)

    def flipped(changes: list[tuple[int, int]]) -> bytes:
        changed_content = bytearray(content)
        for place, bit in changes:
            changed_content[place] ^= 1 << bit
        return bytes(changed_content)

    bits = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=4)
    inserted = st.tuples(places, st.sampled_from([b"\xff\xfe", b"\0", b"[" * 10**5, b"9" * 400, b",", b"1e400", b"\n"]))
    return st.one_of(
        places.map(lambda place: content[:place]),
        bits.map(flipped),
        inserted.map(lambda at: content[: at[0]] + at[1] + content[at[0] :]),
        st.just(content + content),
        st.binary(max_size=20),
    )


def places_in(value, place=()):
    """Yields the keys that lead to each value in JSON."""
    yield place
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places_in(value[key], (*place, key))


@st.composite
def damaged_json(draw, content: bytes) -> bytes:
    """Replaces values in JSON by others, or adds or removes names."""
    value = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(places_in(value))))
        new = copy.deepcopy(draw(st.sampled_from(VALUES)))
        if not place:
            continue
        parent = value
        for key in place[:-1]:
            parent = parent[key]
        if draw(st.booleans()) or isinstance(parent, list):
            parent[place[-1]] = new
        else:
            parent[draw(st.sampled_from(["table", "values", "title", "field", "resolved", "step", "other"]))] = new
            parent.pop(place[-1], None) if draw(st.booleans()) else None
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", [*NAMES, EVENTS])
def test_a_file_that_is_damaged_at_random_is_read_or_refused_by_name(name, run, tmp_path):
    content = (run / name).read_bytes()
    strategy = damaged_bytes(content)
    if name.endswith(".json"):
        strategy = damaged_json(content) | strategy
    check(run, name, content, tmp_path)

    @given(strategy)
    @settings(max_examples=40)
    def is_read_or_refused(damaged: bytes) -> None:
        check(run, name, damaged, tmp_path)

    is_read_or_refused()


REFUSED = {
    "result.json": (b"[" * 10**6, b'{"mode": "a", "seconds": 1' + b"0" * 400 + b"}", b"\xff\xfe", b'{"seconds": 1}'),
    "metrics.csv": (b"step,loss\n1,0.5\n1,0.5\n", b"step,loss\n2,x\n", b"step,step\n1,1\n", b"step\n1e400\n"),
    "config.json": (b"{}", b"null", Config().to_json()[:-2].encode()),
    "figures/labels.vl.json": (b"{}", b'{"layer": [], "data": {}}', b'{"layer": [], "data": {"values": [[1]]}}'),
    "corrupt_images.json": (b'{"a": 1}', b"[1]", b'["a", {"b": []}]'),
    "training_time.json": (b"{}", b'{"seconds": -1}', b'{"seconds": true}', b"5"),
}
REFUSED["result.json"] += (b'{"mode": "a", "seconds": 1, "table": 5}', b'{"mode": "a", "mode": "b", "seconds": 1}')
REFUSED["figures/labels.vl.json"] += (b'{"layer": [], "data": {"values": []}, "usermeta": {"recall": [["a"], []]}}',)
CASES = [(name, content) for name, contents in REFUSED.items() for content in contents]


@pytest.mark.parametrize(("name", "content"), CASES, ids=range(len(CASES)))
def test_content_that_no_schema_allows_is_refused(name, content, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(SettingError, match=r"^--model_dir=.* (is|of) "):
        write_report(tmp_path) if name == "config.json" else read_record(tmp_path, name)


@pytest.mark.parametrize(
    ("setting", "value", "reason"),
    [
        ("encoder", "sesnet", "--encoder=sesnet: supervised trains from scratch"),
        ("distill_alpha", 5, "--distill_alpha=5: must be 1 or less"),
        ("keep_best", "[" * 10**5, r"--keep_best=\[{199}…: must be one of none"),
        ("seeds", "[" * 10**5, r"--seeds=\[{199}…: must be"),
    ],
)
def test_a_stored_setting_that_is_refused_is_named_and_shortened(setting, value, reason, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | {setting: value}))
    for read in (lambda: changed(Config(), copy), lambda: write_report(copy)):
        with pytest.raises(SettingError, match=rf"^--model_dir={copy}: (its )?config.json is damaged \({reason}"):
            read()
    with pytest.raises(SettingError, match=rf"^--checkpoint={copy}: its config.json is damaged \({reason}"):
        read_run_config(str(copy))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "huge"])
def test_what_is_no_small_file_is_refused_unopened(name, kind, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":  # opening it would block
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, MAX_BYTES + 1)
    reason = "it has more than 64 MB" if kind == "huge" else "it is no regular file"
    with pytest.raises(SettingError, match=rf"^--model_dir={tmp_path}: {name} is damaged \({reason}\); delete or"):
        read_record(tmp_path, name)


def test_a_file_of_proc_is_not_read_to_its_end(tmp_path):
    (tmp_path / "result.json").symlink_to("/proc/self/pagemap")  # its declared size is 0, its content many GB
    with pytest.raises(SettingError, match=r": result\.json is damaged \("):
        read_record(tmp_path, "result.json")


@pytest.mark.parametrize("name", ["step-1.index", "step-1.data-00000-of-00001"])
def test_a_pipe_in_place_of_a_checkpoint_is_refused_unopened(name, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "checkpoints" / name).unlink()
    os.mkfifo(copy / "checkpoints" / name)
    with pytest.raises(SettingError, match=rf"^--checkpoint={copy}: cannot be read \({name} is no regular file\)$"):
        read_run_config(str(copy), checks_network=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"width_multiplier": 1e6}, "--width_multiplier=1000000.0: must be 64 or less"),
        ({"image_size": 10**9}, "--image_size=1000000000: must be 4096 or less"),
        ({"width_multiplier": 60.0}, r"its network has at least \d[\d,]* weights, its checkpoint \d[\d,]* numbers"),
        ({"resnet_depth": 200}, "its network has at least"),
        ({"num_proj_layers": 100}, "its network has at least"),
        ({"resolved": {"num_classes": 90_000}}, "its network has at least"),
    ],
)
def test_a_network_larger_than_its_checkpoint_is_refused_before_it_is_built(change, reason, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | change))
    with pytest.raises(SettingError, match=rf"^--checkpoint={copy}: its config.json is damaged \({reason}"):
        read_run_config(str(copy), checks_network=True)


def test_a_checkpoint_that_declares_more_than_it_has_is_refused_before_it_is_allocated(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    data = copy / "checkpoints/step-1.data-00000-of-00001"
    os.truncate(data, 100)
    with pytest.raises(SettingError, match=r"is damaged \(it declares [\d,]+ bytes of variables, but has [\d,]+\)"):
        read_run_config(str(copy), checks_network=True)
    network = saved_runs.save_run(tmp_path / "other", ["cat", "dog"])
    with pytest.raises(SettingError, match=r"is damaged \(it declares"):
        load_network(network, str(copy), with_classifier=True)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A folder with two checkpoints, one of them named in the state file."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("a", "b"):
        tf.train.Checkpoint(x=tf.Variable(1.0)).write(str(folder / name))
    return folder


def test_a_state_file_that_is_damaged_at_random_names_a_checkpoint_or_is_refused(several):
    content = b'model_checkpoint_path: "a"\nall_model_checkpoint_paths: "a"\n'

    @given(damaged_bytes(content))
    def names_a_checkpoint(damaged: bytes) -> None:
        (several / "checkpoint").write_bytes(damaged)
        try:
            assert find_checkpoint(str(several)) in (f"{several}/a", f"{several}/b")
        except SettingError as error:
            assert "\n" not in str(error)
            assert "its file checkpoint is damaged (" in str(error) or "there is no checkpoint" in str(error)

    names_a_checkpoint()
    (several / "checkpoint").write_bytes(content)
    assert find_checkpoint(str(several)) == f"{several}/a"


@given(st.data())
@settings(max_examples=15)
def test_an_official_checkpoint_that_is_damaged_at_random_is_read_or_refused(several, data):
    file = several / data.draw(st.sampled_from(["a.index", "a.data-00000-of-00001"]))
    whole = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged_bytes(whole)))
        with pytest.raises(SettingError, match=rf"^--checkpoint={several}/a: ") as caught:
            official.read(f"{several}/a")
        assert "\n" not in str(caught.value)
    finally:
        file.write_bytes(whole)
