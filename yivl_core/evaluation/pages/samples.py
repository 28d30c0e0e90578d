"""The samples of a page, with what chooses among them, in as much room as they are given."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from yivl_core.evaluation.pages.cards import CardMaker
from yivl_core.evaluation.pages.filters import Filter, find_filters, render_filter
from yivl_core.outputs.page import MAX_CHARACTERS, num, render_attribute
from yivl_core.outputs.thumbnails import Thumbnail

_LIMITS = (MAX_CHARACTERS, 1000, 500, 250, 120, 60, 30)
_EVERY = 19  # cards, of which one is made to see how much room all take
_NUM_OPEN = 3  # filters whose options can be seen at once

Pictures = Mapping[str, Thumbnail] | None


def render_samples(report: dict[str, Any], pictures: Pictures, max_bytes: int) -> str:
    """The section of samples.

    Args:
        report: all of it.
        pictures: by the sha256 of their image; those that are not there are told of. None: none were asked for.
        max_bytes: room for the cards with their pictures: texts are cut shorter where they would take more, and where that is
            not enough the last samples are left out.
    """
    samples = report["samples"]
    if not samples:
        return '<section id="samples">\n<h2>Samples</h2>\n<p class="note">No samples were asked for.</p>\n</section>'
    shared = _shared_images(samples, pictures)
    store = _store(shared, pictures)
    cards = _cards(report, pictures, shared, max_bytes - len(store))
    num_shown = len(cards)
    filters = find_filters(samples[:num_shown], report["slices"])
    body = "\n".join(cards)
    return (
        f'<section id="samples">\n<h2>Samples</h2>\n<p class="note">{_legend()} {_how_chosen(report, num_shown)} '
        f"{_which_pictures(samples[:num_shown], pictures)}</p>\n"
        '<noscript><p class="note">All samples are shown; to filter, search and sort them, this page’s script has to run.</p>'
        f"</noscript>\n{store}"
        f'<div id="browse">\n{_controls(report, filters, num_shown)}\n<div id="cards">\n{body}\n</div>\n</div>\n</section>'
    )


def _cards(report: dict[str, Any], pictures: Pictures, shared: Mapping[str, int], max_bytes: int) -> list[str]:
    """With as much of each text as there is room for."""
    places = range(len(report["samples"]))
    for limit in _LIMITS:
        some = _make_cards(report, pictures, shared, limit, places[::_EVERY])
        if _num_bytes(some) * len(places) > max_bytes * len(some) and limit != _LIMITS[-1]:
            continue
        cards = _make_cards(report, pictures, shared, limit, places)
        if _num_bytes(cards) <= max_bytes:
            return cards
    ends = itertools.accumulate(len(card.encode()) for card in cards)
    kept = places[: sum(end <= max_bytes for end in ends)]
    return _make_cards(report | {"samples": report["samples"][: len(kept)]}, pictures, shared, limit, kept)


def _num_bytes(cards: Sequence[str]) -> int:
    return sum(len(card.encode()) for card in cards)


def _make_cards(
    report: dict[str, Any], pictures: Pictures, shared: Mapping[str, int], limit: int, places: Sequence[int]
) -> list[str]:
    samples = report["samples"]
    maker = CardMaker(
        figures=report["figures"],
        primary=report["scoring"]["primary"],
        filters=find_filters(samples, report["slices"]),
        pictures=pictures,
        shared=shared,
        max_characters=limit,
    )
    ranks = _ranks(report)
    return [maker.render(samples[place], ranks[place]) for place in places]


def _ranks(report: dict[str, Any]) -> list[int]:
    """The place of each sample where those with the worst figure of their own come first; without a figure they come last."""
    primary = report["scoring"]["primary"]
    sign = -1 if report["figures"].get(primary, {}).get("best") == "low" else 1
    values = [sample["values"].get(primary) for sample in report["samples"]]
    order = sorted(range(len(values)), key=lambda place: (values[place] is None, sign * (values[place] or 0.0), place))
    ranks = [0] * len(values)
    for rank, place in enumerate(order):
        ranks[place] = rank
    return ranks


def _shared_images(samples: Sequence[dict[str, Any]], pictures: Pictures) -> dict[str, int]:
    counts = Counter(image["sha256"] for sample in samples for image in sample["images"])
    found = (sha256 for sha256, number in counts.items() if number > 1 and sha256 is not None)
    shown = [sha256 for sha256 in found if pictures and sha256 in pictures and pictures[sha256].data_uri is not None]
    return {sha256: number for number, sha256 in enumerate(shown)}


def _store(shared: Mapping[str, int], pictures: Pictures) -> str:
    """Images that several cards point to."""
    if not shared or pictures is None:
        return ""
    images = "\n".join(
        f'<image id="picture-{number}" href="{pictures[sha256].data_uri}" width="{pictures[sha256].width}" '
        f'height="{pictures[sha256].height}"/>'
        for sha256, number in shared.items()
    )
    return f'<svg class="store" width="0" height="0" aria-hidden="true" focusable="false"><defs>\n{images}\n</defs></svg>\n'


def _controls(report: dict[str, Any], filters: Sequence[Filter], num_samples: int) -> str:
    primary = report["figures"].get(report["scoring"]["primary"])
    worst = "worst first" if primary is None else f"worst {render_attribute(primary['title'])} first"
    boxes = "\n".join(render_filter(kind, one, is_folded=kind >= _NUM_OPEN) for kind, one in enumerate(filters))
    told = f"{num(num_samples, 'sample')}"
    return (
        '<form id="controls" hidden autocomplete="off" aria-label="choose among the samples">\n<div class="tools">\n'
        '<label class="search">Search <input type="search" id="search" placeholder="question, answer, id …"></label>\n'
        f'<label>Order <select id="order"><option value="record">as in the records</option><option value="worst">{worst}</option>'
        "</select></label>\n"
        '<button type="reset">Clear filters</button>\n'
        f'<p id="told" role="status" aria-live="polite">{told}</p>\n</div>\n'
        f'<details id="filters" open><summary>Filters</summary>\n{boxes}\n</details>\n</form>'
    )


def _legend() -> str:
    return (
        "In wrong answers <mark>this</mark> is not in the reference, or differs from it, and <del>this</del> is in the reference "
        "and missing from the answer; case and the kind of white space are not marked."
    )


def _how_chosen(report: dict[str, Any], num_shown: int) -> str:
    num_left_out, too_many = report["num_samples_left_out"], len(report["samples"]) - num_shown
    if not num_left_out and not too_many:
        return "All rows with a reference are shown."
    told = (
        f"{num_shown:,} of {num(report['rows']['compared'], 'row')} are shown: the worst, failed ones, those that the baseline "
        "has otherwise, and some at random, by the SHA-256 of their ids."
    )
    return told + (f" The last {too_many:,} samples of report.json are left out, to keep this page small." if too_many else "")


def _which_pictures(samples: Sequence[dict[str, Any]], pictures: Pictures) -> str:
    wanted = {image["sha256"] for sample in samples for image in sample["images"] if image["sha256"] is not None}
    if pictures is None:
        return "Images were not asked for: give the dataset to see them." if wanted else ""
    num_left_out = len(wanted - pictures.keys())
    if not num_left_out:
        return ""
    return (
        f"To keep this page small it holds {num(len(wanted) - num_left_out, 'image')} and leaves out {num_left_out:,}: those of "
        "the worst answers come first, then of answers that changed, random and failed ones, and the rest."
    )
