"""Selection of the images to label next, based on the features of a pretrained network."""

from collections.abc import Callable

import numpy as np

MAX_CLUSTERS = 500
MIN_CLUSTER = 5  # images; smaller clusters come last
NEIGHBOURS = 20


def select_k_center(features: np.ndarray, is_labelled: np.ndarray, count: int) -> np.ndarray:
    """Selects the images that are farthest from all labelled or selected ones (arXiv 1708.00489, algorithm 1).

    Args:
        features: float ``[n, d]``; compared by their direction.
        is_labelled: bool ``[n]``: which images have a label already.
        count: images to select, at most as many as have no label.

    Returns:
        int64 ``[count]``, in the order in which they are selected. Without labelled images the first is the one that is
        most similar to the mean.
    """
    features = _normalize(features)
    distances = np.full(len(features), np.inf)
    for index in np.flatnonzero(is_labelled):
        distances = np.minimum(distances, _distances(features, int(index)))
    selected: list[int] = []
    if not is_labelled.any():
        selected.append(int(np.argmax(features @ features.mean(axis=0))))
        distances = _distances(features, selected[0])
    distances[is_labelled] = -1
    while len(selected) < count:
        distances[selected] = -1
        selected.append(int(np.argmax(distances)))
        distances = np.minimum(distances, _distances(features, selected[-1]))
    return np.array(selected[:count])


def select_typical(features: np.ndarray, is_labelled: np.ndarray, count: int) -> np.ndarray:
    """Selects typical images of clusters without a label (TypiClust, arXiv 2202.02794, section 3).

    The features are clustered by k-means into as many clusters as there are labelled and selected images, at most 500.
    The most typical image of a cluster has the smallest mean distance to its 20 nearest neighbours there. Clusters with
    the fewest labels come first, of these the largest.

    Args:
        features: float ``[n, d]``; compared by their direction.
        is_labelled: bool ``[n]``: which images have a label already.
        count: images to select, at most as many as have no label.

    Returns:
        int64 ``[count]``, in the order in which they are selected.
    """
    from sklearn.cluster import KMeans

    features = _normalize(features)
    num_clusters = min(int(is_labelled.sum()) + count, MAX_CLUSTERS, len(features))
    clusters = KMeans(num_clusters, n_init=1, random_state=0).fit_predict(features)
    sizes = np.bincount(clusters, minlength=num_clusters)
    num_labels = np.bincount(clusters[is_labelled], minlength=num_clusters)
    queues = {}  # per cluster: its images without a label, the most typical one last
    for cluster in range(num_clusters):
        members = np.flatnonzero(clusters == cluster)
        order = members[np.argsort(-_neighbour_distances(features[members]), kind="stable")]
        queues[cluster] = [int(index) for index in order if not is_labelled[index]]
    selected: list[int] = []
    while len(selected) < count:
        open_clusters = [cluster for cluster, queue in queues.items() if queue]
        cluster = min(open_clusters, key=lambda c: (num_labels[c], sizes[c] < MIN_CLUSTER, -sizes[c]))
        selected.append(queues[cluster].pop())
        num_labels[cluster] += 1
    return np.array(selected)


SELECTIONS: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {
    "typicality": select_typical,
    "k_center": select_k_center,
}


def _normalize(features: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, np.finfo(np.float32).tiny)


def _distances(features: np.ndarray, index: int) -> np.ndarray:
    return np.linalg.norm(features - features[index], axis=1)


def _neighbour_distances(members: np.ndarray) -> np.ndarray:
    """Returns the mean distance of each member ``[m, d]`` of a cluster to its nearest neighbours in it, ``[m]``."""
    from sklearn.neighbors import NearestNeighbors

    if len(members) < 2:
        return np.zeros(len(members))
    count = min(NEIGHBOURS, len(members) - 1)
    distances, _ = NearestNeighbors(n_neighbors=count).fit(members).kneighbors()  # a member is not its own neighbour
    return distances.mean(axis=1)
