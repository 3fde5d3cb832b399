"""Records of a run are written atomically, once, and by one process at a time."""

import json
import math
import multiprocessing
import sys

import pytest
import tensorflow as tf
import tiny

from simclrv2_tf.errors import SettingError
from simclrv2_tf.files import write_atomically
from simclrv2_tf.methods.simclr import SimCLR
from simclrv2_tf.runs.callbacks import Histograms
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config


def row(step: int, **values: float) -> dict[str, float]:
    return {"step": step, "loss": step / 10} | values


def events(model_dir) -> list[tuple[int, str]]:
    """Returns step and tag of every TensorBoard event."""
    values = []
    for file in sorted((model_dir / "tensorboard").glob("events.*")):
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            values += [(event.step, value.tag) for value in event.summary.value]
    return values


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, file_size_limit):
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with file_size_limit(3), pytest.raises(OSError):
        write_atomically(path, "newer")
    assert [other.name for other in tmp_path.iterdir()] == ["result.json"] and path.read_text() == "old"
    write_atomically(path, "newer")
    assert path.read_text() == "newer"


def test_a_link_under_the_name_of_the_lock_is_refused(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(SettingError, match=r": \.lock is a link"), RunDirectory(tmp_path / "run").locked():
        pass
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("target", ["folder", "dangling"])
@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/best", "tensorboard", "figures"])
def test_a_run_whose_folders_are_links_is_refused(name, target, tmp_path):
    link, outside = tmp_path / "run" / name, tmp_path / "outside"
    link.parent.mkdir(parents=True)
    if target == "folder":
        outside.mkdir()
    link.symlink_to(outside)
    refused = pytest.raises(SettingError, match=rf"^--model_dir={link.parent}: {link.name} is a link")
    with refused, RunDirectory(tmp_path / "run").locked():
        pass
    assert not outside.exists() or not list(outside.iterdir())


def test_a_hard_link_of_the_lock_file_keeps_its_content(tmp_path):
    """An untrusted archive may contain such a link."""
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").hardlink_to(tmp_path / "precious")
    with RunDirectory(tmp_path / "run").locked():
        assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "precious").read_text() == "precious"


def test_rows_that_did_not_fit_on_the_disk_are_written_with_the_next_row(tmp_path, file_size_limit):
    run_dir = RunDirectory(tmp_path)
    run_dir.write_row(row(1))
    with file_size_limit(5), pytest.raises(OSError):
        run_dir.write_row(row(2))
    with file_size_limit(30), pytest.raises(OSError):  # the table has 28 bytes, its lines as JSON have more
        run_dir.write_row(row(3))
    run_dir.write_row(row(4, top1=0.5))
    assert (tmp_path / "metrics.csv").read_text() == "step,loss,top1\n1,0.1,\n2,0.2,\n3,0.3,\n4,0.4,0.5\n"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [row(1), row(2), row(3), row(4, top1=0.5)]


def test_rows_are_also_lines_of_json_and_rewound_with_the_table(tmp_path):
    run_dir = RunDirectory(tmp_path)
    run_dir.write_row({"step": 1, "loss": 2.0, "skipped_steps": 3})
    run_dir.write_row({"step": 2, "loss": math.nan, "rankme": 1e-7})
    path = tmp_path / "metrics.jsonl"
    assert path.read_text().splitlines()[1] == '{"step": 2, "loss": null, "rankme": 1e-07}'
    assert RunDirectory(tmp_path).rows()[1]["loss"] == "nan"
    RunDirectory(tmp_path).rewind(1)
    assert path.read_text() == '{"step": 1, "loss": 2, "skipped_steps": 3}\n'


def test_the_time_of_a_run_continues_from_its_last_checkpoint(tmp_path):
    (tmp_path / "training_time.json").write_text('{"seconds": 1000}')
    run_dir = RunDirectory(tmp_path)
    run_dir.rewind(3)
    assert 1000 < run_dir.seconds < 1060
    run_dir.write_seconds()
    resumed = RunDirectory(tmp_path)
    resumed.rewind(4)
    assert resumed.seconds >= json.loads((tmp_path / "training_time.json").read_text())["seconds"] >= 1000
    resumed.rewind(0)  # its checkpoints were deleted
    assert resumed.seconds < 60


def test_a_row_is_not_kept_in_memory(tmp_path):
    """TensorFlow caches every Python number that it converts."""
    run_dir, step, loss = RunDirectory(tmp_path), 10**6, 1 / 3
    earlier = sys.getrefcount(step), sys.getrefcount(loss)
    run_dir.write_row({"step": step, "loss": loss})
    assert (sys.getrefcount(step), sys.getrefcount(loss)) == earlier


CUT = [b"step,loss\n1,0.1\n2\n", b"step,loss\n1,0.1\n2,0.", b"step,loss\n1,0.1,9\n", b""]


@pytest.mark.parametrize("content", [b"step,loss\n1,0.1\nx,0.2\n", b"a,b\n1,2\n", b"\xff\xfe\0", *CUT])
def test_damaged_rows_are_refused(content, tmp_path):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(SettingError, match=f"^--model_dir={tmp_path}: metrics.csv is damaged"):
        RunDirectory(tmp_path).rows()


def test_writing_the_config_removes_the_earlier_result(tmp_path):
    run_dir = RunDirectory(tmp_path)
    result = {"mode": "pretrain", "steps": 4, "seconds": 1.5}
    run_dir.write_result(result)
    assert RunDirectory(tmp_path).result() == result
    run_dir.write_config(Config(), {})
    assert RunDirectory(tmp_path).result() is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5])
def test_a_damaged_result_is_refused(content, tmp_path):
    (tmp_path / "result.json").write_bytes(content)
    with pytest.raises(SettingError, match=f"^--model_dir={tmp_path}: result.json is damaged"):
        RunDirectory(tmp_path).result()


def test_a_folder_under_the_name_of_the_lock_is_refused(tmp_path):
    (tmp_path / ".lock").mkdir()
    refused = pytest.raises(SettingError, match=r": \.lock cannot be locked \(Is a directory\)")
    with refused, RunDirectory(tmp_path).locked():
        pass


class TestRewind:
    def test_removes_later_rows_and_events(self, tmp_path):
        for _ in range(2):  # the second process resumes the first one's run
            run_dir = RunDirectory(tmp_path)
            run_dir.rewind(2)
            for step in (3, 4) if run_dir.rows() else (1, 2, 3, 4):
                run_dir.write_row(row(step))
        assert [row["step"] for row in run_dir.rows()] == ["1", "2", "3", "4"]
        assert events(tmp_path) == [(step, "loss") for step in (1, 2, 3, 4)]

    def test_to_the_start(self, tmp_path):
        run_dir = RunDirectory(tmp_path)
        run_dir.write_row(row(1))
        RunDirectory(tmp_path).rewind(0)
        assert RunDirectory(tmp_path).rows() == [] and events(tmp_path) == []

    @pytest.mark.parametrize("time", ["1", "99999999999"], ids=["forward", "back"])
    def test_events_are_in_order_also_if_the_clock_was_set(self, time, tmp_path):
        """The names of the files, by which they are sorted, are times; those of the first are changed here."""
        for first in (1, 3, 5):  # three processes
            run_dir = RunDirectory(tmp_path)
            run_dir.rewind(first - 1)
            for step in (first, first + 1):
                run_dir.write_row(row(step))
            if first == 1:
                (file,) = (tmp_path / "tensorboard").iterdir()
                file.rename(file.with_name(f"events.out.tfevents.{time}.host.1.0.v2"))
            # also during a run: TensorBoard reads its files by name
            assert events(tmp_path) == [(earlier, "loss") for earlier in range(1, step + 1)]

    def test_removes_the_images_from_the_end_of_a_run(self, tmp_path):
        run_dir = RunDirectory(tmp_path)
        run_dir.write_row(row(1))
        run_dir.write_images("views", tf.zeros([1, 2, 2, 3]).numpy(), 1)
        assert events(tmp_path) == [(1, "loss"), (1, "views")]
        RunDirectory(tmp_path).rewind(1)
        assert events(tmp_path) == [(1, "loss")]

    def test_keeps_histograms_of_earlier_steps(self, tmp_path):
        histograms, network = Histograms(), tiny.network()
        histograms.set_model(SimCLR(network, tiny.VIEWS))
        histograms.set_params({"model_dir": str(tmp_path)})
        histograms.on_train_begin()
        for step in (1, 2):
            histograms.on_epoch_end(step - 1, {"step": step})
        paths = [variable.path for variable in network.weights]
        assert events(tmp_path) == [(step, path) for step in (1, 2) for path in paths]
        RunDirectory(tmp_path).rewind(1)
        assert events(tmp_path) == [(1, path) for path in paths]

    def test_events_that_cannot_be_read_are_not_removed(self, tmp_path):
        for step in (1, 2):
            RunDirectory(tmp_path).write_row(row(step))
        (tmp_path / "tensorboard/events.out.tfevents.0").mkdir()
        before = sorted((tmp_path / "tensorboard").iterdir())
        with pytest.raises(
            SettingError, match=r": tensorboard/events\S+ is damaged \(it is no regular file\); delete or"
        ):
            RunDirectory(tmp_path).rewind(1)
        assert sorted((tmp_path / "tensorboard").iterdir()) == before

    def test_ignores_a_truncated_last_event(self, tmp_path):
        run_dir = RunDirectory(tmp_path)
        for step in (1, 2):
            run_dir.write_row(row(step))
        (file,) = (tmp_path / "tensorboard").glob("events.*")
        file.write_bytes(file.read_bytes()[:-5])
        RunDirectory(tmp_path).rewind(2)
        assert events(tmp_path) == [(1, "loss")]


@pytest.mark.parametrize(("losses", "best"), [([3], True), ([3, 2], True), ([3, 4], False), ([3, 3], False)])
def test_a_row_is_the_best_only_if_it_beats_all_earlier_ones(losses, best, tmp_path):
    run_dir = RunDirectory(tmp_path)
    for step, loss in enumerate(losses):
        run_dir.write_row({"step": step, "loss": loss, "eval_top1": -loss})
    assert run_dir.last_row_is_best((("loss",), False)) == best
    assert run_dir.last_row_is_best((("online_top1", "eval_top1"), True)) == best


def enter(model_dir, entered, leave):
    with RunDirectory(model_dir).locked():
        entered.set()
        leave.wait()


def test_a_second_process_is_refused_until_the_first_one_ends(tmp_path):
    context = multiprocessing.get_context("spawn")
    entered, leave = context.Event(), context.Event()
    other = context.Process(target=enter, args=(tmp_path, entered, leave))
    other.start()
    entered.wait(60)
    refused = pytest.raises(SettingError, match=rf"^--model_dir={tmp_path}: in use by process {other.pid} on ")
    with refused, RunDirectory(tmp_path).locked():
        pass
    other.kill()  # without a chance to clean up
    other.join()
    with RunDirectory(tmp_path).locked():
        pass
