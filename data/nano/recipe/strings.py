"""Pieces of strings: cases, signs around words, invented words, random characters."""

import random
import string

PUNCTUATION = string.punctuation
PRINTABLE = string.ascii_letters + string.digits + PUNCTUATION
CONFUSABLE = "0OoQDB8S5sZ2zI1l|iGC6cUVvXxWwKkPp.,:;'`-_"
CONSONANTS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "q",
    "r",
    "s",
    "t",
    "v",
    "w",
    "x",
    "y",
    "z",
    "ch",
    "ng",
    "sh",
    "th",
    "tr",
    "kh",
)
VOWELS = ("a", "e", "i", "o", "u", "a", "e", "i", "ai", "ee", "oo", "ia", "ua")
ENDINGS = ("", "", "n", "r", "s", "ng", "t", "k", "m", "h", "x", "p")


def set_case(text: str, rng: random.Random) -> str:
    """`text` in capitals, as titles are, in lower case, mixed, or as it is."""
    share = rng.random()
    if share < 0.62:
        return text.upper()
    if share < 0.80:
        return text.title()
    if share < 0.92:
        return text.lower()
    if share < 0.95:
        return "".join(rng.choice((character.upper(), character.lower())) for character in text)
    return text


def decorate(text: str, rng: random.Random) -> str:
    """`text` between or before signs."""
    signs = rng.choice(("()", "**", "[]", '""', "''", "<>", "{}", "--", "==", "##", "**", "()"))
    form = rng.choices(("both", "double", "end", "start"), (4, 1, 4, 2))[0]
    if form == "both":
        return signs[0] + text + signs[1]
    if form == "double":
        return signs[0] * 2 + rng.choice(("", " ")) + text + rng.choice(("", " ")) + signs[1] * 2
    if form == "end":
        return text + rng.choice(("!", "?", ".", ",", ":", ";", "*", "...", "-", "/", " *", ")", "%", " &", "+"))
    return rng.choice(("*", "- ", "#", "@", "& ", "> ", "(", "+", "~", "_", "1. ", "2) ", "^", "/")) + text


def sample_syllables(rng: random.Random) -> str:
    """An invented word, so that spelling cannot be guessed."""
    count = rng.choice((1, 2, 2, 3, 3, 4))
    return set_case("".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) + rng.choice(ENDINGS) for _ in range(count)), rng)


def sample_characters(rng: random.Random) -> str:
    """Random characters of one alphabet; each printable character occurs."""
    alphabet = rng.choice(
        (
            PRINTABLE,
            PRINTABLE,
            string.ascii_uppercase,
            string.ascii_uppercase + string.digits,
            string.digits,
            string.ascii_letters,
            PUNCTUATION,
            CONFUSABLE,
            string.ascii_lowercase,
        )
    )
    length = rng.choice((2, 3, 4, 5, 6, 7, 8, 10, 12, 16)) if alphabet != PUNCTUATION else rng.randint(1, 5)
    text = "".join(rng.choices(alphabet, k=length))
    if length > 5 and rng.random() < 0.3:
        place = rng.randint(2, length - 2)
        text = text[:place] + " " + text[place:]
    return text


def sample_lone_character(rng: random.Random) -> str:
    """One character, now and then with a mark beside it."""
    character = rng.choice(rng.choice((string.digits, string.digits, string.ascii_uppercase, string.ascii_letters, PUNCTUATION)))
    return character if rng.random() < 0.85 else character + rng.choice((".", ")", ":", "-", "x", "X", "%", "*", ","))
