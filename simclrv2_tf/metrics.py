"""Evaluation metrics on NumPy arrays: top-k, kNN, linear probe, RankMe, confusion matrix, 2-D projection.

Features are ``[n, d]``, labels integers ``[n]``, logits ``[n, classes]``; accuracies lie between 0 and 1. An argument
that is empty, mismatched, out of range or NaN, or features that are infinite, raise a ValueError that names it: a
diverged network must not score at a plausible chance level. scikit-learn, which takes a second to import, is imported
where it is used.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]

PROBE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C of LogisticRegression, from strong to weak regularisation


def nearest_neighbours(train: ArrayLike, test: ArrayLike, k: int) -> tuple[Array, Array]:
    """Finds the ``k`` rows of ``train`` [n, d] with the largest cosine similarity to each row of ``test`` [m, d].

    Returns indices into ``train``, int64 [m, min(k, n)], nearest first, and their similarities, same shape. A row of
    zeros has similarity 0 to every row.
    """
    from sklearn.neighbors import NearestNeighbors

    train, test = _features(train, "train"), _features(test, "test", train)
    search = NearestNeighbors(n_neighbors=min(_at_least_1(k, "k"), len(train)), metric="cosine", algorithm="brute")
    distances, indices = search.fit(train).kneighbors(test)
    return indices, 1 - distances


def knn_accuracy(
    train_features: ArrayLike,
    train_labels: ArrayLike,
    test_features: ArrayLike,
    test_labels: ArrayLike,
    k: int = 20,
    temperature: float = 0.1,
    num_classes: int | None = None,
) -> float:
    """Top-1 accuracy of the weighted cosine k-nearest-neighbour vote (Wu et al. 2018, arXiv 1805.01978, eq. 4).

    Each of the ``k`` nearest training rows votes for its class with weight exp(cosine / temperature); the lower class
    wins a tie. ``k`` is capped at the number of rows. Labels must be below ``num_classes`` if that is given.

    Example:
        >>> features, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
        >>> knn_accuracy(features, labels, test_features=features + 0.1, test_labels=labels, k=1)
        1.0
    """
    from sklearn.neighbors import KNeighborsClassifier

    train = _features(train_features, "train_features")
    test = _features(test_features, "test_features", train)
    train_labels = _labels(train_labels, "train_labels", len(train), num_classes)
    test_labels = _labels(test_labels, "test_labels", len(test), num_classes)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    k = min(_at_least_1(k, "k"), len(train))
    # Relative to the nearest neighbour's weight, so that exp cannot overflow.
    weights = lambda distances: np.exp((distances[:, :1] - distances) / temperature)  # noqa: E731
    vote = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute").fit(train, train_labels)
    return float(vote.score(test, test_labels))


def linear_probe(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, test_labels: ArrayLike
) -> float:
    """Test accuracy (top-1) of multinomial logistic regression fitted to the training set; deterministic.

    Features are standardised by the training mean and deviation. The L2 strength is the best of ``PROBE_STRENGTHS`` on
    every fifth training example of each class; then the regression is fitted to all of them.

    Example:
        >>> features, labels = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])
        >>> linear_probe(features, labels, test_features=features + 0.1, test_labels=labels)
        1.0
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.preprocessing import StandardScaler

    train = _features(train_features, "train_features")
    test = _features(test_features, "test_features", train)
    train_labels = _labels(train_labels, "train_labels", len(train))
    test_labels = _labels(test_labels, "test_labels", len(test))
    classes = np.unique(train_labels)
    if len(classes) == 1:
        return float(np.mean(test_labels == classes[0]))
    scaler, probe = StandardScaler().fit(train), LogisticRegression(max_iter=1000)
    held_out = np.concatenate([np.flatnonzero(train_labels == label)[4::5] for label in classes])
    if len(held_out):
        split = np.setdiff1d(np.arange(len(train)), held_out), held_out
        probe = GridSearchCV(probe, {"C": PROBE_STRENGTHS}, cv=[split])
    return float(probe.fit(scaler.transform(train), train_labels).score(scaler.transform(test), test_labels))


def rankme(features: ArrayLike) -> float:
    """RankMe, the effective rank of features (Garrido et al. 2023, arXiv 2210.02885, equations 1 and 2).

    ``exp(−Σ p_k log p_k)`` with ``p_k = σ_k / Σ σ + 1e-7``, where σ are the singular values of the features, not
    centred: from 1 (collapsed to one direction) to min(n, d). The paper computes it from 25,600 images.
    """
    singular = np.linalg.svd(_features(features, "features"), compute_uv=False)
    shares = singular / max(singular.sum(), np.finfo(singular.dtype).tiny) + 1e-7
    return float(np.exp(-np.sum(shares * np.log(shares))))


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Fraction of the rows of ``logits`` whose label is among the ``k`` largest.

    The lower of two classes with equal logits ranks first, as with argmax, so constant logits score at chance, not 1.
    """
    logits, labels = _logits(logits, labels)
    largest = np.argsort(-logits, axis=1, kind="stable")[:, : _at_least_1(k, "k")]
    return float(np.mean((largest == labels[:, None]).any(axis=1)))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Array:
    """Counts, int64 [num_classes, num_classes]: rows are the true classes, columns the predicted ones."""
    labels = _labels(labels, "labels", np.size(labels), num_classes)
    predictions = _labels(predictions, "predictions", len(labels), num_classes)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confidence(logits: ArrayLike) -> Array:
    """Largest softmax probability [n] of each row of ``logits``."""
    logits = np.asarray(logits, np.float64)
    return 1 / np.sum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)


def most_confident_mistakes(logits: ArrayLike, labels: ArrayLike, count: int) -> Array:
    """Indices [≤ count] of the misclassified rows of ``logits``, most confident first."""
    logits, labels = _logits(logits, labels)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-confidence(logits[wrong]), kind="stable")
    return wrong[order][: _at_least_1(count, "count")]


def project(features: ArrayLike, method: str = "pca") -> Array:
    """Projects features to two dimensions [n, 2] for a plot of a few thousand rows; deterministic.

    ``method`` is "pca", each component with its largest loading positive, "tsne" (van der Maaten and Hinton 2008) or
    "umap" (McInnes et al. 2018, arXiv 1802.03426; needs the package ``umap-learn``). The last two keep neighbours
    together, by the cosine distance of the first 50 principal components. Fewer than 4 rows are projected by PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method not in ("pca", "tsne", "umap"):
        raise ValueError(f'method must be "pca", "tsne" or "umap", not "{method}"')
    features = _features(features, "features")
    rows, method = len(features), method if len(features) >= 4 else "pca"
    with np.errstate(invalid="ignore"):  # PCA divides by the variance, which is 0/0 for a single row
        components = PCA(min(2 if method == "pca" else 50, *features.shape), svd_solver="full").fit_transform(features)
    if method == "pca":
        return np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
    if method == "tsne":
        perplexity = min(30.0, (rows - 1) / 3)  # the authors' default, or lower for few points
        return TSNE(metric="cosine", perplexity=perplexity, init="random", random_state=0).fit_transform(components)
    from umap import UMAP

    return UMAP(metric="cosine", n_neighbors=min(15, rows - 1), random_state=0).fit_transform(components)


def _features(values: ArrayLike, name: str, other: Array | None = None) -> Array:
    """Checks a finite, non-empty [n, d] array, as wide as ``other``; float64 stays, other types become float32."""
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of shape [n, d], got shape {array.shape}")
    if other is not None and array.shape[1] != other.shape[1]:
        raise ValueError(f"{name} has {array.shape[1]} features per row, the training features have {other.shape[1]}")
    array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    # The sum of squares reveals NaN and infinity without a boolean copy of the array.
    if not np.isfinite(np.einsum("nd,nd->n", array, array, dtype=np.float64)).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array


def _labels(values: ArrayLike, name: str, length: int, num_classes: int | None = None) -> Array:
    """Checks a non-empty integer [length] array within [0, num_classes)."""
    array = np.asarray(values)
    if array.shape != (length,) or length == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must be integers, one per row ({length}), got {array.dtype} {array.shape}")
    if array.min() < 0 or (num_classes is not None and array.max() >= num_classes):
        raise ValueError(f"{name} must lie in [0, {num_classes or '…'}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _logits(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.size == 0 or np.isnan(logits).any():
        raise ValueError(f"logits must be a non-empty [n, classes] array without NaN, got shape {logits.shape}")
    return logits, _labels(labels, "labels", len(logits), logits.shape[1])


def _at_least_1(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value
