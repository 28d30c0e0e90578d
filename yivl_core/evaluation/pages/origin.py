"""Where the figures come from: settings of the scoring, and what the manifests say, folded."""

from collections.abc import Iterator
from typing import Any

from yivl_core.outputs.page import render_start, render_text

_MAX_LEAVES = 400  # of a manifest that are shown
_MAX_CHARACTERS = 300  # of a value
_NO_MANIFEST = "There is no manifest beside these predictions, so their model is unknown."


def render_origin(report: dict[str, Any]) -> str:
    """The section of settings and manifests."""
    blocks = [
        _block("Settings of the scoring", report["scoring"], ""),
        _predictions("Predictions", report["predictions"]),
    ]
    if report["comparison"] is not None:
        blocks.append(_predictions("Baseline", report["comparison"]["baseline"]))
    return '<section id="origin">\n<h2>Where the figures come from</h2>\n' + "\n".join(blocks) + "\n</section>"


def _predictions(name: str, origin: dict[str, Any]) -> str:
    digest = f'<p class="note">SHA-256 of the rows: <code>{render_text(str(origin["content_digest"]))}</code></p>'
    manifest = origin["manifest"]
    if manifest is None:
        return f'<details>\n<summary>{name}: no manifest</summary>\n{digest}<p class="note">{_NO_MANIFEST}</p>\n</details>'
    return _block(f"{name}: manifest", manifest, digest)


def _block(name: str, content: Any, above: str) -> str:
    leaves = list(_leaves("", content))
    rows = "\n".join(
        f'<tr><th scope="row" dir="auto">{_shown(place)}</th><td dir="auto">{_shown(value)}</td></tr>'
        for place, value in leaves[:_MAX_LEAVES]
    )
    rest = len(leaves) - _MAX_LEAVES
    more = f'<p class="note">{rest:,} more values are in report.json.</p>' if rest > 0 else ""
    return (
        f"<details>\n<summary>{name}</summary>\n{above}"
        f'<table class="origin">\n<tbody>\n{rows}\n</tbody>\n</table>\n{more}</details>'
    )


def _leaves(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key in sorted(value):
            yield from _leaves(f"{place}.{key}" if place else str(key), value[key])
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        for number, one in enumerate(value):
            yield from _leaves(f"{place}.{number}", one)
    elif isinstance(value, list):
        yield place, ", ".join(map(_word, value)) or "none"
    else:
        yield place, _word(value)


def _word(value: Any) -> str:
    if value is None or value == {}:
        return "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _shown(text: str) -> str:
    return render_start(text, has_lines=True, max_characters=_MAX_CHARACTERS)
