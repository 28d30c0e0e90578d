"""A contact sheet: some rows of an inference run with their pictures on one HTML page, for a glance at what the model wrote.

A pure function of the rows: the same rows give the same bytes. Everything that is shown is held in memory once.
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from yivl_core.outputs.page import EMPTY, num, render_document, render_picture, render_start, render_text, shortened
from yivl_core.outputs.predictions import FinishReason, Prediction, PredictionImage
from yivl_core.outputs.sheet_style import STYLE
from yivl_core.outputs.thumbnails import Thumbnail
from yivl_core.storage import publish_bytes

MARK = '<meta name="generator" content="yivl contact sheet 1">'

_MAX_PICTURES = 8  # of a record that are shown, as of the following
_MAX_ROUNDS = 8
_MAX_URI_CHARACTERS = 160
_LONG_CHARACTERS, _LONG_LINES = 700, 14  # longer texts scroll in their card
_OUTCOMES: dict[FinishReason, str] = {"stop": "ended by the model", "length": "cut at the token limit", "error": "failed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetRow:
    """One row of the sheet.

    Attributes:
        prediction: what is told of it.
        pictures: one for each of `prediction.images`.
    """

    prediction: Prediction
    pictures: tuple[Thumbnail, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What all records were asked with, said once; None: nothing, or each card says its own."""

    query: str | None
    system: str | None


def chosen_records(num_records: int, num_wanted: int, seed: int) -> list[int]:
    """Indices of records for a sheet, drawn without repetition, in ascending order; all of them where there are no more.

    Every set of `num_wanted` is as likely as any other, and memory grows with that number alone: Floyd's algorithm (J. Bentley
    and R. Floyd, "A sample of brilliance", Communications of the ACM 30(9), 1987).

    Args:
        num_records: how many there are.
        num_wanted: how many to draw.
        seed: decides which; the same ones on any machine.
    """
    if num_wanted >= num_records:
        return list(range(num_records))
    generator = random.Random(seed)
    chosen: set[int] = set()
    for last in range(num_records - num_wanted, num_records):
        drawn = int(generator.random() * (last + 1))  # of Python's draws, random() alone is promised to stay as it is
        chosen.add(last if drawn in chosen else drawn)
    return sorted(chosen)


def write_contact_sheet(url: str, rows: Iterable[SheetRow], *, num_records: int, seed: int, settings: Mapping[str, str]) -> None:
    """Publish the page, in place of what was there.

    Args:
        url: path or fsspec URL of the file.
        rows: what is shown, in this order.
        num_records: how many the run has in all.
        seed: by which the rows were chosen.
        settings: what made the answers, for the foot of the page: name -> value.

    Raises:
        StorageError: the file cannot be written.
    """
    publish_bytes(url, _render(list(rows), num_records, seed, settings).encode())


def _render(rows: Sequence[SheetRow], num_records: int, seed: int, settings: Mapping[str, str]) -> str:
    predictions = [row.prediction for row in rows]
    shared = _find_shared(predictions)
    cards = "\n".join(_card(row, shared) for row in rows)
    sections = [
        f"<header>\n<h1>Contact sheet</h1>\n{_chosen(len(rows), num_records, seed)}\n{_outcomes(predictions)}\n</header>",
        _asked(shared),
        f'<section>\n<h2>Answers</h2>\n<div class="cards">\n{cards}\n</div>\n</section>' if rows else "",
        _settings(settings),
    ]
    title = f"Contact sheet: {len(rows):,} of {num(num_records, 'row')}"
    return render_document([section for section in sections if section], title=title, mark=MARK, style=STYLE)


def _find_shared(predictions: Sequence[Prediction]) -> _Shared:
    """What was asked, as far as it is the same for all that are records."""
    queries = {prediction.query for prediction in predictions if prediction.query is not None}
    systems = {prediction.system for prediction in predictions if prediction.query is not None}
    return _Shared(
        query=queries.pop() if len(queries) == 1 else None,
        system=(systems.pop() if len(systems) == 1 else None) or None,
    )


def _chosen(num_rows: int, num_records: int, seed: int) -> str:
    if num_rows < num_records:
        how = f"{num_rows:,} of {num(num_records, 'row')}, drawn at random with seed {seed}."
    else:
        how = f"All {num(num_records, 'row')} of the run; seed {seed} left none out."
    return f'<p class="lead">{how}</p>'


def _outcomes(predictions: Sequence[Prediction]) -> str:
    counts = Counter(prediction.finish_reason for prediction in predictions)
    items = "\n".join(
        f'<li class="{reason if counts[reason] else "none"}"><strong>{counts[reason]:,}</strong> {words}</li>'
        for reason, words in _OUTCOMES.items()
    )
    return f'<ul class="outcomes" aria-label="how the answers on this page ended">\n{items}\n</ul>'


def _asked(shared: _Shared) -> str:
    told = "\n".join(
        f"<div><h2>{name} <span>(the same for every row)</span></h2>{_block('asked', text, f'{name} of every row')}</div>"
        for name, text in (("Question", shared.query), ("System text", shared.system))
        if text is not None
    )
    return f'<section class="shared">\n{told}\n</section>' if told else ""


def _card(row: SheetRow, shared: _Shared) -> str:
    prediction = row.prediction
    name = f"record {prediction.record_index}"
    tokens = "" if prediction.completion_tokens is None else f" · {num(prediction.completion_tokens, 'token')}"
    return (
        f'<article class="card {prediction.finish_reason}" aria-label="{name}">\n'
        f'<div class="pictures{" several" if len(row.pictures) > 1 else ""}">{_pictures(row, name)}</div>\n'
        f'<div class="words">\n{_context(prediction, shared, name)}{_answer(prediction, name)}{_references(prediction)}</div>\n'
        f'<p class="id">{name}{tokens}</p>\n</article>'
    )


def _pictures(row: SheetRow, name: str) -> str:
    pairs = list(zip(row.prediction.images, row.pictures, strict=True))
    if not pairs:
        return '<p class="muted">(no image)</p>'
    figures = "".join(
        f"<figure>{render_picture(picture, f'image {place} of {name}')}{_caption(image)}</figure>"
        for place, (image, picture) in enumerate(pairs[:_MAX_PICTURES], 1)
    )
    rest = len(pairs) - _MAX_PICTURES
    return figures + (f'<p class="muted">(and {num(rest, "more image")})</p>' if rest > 0 else "")


def _caption(image: PredictionImage) -> str:
    """Where an image is: of a long address the end, since that tells images of a folder apart."""
    start = "…" if len(image.uri) > _MAX_URI_CHARACTERS else ""
    folder, slash, name = image.uri[-_MAX_URI_CHARACTERS:].rpartition("/")
    path = f'<span class="muted">{start}{render_text(folder + slash)}</span>' if start or slash else ""
    return f'<figcaption dir="auto">{path}{render_text(name)}</figcaption>'


def _context(prediction: Prediction, shared: _Shared, name: str) -> str:
    """What a card says of the question, as far as it does not stand on top of the page."""
    parts = []
    if prediction.system and shared.system is None:
        parts.append(
            f"<details><summary>system text</summary>{_block('asked', prediction.system, f'system text of {name}')}</details>"
        )
    if prediction.history:
        parts.append(_history(prediction.history))
    if prediction.query is None:
        parts.append('<p class="question muted">(the input line is no record)</p>')
    elif shared.query is None:
        parts.append(_block("question", prediction.query, f"question of {name}"))
    return "".join(f"{part}\n" for part in parts)


def _history(history: Sequence[tuple[str, str]]) -> str:
    last = history[-_MAX_ROUNDS:]
    told = num(len(history), "earlier round") + (f", the last {len(last)} of them here" if len(last) < len(history) else "")
    rounds = "".join(
        f'<div><dt>asked</dt><dd dir="auto">{_lines(query)}</dd><dt>answered</dt><dd dir="auto">{_lines(response)}</dd></div>'
        for query, response in last
    )
    return f"<details><summary>{told}</summary><dl>{rounds}</dl></details>"


def _answer(prediction: Prediction, name: str) -> str:
    if prediction.response is None:
        kind = render_text(shortened(str(prediction.error_kind)))
        message = _block("message", str(prediction.error), f"what went wrong with {name}")
        return f'<p><span class="tag">{_OUTCOMES["error"]}: {kind}</span></p>\n{message}\n'
    if prediction.response.strip():
        answer = _block("answer", prediction.response, f"answer of {name}")
    else:
        answer = '<p class="muted">(empty: the model wrote nothing)</p>'
    cut = f'<p><span class="tag">{_OUTCOMES["length"]}</span></p>\n' if prediction.finish_reason == "length" else ""
    return f"{answer}\n{cut}"


def _references(prediction: Prediction) -> str:
    references = [text for text in (prediction.reference, *prediction.references) if text is not None]
    lines = "".join(f'<div><dt>reference</dt><dd dir="auto">{_lines(text)}</dd></div>' for text in references)
    return f'<dl class="references">{lines}</dl>\n' if lines else ""


def _block(kind: str, text: str, label: str) -> str:
    """A text in lines as they were written; a long one scrolls, with the keyboard too."""
    is_long = len(text) > _LONG_CHARACTERS or text.count("\n") >= _LONG_LINES
    scrolls = f' long" tabindex="0" role="group" aria-label="{label}"' if is_long else '"'
    return f'<div class="{kind}{scrolls} dir="auto">{_lines(text)}</div>'


def _lines(text: str) -> str:
    return render_start(text, has_lines=True) if text.strip() else EMPTY


def _settings(settings: Mapping[str, str]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{render_text(name)}</th><td dir="auto">{_lines(value)}</td></tr>'
        for name, value in settings.items()
    )
    return (
        f"<section>\n<h2>Where the answers come from</h2>\n<table>\n<tbody>\n{rows}\n</tbody>\n</table>\n</section>"
        if rows
        else ""
    )
