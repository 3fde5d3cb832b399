"""Which figures a run leaves: views, neighbours and embedding of a pretrained one, mistakes of a classifier."""

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
from simclrv2_tf.data.input import TrainingInput, evaluation_batches, make_views
from simclrv2_tf.data.sources import Source
from simclrv2_tf.report import charts
from simclrv2_tf.report.tables import Row

log = logging.getLogger(__name__)

PAIRS = 12
QUERIES = 6
NEIGHBOURS = 5
POINTS = 1000
MISTAKES = 12
CONFUSION_CLASSES = 5000  # whose matrix takes 200 MB
THUMBNAIL = 32  # pixels

Features = tuple[np.ndarray, np.ndarray]  # [n, d] and labels [n]


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The figures of one run.

    Attributes:
        model_dir: the run's.
        test: the images that are evaluated.
        image_size: pixels a side of an evaluated image.
        projection: what makes two dimensions of the features: ``pca``, ``tsne`` or ``umap``.
    """

    model_dir: pathlib.Path
    test: Source | None
    image_size: int
    projection: str = "pca"

    @functools.cached_property
    def sample(self) -> Source:
        """The test images in the embedding: the same at each evaluation."""
        return self.test.subset(some(self.test.num_examples, POINTS))

    @functools.cached_property
    def thumbnails(self) -> np.ndarray:
        """The images of the sample, float32 ``[n, s, s, 3]``; to be asked for when its features are known."""
        return images_of(self.sample, min(self.image_size, THUMBNAIL))

    def draw_views(self, data: TrainingInput) -> None:
        """The first views that a run sees."""
        self._write("views", views_figure(example_views(data)))

    def draw_embedding(self, features: Features) -> None:
        """Features of the sample in two dimensions."""
        points = evaluation.project(features[0], self.projection)
        images = [charts.data_url(image, THUMBNAIL) for image in self.thumbnails]
        method = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}[self.projection]
        self._write("embedding", charts.embedding(points, features[1], self.test.class_names, method, images))

    def draw_neighbours(self, source: Source, train: Features, test: Features) -> None:
        """Nearest training images of some test images; ``train`` and ``test`` are all of their features."""
        queries = some(len(test[1]), QUERIES)
        nearest, _ = evaluation.nearest_neighbours(train[0], test[0][queries], NEIGHBOURS)
        asked = images_at(self.test, queries, self.image_size)
        found = images_at(source, nearest.reshape(-1), self.image_size).reshape(*nearest.shape, *asked.shape[1:])
        labels = test[1][queries], train[1][nearest]
        self._write("neighbours", neighbours_figure(asked, found, *labels, self.test.class_names))

    def draw_classification(self, logits: np.ndarray, labels: np.ndarray) -> None:
        """Confusion matrix, unless it would be huge, and the most confident mistakes."""
        predicted, names = logits.argmax(axis=1), self.test.class_names
        if len(names) <= CONFUSION_CLASSES:
            matrix = evaluation.confusion_matrix(labels, predicted, logits.shape[1])
            self._write("confusion", charts.confusion(matrix, names))
        worst = evaluation.most_confident_mistakes(logits, labels, MISTAKES)
        images = images_at(self.test, worst, self.image_size)
        sure = evaluation.confidence(logits[worst])
        self._write("mistakes", mistakes_figure(images, labels[worst], predicted[worst], sure, names))

    def _write(self, name: str, spec: charts.Spec) -> None:
        try:
            charts.write(spec, self.model_dir / "figures" / name)
        except OSError as error:  # a full disk: the run is worth more than its pictures
            log.warning("figure %s of %s could not be written (%s)", name, self.model_dir, error.strerror)


def views_figure(views: np.ndarray) -> charts.Spec:
    """Views ``[n, v, S, S, 3]``, those of an image side by side."""
    count, per_image = views.shape[:2]
    columns = max(1, 6 // per_image)
    tiles = [
        {"x": i % columns * (per_image + 0.1) + v, "y": i // columns, "image": charts.data_url(view), "caption": ""}
        for i, of_image in enumerate(views)
        for v, view in enumerate(of_image)
    ]
    title = (
        f"What the network sees: {count} pairs of views" if per_image == 2 else f"What the network sees: {count} views"
    )
    told = f"{title}, {views.shape[2]} pixels a side, augmented as in training."
    return charts.pictures(title, told, tiles, 6.2, {})


def neighbours_figure(
    queries: np.ndarray, found: np.ndarray, labels: np.ndarray, found_labels: np.ndarray, class_names: Sequence[str]
) -> charts.Spec:
    """Images ``[q, S, S, 3]`` each with its neighbours ``[q, k, S, S, 3]``, the nearest first."""
    tiles: list[Row] = []
    for y, (query, label, images, others) in enumerate(zip(queries, labels, found, found_labels, strict=True)):
        name = charts.short(class_names[label], 40)
        tiles.append({"x": 0, "y": y, "image": charts.data_url(query), "caption": name, "class": name, "what": "query"})
        for k, (image, other) in enumerate(zip(images, others, strict=True)):
            right, name = bool(other == label), charts.short(class_names[other], 40)
            tile = {"x": k + 1.2, "y": y, "image": charts.data_url(image), "caption": f"{'=' if right else '≠'} {name}"}
            tiles.append(tile | {"right": right, "class": name, "what": f"neighbour {k + 1}"})
    same = np.asarray(found_labels) == np.asarray(labels)[:, None]
    title = f"Nearest neighbours: {same.sum()} of {same.size} are of the query's class"
    told = f"{title}. Each row is a test image followed by the training images nearest to it; other classes are dashed."
    return charts.pictures(title, told, tiles, found.shape[1] + 1.2, {"what": "image", "class": "class"})


def mistakes_figure(
    images: np.ndarray, true: np.ndarray, predicted: np.ndarray, sure: np.ndarray, class_names: Sequence[str]
) -> charts.Spec:
    """Wrongly classified images ``[n, S, S, 3]``, maybe none, with both classes and the predicted one's probability."""
    tiles = []
    for i, image in enumerate(images):
        is_, said, share = (
            *(charts.short(class_names[label], 40) for label in (true[i], predicted[i])),
            f"{sure[i]:.0%}",
        )
        tile = {"x": i % 6, "y": i // 6, "image": charts.data_url(image), "caption": f"is {is_}\nnot {said}"}
        tiles.append(tile | {"class": is_, "said": said, "sure": share})
    count = len(tiles)
    title = f"The {count} most confident mistakes" if count > 1 else "The only mistake" if count else "No mistakes"
    told = "; ".join(f"{tile['class']} taken for {tile['said']} ({tile['sure']})" for tile in tiles)
    tooltip = {"class": "is", "said": "taken for", "sure": "confidence"}
    return charts.pictures(title, f"{title}{': ' * bool(tiles)}{told}.", tiles, 6, tooltip)


def batch_figure(views: np.ndarray, labels: np.ndarray, of: int, class_names: Sequence[str]) -> charts.Spec:
    """The first view ``[n, S, S, 3]`` of each image of a batch of ``of`` images, with their classes (−1: unknown)."""
    title = f"The first batch: one view of {len(views)} of its {of:,} images"
    tiles = [
        _tile(i % 6, i // 6, view, class_names[label] if label >= 0 else "")
        for i, (view, label) in enumerate(zip(views, labels, strict=True))
    ]
    return charts.pictures(title, f"{title}.", tiles, 6, {"class": "class"})


def labelled_figure(
    classes: Sequence[np.ndarray], columns: int, counts: np.ndarray, class_names: Sequence[str]
) -> charts.Spec:
    """Some labelled images ``[n, S, S, 3]`` of each class, a row each, of which there are ``counts [classes]``."""
    least, most = counts.min(), counts.max()
    each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    title = f"Labels: {counts.sum():,} images, {each} of each of {len(counts):,} classes"
    tiles = [_tile(x, y, image, class_names[y]) for y, images in enumerate(classes) for x, image in enumerate(images)]
    return charts.pictures(title, f"{title}.", tiles, columns, {"class": "class"})


def _tile(x: float, y: float, image: np.ndarray, class_name: str) -> Row:
    name = charts.short(class_name, 40)
    return {"x": x, "y": y, "image": charts.data_url(image), "caption": name, "class": name}


def example_views(data: TrainingInput) -> np.ndarray:
    """The first views that a run sees, float32 ``[n, views, size, size, 3]``."""
    return first_batch(data, PAIRS)[0]


def first_batch(data: TrainingInput, count: int) -> Features:
    """Views float32 ``[n, views, size, size, 3]`` and labels ``[n]`` of the first images that a run sees."""
    on_host = dataclasses.replace(data, resident=None)
    batch = {name: values[:count] for name, values in next(iter(on_host.batches(0, 1))).items()}
    return make_views(batch, data.settings).numpy(), batch["labels"].numpy()


def write_projector(pictures: Pictures, features: Features) -> None:
    """The sample's features for TensorBoard's projector, with labels and thumbnails."""
    folder = pictures.model_dir / "tensorboard"
    folder.mkdir(exist_ok=True)
    with files.replacing(folder / "features.tsv") as unfinished:
        np.savetxt(unfinished, features[0], fmt="%.5g", delimiter="\t")
    names = [" ".join(pictures.test.class_names[label].split()) if label >= 0 else "?" for label in features[1]]
    files.write_atomically(folder / "labels.tsv", "\n".join(names) + "\n")
    images = pictures.thumbnails
    side, columns = images.shape[1], math.ceil(math.sqrt(len(images)))
    grid = np.zeros((columns * columns, *images.shape[1:]), np.float32)
    grid[: len(images)] = images
    sheet = grid.reshape(columns, columns, side, side, 3).swapaxes(1, 2).reshape(columns * side, -1, 3)
    with files.replacing(folder / "thumbnails.png") as unfinished:
        keras.utils.save_img(unfinished, np.rint(255 * sheet), scale=False)
    files.write_atomically(
        folder / "projector_config.pbtxt",
        'embeddings { tensor_name: "features" tensor_path: "features.tsv" metadata_path: "labels.tsv" '
        f'sprite {{ image_path: "thumbnails.png" single_image_dim: {side} single_image_dim: {side} }} }}\n',
    )


def some(total: int, count: int) -> np.ndarray:
    """A choice of numbers, in order; the same each time."""
    return np.sort(np.random.default_rng(0).permutation(total)[:count])


def images_at(source: Source, indices: np.ndarray, image_size: int) -> np.ndarray:
    """Returns images as evaluated, float32 ``[n, size, size, 3]``, by row of an evaluation (without corrupt ones)."""
    unique, places = np.unique(indices, return_inverse=True)
    return images_of(source.readable_subset(unique), image_size)[places]


def images_of(source: Source, image_size: int) -> np.ndarray:
    """All images of a source as evaluated, float32 ``[n, size, size, 3]``."""
    if not source.num_examples:
        return np.zeros((0, image_size, image_size, 3), np.float32)
    batch = next(iter(evaluation_batches(source, source.num_examples, image_size)))
    return np.asarray(batch["images"])[np.asarray(batch["weights"]) > 0]
