"""The summary at the start of a run describes how its data were read; commands in error messages work."""

import numpy as np
import pytest
from PIL import Image

from simclrv2_tf import modes
from simclrv2_tf.data.catalog import open_source
from simclrv2_tf.errors import SettingError
from simclrv2_tf.modes.resolve import resolve_config
from simclrv2_tf.settings.config import Config

TOY = {
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 4,
    "train_steps": 1,
    "checkpoint_steps": 1,
    "report": False,
}


def write_images(folder, *names):
    rng = np.random.default_rng(0)
    for name, _, count in (name.partition("*") for name in names):
        for number in range(int(count or 1)):
            path = folder / name.replace("#", str(number))
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(path)


def run(folder, **settings):
    return modes.run(TOY | {"dataset": f"folder:{folder}", "model_dir": str(folder.parent / "run")} | settings)


def test_pretraining_on_labelled_and_unlabelled_images(tmp_path, capsys):
    folder = tmp_path / "birds"
    write_images(folder / "birds", "Train/robin/#.png*3", "Train/wren/#.png*2", "Test/wren/1.png", "unlabeled/#.png*5")
    (folder / "birds/README.txt").write_text("")
    run(folder)
    box = capsys.readouterr().out
    for name, text in {
        "images": "10 to train on",
        "classes": "2: robin, wren",
        "train split": "birds/train+unlabelled: 5 labelled (2 to 3 per class), 5 unlabelled",
        "eval split": "birds/test: 1 labelled (0 to 1 per class)",
        "read as": "entered the only folder, birds; splits: train = Train, test = Test, unlabelled = unlabeled; "
        "train and unlabelled together",
        "left out": "1 x not a supported image format (.txt)",
    }.items():
        (line,) = [line for line in box.splitlines() if line.strip().startswith(f"{name}  ")]
        assert line.split("  ")[-1].strip() == text


def test_the_recipe_counts_the_images_that_are_trained_on(tmp_path, capsys):
    write_images(tmp_path / "only", "unlabelled/#.png*7")
    resolve_config({"mode": "pretrain", "dataset": f"folder:{tmp_path}/only"})
    assert "7 images of 9 px, no labels" in capsys.readouterr().out
    write_images(tmp_path / "both", "unlabelled/#.png*7", "train/a/#.png*3", "train/b/#.png*2")
    for mode, count in (("pretrain", 12), ("supervised", 5)):
        resolve_config({"mode": mode, "dataset": f"folder:{tmp_path}/both"})
        assert f"{count} images of 9 px, 2 classes" in capsys.readouterr().out


@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "all"])
def test_a_few_images_are_evaluated_as_the_error_message_suggests(split, tmp_path):
    write_images(tmp_path / "few", "a/#.png*4", "b/#.png*4")
    with pytest.raises(SettingError, match=rf"too few images to hold some out .* --eval_split={split} "):
        run(tmp_path / "few", mode="supervised")
    result = run(tmp_path / "few", mode="supervised", eval_split=split)
    assert 8 * result["supervised_top1"] in range(9)  # of all eight images


@pytest.mark.slow
def test_a_preview_describes_the_data_too(tmp_path, capsys, caplog):
    write_images(tmp_path / "birds", "a/#.png*5", "b/#.png*5", "c/1.png")
    run(tmp_path / "birds", mode="preview")
    out = capsys.readouterr().out
    assert "birds/train: 9 labelled (1 to 4 per class)" in out
    messages = [record.getMessage() for record in caplog.records]
    assert "birds/train has only one image of c" in messages and "birds/test has no images of c" in messages


@pytest.mark.slow  # tests/data/test_listing.py tests what is skipped
def test_a_folder_that_holds_an_earlier_run_gives_the_same_images(tmp_path):
    folder = tmp_path / "photos"
    write_images(folder, "#.png*8")
    before = open_source(Config(dataset=f"folder:{folder}"), "train")
    run(folder, model_dir=str(folder / "runs/first"), report=True)
    source = open_source(Config(dataset=f"folder:{folder}"), "train")
    assert source.paths == before.paths and source.fingerprint == before.fingerprint
    assert source.skipped == {"directory of a run": 1}
