"""A string -> a picture of it, as if its line had been cut from the scan of a receipt."""

import io
import random
from pathlib import Path

import effects
import numpy as np
from glyphs import SIZES_PX, Ink, Typesetter
from PIL import Image

MAX_HEIGHT_PX = 48
MIN_HEIGHT_PX = 10
MAX_WIDTH_PX = 640
MIN_LETTER_PX = 8  # height of what is printed, without margins
CAPITAL_SHARE = 0.72  # of the size of a face
NEIGHBOURS = (
    "TOTAL AMOUNT",
    "Jalan Bukit",
    "12.50",
    "QTY PRICE",
    "THANK YOU",
    "GST 6%: 0.84",
    "CASH",
    "Receipt",
    "30-06-2017",
    "0.00 SR",
    "SDN BHD",
)
CLEAN, LIGHT, WORN, BAD = range(4)
WEAR_WEIGHTS = (17, 42, 29, 12)


class LineRenderer:
    """Draws lines; equal strings and states of the random generator give equal pictures.

    Args:
        fonts_folder: what fonts.py has written.
    """

    def __init__(self, fonts_folder: Path) -> None:
        self._typesetter = Typesetter(fonts_folder)
        self._tiles = effects.NoiseTiles()

    def render(self, text: str, rng: random.Random) -> Image.Image:
        """The picture of `text`, mode L or RGB, at most 640 x 48 pixels."""
        if text.isdecimal() and len(text) <= 8 and rng.random() < (0.2 if len(text) == 1 else 0.4):
            return self._render_blocky_digits(text, rng)
        wear = rng.choices((CLEAN, LIGHT, WORN, BAD), WEAR_WEIGHTS)[0]
        is_robust = sum(character.isalnum() for character in text) > 0.5 * len(text)
        ink, letter_px = self._print_line(text, wear, rng)
        if wear >= LIGHT and is_robust:
            ink = self._wear_ink(ink, letter_px, wear, len(text), rng)
        if rng.random() < (0.1, 0.3, 0.35, 0.4)[wear]:
            ink = effects.skew(ink, rng)
        picture = self._scan(ink, letter_px, wear, rng)
        image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
        return colour(image, rng) if rng.random() < 0.15 else image

    def _print_line(self, text: str, wear: int, rng: random.Random) -> tuple[Ink, float]:
        """The line with its margins at its final size, and the height of its letters in pixels."""
        face = self._typesetter.choose_face(text, rng)
        margins = choose_margins(rng)
        height_px = rng.triangular(12, MAX_HEIGHT_PX, 27) if rng.random() < 0.93 else rng.uniform(MIN_HEIGHT_PX, 16)
        letter_px = height_px / (1 + margins[0] + margins[1])
        if letter_px < MIN_LETTER_PX + 1:
            letter_px, margins = MIN_LETTER_PX + 1.0, (margins[0] / 4, margins[1] / 4, *margins[2:])
        ink = self._set_ink(text, face, letter_px, margins, wear, rng)
        scale = letter_px * (1 + margins[0] + margins[1]) / ink.shape[0]
        stretch = 1.0 if rng.random() < 0.55 else 2 ** rng.uniform(-0.45, 0.5)
        scale = min(scale, MAX_HEIGHT_PX / ink.shape[0])
        shrink = min(1.0, MAX_WIDTH_PX / (ink.shape[1] * scale * stretch))
        size = (
            max(8, min(MAX_WIDTH_PX, round(ink.shape[1] * scale * stretch * shrink))),
            max(8, round(ink.shape[0] * scale * max(shrink, 0.7))),
        )
        way = (
            Image.Resampling.BILINEAR
            if wear == CLEAN or rng.random() < 0.85
            else rng.choice((Image.Resampling.NEAREST, Image.Resampling.BOX))
        )
        if way == Image.Resampling.NEAREST and size[1] < 0.8 * ink.shape[0]:
            way = Image.Resampling.BOX
        return np.asarray(Image.fromarray(ink).resize(size, way)), letter_px

    def _set_ink(self, text: str, face: int, letter_px: float, margins: tuple[float, ...], wear: int, rng: random.Random) -> Ink:
        """The line as it is printed, with margins and what stands beside it, at the resolution of the printer."""
        kind = self._typesetter.kind(face)
        has_dots = wear >= LIGHT and kind in ("sans", "mono", "courier", "receipt") and rng.random() < 0.16
        if has_dots:
            size = SIZES_PX[1] if rng.random() < 0.75 or text.upper() != text else SIZES_PX[0]
        else:
            size = next((size for size in SIZES_PX if size * CAPITAL_SHARE * 1.15 >= letter_px), SIZES_PX[-1])
        spacing = (0.0, 0.0)
        if rng.random() < 0.4:
            letter = rng.choice((rng.uniform(-0.03, 0.08), rng.uniform(0, 0.12), rng.uniform(0.05, 0.4)))
            spacing = (letter * size, rng.uniform(-0.08, 0.5) * size + max(letter, 0) * size)
        if rng.random() < 0.1:  # words in columns
            spacing = (spacing[0], spacing[1] + rng.uniform(0.3, 2.5) * size)
        line = self._typesetter.set_text(text, face, size, *spacing)
        rows = np.flatnonzero(line.ink.any(1))
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        if (
            bottom - top < 0.85 * (line.baseline - line.cap_top) or rng.random() < 0.35
        ):  # else a comma fills the picture, and o is O
            top, bottom = min(top, line.cap_top), max(bottom, line.baseline)
        letters = bottom - top
        above, below, left, right = (round(margin * letters) for margin in margins)
        canvas = np.zeros((above + letters + below, left + line.ink.shape[1] + right), np.uint8)
        canvas[above : above + letters, left : left + line.ink.shape[1]] = line.ink[top:bottom]
        if wear >= LIGHT and rng.random() < 0.2:
            self._add_neighbours(canvas, face, size, above, below, rng)
        if "_" not in text and rng.random() < 0.05 and below > 0.2 * letters:
            draw_rule(canvas, above + letters, rng)
        return self._shape_strokes(canvas, size, has_dots, kind, wear, rng)

    def _add_neighbours(self, canvas: Ink, face: int, size: int, above: int, below: int, rng: random.Random) -> None:
        """The feet of the line above in the upper margin, the heads of the line below in the lower one."""
        gap = max(1, round(0.12 * size))
        for margin, is_above in ((above, True), (below, False)):
            if margin <= gap + 1 or rng.random() < 0.3:
                continue
            text = rng.choice(NEIGHBOURS)
            line = self._typesetter.set_text(text, face, size)
            ink = line.ink[line.cap_top : line.baseline]
            visible = min(rng.randint(1, margin - gap), len(ink) // 2)
            shift = rng.randint(-ink.shape[1] // 2, max(canvas.shape[1] // 2, 1))
            ink = ink[-visible:] if is_above else ink[:visible]
            ink = ink[:, max(-shift, 0) : max(-shift, 0) + canvas.shape[1] - max(shift, 0)]
            first_row = 0 if is_above else canvas.shape[0] - visible
            area = canvas[first_row : first_row + visible, max(shift, 0) : max(shift, 0) + ink.shape[1]]
            np.maximum(area, ink, out=area)

    @staticmethod
    def _shape_strokes(ink: Ink, size: int, has_dots: bool, kind: str, wear: int, rng: random.Random) -> Ink:
        """Hard edges, dots, thicker or thinner strokes."""
        if has_dots:
            ink = effects.harden(ink, rng.randint(70, 110))
            if rng.random() < 0.15:
                ink = effects.thicken(ink, down=False)
            return effects.enlarge_dots(ink, rng.choice((2, 3, 4)), is_round=rng.random() < 0.6)
        if wear >= LIGHT and rng.random() < 0.25:
            if size >= SIZES_PX[2] and kind != "hand" and rng.random() < 0.5:
                ink = effects.thin(ink, down=rng.random() < 0.5)
            elif size >= SIZES_PX[1]:
                ink = effects.thicken(ink, down=rng.random() < 0.5)
                if size >= SIZES_PX[3] and rng.random() < 0.5:
                    ink = effects.thicken(ink, down=rng.random() < 0.5)
        if rng.random() < 0.18:
            ink = effects.harden(ink, rng.randint(70, 140))
        return ink

    def _wear_ink(self, ink: Ink, letter_px: float, wear: int, num_characters: int, rng: random.Random) -> Ink:
        """Lost, broken and uneven ink; less of it where a few characters have to be told without their neighbours."""
        if rng.random() < (0, 0.10, 0.22, 0.4)[wear]:
            tile = self._tiles.fine if letter_px < 14 or rng.random() < 0.5 else self._tiles.medium
            ink = effects.drop_ink(
                ink,
                effects.cut_tile(tile, ink.shape, rng),
                rng.uniform(0.01, 0.04 if num_characters < 4 else (0, 0.05, 0.08, 0.11)[wear]),
            )
        if letter_px > 12 and num_characters >= 4 and rng.random() < (0, 0.03, 0.08, 0.12)[wear]:
            ink = effects.fail_head(ink, rng)
        if rng.random() < (0, 0.15, 0.3, 0.45)[wear]:
            ink = effects.fade_ink(ink, effects.cut_tile(self._tiles.coarse, ink.shape, rng), rng)
        return ink

    def _scan(self, ink: Ink, letter_px: float, wear: int, rng: random.Random) -> effects.Picture:
        """Ink on paper through a scanner: greys, ground, blur, resolution, noise."""
        paper, black = choose_greys(wear, rng)
        picture = paper - ((paper - black) / 255) * ink.astype(np.float32)
        if wear == CLEAN:
            return picture if rng.random() > 0.05 else 255 - picture
        if rng.random() < 0.2:
            picture -= np.linspace(*rng.choice(((0, 1), (1, 0))), ink.shape[1], dtype=np.float32) * rng.uniform(
                5, 0.3 * (paper - black)
            )
        sharpness = min(1.0, letter_px / 22)  # small letters stand less blur
        if rng.random() < 0.5:
            most = (0, 1.0, 1.8, 2.6)[wear] * sharpness
            picture = effects.blur(picture, rng.uniform(0, most), rng.uniform(0, most))
        if rng.random() < (0, 0.08, 0.2, 0.25)[wear]:
            least = max(0.35, (MIN_LETTER_PX + 1) / letter_px)
            if least < 1:
                way_up = rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.NEAREST))
                picture = effects.lower_resolution(picture, rng.uniform(least, 1), way_up)
        if rng.random() < (0, 0.02, 0.05, 0.1)[wear]:
            picture = effects.add_stains(
                picture, effects.cut_tile(self._tiles.coarse, ink.shape, rng), rng.uniform(10, 0.35 * (paper - black))
            )
        if rng.random() < 0.05:
            picture = 255 - picture
        if rng.random() < 0.6:
            tile = self._tiles.fine if rng.random() < 0.7 else self._tiles.medium
            strength = rng.uniform(1, min((0, 8, 14, 20)[wear], (paper - black) / 9))
            picture = picture + strength * effects.cut_tile(tile, ink.shape, rng)
        if rng.random() < 0.15:
            picture = effects.sharpen(picture, rng.uniform(0.3, 1.5))
        return picture

    def _render_blocky_digits(self, text: str, rng: random.Random) -> Image.Image:
        """Digits of 8 x 8 pixels with some greys, each in a face of its own, enlarged without smoothing, set with gaps."""
        factor = 4 if rng.random() < 0.8 else rng.choice((2, 3, 5))
        has_one_face = rng.random() < 0.3
        face = self._typesetter.choose_face(text, rng)
        blocks = [np.zeros((8, rng.randint(0, 2)), np.uint8)]
        for digit in text:
            if not has_one_face:
                face = self._typesetter.choose_face(digit, rng)
            ink = self._typesetter.set_text(digit, face, SIZES_PX[-1]).ink
            rows = np.flatnonzero(ink.any(1))
            ink = ink[rows[0] : rows[-1] + 1]
            if ink.mean() < 90 and rng.random() < 0.6:
                ink = effects.thicken(effects.thicken(ink, down=False), down=True)
            if rng.random() < 0.6:
                ink = effects.skew(np.pad(ink, 4), rng)[3:-3]
            width = max(2, min(8, round(8 * ink.shape[1] / ink.shape[0] * rng.uniform(0.8, 1.3))))
            small = np.asarray(Image.fromarray(ink).resize((width, 8), Image.Resampling.BOX))
            small = np.minimum(small * np.float32(rng.uniform(1.1, 1.8)), 255).astype(np.uint8) // 16 * 17
            blank = 8 - width
            left = blank // 2
            blocks.append(np.pad(small, ((0, 0), (left, blank - left)) if rng.random() < 0.8 else ((0, 0), (1, 0))))
        gaps = [effects.enlarge_dots(block, factor, is_round=False) for block in blocks]
        spaced = [part for block in gaps for part in (block, np.zeros((8 * factor, rng.randint(0, 6)), np.uint8))]
        ink = np.concatenate(spaced, 1)
        border = rng.choice((0, 0, 0, 2, 4))
        ink = np.pad(ink, border)[:MAX_HEIGHT_PX, :MAX_WIDTH_PX]
        paper, black = (255, 0) if rng.random() < 0.7 else choose_greys(LIGHT, rng)
        return Image.fromarray((paper - ink * np.float32((paper - black) / 255)).astype(np.uint8))


def choose_margins(rng: random.Random) -> tuple[float, float, float, float]:
    """Paper above, below, left and right of the letters, in heights of the letters."""
    most_down = rng.choices((0.08, 0.25, 0.6), (35, 45, 20))[0]
    most_across = rng.choices((0.08, 0.4, 1.5), (40, 45, 15))[0]
    return rng.uniform(0, most_down), rng.uniform(0, most_down), rng.uniform(0, most_across), rng.uniform(0, most_across)


def choose_greys(wear: int, rng: random.Random) -> tuple[float, float]:
    """The levels of paper and ink, at least 55 apart."""
    if wear == CLEAN:
        return rng.uniform(232, 255), rng.uniform(0, 80)
    paper = rng.uniform(205, 255) if rng.random() < 0.82 else rng.uniform(120, 210)
    share = rng.random()
    if share < 0.1:
        black = paper - rng.uniform(55, 85)
    elif share < 0.4:
        black = rng.uniform(60, 130)
    else:
        black = rng.uniform(0, 70)
    return paper, max(0.0, min(black, paper - 55))


def draw_rule(canvas: Ink, row: int, rng: random.Random) -> None:
    """A line under the letters, whole or dashed, written into `canvas`."""
    row = rng.randint(row + 1, canvas.shape[0] - 1) if row + 1 < canvas.shape[0] else canvas.shape[0] - 1
    canvas[row : row + rng.randint(1, 3)] = 255
    if rng.random() < 0.4:
        dash = rng.randint(2, 6)
        canvas[row : row + 3, np.arange(canvas.shape[1]) // dash % 2 == 0] = 0


def colour(image: Image.Image, rng: random.Random) -> Image.Image:
    """A grey picture in coloured ink on coloured paper, mode RGB."""
    dark = [rng.randint(0, 110) for _ in range(3)] if rng.random() < 0.7 else [rng.randint(0, 25)] * 3
    light = [rng.randint(195, 255) for _ in range(3)] if rng.random() < 0.6 else [255] * 3
    levels = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    table = (np.array(dark, np.float32) * (1 - levels) + np.array(light, np.float32) * levels).astype(np.uint8)  # [256, 3]
    return Image.fromarray(table[np.asarray(image)])


def encode_jpeg(image: Image.Image, rng: random.Random) -> bytes:
    """The picture as JPEG, of a quality from 30 to 95."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(30, 90) if rng.random() < 0.8 else rng.randint(85, 95))
    return buffer.getvalue()
