"""Selection of images to label, on points with a known correct order."""

import numpy as np
import pytest

from simclrv2_tf.selection import SELECTIONS, select_k_center, select_typical


def clusters(sizes, spread=0.02, seed=0):
    """Returns points around orthogonal directions, the most central one of each cluster first, and their clusters."""
    random = np.random.default_rng(seed)
    points, numbers = [], []
    for number, size in enumerate(sizes):
        center = np.eye(8)[number]
        offsets = random.normal(0, spread, (size - 1, 8))
        points += [center, *(center + offsets)]
        numbers += [number] * size
    return np.array(points, np.float32), np.array(numbers)


def test_k_center_takes_the_farthest_of_what_is_covered():
    angles = np.radians([0, 10, 90, 180, 200])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    is_labelled = np.array([True, False, False, False, False])
    assert select_k_center(points, is_labelled, 4).tolist() == [3, 2, 4, 1]  # 180, then 90, 200 and 10 degrees


def test_k_center_starts_at_the_center_without_labels():
    angles = np.radians([-40, 0, 5, 60])
    points = 3 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert select_k_center(points, np.zeros(4, bool), 2).tolist() == [2, 3]


def test_typicality_takes_the_center_of_each_cluster_the_largest_first():
    points, numbers = clusters([30, 60, 12])
    selected = select_typical(points, np.zeros(len(points), bool), 3)
    assert numbers[selected].tolist() == [1, 0, 2]
    for index in selected:  # typical: nearer to the others of its cluster than most of them
        members = points[numbers == numbers[index]]
        distances = np.linalg.norm(members[:, None] - members[None], axis=-1).mean(axis=1)
        assert np.linalg.norm(members - points[index], axis=1).mean() <= np.quantile(distances, 0.2)


def test_typicality_leaves_clusters_with_labels_for_last():
    points, numbers = clusters([30, 60, 12])
    is_labelled = np.zeros(len(points), bool)
    is_labelled[np.flatnonzero(numbers == 1)[5]] = True
    assert sorted(numbers[select_typical(points, is_labelled, 2)]) == [0, 2]


@pytest.mark.parametrize("select", SELECTIONS.values(), ids=SELECTIONS)
def test_all_candidates_can_be_selected_once(select):
    points, _ = clusters([9, 7, 5])
    is_labelled = np.zeros(len(points), bool)
    is_labelled[::4] = True
    points[1] = points[2] = 0  # a dead network's features have no direction
    selected = select(points, is_labelled, int(np.sum(~is_labelled)))
    assert sorted(selected) == np.flatnonzero(~is_labelled).tolist()
