"""Resamples of groups, drawn with replacement, as sums (B. Efron and R. Tibshirani, An Introduction to the Bootstrap, chapter 6).

A figure is a function of sums, so a resample needs no rows: how often each group was drawn, times the groups' sums. All of these
are whole numbers, and those below 2**53 are exact in float64 whatever the order of adding, so BLAS, its threads and the machine
change nothing. Nor does the version of numpy: it promises the same bits from PCG64 for a seed, in all versions, but not the same
numbers from `Generator.integers` or `multinomial` (NEP 19), so groups are made of the bits here.
"""

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2_000

_CHUNK = 256  # resamples whose weights are float64 at once: 20 MB of 10,000 groups
_EXACT = 2**53
_LOW_BITS = 26
_HALF = np.uint64(32)


class Bootstrap:
    """Resamples of one report: the same for all its figures, so that differences and parts of the data go together.

    Args:
        num_groups: groups to draw from, below 2**16; each resample draws as many.
        num_resamples: how many resamples there are.
        seed: of the draws; not negative.
    """

    def __init__(self, num_groups: int, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> None:
        assert 0 <= num_groups < 2**16, "weights are kept in 16 bits, and sums are exact below 2**16 groups"
        self.num_groups, self.num_resamples = num_groups, num_resamples
        self._weights = _draw_weights(num_groups, num_resamples, seed)

    def sums(self, by_group: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Sums of the groups of each resample.

        Args:
            by_group: int64 [num_groups, num_columns].

        Returns:
            float64 [num_resamples, num_columns], exact below 2**53; larger sums are rounded once, from the exact ones.
        """
        most = max(int(by_group.max(initial=0)), -int(by_group.min(initial=0)))
        if most * self.num_groups < _EXACT:
            return self._multiply(by_group)
        high, low = by_group >> _LOW_BITS, by_group & (2**_LOW_BITS - 1)  # each small enough to be exact
        return self._multiply(high) * 2.0**_LOW_BITS + self._multiply(low)

    def _multiply(self, by_group: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        values = by_group.astype(np.float64)
        sums = np.empty((self.num_resamples, by_group.shape[1]), np.float64)
        for start in range(0, self.num_resamples, _CHUNK):
            sums[start : start + _CHUNK] = self._weights[start : start + _CHUNK].astype(np.float64) @ values
        return sums


def _draw_weights(num_groups: int, num_resamples: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each group is in each resample: [num_resamples, num_groups].

    A draw is the upper 32 of 64 bits, as a fraction of 2**32, times the number of groups, rounded down (D. Lemire, Fast Random
    Integer Generation in an Interval, 2019, without its rejection). The chances of two groups differ by less than 2**-16 of
    either.
    """
    bits = np.random.PCG64(seed)
    weights = np.empty((num_resamples, num_groups), np.uint16)
    for resample in range(num_resamples):
        draws = (bits.random_raw(num_groups) >> _HALF) * np.uint64(num_groups) >> _HALF
        weights[resample] = np.bincount(draws.astype(np.intp), minlength=num_groups)
    return weights
