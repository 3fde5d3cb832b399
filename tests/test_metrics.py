"""Evaluation metrics: equal to scikit-learn or plain NumPy on real digits, and no misleading number from bad input."""

import numpy as np
import pytest
from sklearn import metrics
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from simclrv2_tf import metrics as evaluation


@pytest.fixture(scope="module")
def digits():
    """Returns pixels [n, 64] and labels [n] of training and test digits."""
    features, labels = load_digits(return_X_y=True)
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


@pytest.fixture(scope="module")
def logits():
    """Returns logits of a classifier trained on only 40 digits, so that it makes mistakes, and the true labels."""
    features, labels = load_digits(return_X_y=True)
    probe = LogisticRegression(max_iter=300).fit(features[:40], labels[:40])
    return probe.decision_function(features[40:]), labels[40:]


def cosines(train, test):
    """Returns the cosine similarity of each test row to each training row, [m, n]."""
    unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)  # noqa: E731
    return unit(test) @ unit(train).T


def test_nearest_neighbours_have_the_largest_cosines(digits):
    train, test = digits[0], digits[2][:100]
    indices, similarities = evaluation.nearest_neighbours(train, test, 7)
    expected = cosines(train, test)
    np.testing.assert_allclose(similarities, -np.sort(-expected, axis=1)[:, :7], atol=1e-12)
    np.testing.assert_allclose(np.take_along_axis(expected, indices, axis=1), similarities, atol=1e-12)
    assert all(len(set(row)) == 7 for row in indices)
    assert np.all(np.diff(similarities, axis=1) <= 0)


def test_a_row_of_zeros_has_similarity_0():
    train, test = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])
    indices, similarities = evaluation.nearest_neighbours(train, test, 3)
    np.testing.assert_array_equal(indices[0], [2, 0, 1])
    np.testing.assert_array_equal(similarities, [[1, 0, -1], [0, 0, 0]])


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (20, 0.1), (200, 0.07), (200, 10.0)])
def test_knn_is_the_temperature_weighted_vote(digits, k, temperature):
    train, train_labels, test, test_labels = digits
    hits = []
    for similarities, label in zip(cosines(train, test), test_labels, strict=True):
        nearest = np.argsort(-similarities, kind="stable")[:k]
        votes = np.bincount(train_labels[nearest], np.exp(similarities[nearest] / temperature))
        hits.append(votes.argmax() == label)
    ours = evaluation.knn_accuracy(train, train_labels, test, test_labels, k, temperature, num_classes=10)
    assert ours == pytest.approx(np.mean(hits), abs=1e-12)
    assert ours > 0.85


@pytest.mark.parametrize("labels", [[2, 1], [1, 2], [2, 1, 1, 2], [4, 1, 2, 2, 1]])
def test_the_lower_class_wins_a_tied_vote(labels):
    train, query = np.tile([[3.0, 4.0]], (len(labels), 1)), np.array([[3.0, 4.0]])
    accuracies = [evaluation.knn_accuracy(train, np.array(labels), query, np.array([label])) for label in range(5)]
    assert accuracies == [0, 1, 0, 0, 0]


def test_knn_weights_decide():
    """Two far neighbours of class 1 outvote one near neighbour of class 0 only when the temperature is high."""
    train, labels = np.array([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), np.array([0, 1, 1])
    query, truth = np.array([[1.0, 0.1]]), np.array([0])
    assert evaluation.knn_accuracy(train, labels, query, truth, k=3, temperature=0.1) == 1
    assert evaluation.knn_accuracy(train, labels, query, truth, k=3, temperature=100) == 0
    # k > n, and a temperature at which every vote would overflow: the nearest neighbour decides, whatever its class.
    for nearest in (0, 1):
        labels = np.array([nearest, 1 - nearest, 1 - nearest])
        assert evaluation.knn_accuracy(train, labels, query, np.array([nearest]), k=50, temperature=1e-4) == 1


def test_knn_ignores_lengths_and_reads_low_precision(digits):
    train, train_labels, test, test_labels = digits
    expected = evaluation.knn_accuracy(train, train_labels, test, test_labels)
    lengths = np.linspace(0.01, 100, len(train))[:, None]
    assert evaluation.knn_accuracy(train * lengths, train_labels, test, test_labels) == expected
    half = evaluation.knn_accuracy(train.astype(np.float16), train_labels, test.astype(np.float16), test_labels)
    assert half == pytest.approx(expected, abs=0.004)
    zeros = np.zeros_like(test)  # no direction: a valid, uninformative feature
    assert 0 <= evaluation.knn_accuracy(train, train_labels, zeros, test_labels) < 0.3


def test_top_k_and_confusion_are_those_of_scikit_learn(logits):
    scores, labels = logits
    for k in (1, 2, 5, 10, 99):
        expected = metrics.top_k_accuracy_score(labels, scores, k=k) if k < 10 else 1.0
        assert evaluation.top_k_accuracy(scores, labels, k) == pytest.approx(expected)
    predictions = scores.argmax(axis=1)
    matrix = evaluation.confusion_matrix(labels, predictions, 10)
    np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, predictions))
    assert evaluation.confusion_matrix(labels, predictions, 12).shape == (12, 12)
    assert np.trace(matrix) / matrix.sum() == evaluation.top_k_accuracy(scores, labels, 1)


def test_constant_logits_score_at_chance():
    labels = np.arange(100) % 10
    assert evaluation.top_k_accuracy(np.zeros((100, 10)), labels, 1) == 0.1
    assert evaluation.top_k_accuracy(np.zeros((100, 10)), labels, 5) == 0.5
    tied = [[1.0, 2.0, 2.0]]  # the lower of the two tied classes ranks first
    assert [evaluation.top_k_accuracy(tied, [label], 1) for label in range(3)] == [0, 1, 0]
    assert [evaluation.top_k_accuracy(tied, [label], 2) for label in range(3)] == [0, 1, 1]


def test_mistakes_are_wrong_and_sorted_by_confidence(logits):
    scores, labels = logits
    chosen = evaluation.most_confident_mistakes(scores, labels, 12)
    confident = evaluation.confidence(scores)
    wrong = scores.argmax(axis=1) != labels
    assert len(chosen) == 12 and wrong[chosen].all()
    assert np.all(np.diff(confident[chosen]) <= 0)
    others = np.setdiff1d(np.flatnonzero(wrong), chosen)
    assert confident[others].max() <= confident[chosen].min()
    assert len(evaluation.most_confident_mistakes(np.eye(4), np.arange(4), 5)) == 0


def test_confidence_is_the_softmax_maximum():
    np.testing.assert_allclose(evaluation.confidence([[0.0, 0.0], [np.log(3), 0.0], [1000.0, 0.0]]), [0.5, 0.75, 1.0])


def test_linear_probe_learns_and_repeats(digits):
    train, train_labels, test, test_labels = digits
    ours = evaluation.linear_probe(train[:400], train_labels[:400], test, test_labels)
    deviation = np.maximum(train[:400].std(axis=0), 1e-9)
    scaled = [(part - train[:400].mean(axis=0)) / deviation for part in (train[:400], test)]
    usable = train[:400].std(axis=0) > 0
    grid = [
        LogisticRegression(C=strength, max_iter=1000)
        .fit(scaled[0][:, usable], train_labels[:400])
        .score(scaled[1][:, usable], test_labels)
        for strength in (1e-3, 1e-2, 1e-1, 1.0, 10.0)
    ]
    assert min(grid) < ours <= max(grid)
    assert ours > 0.85
    assert ours == evaluation.linear_probe(train[:400], train_labels[:400], test, test_labels)


def test_linear_probe_chooses_its_strength_on_every_fifth_example_of_a_class(digits):
    train, labels, test, test_labels = digits
    train = train + np.random.default_rng(0).normal(0, 9, train.shape)
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        held_out[np.flatnonzero(labels == label)[4::5]] = True
    scale = lambda rows: (rows - train.mean(axis=0)) / train.std(axis=0)  # noqa: E731
    fit = lambda strength, rows: LogisticRegression(C=strength, max_iter=1000).fit(scale(train[rows]), labels[rows])  # noqa: E731
    strengths = [1e-3, 1e-2, 1e-1, 1.0, 10.0]
    scores = [fit(strength, ~held_out).score(scale(train[held_out]), labels[held_out]) for strength in strengths]
    best = strengths[int(np.argmax(scores))]
    expected = [fit(strength, slice(None)).score(scale(test), test_labels) for strength in (best, 1.0)]
    assert evaluation.linear_probe(train, labels, test, test_labels) == expected[0] != expected[1]


def test_linear_probe_chooses_its_strength_without_the_test_set(digits):
    """The predictions do not depend on the test labels: the accuracies against each label sum to 1."""
    train, train_labels, test, _ = digits
    train = train[:100] + np.random.default_rng(0).normal(0, 9, (100, 64))
    shares = [
        evaluation.linear_probe(train, train_labels[:100], test, np.full(len(test), label)) for label in range(10)
    ]
    assert sum(shares) == pytest.approx(1.0)


def test_linear_probe_with_one_example_per_class_and_with_one_class(digits):
    train, train_labels, test, test_labels = digits
    one_each = np.array([np.flatnonzero(train_labels == label)[0] for label in range(10)])
    score = evaluation.linear_probe(train[one_each], train_labels[one_each], test, test_labels)
    assert score > 0.4
    assert evaluation.linear_probe(train[:3], np.zeros(3, int), test, test_labels) == np.mean(test_labels == 0)


@pytest.mark.parametrize("shape", [(200, 16), (12, 300)])
def test_rankme_of_a_known_spectrum(shape):
    """Singular values 4, 2, 1, 1: shares 1/2, 1/4, 1/8, 1/8 with an entropy of 1.75 bits, whatever their directions."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(side, 4)))[0] for side in shape)
    features = left * [4, 2, 1, 1] @ right.T
    assert evaluation.rankme(features) == pytest.approx(2**1.75, rel=1e-4)
    assert evaluation.rankme(1e-3 * features.astype(np.float32)) == pytest.approx(2**1.75, rel=1e-3)


def test_rankme_lies_between_collapsed_and_full_rank():
    assert evaluation.rankme(np.eye(64)) == pytest.approx(64, rel=1e-4)
    collapsed = np.ones((100, 1)) * np.arange(1.0, 9.0)  # one direction far from the origin: centring would hide it
    assert evaluation.rankme(collapsed) == pytest.approx(1, abs=1e-4)
    assert evaluation.rankme(np.zeros((10, 4))) == pytest.approx(1, abs=1e-4)


def test_pca_is_that_of_scikit_learn_with_a_fixed_sign(digits):
    train = digits[0]
    ours, theirs = evaluation.project(train), PCA(3, svd_solver="full").fit_transform(train)[:, :2]
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    loadings = np.linalg.lstsq(ours, train - train.mean(axis=0), rcond=None)[0]
    assert all(row[np.argmax(np.abs(row))] > 0 for row in loadings)


GOOD = {
    "train_features": np.eye(4),
    "train_labels": np.arange(4),
    "test_features": np.eye(4),
    "test_labels": np.arange(4),
}
BAD = [
    ("train_features", np.zeros((0, 4))),
    ("train_features", np.full((4, 4), np.nan)),
    ("train_labels", np.arange(3)),
    ("train_labels", np.arange(4) - 1),
    ("test_features", np.zeros((0, 4))),
    ("test_features", np.eye(4, 5)),
    ("test_features", np.full((4, 4), np.inf)),
    ("test_labels", np.arange(5)),
    ("test_labels", np.arange(4) / 2),
]


@pytest.mark.parametrize("measure", [evaluation.knn_accuracy, evaluation.linear_probe])
@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_features_are_refused_by_name(measure, name, value):
    with pytest.raises(ValueError, match=name):
        measure(**{**GOOD, name: value})


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: evaluation.knn_accuracy(**GOOD, k=0), "k must"),
        (lambda: evaluation.knn_accuracy(**GOOD, temperature=0.0), "temperature"),
        (lambda: evaluation.knn_accuracy(**GOOD, num_classes=3), "train_labels"),
        (lambda: evaluation.nearest_neighbours(np.eye(3), np.eye(4), 1), "test"),
        (lambda: evaluation.top_k_accuracy(np.zeros((0, 3)), [], 1), "logits"),
        (lambda: evaluation.top_k_accuracy(np.eye(3), [0, 1], 1), "labels"),
        (lambda: evaluation.top_k_accuracy(np.eye(3) * np.nan, [0, 1, 2], 1), "logits"),
        (lambda: evaluation.top_k_accuracy(np.eye(3), [0, 1, 3], 1), "labels"),
        (lambda: evaluation.confusion_matrix(np.arange(3), np.arange(2), 3), "predictions"),
        (lambda: evaluation.confusion_matrix(np.zeros(0, int), np.zeros(0, int), 3), "labels"),
        (lambda: evaluation.most_confident_mistakes(np.eye(3), np.arange(3), 0), "count"),
        (lambda: evaluation.rankme(np.full((3, 3), np.nan)), "features"),
        (lambda: evaluation.project(np.eye(3), "lda"), "method"),
        (lambda: evaluation.project(np.zeros((0, 3))), "features"),
    ],
)
def test_bad_arguments_are_refused_by_name(call, name):
    with pytest.raises(ValueError, match=name):
        call()


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_projections_keep_neighbours_together_and_repeat(method):
    features, labels = load_digits(return_X_y=True)
    features, labels = features[:200], labels[:200]
    points = evaluation.project(features, method)
    assert points.shape == (200, 2)
    np.testing.assert_array_equal(points, evaluation.project(features, method))
    nearest = NearestNeighbors(n_neighbors=2).fit(points).kneighbors(points)[1][:, 1]
    assert np.mean(labels[nearest] == labels) > {"pca": 0.4, "tsne": 0.85}[method]


@pytest.mark.parametrize("method", ["pca", "tsne"])
@pytest.mark.parametrize("shape", [(1, 5), (3, 1), (5, 1), (6, 70)])
def test_projections_of_few_rows_or_columns(method, shape):
    points = evaluation.project(np.random.default_rng(0).normal(size=shape), method)
    assert points.shape == (shape[0], 2) and np.isfinite(points).all()
