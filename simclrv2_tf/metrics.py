"""How good features and predictions are: functions from NumPy arrays to numbers.

Every accuracy here is a fraction between 0 and 1. Features that hold NaN or infinity are refused: a diverged network
must not come out as a plausible chance level.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.generic]

_CHUNK_ELEMENTS = 2**24  # similarities held at once: 64 MiB of float32
_PROBE_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse L2 strengths of the linear probe, from simple to flexible
_HELD_OUT_EVERY = 5  # the linear probe chooses its strength on every fifth training example of a class


def _matrix(values: ArrayLike, name: str) -> Array:
    """``values`` as a non-empty [n, d] array of float32 or float64; raises ValueError that names the argument."""
    array = np.asarray(values)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty array of shape [n, d], got shape {array.shape}")
    # The sum of squares shows a NaN or an infinity without a boolean copy of the array.
    array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    if not np.isfinite(np.einsum("nd,nd->n", array, array, dtype=np.float64)).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return array


def _labels(values: ArrayLike, name: str, length: int, num_classes: int | None = None) -> Array:
    """``values`` as an int64 [length] array within [0, num_classes); raises ValueError that names the argument."""
    array = np.asarray(values)
    if array.shape != (length,):
        raise ValueError(f"{name} must have shape ({length},) to match its rows, got {array.shape}")
    if length == 0:
        raise ValueError(f"{name} is empty")
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {array.dtype}")
    if array.min() < 0 or (num_classes is not None and array.max() >= num_classes):
        raise ValueError(f"{name} must lie in [0, {num_classes or '…'}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)


def _positive(value: int, name: str) -> int:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def nearest_neighbours(train: ArrayLike, test: ArrayLike, k: int) -> tuple[Array, Array]:
    """The ``k`` training rows of largest cosine similarity to each test row, the nearest first.

    Args:
      train: [n, d] features; test: [m, d] features.
      k: how many neighbours; at most n are given.

    Returns:
      indices [m, min(k, n)] int64 into ``train`` and their cosine similarities, same shape. A row of zeros has
      similarity 0 to everything.

    Raises:
      ValueError: an argument is empty, not finite, of another width, or k < 1.
    """
    train, test, k = _matrix(train, "train"), _matrix(test, "test"), _positive(k, "k")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test has {test.shape[1]} features a row, train has {train.shape[1]}")
    k = min(k, len(train))
    dtype = np.result_type(train, test)
    # Similarities are divided by the norms afterwards: a normalised copy of a large training set may not fit.
    train_norms = np.maximum(np.sqrt(np.einsum("nd,nd->n", train, train)), np.finfo(dtype).tiny)
    indices, similarities = np.empty((len(test), k), np.int64), np.empty((len(test), k), dtype)
    rows = max(1, _CHUNK_ELEMENTS // len(train))
    for start in range(0, len(test), rows):
        chunk = test[start : start + rows]
        chunk = chunk / np.maximum(np.linalg.norm(chunk, axis=1, keepdims=True), np.finfo(dtype).tiny)
        cosine = chunk @ train.T / train_norms
        nearest = np.sort(np.argpartition(-cosine, k - 1, axis=1)[:, :k], axis=1)
        values = np.take_along_axis(cosine, nearest, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices[start : start + rows] = np.take_along_axis(nearest, order, axis=1)
        similarities[start : start + rows] = np.take_along_axis(values, order, axis=1)
    return indices, similarities


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

    Each of the ``k`` nearest training features (``train_features`` [n, d], k capped at n) votes for its class with
    weight exp(cosine / temperature); the lower class wins a tie. ``num_classes`` defaults to the largest label + 1.

    Raises:
      ValueError: an argument is empty, of another length or width, not finite, or out of range.
    """
    train, test = _matrix(train_features, "train_features"), _matrix(test_features, "test_features")
    train_labels = _labels(train_labels, "train_labels", len(train), num_classes)
    test_labels = _labels(test_labels, "test_labels", len(test), num_classes)
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test_features has {test.shape[1]} features a row, train_features has {train.shape[1]}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    num_classes = num_classes or int(max(train_labels.max(), test_labels.max())) + 1
    indices, similarities = nearest_neighbours(train, test, k)
    # Relative to the nearest one, which changes no vote's order, so that a small temperature does not overflow.
    weights = np.exp((similarities - similarities[:, :1]) / temperature)
    right, rows = 0, max(1, _CHUNK_ELEMENTS // num_classes)
    for start in range(0, len(test), rows):
        part = slice(start, start + rows)
        votes = np.zeros((len(indices[part]), num_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], train_labels[indices[part]]), weights[part])
        right += int(np.sum(votes.argmax(axis=1) == test_labels[part]))
    return right / len(test)


def _logits(logits: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    logits = np.asarray(logits)
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"logits must be a non-empty array of shape [n, classes], got shape {logits.shape}")
    if np.isnan(logits).any():
        raise ValueError("logits holds NaN")
    return logits, _labels(labels, "labels", len(logits), logits.shape[1])


def top_k_accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """The share of rows of ``logits`` [n, classes] whose label is among the ``k`` largest.

    Of equal logits the lower class ranks first, as with argmax, so constant logits score at chance, not 1.

    Raises:
      ValueError: an argument is empty, of another length, NaN or out of range.
    """
    logits, labels = _logits(logits, labels)
    true = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    rank = np.sum((logits > true) | ((logits == true) & earlier), axis=1)
    return float(np.mean(rank < _positive(k, "k")))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> Array:
    """Counts [num_classes, num_classes] int64: rows are the true class, columns the predicted one.

    Raises:
      ValueError: an argument is empty, of another length, or holds a class outside [0, num_classes).
    """
    labels = _labels(labels, "labels", np.size(labels), num_classes)
    predictions = _labels(predictions, "predictions", len(labels), num_classes)
    counts = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def confidence(logits: ArrayLike) -> Array:
    """The largest softmax probability [n] of each row of ``logits`` [n, classes]."""
    logits = np.asarray(logits, np.float64)
    return 1.0 / np.sum(np.exp(logits - logits.max(axis=1, keepdims=True)), axis=1)


def most_confident_mistakes(logits: ArrayLike, labels: ArrayLike, count: int) -> Array:
    """Indices [≤ count] of the wrongly classified rows of ``logits`` [n, classes], the most confident first.

    Raises:
      ValueError: an argument is empty, of another length, NaN or out of range.
    """
    logits, labels = _logits(logits, labels)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-confidence(logits[wrong]), kind="stable") if len(wrong) else wrong
    return wrong[order][: _positive(count, "count")]


def _held_out(labels: Array) -> Array:
    """A boolean mask [n] of every fifth example of each class; a class of four or fewer keeps them all."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    place_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
    mask = np.empty(len(labels), bool)
    mask[order] = place_in_class % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1
    return mask


def linear_probe(
    train_features: ArrayLike, train_labels: ArrayLike, test_features: ArrayLike, test_labels: ArrayLike
) -> float:
    """Top-1 accuracy on the test features of multinomial logistic regression fitted on the training features.

    Features are standardised by the training mean and deviation. The L2 strength is the best of a fixed grid on a
    fifth of the *training* examples, class by class; then all of them are fitted. The same arrays give the same number.

    Raises:
      ValueError: an argument is empty, of another length or width, not finite, or out of range.
    """
    from sklearn.linear_model import LogisticRegression  # here: a second of import that only the probe needs

    train, test = _matrix(train_features, "train_features"), _matrix(test_features, "test_features")
    train_labels = _labels(train_labels, "train_labels", len(train))
    test_labels = _labels(test_labels, "test_labels", len(test))
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test_features has {test.shape[1]} features a row, train_features has {train.shape[1]}")
    if len(np.unique(train_labels)) == 1:
        return float(np.mean(test_labels == train_labels[0]))
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1)
    train, test = (train - mean) / deviation, (test - mean) / deviation

    held_out, best = _held_out(train_labels), 1.0
    if held_out.any():
        # Each fit starts from the one before it on the path from strong to weak regularisation.
        probe, scores = LogisticRegression(max_iter=1000, warm_start=True), []
        for strength in _PROBE_STRENGTHS:
            probe.set_params(C=strength).fit(train[~held_out], train_labels[~held_out])
            scores.append(probe.score(train[held_out], train_labels[held_out]))
        best = _PROBE_STRENGTHS[int(np.argmax(scores))]
    probe = LogisticRegression(C=best, max_iter=1000).fit(train, train_labels)
    return float(probe.score(test, test_labels))


def pca(features: ArrayLike, dims: int = 2) -> Array:
    """The first ``dims`` principal components [n, dims] of ``features`` [n, d], for pictures of a few thousand rows.

    The sign of a component is the one that makes its largest loading positive.

    Raises:
      ValueError: features are empty or not finite, or dims is not within 1 … min(n, d).
    """
    features = _matrix(features, "features")
    if not 1 <= dims <= min(features.shape):
        raise ValueError(f"dims must lie within 1 … {min(features.shape)} for features {features.shape}, got {dims}")
    left, singular, right = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    largest = np.argmax(np.abs(right[:dims]), axis=1)
    signs = np.where(right[np.arange(dims), largest] < 0, -1, 1)
    return left[:, :dims] * singular[:dims] * signs


def project(features: ArrayLike, method: str = "pca") -> Array:
    """``features`` [n, d] in two dimensions, [n, 2], for a picture of a few thousand rows; the same each time.

    ``tsne`` (van der Maaten and Hinton, 2008) and ``umap`` (McInnes et al. 2018, arXiv 1802.03426; the package
    ``umap-learn``) keep neighbours together; they start from the first 50 principal components, distances by cosine.

    Raises:
      ValueError: features are empty or not finite.
    """
    features = _matrix(features, "features")
    if method == "pca" or len(features) < 4:
        plane = pca(features, min(2, *features.shape))
        return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
    features = pca(features, min(50, *features.shape))
    if method == "tsne":
        from sklearn.manifold import TSNE  # here: as above

        # The perplexity is the authors' default, less where there are few points.
        perplexity = min(30.0, (len(features) - 1) / 3)
        return TSNE(metric="cosine", perplexity=perplexity, init="random", random_state=0).fit_transform(features)
    from umap import UMAP

    return UMAP(metric="cosine", n_neighbors=min(15, len(features) - 1), random_state=0).fit_transform(features)
