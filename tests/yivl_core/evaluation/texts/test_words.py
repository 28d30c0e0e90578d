import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.texts.words import RULE, WORDS, split_words

texts = st.text(max_size=20) | st.text(alphabet="aB1' ’-.,中ひカー한é\u0301\u0e33\u200d\ufe0f👍🏽$", max_size=15)

WRITTEN = [
    ("", []),
    (" \n\u3000", []),
    ("...!?", []),
    ("A man rides a horse.", ["a", "man", "rides", "a", "horse"]),
    ("A black-and-white dog", ["a", "black", "and", "white", "dog"]),
    ("the dog's ball", ["the", "dog's", "ball"]),
    ("the dog’s ball", ["the", "dog's", "ball"]),
    ("rock 'n' roll, dogs'", ["rock", "n", "roll", "dogs"]),
    ("12.30 a.m. route_66", ["12", "30", "a", "m", "route", "66"]),
    ("STRASSE Straße", ["strasse", "strasse"]),
    ("caf\u00e9 cafe\u0301", ["caf\u00e9", "caf\u00e9"]),
    ("一只狗。", ["一", "只", "狗"]),
    ("人々 〇", ["人", "々", "〇"]),
    ("一只狗在玩iPhone 15，很开心", ["一", "只", "狗", "在", "玩", "iphone", "15", "很", "开", "心"]),
    ("𠮷野家", ["𠮷", "野", "家"]),
    ("コーヒーを飲む", ["コ", "ー", "ヒ", "ー", "を", "飲", "む"]),
    ("か\u3099き", ["が", "き"]),
    ("葛\U000e0100城", ["葛\U000e0100", "城"]),
    ("개가 공을 쫓는다", ["개가", "공을", "쫓는다"]),
    ("हिन्दी में", ["हिन्दी", "में"]),
    ("می\u200cخواهم", ["می\u200cخواهم"]),
    ("👍🏽 ❤️ ❤", ["👍🏽", "❤", "❤"]),
    ("👨‍👩‍👧🇨🇳", ["👨‍👩‍👧", "🇨🇳"]),
    ("50 % of $5 + `x`", ["50", "of", "$", "5", "+", "x"]),
]


@pytest.mark.parametrize(("text", "words"), WRITTEN)
def test_words_of_many_writings(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_rule_says_its_name() -> None:
    assert RULE.startswith(WORDS)


@given(text=texts)
def test_words_are_their_own_words_and_hold_no_white_space(text: str) -> None:
    words = split_words(text)
    assert split_words(" ".join(words)) == words
    assert all(word and word.split() == [word] for word in words)


@given(text=texts)
def test_the_form_of_unicode_decides_nothing(text: str) -> None:
    assert split_words(unicodedata.normalize("NFD", text)) == split_words(unicodedata.normalize("NFC", text))


@given(words=st.lists(st.text(alphabet="abcxyz0189", min_size=1, max_size=5), max_size=8))
def test_plain_words_are_what_stands_between_white_space(words: list[str]) -> None:
    assert split_words(" ".join(words)) == words


@given(text=st.text(alphabet=st.characters(max_codepoint=127), max_size=30))
def test_ascii_is_split_as_it_is_beside_other_characters(text: str) -> None:
    assert split_words(f"{text} 中") == [*split_words(text), "中"]


def test_every_letter_and_digit_is_in_a_word() -> None:
    """By Python's own table of Unicode, which is as old as Python."""
    characters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code))[0] in "LN"]
    assert len(characters) > 100_000
    assert len(split_words(" ".join(characters))) == len(characters)
