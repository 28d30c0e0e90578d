"""Slots: which stretch of the key-value cache belongs to whom. Plain Python, no torch.

```
tokens of the cache   0                                   num_tokens
                      | slot a      | free | slot b   | free |
```

A slot is one stretch as long as its request can become, taken when the request starts and given back when it ends, so that no
request ever runs out of room on its way, and requests of any length share the cache.
"""

from bisect import bisect_left


class SlotAllocator:
    """Gives out stretches of the cache, first fit, and joins what comes back.

    Args:
        num_tokens: how many tokens there are to give out, counted from 0.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self._free: list[tuple[int, int]] = [(0, num_tokens)] if num_tokens else []  # (start, length), by start

    @property
    def num_free(self) -> int:
        """Tokens that nobody has, in one stretch or in several."""
        return sum(length for _, length in self._free)

    def take(self, length: int) -> int | None:
        """The start of a stretch of so many tokens; None where no stretch is that long."""
        for place, (start, free) in enumerate(self._free):
            if free >= length:
                self._free[place : place + 1] = [(start + length, free - length)] if free > length else []
                return start
        return None

    def give_back(self, start: int, length: int) -> None:
        """Frees a stretch that `take` gave."""
        place = bisect_left(self._free, (start, 0))
        before, after = self._free[:place], self._free[place:]
        assert not before or sum(before[-1]) <= start, "it was free already"
        assert not after or start + length <= after[0][0], "it was free already"
        if before and sum(before[-1]) == start:
            start, length = before[-1][0], before[-1][1] + length
            before = before[:-1]
        if after and start + length == after[0][0]:
            length += after[0][1]
            after = after[1:]
        self._free = [*before, (start, length), *after]
