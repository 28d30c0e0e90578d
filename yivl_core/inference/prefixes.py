"""Which starts of prompts are kept: those that many share are computed once, into a part of the cache that is theirs.

`ModelRunner` computes and copies.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from yivl_core.inference.requests import Request
from yivl_core.inference.slots import SlotAllocator

# A shorter start is computed with each prompt: a step of its own would cost more.
MIN_PREFIX_TOKENS = 16
PREFIX_CACHE_TOKENS = 1024


def prefix_length(request: Request) -> int:
    """How many tokens at the start of a prompt are kept for other prompts that start with the same."""
    length = request.inputs.num_shared
    return length if MIN_PREFIX_TOKENS <= length <= PREFIX_CACHE_TOKENS else 0


class KeptPrefixes:
    """Which starts are kept, and where.

    Attributes:
        num_tokens: of the part of the cache.
    """

    def __init__(self) -> None:
        self.num_tokens = PREFIX_CACHE_TOKENS
        self._slots = SlotAllocator(self.num_tokens)
        self._places: OrderedDict[bytes, tuple[int, int]] = OrderedDict()  # tokens -> start, length

    def find(self, input_ids: npt.NDArray[np.int64]) -> int | None:
        """Where these tokens stand; None: they are not kept."""
        key = input_ids.tobytes()
        if key not in self._places:
            return None
        self._places.move_to_end(key)
        return self._places[key][0]

    @contextmanager
    def room_for(self, input_ids: npt.NDArray[np.int64]) -> Iterator[int]:
        """The start of a stretch to compute these in; they are kept if that succeeds. Those unused for longest give way."""
        length = len(input_ids)
        start = self._slots.take(length)
        while start is None:
            self._slots.give_back(*self._places.popitem(last=False)[1])
            start = self._slots.take(length)
        try:
            yield start
        except BaseException:
            self._slots.give_back(start, length)
            raise
        self._places[input_ids.tobytes()] = start, length
