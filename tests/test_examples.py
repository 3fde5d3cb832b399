"""Runs every example at toy size and checks what it prints and saves."""

import json
import pathlib
import re
import runpy
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from simclrv2_tf import Network, ProjectionHead, ResNet, save_saved_model

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run(monkeypatch, name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with images of two sizes and formats."""
    place = tmp_path_factory.mktemp("images")
    (place / "more").mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 256, (12 + index, 15, 3), "uint8")
        (place / f"{index}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        (place / f"more/{index}.JPG").write_bytes(tf.io.encode_jpeg(pixels).numpy())
    return place


@pytest.mark.slow
def test_pretrain_folder(folder, tmp_path, monkeypatch, capsys):
    output = tmp_path / "encoder.keras"
    settings = ["--image_size=8", "--batch_size=4", "--epochs=2", "--depth=18", "--width=0.0625"]
    names = run(monkeypatch, "pretrain_folder.py", folder, *settings, f"--output={output}")
    assert int(names["model"].optimizer.iterations) == 2 * 12 // 4
    assert "encoder with 32 features, pretrained on 12 images" in capsys.readouterr().out
    images = np.ones((1, 8, 8, 3), np.float32)
    loaded = keras.saving.load_model(output)(images)["final_avg_pool"]
    np.testing.assert_allclose(loaded, names["encoder"](images)["final_avg_pool"], rtol=1e-5)


@pytest.mark.slow
def test_keras_backbone(monkeypatch, capsys):
    names = run(
        monkeypatch, "keras_backbone.py", "--epochs=1", "--batch_size=648", "--labels_per_class=2", "--alpha=0.25"
    )
    out = capsys.readouterr().out
    assert "kNN on the features: " in out and "fine-tuned on 2 labels per class: " in out
    assert int(names["simclr"].optimizer.iterations) == 2 and names["few"].shape == (20,)
    assert names["network"].encoder is names["backbone"]


@pytest.mark.slow
def test_serve(folder, tmp_path, monkeypatch, capsys):
    """An exported network classifies. ``test_saved_model.py`` checks that serving needs only TensorFlow."""
    network = Network(ResNet(10, 1 / 16, stem="cifar"), ProjectionHead(out_dim=4), num_classes=2)
    network.build()
    save_saved_model(network, 8, tmp_path / "saved_model", class_names=["robin", "wren"])
    assert "simclrv2_tf" not in (EXAMPLES / "serve.py").read_text()
    images = [str(folder / "0.png"), str(folder / "more/1.JPG")]
    run(monkeypatch, "serve.py", tmp_path / "saved_model", *images)
    for path, line in zip(images, capsys.readouterr().out.splitlines(), strict=True):
        first, second = re.fullmatch(rf"{path}: (?:robin|wren) (.*)%, (?:robin|wren) (.*)%", line).groups()
        assert float(first) >= float(second) and float(first) + float(second) == pytest.approx(100, abs=0.2)


def test_library_page(tmp_path, monkeypatch, capsys):
    """Runs the code of the page in order."""
    page = (EXAMPLES.parent / "docs/library.md").read_text()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    history = names["history"]
    assert {"val_contrastive_loss", "val_knn_top1", "val_rankme"} <= history.keys() and len(history["loss"]) == 3
    assert names["logits"].shape == (100, 10) and int(names["replicated"].optimizer.iterations) == 8
    assert (tmp_path / "best.keras").is_file() and (tmp_path / "student.tflite").is_file()
    assert "(None, 128)" in capsys.readouterr().out


@pytest.mark.slow  # the README and the other examples use the same functions
def test_notebook(tmp_path, monkeypatch, capsys):
    """Runs every cell in order, except the installation."""
    notebook = json.loads((EXAMPLES / "simclr.ipynb").read_text())
    small = "EPOCHS, BATCH_SIZE, LABELS_PER_CLASS, WIDTH = 1, 648, 2, 1 / 16"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        tags = cell["metadata"].get("tags", [])
        if cell["cell_type"] == "code" and "install" not in tags:
            exec(small if "parameters" in tags else "".join(cell["source"]), names)
        assert not cell.get("outputs")
    out = capsys.readouterr().out
    assert "kNN on the features: " in out and "2 labels per class: from scratch " in out
    assert (tmp_path / "tuned.keras").is_file()
