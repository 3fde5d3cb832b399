"""Checkpoints save every variable, resuming is exact, and a network is loaded or refused."""

import contextlib
import json
import os
import pathlib
import signal
import tempfile

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.base import Method
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.distiller import Distiller
from simclrv2_tf.methods.schedules import WarmUpCosine
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.models import Network, ProjectionHead
from simclrv2_tf.runs.checkpoints import Checkpoints, find_checkpoint, load_network, read_run_config, save_network
from simclrv2_tf.settings.config import Config


def simclr(
    strategy: tf.distribute.Strategy | None = None, optimizer: str = "lars", seed: int = 0, memory: int = 20, **kwargs
) -> SimCLR:
    with (strategy or tf.distribute.get_strategy()).scope():
        network = tiny.network(seed=seed, **kwargs)
        model = SimCLR(network, tiny.VIEWS, 0.5, weight_decay=1e-3, memory_size=memory, ema_decay=0.9)
        return tiny.compiled(model, optimizer, rate=WarmUpCosine(0.1, 10, 2))


def classification(make_encoder=tiny.resnet, **kwargs) -> ClassificationModel:
    return tiny.compiled(ClassificationModel(tiny.network(make_encoder=make_encoder, **kwargs), tiny.VIEWS))


def all_variables(model: Method) -> list[keras.Variable]:
    memory = getattr(model, "memory", None)
    return [*model.network.variables, *model.optimizer.variables, *(memory.variables if memory else [])]


def scramble(model: Method) -> dict[str, np.ndarray]:
    """Assigns new values to every variable and returns them."""
    rng = np.random.default_rng(1)
    for variable in all_variables(model):
        variable.assign(rng.integers(1, 100, variable.shape))
    return tiny.numbers(all_variables(model))


class TestSaveAndRestore:
    @pytest.mark.parametrize("optimizer", ["lars", "momentum", "adam", "adamw"])
    @pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
    def test_every_variable_is_restored(self, optimizer, policy, tmp_path):
        keras.config.set_dtype_policy(policy)
        model = simclr(optimizer=optimizer)
        expected = scramble(model)
        Checkpoints(tmp_path, model).save(7)
        other = simclr(optimizer=optimizer, seed=1)
        assert tiny.moved(expected, tiny.numbers(all_variables(other))) == set(expected)
        assert Checkpoints(tmp_path, other).restore() == 7
        assert not tiny.moved(expected, tiny.numbers(all_variables(other)))
        kinds = {path.rpartition("/")[2].rpartition("_")[2] for path in expected}
        assert {"kernel", "gamma", "mean", "variance", "iteration", "queue", "momentum"} - kinds <= (
            {"momentum"} if optimizer.startswith("adam") else set()
        )
        assert ("scale" in kinds) == (policy == "mixed_float16")

    def test_every_variable_of_a_resnet_is_restored(self, tmp_path):
        model = classification(tap=1)
        expected = scramble(model)
        Checkpoints(tmp_path, model).save(1)
        other = classification(tap=1, seed=1)
        Checkpoints(tmp_path, other).restore()
        assert not tiny.moved(expected, tiny.numbers(all_variables(other)))

    def test_the_teacher_of_a_distiller_is_not_saved(self, tmp_path):
        student, teacher = tiny.network(), tiny.network(seed=1)
        model = tiny.compiled(Distiller(student, teacher, tiny.VIEWS))
        Checkpoints(tmp_path, model).save(1)
        expected = tiny.numbers(student.variables)
        num_saved = len(tf.train.list_variables(find_checkpoint(str(tmp_path))))
        num_expected = len(student.variables) + len(model.optimizer.variables)
        assert num_saved == num_expected + 1  # TensorFlow's object graph
        other = tiny.network(seed=2)
        load_network(other, str(tmp_path), with_classifier=True)
        assert not tiny.moved(expected, tiny.numbers(other.variables))

    def test_without_a_checkpoint_the_step_is_0(self, tmp_path):
        model = simclr()
        before = tiny.numbers(all_variables(model))
        assert Checkpoints(tmp_path / "new", model).restore() == 0
        assert not tiny.moved(before, tiny.numbers(all_variables(model)))

    def test_the_newest_is_restored_and_older_ones_are_removed(self, tmp_path):
        model = simclr(memory=0)
        bias = model.network.classifier.dense.bias
        for step in (8, 9, 10, 11):
            bias.assign([step] * tiny.CLASSES)
            Checkpoints(tmp_path, model, keep=2).save(step)  # a new object each time, as in a resumed run
        assert Checkpoints(tmp_path, model).restore() == 11
        assert np.all(bias.numpy() == 11)
        names = {path.name for path in (tmp_path / "checkpoints").glob("*.index")}
        assert names == {"step-10.index", "step-11.index"}

    def test_keep_0_keeps_all(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, simclr(memory=0), keep=0)
        for step in range(1, 8):
            checkpoints.save(step)
        assert len(list((tmp_path / "checkpoints").glob("*.index"))) == 7

    def test_a_half_written_checkpoint_is_skipped(self, tmp_path):
        """A kill while writing leaves files that the ``checkpoint`` file does not name."""
        model = simclr(memory=0)
        Checkpoints(tmp_path, model).save(3)
        for file in list((tmp_path / "checkpoints").glob("step-3.*")):
            (tmp_path / "checkpoints" / file.name.replace("step-3", "step-4")).write_bytes(file.read_bytes()[:100])
        assert Checkpoints(tmp_path, model).restore() == 3

    @pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
    @pytest.mark.parametrize("damage", ["one bit", "cut off", "empty", "gone"])
    def test_a_damaged_checkpoint_is_skipped_for_the_one_before(self, suffix, damage, tmp_path, caplog):
        model = simclr(memory=0)
        bias = model.network.classifier.dense.bias
        for step in (3, 4):
            bias.assign([step] * tiny.CLASSES)
            Checkpoints(tmp_path, model).save(step)
        file = tmp_path / f"checkpoints/step-4.{suffix}"
        whole = file.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 8]) + whole[middle + 1 :]
        file.write_bytes({"one bit": flipped, "cut off": whole[:middle], "empty": b"", "gone": b""}[damage])
        if damage == "gone":
            file.unlink()
        assert Checkpoints(tmp_path, model).restore() == 3
        assert np.all(bias.numpy() == 3)
        assert ("step-4 cannot be used" in caplog.text) == ((suffix, damage) != ("index", "gone"))

    def test_only_damaged_checkpoints_are_refused(self, tmp_path):
        model = simclr(memory=0)
        Checkpoints(tmp_path, model).save(3)
        (tmp_path / "checkpoints/step-3.data-00000-of-00001").write_bytes(b"")
        with pytest.raises(SettingError, match=f"--model_dir={tmp_path}: is damaged"):
            Checkpoints(tmp_path, model).restore()
        with pytest.raises(SettingError, match=f"--teacher={tmp_path}: is damaged"):
            load_network(model.network, str(tmp_path), with_classifier=True, flag="teacher")

    @pytest.mark.parametrize("limit", [0, 100, 2000])
    def test_a_full_disk_keeps_the_old_checkpoints(self, limit, tmp_path, file_size_limit):
        model = simclr(memory=0)
        checkpoints = Checkpoints(tmp_path, model, keep=1)
        checkpoints.save(3)
        before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
        with file_size_limit(limit), pytest.raises((OSError, tf.errors.OpError)):
            checkpoints.save(4)
        assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
        checkpoints.save(4)
        assert Checkpoints(tmp_path, model).restore() == 4

    def test_a_full_disk_keeps_the_checkpoint_that_it_would_replace(self, tmp_path, file_size_limit):
        model = simclr(memory=0)
        checkpoints = Checkpoints(tmp_path, model, keep=1)
        checkpoints.save(3)
        scramble(model)
        before = contents(tmp_path)
        for limit in (0, 100, 2000):
            with file_size_limit(limit), pytest.raises((OSError, tf.errors.OpError)):
                checkpoints.save(3)
            assert contents(tmp_path) == before
        checkpoints.save(3)
        assert contents(tmp_path).keys() == before.keys() and contents(tmp_path) != before

    @pytest.mark.parametrize(
        "step", [3, pytest.param(4, marks=pytest.mark.slow)], ids=["the same step", "the next step"]
    )
    def test_a_kill_at_any_change_leaves_the_old_or_the_new_checkpoint(self, step, tmp_path):
        """Both for what only reads it and for the run that resumes."""
        values, moment = [], 0
        while not values or values[-1] != "finished":
            moment += 1
            model_dir = tmp_path / str(moment)
            model = children.tiny_classification()
            bias = model.network.classifier.dense.bias
            Checkpoints(model_dir, model, keep=1).save(3)
            child = children.start(tmp_path / "log", children.rewrite_checkpoint, model_dir, step, moment)
            child.join()
            if child.exitcode == 0:
                values.append("finished")
                continue
            assert child.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
            bias.assign([-1] * tiny.CLASSES)
            before = contents(model_dir)
            path = load_network(model.network, str(model_dir), with_classifier=True)
            values.append(int(bias.numpy()[0]))
            assert path == f"{model_dir}/checkpoints/step-{step if values[-1] else 3}"
            assert load_network(model.network, path, with_classifier=True) == path
            assert contents(model_dir) == before  # reading moves nothing
            bias.assign([-1] * tiny.CLASSES)
            assert Checkpoints(model_dir, model).restore() == int(path[-1])
            assert int(bias.numpy()[0]) == values[-1]
            Checkpoints(model_dir, model, keep=1).save(5)
            names = {path.name.partition(".")[0] for path in (model_dir / "checkpoints").iterdir()}
            assert names == {"checkpoint", "step-5"}  # nothing is left over
        values.pop()
        assert values[0] == 0 and values[-1] == 1 and values == sorted(values)

    def test_a_checkpoint_that_a_training_removes_while_it_is_read_is_not_damaged(self, tmp_path, monkeypatch):
        """The evaluation reads the next one instead."""
        model = simclr(memory=0)
        bias = model.network.classifier.dense.bias
        checkpoints = Checkpoints(tmp_path, model, keep=1)
        checkpoints.save(3)
        read = tf.train.Checkpoint.read

        def read_late(checkpoint: tf.train.Checkpoint, path: str):
            if path.endswith("step-3"):
                bias.assign([4] * tiny.CLASSES)
                checkpoints.save(4)
            return read(checkpoint, path)

        monkeypatch.setattr(tf.train.Checkpoint, "read", read_late)
        network = simclr(memory=0).network
        assert load_network(network, str(tmp_path), with_classifier=True) == f"{tmp_path}/checkpoints/step-4"
        assert np.all(network.classifier.dense.bias.numpy() == 4)
        with pytest.raises(SettingError, match="there is no checkpoint"):
            load_network(network, f"{tmp_path}/checkpoints/step-3", with_classifier=True)

    def test_the_best_checkpoint_is_not_removed(self, tmp_path):
        model = simclr(memory=0)
        checkpoints = Checkpoints(tmp_path, model, keep=1)
        for step, best in ((1, True), (2, True), (3, False), (4, False)):
            model.network.classifier.dense.bias.assign([step] * tiny.CLASSES)
            if best:
                checkpoints.save_best(step)
            checkpoints.save(step)
        assert {path.name for path in tmp_path.rglob("*.index")} == {"step-4.index", "step-2.index"}
        load_network(model.network, str(tmp_path / "checkpoints/best"), with_classifier=True)
        assert np.all(model.network.classifier.dense.bias.numpy() == 2)

    def test_a_checkpoint_of_another_network_is_refused(self, tmp_path):
        Checkpoints(tmp_path, simclr(memory=0)).save(1)
        with pytest.raises(SettingError, match=f"--model_dir={tmp_path}: "):
            Checkpoints(tmp_path, simclr(memory=0, out_dim=6)).restore()
        with pytest.raises(SettingError, match=f"--model_dir={tmp_path}: "):
            Checkpoints(tmp_path, simclr(memory=20)).restore()


def contents(model_dir: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of the checkpoints."""
    folder = model_dir / "checkpoints"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def without_privileges():
    """Permissions apply: root acts as another user."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder():
    """Returns a folder below folders that every user may read."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


class TestUnreadableFiles:
    """An unreadable checkpoint is not treated as damaged: no older one is restored."""

    @pytest.fixture
    def model(self, open_folder):
        model = simclr(memory=0)
        for step in (3, 4):
            Checkpoints(open_folder, model).save(step)
        return model

    def check(self, model, folder, reason):
        before = tiny.numbers(model.network.variables)
        with without_privileges() if "Permission" in reason else contextlib.nullcontext():
            with pytest.raises(SettingError, match=rf"^--model_dir={folder}: cannot be read \({reason}\)$"):
                Checkpoints(folder, model).restore()
            with pytest.raises(SettingError, match=rf"^--teacher={folder}: cannot be read \({reason}\)$"):
                load_network(model.network, str(folder), with_classifier=True, flag="teacher")
        assert not tiny.moved(before, tiny.numbers(model.network.variables))

    @pytest.mark.parametrize("suffix", ["index", "data-00000-of-00001"])
    @pytest.mark.parametrize("fault", ["permission", "I/O error", "loop", "folder"])
    def test_a_file(self, fault, suffix, model, open_folder):
        file = open_folder / f"checkpoints/step-4.{suffix}"
        if fault == "permission":
            file.chmod(0)
            return self.check(model, open_folder, "Permission denied")
        file.unlink()
        if fault == "I/O error":
            if not os.path.exists("/proc/self/mem"):
                pytest.skip("needs a file whose first byte cannot be read")
            file.symlink_to("/proc/self/mem")
            return self.check(model, open_folder, "Input/output error")
        if fault == "loop":
            file.symlink_to(file.name)
            return self.check(model, open_folder, "Too many levels of symbolic links")
        file.mkdir()
        return self.check(model, open_folder, "Is a directory")

    def test_the_folder(self, model, open_folder):
        (open_folder / "checkpoints").chmod(0)
        self.check(model, open_folder, "Permission denied")

    @pytest.mark.parametrize("name", ["config.json", "."])
    def test_the_config(self, name, model, open_folder):
        (open_folder / "config.json").write_text(Config().to_json())
        (open_folder / name).chmod(0)
        with without_privileges(), pytest.raises(SettingError, match=r"cannot be read \(Permission denied\)$"):
            read_run_config(str(open_folder))


# Characters of patterns, of shells, of URLs and of other languages; é as one and as two code points
NAMES = [
    "lr[0.1]",
    "a*b",
    "a?b",
    "back\\slash",
    "[!a]",
    "two words",
    "\u00e9",
    "e\u0301",
    "日本",
    "a:b",
    "%20",
    "~",
    "{a,b}",
]
NAMES += ["two\nlines", "n" * 250, "é" * 125, "$HOME", "'\"", "#", "-x"]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:8]))
def test_paths_are_literal(name, tmp_path):
    (tmp_path / "lr0").mkdir()  # what lr[0.1] would match
    model_dir = tmp_path / name
    model = children.tiny_classification()
    expected = scramble(model)
    for step in (3, 4):
        Checkpoints(model_dir, model).save(step)
    (model_dir / "config.json").write_text(Config().to_json())
    other = children.tiny_classification()
    assert Checkpoints(model_dir, other).restore() == 4
    assert not tiny.moved(expected, tiny.numbers(all_variables(other)))
    for path in (model_dir, model_dir / "checkpoints", model_dir / "checkpoints/step-4"):
        assert find_checkpoint(str(path)) == str(model_dir / "checkpoints/step-4")
        network = tiny.network(seed=2)
        load_network(network, str(path), with_classifier=True)
        assert not tiny.moved(tiny.numbers(network.variables), tiny.numbers(other.network.variables))
        assert read_run_config(str(path))[0] == Config()
    save_network(network, model_dir, 5)
    assert find_checkpoint(str(model_dir)).endswith("/step-5")


class TestLoadNetwork:
    @pytest.fixture(scope="class")
    def run(self, tmp_path_factory):
        """Returns a model directory with one checkpoint, and its variables."""
        keras.config.set_floatx("float32")  # may have been changed by the test before
        keras.config.set_dtype_policy("float32")
        path, model = tmp_path_factory.mktemp("run"), simclr(memory=0)
        scramble(model)
        Checkpoints(path, model).save(12)
        return path, tiny.numbers(model.network.variables)

    def test_for_another_number_of_classes_the_classifier_keeps_its_initial_values(self, run):
        path, written = run
        network = tiny.network(classes=7, seed=1)
        classifier = {variable.path for variable in network.classifier.variables}
        before = tiny.numbers(network.variables)
        checkpoint_path = load_network(network, str(path), with_classifier=False)
        assert checkpoint_path == str(path / "checkpoints" / "step-12")
        for name, value in tiny.numbers(network.variables).items():
            np.testing.assert_array_equal(value, before[name] if name in classifier else written[name])

    @pytest.mark.parametrize("classes", [0, tiny.CLASSES])
    def test_with_the_classifier(self, run, classes):
        path, written = run
        network = tiny.network(classes=classes, seed=1)
        load_network(network, str(path), with_classifier=True)
        assert not tiny.moved(tiny.numbers(network.variables), written)

    def test_for_another_tap(self, run):
        path, written = run
        network = tiny.network(tap=2, seed=1)
        load_network(network, str(path), with_classifier=False)
        for variable in network.encoder.variables + network.projection_head.variables:
            np.testing.assert_array_equal(variable, written[variable.path])

    def test_names_that_keras_has_numbered_do_not_matter(self, tmp_path):
        """The second unnamed network of a process is called ``network_1``."""
        models = []
        for _ in range(2):
            network = Network(tiny.resnet(), ProjectionHead(out_dim=5), tiny.CLASSES)
            network.build()
            models.append(tiny.compiled(SimCLR(network, tiny.VIEWS), "adam"))
        first, second = (model.network for model in models)
        assert first.variables[0].path != second.variables[0].path
        Checkpoints(tmp_path, models[0]).save(1)
        load_network(second, str(tmp_path), with_classifier=True)
        for variable, expected in zip(second.variables, first.variables, strict=True):
            np.testing.assert_array_equal(variable, expected)

    @pytest.mark.parametrize(
        "other",
        [{"classes": 7}, {"out_dim": 6}, {"num_layers": 4}, {"make_encoder": tiny.resnet}],
        ids=["classes", "width", "layers", "encoder"],
    )
    def test_another_network_is_refused(self, run, other):
        path, _ = run
        with pytest.raises(SettingError, match=f"--teacher={path}: does not fit this network"):
            load_network(tiny.network(**other), str(path), with_classifier=True, flag="teacher")

    def test_a_missing_classifier_is_refused(self, tmp_path):
        Checkpoints(tmp_path, simclr(classes=0)).save(1)
        with pytest.raises(SettingError, match=r"--checkpoint=.*does not fit"):
            load_network(tiny.network(), str(tmp_path), with_classifier=True)

    def test_into_variables_of_replicas(self, run, replicas):
        path, written = run
        strategy = replicas(2)
        with strategy.scope():
            network = tiny.network(seed=1)
            load_network(network, str(path), with_classifier=True)
        for variable in network.variables:
            for copy in strategy.experimental_local_results(variable.value):
                np.testing.assert_array_equal(copy, written[variable.path])


class TestFindCheckpoint:
    @pytest.fixture(scope="class")
    def model_dir(self, tmp_path_factory):
        path = tmp_path_factory.mktemp("run")
        checkpoints = Checkpoints(path, simclr(memory=0))
        for step in (90, 100):
            checkpoints.save(step)
        return path

    @pytest.mark.parametrize("suffix", ["", "/", "/checkpoints", "/checkpoints/", "/checkpoints/step-100"])
    def test_the_newest(self, model_dir, suffix):
        assert find_checkpoint(f"{model_dir}{suffix}") == str(model_dir / "checkpoints" / "step-100")

    def test_an_older_one_by_name(self, model_dir):
        assert find_checkpoint(f"{model_dir}/checkpoints/step-90").endswith("step-90")

    def test_in_a_moved_directory(self, tmp_path):
        Checkpoints(tmp_path / "run", simclr(memory=0)).save(100)
        moved = (tmp_path / "run").rename(tmp_path / "moved")
        assert find_checkpoint(str(moved)) == str(moved / "checkpoints" / "step-100")

    @pytest.mark.parametrize("state", [b"", b"\xff\xfe", b'model_checkpoint_path: "/etc/passwd"', b"{" * 9999])
    def test_any_state_file(self, state, tmp_path):
        Checkpoints(tmp_path, simclr(memory=0)).save(7)
        (tmp_path / "checkpoints/checkpoint").write_bytes(state)
        assert find_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoints/step-7")

    @pytest.mark.parametrize("suffix", ["", "/checkpoints", "/checkpoints/step-5", "/nothing/here"])
    def test_a_missing_one_is_refused(self, tmp_path, suffix):
        (tmp_path / "checkpoints").mkdir()
        with pytest.raises(SettingError, match=f"--teacher={tmp_path}{suffix}: there is no checkpoint"):
            find_checkpoint(f"{tmp_path}{suffix}", "teacher")


class TestReadRunConfig:
    def test_settings_and_derived_values(self, tmp_path):
        Checkpoints(tmp_path, simclr(memory=0)).save(1)
        with pytest.raises(SettingError, match=f"--teacher={tmp_path}: its config.json is missing"):
            read_run_config(str(tmp_path), "teacher")
        config = Config(resnet_depth=34)
        text = config.to_json().rstrip().removesuffix("}") + ', "resolved": {"num_classes": 3}}'
        (tmp_path / "config.json").write_text(text)
        for suffix in ("", "/checkpoints", "/checkpoints/step-1"):
            resolved = {"num_classes": 3, "head_input": 0, "class_names": ["0", "1", "2"]}
            assert read_run_config(f"{tmp_path}{suffix}") == (config, resolved)

    @pytest.mark.parametrize("version", [None, 2])
    def test_a_run_of_another_version_is_refused(self, version, tmp_path):
        Checkpoints(tmp_path, simclr(memory=0)).save(1)
        content = {"config_version": version} if version else {}
        (tmp_path / "config.json").write_text(json.dumps(content))
        message = (
            f"--teacher={tmp_path}: its config.json has config_version {version}, but .* reads 1; train again, or "
        )
        with pytest.raises(SettingError, match=message):
            read_run_config(str(tmp_path), "teacher")


def test_a_run_in_a_bucket_is_read(tmp_path):
    """TensorFlow's in-memory file system stands in for gs://."""
    model, bucket = simclr(memory=0), "ram://bucket/run"
    Checkpoints(tmp_path, model).save(1)
    (tmp_path / "config.json").write_text(Config(resnet_depth=34).to_json())
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        target = f"{bucket}/{file.relative_to(tmp_path)}"
        tf.io.gfile.makedirs(target.rpartition("/")[0])
        tf.io.gfile.GFile(target, "wb").write(file.read_bytes())
    expected = tiny.numbers(model.network.variables)
    scramble(model)
    assert read_run_config(bucket)[0].resnet_depth == 34
    load_network(model.network, bucket, with_classifier=True)
    np.testing.assert_equal(tiny.numbers(model.network.variables), expected)


def test_a_resumed_run_equals_the_uninterrupted_one_bit_by_bit(tmp_path):
    whole, first, second = simclr(), simclr(), simclr(seed=1)
    tiny.fit(whole, tiny.dataset(0, 4))

    tiny.fit(first, tiny.dataset(0, 2))
    Checkpoints(tmp_path, first).save(2)
    assert Checkpoints(tmp_path, second).restore() == 2
    tiny.fit(second, tiny.dataset(2, 2))

    expected = tiny.numbers(all_variables(whole))
    assert not tiny.moved(expected, tiny.numbers(all_variables(second)))
    assert tiny.moved(expected, tiny.numbers(all_variables(first))) >= {v.path for v in whole.trained_variables}


def test_resuming_on_another_number_of_replicas(replicas, tmp_path):
    """Moving statistics, which every replica has a copy of, are restored on all replicas, and back on one device."""
    tiny.use_float64()
    strategy = replicas(2)
    one, two = simclr(), simclr(strategy, seed=1)
    tiny.fit(one, tiny.dataset(0, 1))
    Checkpoints(tmp_path, one).save(1)
    assert Checkpoints(tmp_path, two).restore() == 1
    expected = tiny.numbers(all_variables(one))
    for variable in all_variables(two):
        for copy in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(copy, expected[variable.path])
    for model in (one, two):
        tiny.fit(model, tiny.dataset(1, 1))
    expected = tiny.numbers(all_variables(two))
    tiny.assert_close(tiny.numbers(all_variables(one)), expected, rtol=1e-9)

    scramble(one)
    Checkpoints(tmp_path, two).save(2)
    assert Checkpoints(tmp_path, one).restore() == 2
    assert not tiny.moved(expected, tiny.numbers(all_variables(one)))
    for model in (one, two):
        tiny.fit(model, tiny.dataset(2, 1))
    tiny.assert_close(tiny.numbers(all_variables(one)), tiny.numbers(all_variables(two)), rtol=1e-9)
