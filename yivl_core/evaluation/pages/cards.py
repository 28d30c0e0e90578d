"""One sample as a card: its pictures, what was asked, what is right, and what the model and its baseline answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from yivl_core.evaluation.differences import Piece, find_differences
from yivl_core.evaluation.metrics.edits import closest_reference
from yivl_core.evaluation.pages.comparison import GROUP_WORDS
from yivl_core.evaluation.pages.filters import Filter, marks_of
from yivl_core.evaluation.pages.numbers import render_own_value
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.outputs.page import EMPTY, num, render_picture, render_rest, render_start, render_text, shortened
from yivl_core.outputs.thumbnails import UNREADABLE, Thumbnail

_MAX_PICTURES = 4  # of a sample, as of the following
_MAX_REFERENCES = 4
_MAX_PLACE_CHARACTERS = 80  # of ids and addresses
_LONG_CHARACTERS = 400  # longer answers scroll in their card
_TAGS = {"same": "", "other": "mark", "missing": "del"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CardMaker:
    """Makes the cards of a page.

    Attributes:
        figures: of the report, by name.
        primary: the name of the main one.
        filters: what samples are marked for.
        pictures: by the sha256 of their image; None: there are none to show.
        shared: sha256 of images that several samples have; each stands on the page once, by its number here.
        max_characters: of each text that are shown.
    """

    figures: Mapping[str, Any]
    primary: str
    filters: Sequence[Filter]
    pictures: Mapping[str, Thumbnail] | None
    shared: Mapping[str, int]
    max_characters: int

    def render(self, sample: dict[str, Any], rank: int) -> str:
        """A card.

        Args:
            sample: as the report has it.
            rank: its place where the worst come first.
        """
        looks, _, _ = GROUP_WORDS.get(str(sample["group"]), ("", "", ""))
        pictures = self._pictures(sample)
        references = "".join(self._reference(text) for text in sample["references"][:_MAX_REFERENCES])
        rest = len(sample["references"]) - _MAX_REFERENCES
        more = f'<div class="reference muted">(and {num(rest, "more reference")})</div>' if rest > 0 else ""
        return (
            f'<article class="card {looks}" data-marks="{marks_of(sample, self.filters)}" data-rank="{rank}">\n'
            + (f'<div class="pictures">{pictures}</div>\n' if pictures else "")
            + f"{self._question(sample)}\n<dl>{references}{more}{self._answers(sample)}</dl>\n{self._foot(sample)}\n</article>"
        )

    def _pictures(self, sample: dict[str, Any]) -> str:
        if self.pictures is None:
            return ""
        images = sample["images"]
        shown = "".join(
            self._picture(image, f"image {place} of record {sample['record_index']}")
            for place, image in enumerate(images[:_MAX_PICTURES], 1)
        )
        rest = len(images) - _MAX_PICTURES
        return shown + (f'<p class="muted">(and {num(rest, "more image")})</p>' if rest > 0 else "")

    def _picture(self, image: dict[str, Any], name: str) -> str:
        assert self.pictures is not None
        sha256 = image["sha256"]
        picture = UNREADABLE if sha256 is None else self.pictures.get(sha256)
        if picture is None:
            return f'<p class="left-out">{name} is left out, to keep this page small</p>'
        if picture.data_uri is None or sha256 not in self.shared:
            return render_picture(picture, name)
        return (
            f'<svg class="picture" role="img" aria-label="{name}" viewBox="0 0 {picture.width} {picture.height}" '
            f'width="{picture.width}" height="{picture.height}"><use href="#picture-{self.shared[sha256]}"/></svg>'
        )

    def _question(self, sample: dict[str, Any]) -> str:
        rounds = sample["num_earlier_rounds"]
        earlier = f' <span class="muted">(after {num(rounds, "earlier round")})</span>' if rounds else ""
        query = sample["query"]
        question = '<span class="muted">(no record)</span>' if query is None else self._start(query)
        return f'<p class="question" dir="auto">{question}{earlier}</p>'

    def _reference(self, text: str) -> str:
        shown = self._start(text) if text.strip() else EMPTY
        return f'<div class="reference"><dt>reference</dt>{self._text(shown, len(text))}</div>'

    def _answers(self, sample: dict[str, Any]) -> str:
        baseline = sample["baseline"]
        is_right = "right" in sample["states"]
        answer = self._answer(sample, sample["references"], is_right=is_right)
        if baseline is None:
            return f"<div><dt>answer {self._tags(sample)}</dt>{answer}</div>"
        was_right = sample["group"] in ("lost", "stayed right")
        cut = ' <span class="tag plain">cut</span>' if baseline["finish_reason"] == "length" else ""
        verdict = "" if sample["group"] is None else _verdict(is_right=was_right)
        before = self._answer(baseline, sample["references"], is_right=was_right)
        return f"<div><dt>baseline {verdict}{cut}</dt>{before}</div><div><dt>this model {self._tags(sample)}</dt>{answer}</div>"

    def _tags(self, sample: dict[str, Any]) -> str:
        states = sample["states"]
        others = [state for state in states if state not in ("right", "wrong")]
        tags = [_verdict(is_right=state == "right") for state in states if state in ("right", "wrong")]
        tags += [f'<span class="tag plain">{render_text(shortened(state))}</span>' for state in others]
        return " ".join(tags)

    def _answer(self, answer: dict[str, Any], references: Sequence[str], *, is_right: bool) -> str:
        text = answer["answer"]
        if text is None:
            kind = render_text(shortened(str(answer["error_kind"])))
            error = answer.get("error")
            told = f": {self._start(str(error))}" if error is not None else ""
            return f'<dd class="muted" dir="auto">(failed: {kind}){told}</dd>'
        shown = self._text(self._marked(text, references, is_right=is_right) if text.strip() else EMPTY, len(text))
        if answer["response"] in (None, text):
            return shown
        raw = self._start(answer["response"]) if answer["response"].strip() else EMPTY
        return f'{shown}<dd class="raw" dir="auto"><span class="muted">as written:</span> {raw}</dd>'

    def _marked(self, text: str, references: Sequence[str], *, is_right: bool) -> str:
        if is_right or not references:
            return self._start(text)
        normalised = [normalise(reference) for reference in references]
        closest = references[normalised.index(closest_reference(normalise(text), normalised))]
        pieces = find_differences(text, closest, self.max_characters)
        return "".join(map(_piece, pieces)) + render_rest(text, self.max_characters)

    def _text(self, shown: str, num_characters: int) -> str:
        if min(num_characters, self.max_characters) > _LONG_CHARACTERS:
            return f'<dd class="long" tabindex="0" dir="auto">{shown}</dd>'
        return f'<dd dir="auto">{shown}</dd>'

    def _start(self, text: str) -> str:
        return render_start(text, max_characters=self.max_characters)

    def _foot(self, sample: dict[str, Any]) -> str:
        values = [self._own(name, value) for name, value in sample["values"].items() if name in self.figures]
        lines = [" · ".join(values), f"source {_place(sample['source'])}"]
        if sample["cluster_id"] is not None:
            lines.append(f"cluster {_place(sample['cluster_id'])}")
        lines += [f"{render_text(shortened(name))}: {_place(value)}" for name, value in sample["slices"].items()]
        lines += [f"image {_place(image['uri'])}" for image in sample["images"][:_MAX_PICTURES]]
        told = "<br>".join(lines)
        value = sample["values"].get(self.primary)
        main = "" if value is None else f' <span class="own">{self._own(self.primary, value)}</span>'
        return (
            f"<details><summary>record {sample['record_index']} · <code>{_place(sample['sample_id'])}</code>{main}</summary>"
            f"<p>{told}</p></details>"
        )

    def _own(self, name: str, value: float | None) -> str:
        metric = self.figures[name]
        return f"{render_text(metric['title'])} {render_own_value(value, metric['kind'])}"


def _place(text: str) -> str:
    """An id or address: of a long one the end, which tells it from others of its kind."""
    text = str(text)
    return render_text(text if len(text) <= _MAX_PLACE_CHARACTERS else "…" + text[-_MAX_PLACE_CHARACTERS:])


def _verdict(*, is_right: bool) -> str:
    return '<span class="tag right">✓ right</span>' if is_right else '<span class="tag wrong">✗ wrong</span>'


def _piece(piece: Piece) -> str:
    tag = _TAGS[piece.kind]
    return f"<{tag}>{render_text(piece.text)}</{tag}>" if tag else render_text(piece.text)
