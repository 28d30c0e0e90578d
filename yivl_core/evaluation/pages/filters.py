"""By what samples can be chosen on the page: kinds of filters, the options of each, and how many samples each fits."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from yivl_core.evaluation.metrics.names import HYGIENE
from yivl_core.evaluation.pages.comparison import GROUP_WORDS
from yivl_core.evaluation.samples import FAILED, RANDOM, WORST
from yivl_core.outputs.page import render_text

Sample = dict[str, Any]

_REASONS = {WORST: "among the worst", RANDOM: "drawn at random", FAILED: "failed"}
_STATES = ("right", "wrong", *HYGIENE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One way to choose samples; of its options any may fit, of several filters all have to.

    Attributes:
        title: what is looked at.
        values: of the options, as reports have them.
        labels: what they are called, in the same order.
        nums: how many samples each option fits.
        values_of: those of a sample.
    """

    title: str
    values: tuple[str, ...]
    labels: tuple[str, ...]
    nums: tuple[int, ...]
    values_of: Callable[[Sample], Iterable[str]]


def find_filters(samples: Sequence[Sample], slices: Sequence[dict[str, Any]]) -> list[Filter]:
    """The filters of a page.

    Args:
        samples: those on the page.
        slices: of the report; each is a filter.
    """
    reasons = _filter("why it is shown", samples, _reasons, tuple(_REASONS), _REASONS)
    states = _filter("the answer", samples, lambda sample: sample["states"], _STATES)
    found = [states, reasons]
    if any(sample["group"] is not None for sample in samples):
        found.insert(0, _filter("beside the baseline", samples, _group, tuple(GROUP_WORDS)))
    for part in slices:
        order = tuple(value["value"] for value in part["values"])
        in_slice = _filter(part["name"], samples, _values_in(part["name"]), order)
        if any(in_slice.nums):
            found.append(in_slice)
    return found


def marks_of(sample: Sample, filters: Sequence[Filter]) -> str:
    """The options that a sample fits, as the page's script reads them: numbers of filter and option, parted by spaces."""
    marks = []
    for kind, one in enumerate(filters):
        found = set(one.values_of(sample))
        marks += [f"{kind}.{place}" for place, value in enumerate(one.values) if value in found]
    return " ".join(marks)


def render_filter(kind: int, one: Filter, *, is_folded: bool) -> str:
    """Its options as checkboxes.

    Args:
        kind: number of the filter.
        one: the filter.
        is_folded: the options are hidden until somebody asks for them.
    """
    options = "".join(
        f'<label><input type="checkbox" name="mark" value="{kind}.{place}"{"" if number else " disabled"}>'
        f'<span dir="auto">{render_text(label)}</span><span class="count">{number:,}</span></label>'
        for place, (label, number) in enumerate(zip(one.labels, one.nums, strict=True))
    )
    title = render_text(one.title)
    if is_folded:
        fieldset = f'<fieldset><legend class="unseen">{title}</legend>{options}</fieldset>'
        return f"<details><summary>{title}</summary>{fieldset}</details>"
    return f"<fieldset><legend>{title}</legend>{options}</fieldset>"


def _filter(
    title: str,
    samples: Sequence[Sample],
    values_of: Callable[[Sample], Iterable[str]],
    order: tuple[str, ...],
    labels: dict[str, str] | None = None,
) -> Filter:
    """Known values in their order, whether or not a sample has them; then what else samples have."""
    counts = Counter(value for sample in samples for value in set(values_of(sample)))
    values = (*order, *sorted(counts.keys() - set(order)))
    return Filter(
        title=title,
        values=values,
        labels=tuple((labels or {}).get(value, value) for value in values),
        nums=tuple(counts[value] for value in values),
        values_of=values_of,
    )


def _reasons(sample: Sample) -> list[str]:
    """Without those that say what became of the answer, which is a filter of its own."""
    return [reason for reason in sample["reasons"] if reason not in GROUP_WORDS]


def _group(sample: Sample) -> list[str]:
    return [] if sample["group"] is None else [sample["group"]]


def _values_in(name: str) -> Callable[[Sample], list[str]]:
    return lambda sample: [sample["slices"][name]] if name in sample["slices"] else []
