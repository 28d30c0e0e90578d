"""Whether a run still learns: the first step whose loss or gradient is no number, and a loss that rises for good."""

from collections import deque

import torch

# So many logged losses are taken together, and so much worse, in nats a token, is worse than any noise: 7 times the perplexity.
_WINDOW, _RISE = 16, 2.0


class Finiteness:
    """Remembers the first step that gave no finite number, without waiting for the GPU before it is asked.

    Args:
        device: of the values.
    """

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)

    def note(self, step: int, value: torch.Tensor) -> None:
        """A value, a scalar, of a step (from 1)."""
        is_fine = torch.isfinite(value) | (self._first_bad >= 0)
        self._first_bad = torch.where(is_fine, self._first_bad, step)

    @property
    def first_bad_step(self) -> int | None:
        """The first step with a value that was no finite number; waits for the GPU."""
        step = int(self._first_bad.item())
        return None if step < 0 else step


class Divergence:
    """Sees a loss that has risen for good: above what it was at the start, and far above what it was at best."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=_WINDOW)
        self._first: float | None = None
        self._best = float("inf")

    def note(self, loss: float) -> str:
        """Of the next logged step; in words what is wrong, or nothing."""
        self._last.append(loss)
        if len(self._last) < _WINDOW:
            return ""
        mean = sum(self._last) / _WINDOW
        self._first = mean if self._first is None else self._first
        self._best = min(self._best, mean)
        if mean > self._first and mean > self._best + _RISE:
            return (
                f"the loss has risen for good: {mean:.3g} in the mean of the last {_WINDOW} logged steps, {self._best:.3g} at "
                f"best, {self._first:.3g} at the start"
            )
        return ""
