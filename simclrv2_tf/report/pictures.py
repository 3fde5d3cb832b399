"""Figures made of images: training views, nearest neighbours, the embedding, and a classifier's mistakes."""

import dataclasses
import functools
import logging
import math
import pathlib
from collections.abc import Sequence

import keras
import numpy as np

from simclrv2_tf import files
from simclrv2_tf import metrics as evaluation
from simclrv2_tf.data.input import TrainingInput, evaluation_input, make_views
from simclrv2_tf.data.sources import Source
from simclrv2_tf.errors import shorten
from simclrv2_tf.report import charts
from simclrv2_tf.report.charts import Spec
from simclrv2_tf.report.tables import Row

log = logging.getLogger(__name__)

PAIRS = 12
QUERIES = 6
NEIGHBOURS = 5
POINTS = 1000
MISTAKES = 12
COLUMNS = 6
CONFUSION_CLASSES = 5000  # maximum, at which the matrix takes 200 MB
THUMBNAIL = 32  # px
PROJECTIONS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}

Array = np.ndarray
Features = tuple[Array, Array]  # [n, d] and labels [n]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Draws the figures of a run from its images, features and logits.

    A full disk does not stop the run: a figure that cannot be written is logged.

    Attributes:
        model_dir: model directory of the run.
        test: the evaluated images.
        image_size: side of an evaluated image in px.
        projection: 2-D projection of the features: ``pca``, ``tsne`` or ``umap``.
    """

    model_dir: pathlib.Path
    test: Source | None
    image_size: int
    projection: str = "pca"

    @functools.cached_property
    def sample(self) -> Source:
        """The test images in the embedding, the same at each evaluation."""
        return self.test.subset(fixed_sample(self.test.num_examples, POINTS))

    @functools.cached_property
    def thumbnails(self) -> np.ndarray:
        """The images of the sample, float32 ``[n, s, s, 3]``. Compute its features first, to detect corrupt images."""
        return images_of(self.sample, min(self.image_size, THUMBNAIL))

    def draw_views(self, data: TrainingInput) -> None:
        """Draws the first views of a training run."""
        self._write("views", views_figure(example_views(data)))

    def draw_embedding(self, features: Features) -> None:
        """Draws the features of the sample in 2-D."""
        points = evaluation.project(features[0], self.projection)
        images = [charts.data_url(image, THUMBNAIL) for image in self.thumbnails]
        method, names = PROJECTIONS[self.projection], self.test.class_names
        self._write("embedding", charts.embedding(points, features[1].tolist(), names, method, images))

    def draw_neighbours(self, source: Source, train: Features, test: Features) -> None:
        """Draws the nearest training images of some test images, given the features ``train`` and ``test`` of all."""
        queries = fixed_sample(len(test[1]), QUERIES)
        nearest, _ = evaluation.nearest_neighbours(train[0], test[0][queries], NEIGHBOURS)
        images = images_at(self.test, queries, self.image_size)
        neighbours = images_at(source, nearest.reshape(-1), self.image_size).reshape(*nearest.shape, *images.shape[1:])
        labels = test[1][queries], train[1][nearest]
        self._write("neighbours", neighbours_figure(images, neighbours, *labels, self.test.class_names))

    def draw_classification(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Draws the confusion matrix, unless it would be huge, and the most confident mistakes.

        Args:
            logits: ``[n, classes]``, of the evaluated images.
            labels: ``[n]``.
        """
        predicted, names = logits.argmax(axis=1), self.test.class_names
        if len(names) <= CONFUSION_CLASSES:
            matrix = evaluation.confusion_matrix(labels, predicted, logits.shape[1])
            self._write("confusion", charts.confusion(matrix, names))
        worst = evaluation.most_confident_mistakes(logits, labels, MISTAKES)
        images = images_at(self.test, worst, self.image_size)
        confidence = evaluation.confidence(logits[worst])
        self._write("mistakes", mistakes_figure(images, labels[worst], predicted[worst], confidence, names))

    def _write(self, name: str, spec: Spec) -> None:
        try:
            charts.write(spec, self.model_dir / "figures" / name)
        except OSError as error:  # don't fail the run over a figure
            log.warning("could not write figure %s of %s (%s)", name, self.model_dir, error.strerror)


def _tile(x: float, y: float, image: Array, class_name: str = "", **rest: object) -> Row:
    name = shorten(class_name, 40)
    return {"x": x, "y": y, "image": charts.data_url(image), "caption": name, "class": name, **rest}


def views_figure(views: Array) -> Spec:
    """Draws views ``[n, v, S, S, 3]``, those of an image side by side."""
    count, per_image, size = views.shape[:3]
    images_per_row = max(1, COLUMNS // per_image)
    tiles = [
        _tile(i % images_per_row * (per_image + 0.1) + v, i // images_per_row, view)
        for i, of_image in enumerate(views)
        for v, view in enumerate(of_image)
    ]
    title = f"Augmented training images: {count} {'pairs of views' if per_image == 2 else 'views'}"
    return charts.image_grid(title, f"{title}, {size} px.", tiles, COLUMNS + 0.2, {})


def neighbours_figure(
    queries: Array, neighbours: Array, labels: Array, neighbour_labels: Array, class_names: Sequence[str]
) -> Spec:
    """Draws images ``[q, S, S, 3]``, each followed by its neighbours ``[q, k, S, S, 3]``, nearest first."""
    tiles: list[Row] = []
    for y, (query, label, images, others) in enumerate(zip(queries, labels, neighbours, neighbour_labels, strict=True)):
        tiles.append(_tile(0, y, query, class_names[label], role="query"))
        for k, (image, other) in enumerate(zip(images, others, strict=True)):
            correct = bool(other == label)
            tile = _tile(k + 1.2, y, image, class_names[other], role=f"neighbour {k + 1}", correct=correct)
            tiles.append(tile | {"caption": f"{'=' if correct else '≠'} {tile['class']}"})
    same = np.asarray(neighbour_labels) == np.asarray(labels)[:, None]
    title = f"Nearest neighbours: {same.sum()} of {same.size} share the class of the query"
    description = (
        f"{title}. Each row is a test image followed by its nearest training images; other classes are dashed."
    )
    tooltip = {"role": "image", "class": "class"}
    return charts.image_grid(title, description, tiles, neighbours.shape[1] + 1.2, tooltip)


def mistakes_figure(
    images: Array, labels: Array, predicted: Array, confidence: Array, class_names: Sequence[str]
) -> Spec:
    """Draws misclassified images ``[n, S, S, 3]``, n ≥ 0, with both classes and the confidence of the prediction."""
    tiles = []
    for i, (image, true, wrong, share) in enumerate(zip(images, labels, predicted, confidence, strict=True)):
        other, share = shorten(class_names[wrong], 40), f"{share:.0%}"
        tile = _tile(i % COLUMNS, i // COLUMNS, image, class_names[true], predicted=other, confidence=share)
        tiles.append(tile | {"caption": f"{tile['class']}\n→ {other}"})
    pairs = "; ".join(f"{tile['class']} predicted as {tile['predicted']} ({tile['confidence']})" for tile in tiles)
    title = f"The {len(tiles)} most confident mistakes" if len(tiles) > 1 else "The only mistake"
    title = f"{title} (true → predicted class)" if tiles else "No mistakes"
    tooltip = {"class": "true class", "predicted": "predicted class", "confidence": "confidence"}
    return charts.image_grid(title, f"{title}: {pairs}." if pairs else f"{title}.", tiles, COLUMNS, tooltip)


def batch_figure(views: Array, labels: Array, batch_size: int, class_names: Sequence[str]) -> Spec:
    """Draws the first view ``[n, S, S, 3]`` of some images of a batch, with their classes (−1: unknown)."""
    title = f"First batch: one view of {len(views)} of its {batch_size:,} images"
    names = [*class_names, ""]  # the last one is for label −1
    tiles = [_tile(i % COLUMNS, i // COLUMNS, view, names[labels[i]]) for i, view in enumerate(views)]
    return charts.image_grid(title, f"{title}.", tiles, COLUMNS, {"class": "class"})


def labelled_figure(classes: Sequence[Array], columns: int, counts: Array, class_names: Sequence[str]) -> Spec:
    """Draws some labelled images ``[n, S, S, 3]`` of each class in a row; ``counts [classes]`` count all labels."""
    least, most = counts.min(), counts.max()
    per_class = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    title = f"{counts.sum():,} labelled images: {per_class} per class, {len(counts):,} classes"
    tiles = [_tile(x, y, image, class_names[y]) for y, images in enumerate(classes) for x, image in enumerate(images)]
    return charts.image_grid(title, f"{title}.", tiles, columns, {"class": "class"})


def example_views(data: TrainingInput) -> np.ndarray:
    """Computes the first views of a training run, float32 ``[n, views, size, size, 3]``."""
    return first_batch(data, PAIRS)[0]


def first_batch(data: TrainingInput, count: int) -> Features:
    """Returns views float32 ``[n, views, size, size, 3]`` and labels ``[n]`` of the first images that a run sees."""
    on_host = dataclasses.replace(data, resident=None)
    batch = {name: values[:count] for name, values in next(iter(on_host.batches(0, 1))).items()}
    return make_views(batch, data.settings).numpy(), batch["labels"].numpy()


def write_projector(pictures: Pictures, features: Features) -> None:
    """Writes the features of the sample for TensorBoard's projector, with labels and thumbnails."""
    folder = pictures.model_dir / "tensorboard"
    folder.mkdir(exist_ok=True)
    with files.replacing(folder / "features.tsv") as unfinished:
        np.savetxt(unfinished, features[0], fmt="%.5g", delimiter="\t")
    names = [" ".join(pictures.test.class_names[label].split()) if label >= 0 else "?" for label in features[1]]
    files.write_atomically(folder / "labels.tsv", "\n".join(names) + "\n")
    images = pictures.thumbnails
    side, columns = images.shape[1], math.ceil(math.sqrt(len(images)))
    grid = np.pad(images, [(0, columns**2 - len(images)), (0, 0), (0, 0), (0, 0)])  # [columns², side, side, 3]
    sprite = grid.reshape(columns, columns, side, side, 3).swapaxes(1, 2).reshape(columns * side, -1, 3)
    with files.replacing(folder / "thumbnails.png") as unfinished:
        keras.utils.save_img(unfinished, np.rint(255 * sprite), scale=False)
    files.write_atomically(
        folder / "projector_config.pbtxt",
        'embeddings { tensor_name: "features" tensor_path: "features.tsv" metadata_path: "labels.tsv" '
        f'sprite {{ image_path: "thumbnails.png" single_image_dim: {side} single_image_dim: {side} }} }}\n',
    )


def fixed_sample(total: int, count: int) -> np.ndarray:
    """Draws at most ``count`` of the indices below ``total``, in order; the same ones each time."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def images_at(source: Source, indices: np.ndarray, image_size: int) -> np.ndarray:
    """Returns images as evaluated, float32 ``[n, size, size, 3]``, at rows of an evaluation (without corrupt ones)."""
    unique, places = np.unique(indices, return_inverse=True)
    return images_of(source.readable_subset(unique), image_size)[places]


def images_of(source: Source, image_size: int) -> np.ndarray:
    """Returns all images of a source as evaluated, float32 ``[n, size, size, 3]``."""
    if not source.num_examples:
        return np.zeros((0, image_size, image_size, 3), np.float32)
    batch = next(iter(evaluation_input(source, source.num_examples, image_size)))
    return np.asarray(batch["images"])[np.asarray(batch["weights"]) > 0]
