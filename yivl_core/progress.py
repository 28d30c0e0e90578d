"""How long work tells what it is doing: small events to a callback, so that the core needs no logger, bar or server."""

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step forward.

    Attributes:
        stage: what is being done, in a word or two (`train`, `infer`).
        done: units finished so far.
        total: units in all, or None where that is not known.
        unit: what is counted (`step`, `record`, `tensor`).
        figures: the latest figures by name (`loss`, `images_per_s`).
        remaining_s: seconds that the rest will take at the pace so far; None where that is not known.
        message: one line for a person, where figures do not say it.
    """

    stage: str
    done: int
    total: int | None
    unit: str
    figures: dict[str, float] = field(default_factory=dict)
    remaining_s: float | None = None
    message: str = ""


OnProgress = Callable[[Progress], None]


def ignore_progress(_: Progress) -> None:
    """The callback of a caller that does not watch."""
