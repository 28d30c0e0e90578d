"""Strings as they stand in the lines of receipts and other small print, made up from general knowledge and a dictionary."""

import random
from collections.abc import Callable, Sequence

from figures import sample_amount, sample_code, sample_date_or_time, sample_number, sample_phone, sample_quantity
from strings import decorate, sample_characters, sample_lone_character, sample_syllables, set_case
from vocabulary import ABBREVIATIONS, COMPANY_WORDS, FIRST_NAMES, LABELS, PHRASES, PLACES, RETAIL_WORDS, STREET_WORDS, UNITS

USUAL_LENGTH = 24
MAX_LENGTH = 32
LONG_SHARE = 0.06
JOINED_SHARE = 0.3
JOINED_LENGTHS = (12, USUAL_LENGTH)
MAX_JOINED = 6


class TextSampler:
    """Draws strings of printable ASCII, 1 to 32 characters, without spaces at their ends or two in a row.

    Args:
        words: dictionary words.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        kinds: list[tuple[float, Callable[[random.Random], str]]] = [
            (0.20, sample_amount),
            (0.05, sample_date_or_time),
            (0.06, sample_code),
            (0.03, sample_phone),
            (0.03, sample_number),
            (0.12, self._sample_labelled),
            (0.13, sample_retail),
            (0.03, sample_item),
            (0.12, self._sample_words),
            (0.03, sample_syllables),
            (0.07, self._sample_address),
            (0.08, sample_characters),
            (0.05, sample_lone_character),
        ]
        self._kinds = [kind for _, kind in kinds]
        self._weights = [weight for weight, _ in kinds]

    def sample(self, rng: random.Random) -> str:
        """One string."""
        max_length = MAX_LENGTH if rng.random() < LONG_SHARE else USUAL_LENGTH
        while True:
            text = rng.choices(self._kinds, self._weights)[0](rng)
            if max_length == MAX_LENGTH and len(text) > 1:
                text = self._lengthen(text, rng)
            text = " ".join(text.split())
            if 0 < len(text) <= max_length:
                return self._join(text, rng) if len(text) > 1 and rng.random() < JOINED_SHARE else text

    def _join(self, text: str, rng: random.Random) -> str:
        """`text` with others beside it, as in the columns of a table: an image costs the same, however long its text is."""
        least = rng.randint(*JOINED_LENGTHS)
        for _ in range(MAX_JOINED):
            if len(text) >= least:
                break
            other = " ".join(rng.choices(self._kinds, self._weights)[0](rng).split())
            if other and len(text) + 1 + len(other) <= USUAL_LENGTH:
                text = f"{text} {other}"
        return text

    def _lengthen(self, text: str, rng: random.Random) -> str:
        while len(text) < USUAL_LENGTH:
            text += " " + set_case(rng.choice(self.words), rng)
        return text

    def _sample_words(self, rng: random.Random) -> str:
        count = rng.choices((1, 2, 3, 4), (50, 28, 15, 7))[0]
        text = set_case(" ".join(rng.choice(self.words) for _ in range(count)), rng)
        return decorate(text, rng) if rng.random() < 0.2 else text

    def _sample_labelled(self, rng: random.Random) -> str:
        label = set_case(rng.choice(LABELS if rng.random() < 0.8 else self.words), rng)
        if rng.random() < 0.15:
            label = f"{label}{rng.choice(('', ' '))}({set_case(rng.choice(ABBREVIATIONS), rng)})"
        colon = rng.choices(
            (":", " :", ": ", " : ", " ", ".", "-", " - ", " = ", "#", " #", "/"), (18, 12, 25, 14, 16, 2, 2, 2, 1, 2, 2, 1)
        )[0]
        if rng.random() < 0.15:
            return label + colon
        kinds = (sample_amount, sample_date_or_time, sample_code, sample_phone, sample_quantity)
        value = rng.choices(kinds, (40, 15, 20, 10, 20))[0](rng) if rng.random() < 0.85 else set_case(rng.choice(self.words), rng)
        return label + colon + value

    def _sample_address(self, rng: random.Random) -> str:
        place, street = rng.choice(PLACES), rng.choice(STREET_WORDS)
        name = rng.choice((place, rng.choice(FIRST_NAMES), rng.choice(self.words), sample_syllables(rng)))
        number = str(rng.randint(1, 99)) + rng.choice(
            ("", "", "A", "-1", f"/{rng.randint(1, 30)}", "-G", f"-{rng.randint(1, 30)}")
        )
        form = rng.choice(
            (
                f"{rng.choice(('NO. ', 'NO ', 'NO.', 'LOT ', 'No. ', '', ''))}{number}, {street} {name}",
                f"{street} {name} {rng.choice(('', number, rng.randint(1, 20)))}",
                f"{street} {name},",
                f"{rng.randint(10000, 98999)} {place}",
                f"{rng.randint(10000, 98999)} {place}{rng.choice((',', '.', ''))}",
                f"{place}, {rng.choice(PLACES)}{rng.choice(('.', '', ','))}",
                f"{name} {rng.choice(COMPANY_WORDS)}",
                f"{rng.choice(FIRST_NAMES)} {name}",
                f"{name} {rng.choice(('&', 'AND', '/', '@'))} {rng.choice(FIRST_NAMES)}",
            )
        )
        return set_case(form, rng)


def sample_retail(rng: random.Random) -> str:
    """Words and phrases of receipts, items with units."""
    share = rng.random()
    if share < 0.45:
        text = rng.choice(PHRASES)
    elif share < 0.75:
        text = " ".join(rng.choice(RETAIL_WORDS) for _ in range(rng.choice((1, 1, 1, 2, 2, 3))))
    elif share < 0.9:
        amount = rng.choice((str(rng.randint(1, 999)), f"{rng.uniform(0.1, 20):.1f}", "500", "100", "250", "1.5"))
        text = f"{rng.choice(RETAIL_WORDS)} {amount}{rng.choice(('', ' '))}{rng.choice(UNITS)}"
    else:
        text = decorate(rng.choice(PHRASES), rng)
    return set_case(text, rng)


def sample_item(rng: random.Random) -> str:
    """What was bought, how many, and at what price, or some of it."""
    name = set_case(" ".join(rng.choice(RETAIL_WORDS) for _ in range(rng.choice((1, 1, 2)))), rng)
    parts = rng.choice(
        ([sample_quantity(rng), name], [name, sample_amount(rng)], [sample_quantity(rng), name, sample_amount(rng)])
    )
    return " ".join(parts)
