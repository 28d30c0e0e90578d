"""A comparison as one HTML page: no script, no request, light and dark, wide and narrow. What others wrote is shown as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from html import escape

from yivl_core.evaluation.comparison_style import STYLE
from yivl_core.evaluation.differences import Piece, find_differences
from yivl_core.evaluation.metrics.edits import closest_reference
from yivl_core.evaluation.pairing import Answer, Figures, Group, Pair, Pairing
from yivl_core.evaluation.texts.normalisation import MAIN, normalise
from yivl_core.outputs.page import EMPTY, num, render_document, render_picture, render_rest, render_start, render_text, shortened
from yivl_core.outputs.thumbnails import Thumbnail

MARK = '<meta name="generator" content="yivl comparison 1">'

_WORDS = {  # of each group: its sign, and what it means
    Group.MENDED: ("✗ → ✓", "wrong before, right after"),
    Group.LOST: ("✓ → ✗", "right before, wrong after"),
    Group.STAYED_WRONG: ("✗ → ✗", "wrong before and after"),
    Group.STAYED_RIGHT: ("✓ → ✓", "right before and after"),
    Group.CHANGED: ("≠", "no reference; the answers differ"),
    Group.UNCHANGED: ("=", "no reference; the answers are equal"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Digests (hex) of what made a model's predictions, None where it is not known, and of the predictions themselves."""

    model: str | None
    adapter: str | None
    data: str | None
    content: str


def render_page(pairing: Pairing, pictures: Sequence[Sequence[Thumbnail]] | None, *, before: Origin, after: Origin) -> str:
    """The page.

    Args:
        pairing: what is shown on it.
        pictures: those of each sample; None: there are none to show.
        before: where the baseline's answers come from.
        after: where the other answers come from.
    """
    body = [
        _heading(pairing),
        _figures(pairing),
        _groups(pairing),
        _samples(pairing, pictures),
        _origin(before, after),
    ]
    title = f"Before and after: {num(pairing.num_matched, 'record')} answered by two models"
    return render_document(body, title=title, mark=MARK, style=STYLE)


def _heading(pairing: Pairing) -> str:
    lines = [
        "<h1>Before and after</h1>",
        f'<p class="lead">{num(pairing.num_matched, "record")}, answered by the baseline (before) and by the model that is '
        "compared with it (after).</p>",
    ]
    for number, names, side in (
        (pairing.only_before, pairing.named_before, "baseline"),
        (pairing.only_after, pairing.named_after, "compared model"),
    ):
        if number:
            named = ", ".join(f"<code>{render_text(shortened(name))}</code>" for name in names)
            rest = f" and {number - len(names):,} more" if number > len(names) else ""
            lines.append(
                f'<p class="note">Left out: {num(number, "record")} that only the {side} has answered ({named}{rest}).</p>'
            )
    return "\n".join(lines)


def _figures(pairing: Pairing) -> str:
    before, after = pairing.before, pairing.after
    rows = []
    if after.score.num_rows:
        rows = [
            _figure_row('<abbr title="character error rate">CER</abbr>', before.score.cer, after.score.cer, best="low"),
            _figure_row("exact match", before.score.exact_match, after.score.exact_match, best="high"),
            _count_row("records with a reference", before.score.num_rows, after.score.num_rows, best=None),
        ]
    rows += [_count_row(name, count(before), count(after), best="low") for name, count in _COUNTS]
    note = (
        f"CER: edits over reference characters. Text is compared after <code>{escape(MAIN)}</code>: neither case nor the "
        "kind and length of white space counts. A failed record counts as an empty answer."
        if after.score.num_rows
        else "None of the records has a reference, so nobody can say which answers are right: only whether they differ is shown."
    )
    return (
        '<section>\n<h2>Figures</h2>\n<table class="figures">\n<thead><tr><th scope="col">figure</th><th scope="col">before</th>'
        '<th scope="col">after</th><th scope="col">change</th></tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table>\n"
        f'<p class="note">{note}</p>\n</section>'
    )


_COUNTS: tuple[tuple[str, Callable[[Figures], int]], ...] = (
    ("failed", lambda figures: figures.num_failed),
    ("empty", lambda figures: figures.num_empty),
    ("cut at the most new tokens", lambda figures: figures.num_cut),
)


def _figure_row(name: str, before: float | None, after: float | None, best: str) -> str:
    if before is None or after is None:
        return _row(name, "-", "-", "-")
    return _row(name, _percent(before), _percent(after), _change(100 * (after - before), "{:.2f} points", best), is_main=True)


def _count_row(name: str, before: int, after: int, best: str | None) -> str:
    return _row(name, f"{before:,}", f"{after:,}", _change(after - before, "{:,}", best))


def _row(name: str, before: str, after: str, change: str, *, is_main: bool = False) -> str:
    cells = f'<th scope="row">{name}</th><td>{before}</td><td>{after}</td><td>{change}</td>'
    return f'<tr class="main">{cells}</tr>' if is_main else f"<tr>{cells}</tr>"


def _change(difference: float, form: str, best: str | None) -> str:
    size = form.format(abs(difference))
    if not any(digit in size for digit in "123456789"):
        return '<span class="muted">no change</span>'
    shown = f"{'+' if difference > 0 else '−'}{size}"
    if best is None:
        return shown
    word = "better" if (difference > 0) == (best == "high") else "worse"
    return f'{shown} <span class="{word}">{word}</span>'


def _groups(pairing: Pairing) -> str:
    groups = [group for group in Group if pairing.counts[group]]
    bar = "".join(f'<span class="{_class(group)}" style="flex-grow:{pairing.counts[group]}"></span>' for group in groups)
    told = ", ".join(f"{pairing.counts[group]:,} {group}" for group in groups)
    asked = [Group.MENDED, Group.LOST, Group.STAYED_WRONG, Group.STAYED_RIGHT] if pairing.after.score.num_rows else []
    tiles = "\n".join(_tile(pairing, group) for group in Group if group in asked or group in groups)
    return (
        f'<section>\n<h2>What became of the answers</h2>\n<div class="bar" role="img" aria-label="{told}">{bar}</div>\n'
        f'<ul class="tiles">\n{tiles}\n</ul>\n</section>'
    )


def _tile(pairing: Pairing, group: Group) -> str:
    sign, meaning = _WORDS[group]
    share = _percent(pairing.counts[group] / pairing.num_matched)
    return (
        f'<li class="{_class(group)}"><strong>{pairing.counts[group]:,}</strong> <span class="name">{group}</span> '
        f'<span class="meaning">{share} · {sign}</span> <span class="meaning">{meaning}</span></li>'
    )


def _samples(pairing: Pairing, pictures: Sequence[Sequence[Thumbnail]] | None) -> str:
    cards = list(zip(pairing.samples, pictures or [()] * len(pairing.samples), strict=True))
    sections = []
    for group in Group:
        shown = [_card(pair, thumbnails) for pair, thumbnails in cards if pair.group is group]
        if shown:
            sections.append(
                f'<h3 class="{_class(group)}">{group.capitalize()} <span class="meaning">{_WORDS[group][1]} · '
                f"{len(shown)} of {pairing.counts[group]:,} shown</span></h3>\n"
                f'<div class="cards">\n' + "\n".join(shown) + "\n</div>"
            )
    legend = (
        "In wrong answers <mark>this</mark> is not in the reference, or differs from it, and <del>this</del> is in the reference "
        "and missing from the answer. "
        if pairing.after.score.num_rows
        else ""
    )
    return (
        f"<section>\n<h2>Samples</h2>\n"
        f'<p class="note">{legend}{_how_chosen(pairing)}{"" if pictures is not None else " Images were not asked for."}</p>\n'
        + "\n".join(sections)
        + "\n</section>"
    )


def _how_chosen(pairing: Pairing) -> str:
    if len(pairing.samples) == pairing.num_matched:
        return "All records are shown."
    return (
        f"{len(pairing.samples):,} of {num(pairing.num_matched, 'record')} are shown: from each group in proportion to its "
        "size, but at least three where it has as many; within a group those whose sample id has the smallest SHA-256, so the "
        "choice is always the same and looks at no answer."
    )


def _card(pair: Pair, thumbnails: Sequence[Thumbnail]) -> str:
    prediction = pair.prediction
    number = prediction.record_index
    rounds = len(prediction.history)
    earlier = f' <span class="muted">(after {num(rounds, "earlier round")})</span>' if rounds else ""
    question = render_start(prediction.query) if prediction.query is not None else '<span class="muted">(no record)</span>'
    pictures = "".join(
        render_picture(picture, f"image {place} of record {number}") for place, picture in enumerate(thumbnails, 1)
    )
    rows = [_line("reference", "", _reference(reference)) for reference in pair.after.references]
    rows += [_line(when, _verdict(answer), _answer(answer)) for when, answer in (("before", pair.before), ("after", pair.after))]
    return (
        f'<article class="card {_class(pair.group)}">\n'
        + (f'<div class="pictures">{pictures}</div>\n' if pictures else "")
        + f'<p class="question" dir="auto">{question}{earlier}</p>\n<dl>\n'
        + "\n".join(rows)
        + f'\n</dl>\n<p class="id">record {number} · <code>{render_text(shortened(prediction.sample_id))}</code></p>\n</article>'
    )


def _line(name: str, verdict: str, text: str) -> str:
    return f'<div class="{name}"><dt>{name}{verdict}</dt><dd dir="auto">{text}</dd></div>'


def _verdict(answer: Answer) -> str:
    cut = ' <span class="tag cut">cut</span>' if answer.is_cut else ""
    if not answer.references:
        return cut
    return (' <span class="tag right">✓ right</span>' if answer.is_right else ' <span class="tag wrong">✗ wrong</span>') + cut


def _reference(reference: str) -> str:
    return render_start(reference) if reference.strip() else EMPTY


def _answer(answer: Answer) -> str:
    if answer.text is None:
        return f'<span class="muted">(failed: {render_text(str(answer.error_kind))})</span>'
    if answer.is_empty:
        return EMPTY
    if answer.is_right or not answer.references:
        return render_start(answer.text)
    normalised = [normalise(reference) for reference in answer.references]
    closest = answer.references[normalised.index(closest_reference(normalise(answer.text), normalised))]
    pieces = "".join(_piece(piece) for piece in find_differences(answer.text, closest))
    return pieces + render_rest(answer.text)


_TAGS = {"same": "", "other": "mark", "missing": "del"}


def _piece(piece: Piece) -> str:
    tag = _TAGS[piece.kind]
    return f"<{tag}>{render_text(piece.text)}</{tag}>" if tag else render_text(piece.text)


def _origin(before: Origin, after: Origin) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{field.name}</th>'
        + "".join(f"<td>{_digest(getattr(side, field.name))}</td>" for side in (before, after))
        + "</tr>"
        for field in fields(Origin)
    )
    return (
        '<section>\n<h2>Where the answers come from</h2>\n<table class="origin">\n<thead><tr><th scope="col">SHA-256 of</th>'
        f'<th scope="col">before</th><th scope="col">after</th></tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>'
    )


def _digest(digest: str | None) -> str:
    return '<span class="muted">none</span>' if digest is None else f"<code>{render_text(digest[:16])}</code>"


def _class(group: Group) -> str:
    return group.replace(" ", "-")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}\N{NO-BREAK SPACE}%"
