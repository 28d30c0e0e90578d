"""Which requests run in the next step. Plain Python, no torch.

Requests are started in the order in which they came. A step is either a prefill, which starts some of them, or a decode, which
gives each running one its next token. A prefill waits until it is worth its while: until a group can be started, or all that are
left, or nothing runs. A group is a full prefill, and no more than a quarter of what can run. So decodes are not broken off for
each single row, and rows hardly ever stand empty.

All is decided by the requests and their tokens, never by the clock: the same requests in the same order run in the same steps.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import ceil

from yivl_core.inference.slots import SlotAllocator

# A group of rows that are refilled together is one of so many at least.
_GROUPS = 4


@dataclass(slots=True, eq=False, kw_only=True)
class Generation:
    """One request on its way.

    Attributes:
        number: names it.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the prompt that have to be computed; those before them are copied from what was computed once.
        max_new_tokens: most tokens of the answer, at least 1.
        row: its place in batches, while it runs.
        start: where its slot in the cache starts, while it runs.
        num_scheduled: tokens of the answer that have been ordered, seen or not.
        is_running: whether it has a row and a slot.
    """

    number: int
    prompt_tokens: int
    new_tokens: int
    max_new_tokens: int
    row: int = -1
    start: int = -1
    num_scheduled: int = 0
    is_running: bool = False

    @property
    def slot_tokens(self) -> int:
        """Tokens of its slot: all it can ever hold. The last token of an answer is never read again."""
        return self.prompt_tokens + self.max_new_tokens - 1


@dataclass(frozen=True, slots=True)
class Prefill:
    """A step that starts requests; each gets its first token."""

    generations: Sequence[Generation]


@dataclass(frozen=True, slots=True)
class Decode:
    """A step that gives each of these its next token."""

    generations: Sequence[Generation]


class Scheduler:
    """Gives out rows and slots.

    Args:
        num_rows: most requests that run at a time.
        cache_tokens: tokens of the cache.
        prefill_rows: most requests that one prefill starts.
        prefill_tokens: most tokens that one prefill computes; a longer prompt gets one of its own.

    Attributes:
        cache_tokens: as given.
        is_input_over: whether no more requests will be added; set by whoever adds them.
    """

    def __init__(self, *, num_rows: int, cache_tokens: int, prefill_rows: int, prefill_tokens: int) -> None:
        self.cache_tokens = cache_tokens
        self.is_input_over = False
        self._prefill_rows = _group_size(num_rows, prefill_rows)
        self._group_rows = min(self._prefill_rows, max(1, num_rows // _GROUPS))
        self._prefill_tokens = prefill_tokens
        self._slots = SlotAllocator(cache_tokens)
        self._rows = list(range(num_rows))
        heapify(self._rows)
        self._waiting: deque[Generation] = deque()
        self._running: dict[int, Generation] = {}  # by row

    @property
    def num_running(self) -> int:
        """How many requests hold a row."""
        return len(self._running)

    @property
    def num_wanted(self) -> int:
        """How many more requests the next step would look at, if there are that many."""
        if self._running and len(self._rows) < self._group_rows:
            return 0
        return max(0, self._prefill_rows - len(self._waiting))

    def add(self, generation: Generation) -> None:
        """Takes a request in; its prompt and answer have to fit into the cache."""
        assert 0 < generation.new_tokens <= generation.prompt_tokens
        assert generation.max_new_tokens > 0
        assert generation.slot_tokens <= self.cache_tokens, "the cache is smaller than one request"
        self._waiting.append(generation)

    def next_step(self) -> Prefill | Decode | None:
        """The next step; None where there is nothing to do until a token is looked at or a request is added."""
        if started := self._start():
            return Prefill(started)
        unfinished = [g for _, g in sorted(self._running.items()) if g.num_scheduled < g.max_new_tokens]
        for generation in unfinished:
            generation.num_scheduled += 1
        return Decode(unfinished) if unfinished else None

    def finish(self, generation: Generation) -> None:
        """Takes row and slot of a request that has ended or is given up; what waits is forgotten."""
        if not generation.is_running:
            self._waiting.remove(generation)
            return
        generation.is_running = False
        del self._running[generation.row]
        heappush(self._rows, generation.row)
        self._slots.give_back(generation.start, generation.slot_tokens)

    def _start(self) -> list[Generation]:
        started: list[Generation] = []
        tokens, is_full = 0, False
        while self._waiting and not is_full:
            candidate = self._waiting[0]
            exceeds = tokens + candidate.new_tokens > self._prefill_tokens
            is_full = len(started) == self._prefill_rows or (bool(started) and exceeds)
            if is_full or not self._try_to_run(candidate):
                break
            tokens += candidate.new_tokens
            started.append(self._waiting.popleft())
        if is_full or self._is_worthwhile(len(started)):
            for generation in started:
                generation.num_scheduled = 1
            return started
        for generation in reversed(started):
            self.finish(generation)
            self._waiting.appendleft(generation)
        return []

    def _is_worthwhile(self, num_started: int) -> bool:
        """Whether to prefill for so many, which run already."""
        if num_started >= self._group_rows or num_started == len(self._running):
            return True
        if not self._waiting:
            return self.is_input_over
        has_no_room = bool(self._rows)  # in the cache, since there are rows
        return has_no_room and num_started * _GROUPS >= len(self._running)

    def _try_to_run(self, generation: Generation) -> bool:
        if not self._rows:
            return False
        start = self._slots.take(generation.slot_tokens)
        if start is None:
            return False
        generation.row, generation.start, generation.is_running = heappop(self._rows), start, True
        self._running[generation.row] = generation
        return True


def _group_size(num_rows: int, most: int) -> int:
    """How many rows are refilled together: if possible a number that divides them, so that no remainder stands empty."""
    most = min(most, num_rows)
    divisors = (size for size in range(most, most // 2, -1) if num_rows % size == 0)
    return next(divisors, ceil(num_rows / ceil(num_rows / most)))
