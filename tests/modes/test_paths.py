"""Every mode works in a model directory of any name, because paths are not patterns."""

import os

import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import modes
from simclrv2_tf.errors import SettingError
from simclrv2_tf.runs.checkpoints import read_run_config

TOY = {
    "dataset": "digits",
    "recipe": "none",
    "resnet_depth": 10,
    "width_multiplier": 0.0625,
    "image_size": 8,
    "train_batch_size": 50,
    "train_steps": 1,
    "eval_batch_size": 250,
}
NETWORK = ("recipe", "resnet_depth", "width_multiplier", "image_size")


def test_a_stage_whose_folder_is_a_link_is_refused(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pretrain").symlink_to(tmp_path / "outside")
    settings = {"mode": "semi_supervised", "dataset": "digits", "model_dir": str(tmp_path / "run")}
    with pytest.raises(SettingError, match=f"^--model_dir={tmp_path}/run: pretrain is a link"):
        modes.run(settings)
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lr[0.1] *?\\ e\u0301日", "n" * 250], ids=["patterns", "long"])
def test_every_mode(name, tmp_path, caplog):
    runs = {stage: str(tmp_path / name / stage) for stage in ("pretrain", "finetune", "distill")}
    modes.run(TOY | {"mode": "pretrain", "model_dir": runs["pretrain"]})
    inherited = {key: value for key, value in TOY.items() if key not in NETWORK}
    modes.run(inherited | {"mode": "finetune", "checkpoint": runs["pretrain"], "model_dir": runs["finetune"]})
    modes.run(TOY | {"mode": "distill", "teacher": runs["finetune"], "model_dir": runs["distill"]})
    top1 = modes.run({"mode": "evaluate", "checkpoint": runs["finetune"]})["top1"]
    for settings in (
        {"mode": "embed", "format": "npz"},
        {"mode": "embed", "format": "parquet"},
        {"mode": "summary"},
        {"mode": "preview"},
        {"mode": "export", "format": "saved_model"},
        {"mode": "export", "format": "litert"},
        {"mode": "export", "format": "tf1_checkpoint"},
    ):
        modes.run(settings | {"checkpoint": runs["finetune"]})
    modes.run({"mode": "report", "model_dir": runs["finetune"]})
    imported = {"checkpoint": f"{runs['finetune']}/tf1_checkpoint", "model_dir": str(tmp_path / name / "imported")}
    head_input = read_run_config(runs["finetune"])[1]["head_input"]
    modes.run(imported | {"mode": "import_checkpoint", "ft_proj_selector": head_input})
    views = {"dataset": "digits", "image_size": 8, "eval_resize": "bicubic"}
    assert modes.run(views | {"mode": "evaluate", "checkpoint": imported["model_dir"]})["top1"] == top1
    files = {"embeddings.npz", "embeddings.parquet", "evaluation.json", "model.tflite", "report.html", "saved_model"}
    assert files <= set(os.listdir(runs["finetune"]))
    with np.load(f"{runs['finetune']}/embeddings.npz") as arrays:
        assert len(arrays["x_test"]) == 500
    assert ("move it before you load it" in caplog.text) == ("[" in name)
    exported = (tmp_path / name / "finetune/saved_model").rename(tmp_path / "moved")
    assert "serving_default" in tf.saved_model.load(str(exported)).signatures
