"""Damaged, hostile and unusual data in a whole run: skipped and counted, or refused in one line."""

import children
import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.test_decoding import BOMBS
from PIL import Image

SMALL = children.TOY | {
    "train_batch_size": 4,
    "train_steps": 4,
    "eval_batch_size": 4,
    "eval_steps": 0,
    "memory_size": 0,
}


@pytest.fixture(autouse=True)
def fresh_keras():
    """Everything runs in child processes."""


def noise(i, height=12):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (height, 10, 3), np.uint8))


class NoisyPhotos(tfds.core.GeneratorBasedBuilder):
    """Images of several sizes, which are streamed."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": tfds.features.Image()})
        )

    def _split_generators(self, download_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(12):
            yield i, {"image": np.asarray(noise(i, 8 + i))}


def test_a_run_skips_and_counts_every_kind_of_corrupt_image(tmp_path):
    folder = tmp_path / "a class, ümläut & 雪"
    for name in (folder, tmp_path / "..b<script>"):
        name.mkdir()
        for i in range(6):
            noise(i).save(name / f"good {i}.png")
    whole = (folder / "good 0.png").read_bytes()
    bad = BOMBS | {"zero": b"", "cut": whole[:-60], "text": b"not an image", "program": b"\x7fELF" + bytes(999)}
    for name, content in bad.items():
        (folder / f"{name}.jpg").write_bytes(content)
    with open(folder / "sparse.png", "wb") as file:  # reading it would take a terabyte of memory
        file.truncate(10**12)
    (folder / "link.png").symlink_to("nowhere")
    (folder / "memory.png").symlink_to("/proc/self/mem")  # not even root can read its first bytes
    (folder / "folder.png").mkdir()
    settings = SMALL | {"dataset": f"folder:{tmp_path}", "train_split": "all", "eval_split": "all"}
    status = children.run(settings | {"model_dir": tmp_path / ".run", "max_corrupt_share": 0.7}, tmp_path / ".log")
    log = (tmp_path / ".log").read_text()
    assert status == 0, log
    assert f"{len(bad) + 3} skipped" in log and "Traceback" not in log
    assert children.run(settings | {"model_dir": tmp_path / ".other"}, tmp_path / ".log2") == 2
    assert (tmp_path / ".log2").read_text().splitlines()[-1].startswith("error: --max_corrupt_share=0.05: ")


def test_a_record_with_a_wrong_checksum_is_refused_in_one_line(tmp_path):
    NoisyPhotos(data_dir=str(tmp_path)).download_and_prepare()
    (path,) = tmp_path.rglob("*.tfrecord*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    settings = SMALL | {"dataset": "noisy_photos", "data_dir": tmp_path, "model_dir": tmp_path / "run"}
    assert children.run(settings, tmp_path / "log") == 2
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1].startswith("error: --dataset: one of its files is damaged (corrupted record at ")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "more"),
    [([99_999], {"mode": "supervised", "train_batch_size": 1}), ([0] * 4, {"report": "true"})],
    ids=["one image of 100,000 classes", "one class"],
)
def test_few_images_with_one_or_very_many_classes_can_be_trained_on(labels, more, tmp_path):
    images = np.stack([np.asarray(noise(i)) for i in range(len(labels))])
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    settings = SMALL | {"dataset": f"npz:{tmp_path}/a.npz", "model_dir": tmp_path / "run"} | more
    assert children.run(settings, tmp_path / "log") == 0, (tmp_path / "log").read_text()[-2000:]
