"""Which URL is fetched next: so many of a host at a time, hosts in turn. Plain Python, no network."""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class HostQueues(Generic[Job]):
    """Jobs that wait, by host; a slow host holds up its own alone.

    Args:
        num_per_host: most jobs of one host that are under way.
        num_in_all: most jobs that are under way.
    """

    def __init__(self, num_per_host: int, num_in_all: int) -> None:
        self._num_per_host = num_per_host
        self._num_in_all = num_in_all
        self._waiting: dict[Hashable, deque[Job]] = {}
        self._num_under_way: dict[Hashable, int] = {}
        self._ready: dict[Hashable, None] = {}  # hosts with a waiting job and room for it, the one whose turn it is first
        self._total = 0

    def add(self, host: Hashable, job: Job) -> None:
        """Let a job wait."""
        self._waiting.setdefault(host, deque()).append(job)
        self._note(host)

    def take(self) -> tuple[Hashable, Job] | None:
        """The next job, which is under way from now on; None where none may begin."""
        if not self._ready or self._total >= self._num_in_all:
            return None
        host = next(iter(self._ready))
        del self._ready[host]
        job = self._waiting[host].popleft()
        if not self._waiting[host]:
            del self._waiting[host]
        self._num_under_way[host] = self._num_under_way.get(host, 0) + 1
        self._total += 1
        self._note(host)
        return host, job

    def release(self, host: Hashable) -> None:
        """A job of this host is no longer under way."""
        self._total -= 1
        self._num_under_way[host] -= 1
        if not self._num_under_way[host]:
            del self._num_under_way[host]
        self._note(host)

    def _note(self, host: Hashable) -> None:
        if host in self._waiting and self._num_under_way.get(host, 0) < self._num_per_host:
            self._ready.setdefault(host)
