"""Model directories shared by the tests of reports."""

import json

import numpy as np
from sklearn.datasets import load_digits

from simclrv2_tf.report import charts, pictures

HOSTILE = ["<script>alert(1)</script>", 'quote" onload="x', "$x$ & $y$", "猫", "two\nlines", "Straße", "🐶", "é" * 200]
HOSTILE += ["", "</script><b>", "same", "same"]
EFFICIENCY = [
    {"labels_per_class": "all", "supervised_top1": 0.984, "finetune_top1": 0.986},
    {"labels_per_class": 20, "supervised_top1": 0.8734, "finetune_top1": 0.931, "distill_top1": None},
    {"labels_per_class": 5, "supervised_top1": 0.673, "finetune_top1": 0.9044, "distill_top1": 0.91},
]
CONFIG = {"config_version": 1, "learning_rate": 0.1, "teacher": "finetune_5"}
METRICS = """step,epoch,loss,contrastive_accuracy,learning_rate,online_top1,knn_top1,images_per_second
10,1,5.5,0.25,0.1,0.3,,900
20,2,nan,0.5,0.2,0.4,0.5,1100
30,3,2.25,0.75,0.1,0.5,,
"""


def digits():
    """Returns images [300, 8, 8, 3] in [0, 1] and labels [300]."""
    images, labels = load_digits(return_X_y=True)
    return np.repeat(images.reshape(-1, 8, 8, 1) / 16, 3, axis=-1).astype(np.float32)[:300], labels[:300]


def specs(names, shift=0):
    """Returns every figure that shows classes; ``shift`` changes the data."""
    images, labels = digits()
    images, labels = images[shift:][:250], labels[shift:][:250] % len(names)
    matrix = np.eye(len(names), dtype=int) * 5 + np.arange(len(names)) * (shift + 1) % 3
    points, thumbnails = images.reshape(len(images), -1)[:, 60:62], [charts.data_url(image, 32) for image in images]
    near, near_labels = images[:20].reshape(4, 5, 8, 8, 3), labels[:20].reshape(4, 5)
    return {
        "views": pictures.views_figure(images[:12].reshape(6, 2, 8, 8, 3)),
        "neighbours": pictures.neighbours_figure(images[20:24], near, labels[20:24], near_labels, names),
        "embedding": charts.embedding(points, labels, names, "PCA", thumbnails),
        "confusion": charts.confusion(matrix, names),
        "mistakes": pictures.mistakes_figure(images[:6], labels[:6], labels[6:12], np.full(6, 0.9), names),
    }


def semi_supervised(root):
    """Writes a run with five stages and hostile class names."""
    for stage in ("supervised_5", "finetune_20", "finetune_5", "pretrain", "distill_all"):
        (root / stage / "figures").mkdir(parents=True)
        (root / stage / "metrics.csv").write_text(METRICS)
        (root / stage / "config.json").write_text(json.dumps(CONFIG | {"mode": stage.partition("_")[0]}))
        result = {"mode": stage, "steps": 30, "seconds": 65, "eval_top1": 0.5004}
        (root / stage / "result.json").write_text(json.dumps(result))
    (root / "checkpoints").mkdir()
    for name, spec in specs(HOSTILE).items():
        charts.write(spec, root / "pretrain" / "figures" / name)
    config = CONFIG | {
        "mode": "semi_supervised",
        "dataset": "<img src=http://evil.example/x>",
        "resolved": {"steps": 625},
    }
    (root / "config.json").write_text(json.dumps(config | {"seed": 0}))
    result = {"mode": "semi_supervised", "table": EFFICIENCY, "knn_top1": 0.9604, "seconds": 1}
    (root / "result.json").write_text(json.dumps(result))
    return root
