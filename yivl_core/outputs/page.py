"""Parts of a page for people: one HTML file, no request. What users, models and file names say is shown as text."""

import base64
import hashlib
import unicodedata
from collections.abc import Sequence
from html import escape

from yivl_core.outputs.thumbnails import Thumbnail

MAX_CHARACTERS = 2000  # of one text that are shown
EMPTY = '<span class="muted">(empty)</span>'

_MAX_NAME_CHARACTERS = 24


def render_document(sections: Sequence[str], *, title: str, mark: str, style: str, script: str = "") -> str:
    """A whole page.

    Args:
        sections: its parts from top to bottom, as HTML.
        title: as HTML.
        mark: the element by which yivl knows its own pages of a kind again.
        style: its looks, as CSS.
        script: what runs on it, of our own writing; the page's policy lets nothing else run. Empty: nothing runs.
    """
    policy, end = "default-src 'none'; img-src data:; style-src 'unsafe-inline'", "\n</main>\n"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        end += f"<script>{script}</script>\n"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"{mark}\n<title>{title}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + f"{end}</body>\n</html>\n"
    )


def render_picture(picture: Thumbnail, name: str) -> str:
    """A picture, or a box that says why there is none.

    Args:
        picture: what is to be seen.
        name: what it is, for who cannot see it.
    """
    if picture.data_uri is None:
        return f'<div class="gone">{escape(name)} {escape(str(picture.problem))}</div>'
    return f'<img src="{picture.data_uri}" width="{picture.width}" height="{picture.height}" alt="{escape(name)}">'


def render_start(text: str, *, has_lines: bool = False, max_characters: int = MAX_CHARACTERS) -> str:
    """As `render_text`, for texts of any length: the first characters, and how many more there are."""
    return render_text(text[:max_characters], has_lines=has_lines) + render_rest(text, max_characters)


def render_rest(text: str, max_characters: int = MAX_CHARACTERS) -> str:
    """How many characters of a text are not shown, if any."""
    rest = len(text) - max_characters
    return f' <span class="muted">(and {num(rest, "more character")})</span>' if rest > 0 else ""


def render_text(text: str, *, has_lines: bool = False) -> str:
    """Text as HTML that shows it and does nothing else: line ends and invisible characters are made visible.

    Args:
        text: anything.
        has_lines: line ends and tabs are for the reader: they do what they are for, and no sign stands in their place.
    """
    if text.isprintable():  # most texts, and a hundred times as fast
        return escape(text)
    if has_lines:
        text = text.replace("\r\n", "\n")
    return "".join(_character(character, "\n\t" if has_lines else "") for character in text)


def render_attribute(text: str) -> str:
    """Text as the value of an attribute in double quotes, where there is no markup: signs stand in brackets."""
    return "".join(f"(U+{ord(one):04X})" if _is_invisible(one) else escape(one) for one in text)


def _character(character: str, kept: str) -> str:
    if character in kept:
        return character
    if character == "\n":
        return '<span class="sign">⏎</span>\n'
    if _is_invisible(character):
        return f'<span class="sign">U+{ord(character):04X}</span>'
    return escape(character)


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def shortened(name: str) -> str:
    """A name that may be long, in a length that fits into a sentence."""
    return name if len(name) <= _MAX_NAME_CHARACTERS else name[:_MAX_NAME_CHARACTERS] + "…"


def num(number: int, noun: str) -> str:
    """So many of something, in words."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
