"""Checkpoints that a run keeps, failed writes, bad steps, and corrupt images across restarts."""

import keras
import numpy as np
import pytest
import saved_runs
import tiny

from simclrv2_tf.data.input import TrainingInput
from simclrv2_tf.data.sources import ArraySource, FileSource
from simclrv2_tf.errors import SettingError
from simclrv2_tf.methods.classifier import ClassificationModel
from simclrv2_tf.methods.schedules import Plan
from simclrv2_tf.runs.loop import Run, train
from simclrv2_tf.runs.run_dir import RunDirectory
from simclrv2_tf.settings.config import Config

LOSSES, TOP1 = (3.0, 1.0, 2.0, 4.0), (0.1, 0.2, 0.9, 0.3)  # of four steps


class Metrics(keras.callbacks.Callback):
    """Writes these losses and accuracies into the rows of a run."""

    def __init__(self, top1_name):
        super().__init__()
        self.top1_name = top1_name

    def on_epoch_end(self, epoch, logs=None):
        logs |= {"loss": LOSSES[epoch], self.top1_name: TOP1[epoch]}


class Spoil(keras.callbacks.Callback):
    """Makes a weight NaN before the third step."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2:
            self.model.network.classifier.dense.bias.assign([np.nan] * tiny.CLASSES)


def noise():
    pixels = np.random.default_rng(0).integers(0, 256, [8, 8, 8, 3], np.uint8)
    return ArraySource("noise", pixels, np.arange(8, dtype=np.int32) % 3, ())


def train_four_steps(model_dir, callback=None, source=None, **settings):
    """Trains a tiny model with a checkpoint at each step; returns the step it reached."""
    config = Config(mode="supervised", model_dir=str(model_dir), report=False, **settings)
    data = TrainingInput(source or noise(), 4, 1, tiny.VIEWS, seed=0)
    plan = Plan(total_steps=4, epoch_steps=2, interval_steps=1, warmup_steps=0, peak_learning_rate=0.1)
    method = tiny.compiled(ClassificationModel(tiny.network(), tiny.VIEWS))
    return train(Run(config, method, data, plan, None), RunDirectory(model_dir), dict, [callback] if callback else [])


def steps_in(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.index"))


@pytest.mark.parametrize(("maximum", "steps"), [(0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4])])
def test_the_newest_checkpoints_are_kept(maximum, steps, tmp_path):
    assert train_four_steps(tmp_path, keep_checkpoint_max=maximum) == 4
    assert steps_in(tmp_path / "checkpoints") == steps
    assert not (tmp_path / "checkpoints/best").exists()


@pytest.mark.parametrize(
    ("best", "top1_name", "step"), [("loss", "eval_top1", 2), ("top1", "eval_top1", 3), ("top1", "online_top1", 3)]
)
def test_the_best_checkpoint_is_kept(best, top1_name, step, tmp_path):
    train_four_steps(tmp_path, Metrics(top1_name), keep_best=best, keep_checkpoint_max=1)
    assert steps_in(tmp_path / "checkpoints/best") == [step] and steps_in(tmp_path / "checkpoints") == [4]


def test_a_checkpoint_that_cannot_be_written(tmp_path, caplog):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(SettingError, match=r": step 1 could not be saved \(File exists\); what was saved before is"):
        train_four_steps(tmp_path)
    assert train_four_steps(tmp_path, on_checkpoint_error="continue") == 4
    assert caplog.text.count("could not be saved (File exists); continuing") == 4
    assert [row["step"] for row in RunDirectory(tmp_path).rows()] == ["1", "2", "3", "4"]


def test_the_first_bad_step_is_named_with_its_learning_rate(tmp_path):
    """The rate falls from 0.1 to 0 along a cosine: at the third of four steps it is a half."""
    with pytest.raises(SettingError, match=r"not finite at step 3 of 4 \(loss nan, learning rate 0.05\)"):
        train_four_steps(tmp_path, Spoil())
    assert steps_in(tmp_path / "checkpoints") == [1, 2]


def test_corrupt_images_of_earlier_processes_are_remembered(tmp_path):
    paths = saved_runs.save_images(tmp_path, [f"{i}.png" for i in range(8)])
    source = FileSource("photos", tuple(map(str, paths)), np.arange(8, dtype=np.int32) % 3, ())
    RunDirectory(tmp_path / "run").write_corrupt_images(["gone.png"])
    train_four_steps(tmp_path / "run", source=source)
    assert source.corrupt == {"gone.png"} and RunDirectory(tmp_path / "run").corrupt_images() == ["gone.png"]
