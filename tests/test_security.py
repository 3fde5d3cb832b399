"""Untrusted data, checkpoints and models cannot run code or write outside the model directory."""

import ast
import json
import pathlib
import pickle
import zipfile

import keras
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from simclrv2_tf import SimCLR
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.checkpoints import Checkpoints, find_checkpoint, load_network, read_run_config
from simclrv2_tf.settings.config import Config

PACKAGE = pathlib.Path(__file__).parents[1] / "simclrv2_tf"
# Functions that run data or text as code, and modules that do.
UNSAFE_FUNCTIONS = {"eval", "exec", "compile_command", "__import__", "system", "popen", "getoutput"}
UNSAFE_FUNCTIONS |= {"enable_unsafe_deserialization"}
UNSAFE_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "runpy", "code"}


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_the_package_does_not_run_data_as_code():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    assert len(trees) > 50
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not UNSAFE_MODULES & {name.partition(".")[0] for name in names}
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert name not in UNSAFE_FUNCTIONS and keywords.get("shell", "False") == "False"
        assert keywords.get("safe_mode", "True") == "True"
        if ast.unparse(node.func) == "np.load":
            assert keywords["allow_pickle"] == "False"


@pytest.mark.parametrize("name", ["x_train", "y_train"])
def test_pickled_objects_in_an_archive_are_refused_without_unpickling(name, tmp_path):
    arrays = {"x_train": np.zeros([2, 4, 4], np.uint8), "y_train": np.array([0, 1])}
    arrays[name] = np.array([Trap(tmp_path / "sprung")] * 2, object)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SettingError, match=rf"--dataset=npz:.*{name} has Python objects"):
        open_source(Config(dataset=f"npz:{tmp_path}/a.npz"), "train")
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(SettingError, match=r"--dataset=npz:.*b\.npz is no npz file"):
        open_source(Config(dataset=f"npz:{tmp_path}/b.npz"), "train")
    assert not (tmp_path / "sprung").exists()


def test_members_of_an_archive_are_not_extracted(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros([2, 4, 4], np.uint8))
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in/a.npz", "w") as archive:
        for member in ("x_train.npy", "../x_out.npy", "x_../../out.npy", f"{tmp_path}/x_out.npy"):
            archive.write(tmp_path / "x.npy", member)
    before = sorted(tmp_path.rglob("*"))
    open_source(Config(dataset=f"npz:{tmp_path}/in/a.npz"), "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_saved_model_with_code_in_it_is_refused(tmp_path):
    """Keras saves the bytecode of a lambda, which is loaded only if the user trusts the file explicitly."""
    features = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Lambda(lambda x: x), keras.layers.Flatten()])
    model = SimCLR(features, tiny.VIEWS)
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="safe"):
        keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, model.network):
        with pytest.raises(ValueError, match="safe"):
            type(each).from_config(each.get_config())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model directory with the checkpoint of a tiny network."""
    path = tmp_path_factory.mktemp("runs") / "run"
    Checkpoints(path, tiny.compiled(SimCLR(tiny.network(), tiny.VIEWS))).save(1)
    (path / "config.json").write_text(Config().to_json())
    return path


@pytest.fixture(scope="module")
def network():
    return tiny.network(seed=1)


@pytest.mark.parametrize("place", ["../../other/checkpoints/step-1", "{}/other/checkpoints/step-1", "sub/step-1"])
def test_a_checkpoint_file_cannot_name_another_directory(place, run, tmp_path):
    """Otherwise evaluating an untrusted run would write into any directory that it names."""
    for name in ("other/checkpoints", "untrusted/checkpoints/sub"):
        (tmp_path / name).mkdir(parents=True)
        for file in (run / "checkpoints").glob("step-1.*"):
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    text = f'model_checkpoint_path: "{place.format(tmp_path)}"\n'
    (tmp_path / "untrusted/checkpoints/checkpoint").write_text(text)
    with pytest.raises(SettingError, match="there is no checkpoint"):
        find_checkpoint(f"{tmp_path}/untrusted")


@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), index=st.booleans())
def test_a_flipped_bit_of_a_checkpoint_is_refused_or_has_no_effect(run, network, where, bit, index):
    file = run / "checkpoints" / ("step-1.index" if index else "step-1.data-00000-of-00001")
    whole = file.read_bytes()
    place = int(where * len(whole))
    try:
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
        load_network(network, str(run), with_classifier=True)
    except SettingError as error:
        assert str(error).startswith(f"--checkpoint={run}: ") and "\n" not in str(error)
    else:
        assert not tiny.moved(tiny.numbers(network.variables), tiny.numbers(tiny.network().variables))
    finally:
        file.write_bytes(whole)


DAMAGED = ["", "[" * 10**5, "[1]", '"x"', "\ud800"]
RESOLVED = (
    1,
    [],
    {"num_classes": -1},
    {"num_classes": 10**9},
    {"head_input": {}},
    {"num_classes": 2, "class_names": ["a"]},
    {"num_classes": 2, "class_names": [1, 2]},
)
SETTINGS = [{"resnet_depth": "__import__(1)"}, {"stage": 1}, *({"resolved": resolved} for resolved in RESOLVED)]
DAMAGED += [json.dumps({"config_version": 1} | settings) for settings in SETTINGS]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_config_is_refused(text, run):
    file = run / "config.json"
    whole = file.read_bytes()
    try:
        file.write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(SettingError, match=rf"^--teacher={run}: its config.json is damaged \(.+\); restore it$"):
            read_run_config(str(run), "teacher")
    finally:
        file.write_bytes(whole)


@given(st.text(max_size=20), st.sampled_from(["", "folder:", "npz:", "folder:../../", "npz:/"]))
def test_the_default_model_dir_is_below_runs_for_any_dataset_name(name, kind):
    try:
        place = pathlib.Path(Config(dataset=kind + name).run_dir)
    except SettingError:
        return
    assert place.parent == pathlib.Path("runs") and place.name.endswith("-pretrain")
