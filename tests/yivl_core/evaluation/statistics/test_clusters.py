import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.statistics.clusters import MAX_GROUPS, Clusters, group_clusters

GOLDEN_GROUPS = [3809, 6514, 2318, 1651]  # by `b2sum -l 64` of coreutils

names = st.none() | st.sampled_from(["a", "b", "", "page 1", "合计"]) | st.text(max_size=3)


def test_rows_of_one_name_are_one_cluster_and_rows_without_a_name_are_alone() -> None:
    clusters = group_clusters(["b", None, "a", "b", None], ["1", "2", "3", "4", "5"])
    assert clusters.indices.tolist() == [1, 2, 0, 1, 3]
    assert (clusters.num_clusters, clusters.num_groups, clusters.are_single) == (4, 4, False)
    assert clusters.groups.tolist() == clusters.indices.tolist()


def test_a_sample_that_is_called_like_a_cluster_is_not_in_it() -> None:
    assert group_clusters(["x", None], ["1", "x"]).num_clusters == 2


@pytest.mark.parametrize(
    ("cluster_ids", "are_single"), [([None, None], True), (["a", None], True), (["a", "a"], False), ([], True)]
)
def test_clusters_are_single_where_each_has_one_row(cluster_ids: list[str | None], are_single: bool) -> None:
    assert group_clusters(cluster_ids, [str(row) for row in range(len(cluster_ids))]).are_single == are_single


def test_no_rows_are_no_clusters() -> None:
    clusters = group_clusters([], [])
    assert (clusters.num_clusters, clusters.num_groups) == (0, 0)
    assert clusters.sum_by_group(np.zeros((0, 2), np.int64)).shape == (0, 2)


@given(cluster_ids=st.lists(names, max_size=12), data=st.data())
def test_order_of_rows_decides_nothing(cluster_ids: list[str | None], data: st.DataObject) -> None:
    sample_ids = [f"row {index}" for index in range(len(cluster_ids))]
    counts = np.array([[1, 3**index] for index in range(len(cluster_ids))], np.int64).reshape(-1, 2)
    order = data.draw(st.permutations(range(len(cluster_ids))))
    ours = group_clusters(cluster_ids, sample_ids)
    theirs = group_clusters([cluster_ids[row] for row in order], [sample_ids[row] for row in order])
    assert theirs.indices.tolist() == [ours.indices[row] for row in order]
    assert theirs.sum_by_group(counts[order]).tolist() == ours.sum_by_group(counts).tolist()
    assert ours.num_clusters == len({name for name in cluster_ids if name is not None}) + cluster_ids.count(None)


def test_sums_are_exact_beyond_floating_point() -> None:
    sums = group_clusters(["a", "a", "b"], ["1", "2", "3"]).sum_by_group(np.array([[2**53], [1], [5]], np.int64))
    assert sums.dtype == np.int64
    assert sums.tolist() == [[2**53 + 1], [5]]


def test_clusters_among_some_rows_are_counted() -> None:
    clusters = group_clusters(["a", "a", "b", None], ["1", "2", "3", "4"])
    assert clusters.count_among(np.array([True, True, False, False])) == 1
    assert clusters.count_among(np.array([False, True, False, True])) == 2
    assert clusters.count_among(np.zeros(4, bool)) == 0


def test_as_many_clusters_as_groups_stay_alone() -> None:
    clusters = _many(MAX_GROUPS)
    assert (clusters.num_clusters, clusters.num_groups) == (10_000, 10_000)
    assert np.array_equal(clusters.groups, clusters.indices)


def test_more_clusters_are_put_into_groups_by_their_names() -> None:
    """The group is worked out here with hashlib, by the rule that the module states."""
    clusters = _many(MAX_GROUPS + 1)
    assert (clusters.num_clusters, clusters.num_groups) == (10_001, 10_000)
    digest = hashlib.blake2b(b"cluster receipt 00017", digest_size=8).digest()
    assert clusters.groups[17] == int.from_bytes(digest, "big") % 10_000
    assert clusters.groups[:4].tolist() == GOLDEN_GROUPS
    counts = np.ones((10_001, 1), np.int64)
    assert clusters.sum_by_group(counts).sum() == 10_001


def test_groups_hold_about_as_many_clusters_each() -> None:
    """Poisson with mean 5: none has more than 25 but once in a million such draws."""
    clusters = _many(50_000)
    sizes = clusters.sum_by_group(np.ones((50_000, 1), np.int64))
    assert sizes.max() <= 25
    assert float(np.var(sizes)) == pytest.approx(5, rel=0.1)


def test_names_with_lone_surrogates_have_a_group() -> None:
    clusters = group_clusters([f"\ud800{number}" for number in range(10_001)], [str(number) for number in range(10_001)])
    assert clusters.num_groups == 10_000


def _many(num_clusters: int) -> Clusters:
    return group_clusters([f"receipt {number:05}" for number in range(num_clusters)], [str(row) for row in range(num_clusters)])
