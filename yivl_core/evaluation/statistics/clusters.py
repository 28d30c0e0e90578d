"""Which rows belong together: rows of one cluster, as lines of one receipt, are no independent evidence.

Clusters are numbered by name, so the order of rows decides nothing. Of more than `MAX_GROUPS` the bootstrap would need more
weights than fit in memory, so these are put into as many random groups, and whole groups are drawn; sums of random groups vary as
those of clusters do (K. M. Wolter, Introduction to Variance Estimation, 2nd edition, chapter 2). The group of a cluster follows
from its name alone: BLAKE2b of 8 bytes, as one number, modulo `MAX_GROUPS`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_GROUPS = 10_000

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """The clusters of some rows.

    Attributes:
        indices: int64 [num_rows], which cluster each row is in.
        num_clusters: how many there are.
        groups: int64 [num_rows], which group of clusters each row is in; `indices` where there are few enough clusters.
        num_groups: how many groups there are; with very many clusters a group may be empty.
    """

    indices: Integers
    num_clusters: int
    groups: Integers
    num_groups: int

    @property
    def are_single(self) -> bool:
        """Every cluster has one row: rows are independent."""
        return self.num_clusters == len(self.indices)

    def sum_by_group(self, counts: Integers, rows: npt.NDArray[np.bool_] | None = None) -> Integers:
        """Sums over the rows of each group.

        Args:
            counts: int64 [num_rows, num_columns].
            rows: bool [num_rows], those that count; None: all.

        Returns:
            int64 [num_groups, num_columns], exact.
        """
        sums = np.zeros((self.num_groups, counts.shape[1]), np.int64)
        if rows is None:
            np.add.at(sums, self.groups, counts)
        else:
            np.add.at(sums, self.groups[rows], counts[rows])
        return sums

    def count_among(self, rows: npt.NDArray[np.bool_]) -> int:
        """How many clusters have one of these rows.

        Args:
            rows: bool [num_rows].
        """
        return int(np.count_nonzero(np.bincount(self.indices[rows], minlength=self.num_clusters)))


def group_clusters(cluster_ids: Sequence[str | None], sample_ids: Sequence[str]) -> Clusters:
    """The clusters of rows.

    Args:
        cluster_ids: of each row; a row with None is a cluster of its own.
        sample_ids: of each row, each once.
    """
    # The first word keeps a sample apart from a cluster that is called the same.
    names = [
        f"sample {sample_id}" if cluster_id is None else f"cluster {cluster_id}"
        for cluster_id, sample_id in zip(cluster_ids, sample_ids, strict=True)
    ]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    indices = np.fromiter(map(numbers.__getitem__, names), np.int64, len(names))
    if len(numbers) <= MAX_GROUPS:
        return Clusters(indices=indices, num_clusters=len(numbers), groups=indices, num_groups=len(numbers))
    group_of_cluster = np.fromiter(map(_group_of, numbers), np.int64, len(numbers))
    return Clusters(indices=indices, num_clusters=len(numbers), groups=group_of_cluster[indices], num_groups=MAX_GROUPS)


def _group_of(name: str) -> int:
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % MAX_GROUPS
