"""Sets a string in one face: glyph bitmaps, kept per process, put side by side.

Ink is an array uint8 [height, width] in which 255 is full ink and 0 is bare paper.
"""

import json
import random
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ImageFont

Ink = npt.NDArray[np.uint8]

SIZES_PX = (11, 16, 25, 42)  # few, so that most glyphs are found in the cache; ink is scaled to the wanted height afterwards
MAX_GLYPHS_KEPT = 150_000


@dataclass(frozen=True, slots=True)
class Glyph:
    """The bitmap of one character: its columns begin `left` from the pen, its rows `top` below the top of the line."""

    ink: Ink
    left: int
    top: int
    advance: float


@dataclass(frozen=True, slots=True)
class SetLine:
    """A string as it is set: its ink, and the rows of the top of its capitals and of its baseline."""

    ink: Ink
    cap_top: int
    baseline: int


class Typesetter:
    """Chooses faces and sets text in them.

    Args:
        fonts_folder: what fonts.py has written, or any folder with a fonts.json of the same form.
    """

    def __init__(self, fonts_folder: Path) -> None:
        self._folder = fonts_folder
        self._entries = json.loads((fonts_folder / "fonts.json").read_text(encoding="utf-8"))
        self._cased = [index for index, entry in enumerate(self._entries) if not entry["caps_only"]]
        self._cumulated_weights = {
            True: list(accumulate(entry["weight"] for entry in self._entries)),
            False: list(accumulate(self._entries[index]["weight"] for index in self._cased)),
        }
        self._fonts: dict[tuple[int, int], tuple[ImageFont.FreeTypeFont, int, int]] = {}
        self._glyphs: dict[tuple[int, int, str], Glyph] = {}

    def choose_face(self, text: str, rng: random.Random) -> int:
        """The index of a face that can show `text`: faces without lower case get none."""
        is_upper = text.upper() == text
        faces = range(len(self._entries)) if is_upper else self._cased
        return rng.choices(faces, cum_weights=self._cumulated_weights[is_upper])[0]

    def kind(self, face: int) -> str:
        """The class of a face: sans, mono, courier, receipt, serif, display or hand."""
        return str(self._entries[face]["kind"])

    def set_text(self, text: str, face: int, size: int, letter_space_px: float = 0.0, word_space_px: float = 0.0) -> SetLine:
        """`text` on one line, cut to the columns of its ink; all rows from ascender to descender."""
        _, ascent, height = self._open_font(face, size)
        pen, placed = 0.0, []
        for character in text:
            glyph = self._draw_glyph(face, size, character)
            placed.append((glyph, round(pen) + glyph.left))
            pen += glyph.advance + (word_space_px if character == " " else letter_space_px)
        first = min(left for glyph, left in placed if glyph.ink.size)
        last = max(left + glyph.ink.shape[1] for glyph, left in placed if glyph.ink.size)
        canvas = np.zeros((height, last - first), np.uint8)
        for glyph, left in placed:
            if glyph.ink.size:
                rows, columns = glyph.ink.shape
                area = canvas[glyph.top : glyph.top + rows, left - first : left - first + columns]
                np.maximum(area, glyph.ink, out=area)
        return SetLine(ink=canvas, cap_top=self._draw_glyph(face, size, "H").top, baseline=ascent)

    def _open_font(self, face: int, size: int) -> tuple[ImageFont.FreeTypeFont, int, int]:
        """The font, the row of its baseline, and the height of a line that holds every printable character whole."""
        if (face, size) not in self._fonts:
            path = self._folder / self._entries[face]["file"]
            font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
            boxes = [font.getbbox(character, anchor="ls") for character in "|jgQ{$@^_l"]
            above = int(max(-box[1] for box in boxes)) + 1
            below = int(max(box[3] for box in boxes)) + 1
            self._fonts[face, size] = font, above, above + below
        return self._fonts[face, size]

    def _draw_glyph(self, face: int, size: int, character: str) -> Glyph:
        key = face, size, character
        glyph = self._glyphs.get(key)
        if glyph is None:
            font, ascent, height = self._open_font(face, size)
            mask, (left, above) = font.getmask2(character, mode="L", anchor="ls")
            ink = np.array(mask, np.uint8).reshape(mask.size[::-1])
            top = ascent + above
            if top < 0 or top + len(ink) > height:  # a rare glyph beyond the line: what sticks out is cut off
                ink, top = ink[max(-top, 0) : height - top], max(top, 0)
            glyph = Glyph(ink=ink, left=left, top=top, advance=font.getlength(character))
            if len(self._glyphs) >= MAX_GLYPHS_KEPT:
                self._glyphs.clear()
            self._glyphs[key] = glyph
        return glyph
