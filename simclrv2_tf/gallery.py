"""Which pictures a run leaves: views, neighbours and embedding of a pretrained one, mistakes of a classifier."""

import math
import pathlib

import keras
import numpy as np

from simclrv2_tf import evaluation, report
from simclrv2_tf.data.pipeline import TrainingInput, evaluation_batches, make_views
from simclrv2_tf.data.sources import RecordSource, Source

PAIRS = 12
QUERIES = 6
NEIGHBOURS = 5
POINTS = 2000
MISTAKES = 12
THUMBNAIL = 32  # pixels, in the projector

Features = tuple[np.ndarray, np.ndarray]  # [n, d] and labels [n]


def example_views(data: TrainingInput) -> np.ndarray:
    """The first views that a run sees, float32 ``[n, views, size, size, 3]``."""
    batch = next(iter(data.batches(0, 1)))
    return make_views({name: values[:PAIRS] for name, values in batch.items()}, data.settings).numpy()


def draw_pretraining(
    model_dir: pathlib.Path, data: TrainingInput, source: Source, test: Source, train_f: Features, test_f: Features
) -> None:
    """Views, nearest training images of some test images, and the test features in two dimensions."""
    folder = _folder(model_dir)
    report.draw_views(example_views(data), folder / "views.png")
    points = _some(len(test_f[1]), POINTS)
    report.draw_embedding(
        evaluation.pca(test_f[0][points]), test_f[1][points], test.class_names, folder / "embedding.png"
    )
    queries = _some(len(test_f[1]), QUERIES)
    nearest, _ = evaluation.nearest_neighbours(train_f[0], test_f[0][queries], NEIGHBOURS)
    size = data.settings.image_size
    query_images, neighbours = _images_at(test, queries, size), _images_at(source, nearest.reshape(-1), size)
    if query_images is not None and neighbours is not None:
        neighbours = neighbours.reshape(*nearest.shape, size, size, 3)
        labels = test_f[1][queries], train_f[1][nearest]
        report.draw_neighbours(query_images, neighbours, *labels, test.class_names, folder / "neighbours.png")


def write_projector(model_dir: pathlib.Path, test: Source, features: Features, image_size: int) -> None:
    """The test features for TensorBoard's projector, with labels and thumbnails."""
    folder = model_dir / "tensorboard"
    folder.mkdir(exist_ok=True)
    points = _some(len(features[1]), POINTS)
    np.savetxt(folder / "features.tsv", features[0][points], fmt="%.5g", delimiter="\t")
    names = [test.class_names[label] if label >= 0 else "?" for label in features[1][points]]
    (folder / "labels.tsv").write_text("\n".join(names) + "\n", encoding="utf-8")
    config = 'embeddings { tensor_name: "features" tensor_path: "features.tsv" metadata_path: "labels.tsv"'
    images = _images_at(test, points, min(image_size, THUMBNAIL))
    if images is not None:
        side = images.shape[1]
        columns = math.ceil(math.sqrt(len(images)))
        grid = np.zeros((columns * columns, *images.shape[1:]), np.float32)
        grid[: len(images)] = images
        sheet = grid.reshape(columns, columns, side, side, 3).swapaxes(1, 2).reshape(columns * side, -1, 3)
        keras.utils.save_img(folder / "thumbnails.png", sheet, scale=True)
        config += f' sprite {{ image_path: "thumbnails.png" single_image_dim: {side} single_image_dim: {side} }}'
    (folder / "projector_config.pbtxt").write_text(config + " }\n", encoding="utf-8")


def draw_classification(
    model_dir: pathlib.Path, test: Source, logits: np.ndarray, labels: np.ndarray, image_size: int
) -> None:
    """Confusion matrix and the most confident mistakes."""
    folder = _folder(model_dir)
    predicted = logits.argmax(axis=1)
    matrix = evaluation.confusion_matrix(labels, predicted, logits.shape[1])
    report.draw_confusion(matrix, test.class_names, folder / "confusion.png")
    worst = evaluation.most_confident_mistakes(logits, labels, MISTAKES)
    images = _images_at(test, worst, image_size) if len(worst) else None
    if images is not None:
        sure = evaluation.confidence(logits[worst])
        report.draw_mistakes(images, labels[worst], predicted[worst], sure, test.class_names, folder / "mistakes.png")


def _folder(model_dir: pathlib.Path) -> pathlib.Path:
    folder = model_dir / "figures"
    folder.mkdir(exist_ok=True)
    return folder


def _some(total: int, count: int) -> np.ndarray:
    """The same choice each time."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def _images_at(source: Source, indices: np.ndarray, image_size: int) -> np.ndarray | None:
    """Images as evaluated; None where a source has no random access, or has corrupt images that shift its numbers."""
    if isinstance(source, RecordSource) or getattr(source, "corrupt", None):
        return None
    batches = evaluation_batches(source.subset(indices), len(indices), image_size)
    return np.asarray(next(iter(batches))["images"])
