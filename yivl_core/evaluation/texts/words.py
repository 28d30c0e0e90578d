"""A text as the words that caption metrics count: one named rule for English, Chinese, and both in one text.

Words are what stands between white space in some writings and is not marked at all in others. Where it is not, each character
counts as a word, as is usual for captions in Chinese; so no dictionary decides a figure.
"""

import re

import regex

from yivl_core.evaluation.texts.normalisation import find_normaliser

WORDS = "yivl-words-1"
"""The rule's name. It ends in another number when the same text gives other words."""

RULE = (
    f"{WORDS}: case folded; letters and digits that stand together are a word, with apostrophes between them; each character of "
    "Chinese or kana and each symbol is a word; punctuation is left out"
)

_NORMALISER = "nfc+casefold+quotes"  # one form of apostrophe
_PRESENTATION = dict.fromkeys((0xFE0E, 0xFE0F))  # ask for an emoji in black or in colour: the same emoji

_ASCII_WORD = re.compile("[a-z0-9]+(?:'[a-z0-9]+)*|[$+<=>|~]")  # the same rule in a fifth of the time
_MARK = r"[\p{M}\u200C\u200D]"  # the joiners stand inside words of Indic scripts and Persian
_SINGLE = r"[[\p{scx=Hani}\p{scx=Hira}\p{scx=Kana}]&&[\p{L}\p{N}]]"
_LETTER = rf"[[\p{{L}}\p{{N}}]--{_SINGLE}]"
_SYMBOL = r"(?=[\p{S}--\p{Sk}])\X"  # \X: an emoji with its skin tone and all that is joined to it
_WORD = regex.compile(rf"(?V1){_SINGLE}{_MARK}*|(?:{_LETTER}{_MARK}*)+(?:'(?:{_LETTER}{_MARK}*)+)*|{_SYMBOL}")


def split_words(text: str) -> list[str]:
    """The words of a text, by the rule `WORDS`.

    | text | words |
    |---|---|
    | `The dog's ball -- 2 m` | the, dog's, ball, 2, m |
    | `一只狗在玩iPhone 15。` | 一, 只, 狗, 在, 玩, iphone, 15 |
    | `👍🏽 50 %, $5` | 👍🏽, 50, $, 5 |

    Letters are Unicode's L and N with their marks, so Hangul, Thai and Arabic give one word for what stands together; the
    characters that are words by themselves are those letters whose Script_Extensions hold Han, Hiragana or Katakana. Symbols are
    S without Sk (accents that stand alone).

    Returns:
        words without white space in them, none of them empty; no words for a text of punctuation.
    """
    text = find_normaliser(_NORMALISER)(text)
    if text.isascii():
        return _ASCII_WORD.findall(text)
    words: list[str] = _WORD.findall(text.translate(_PRESENTATION))
    return words
