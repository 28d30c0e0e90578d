import sys
import unicodedata
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.texts.normalisation import MAIN, VERSION, describe_normaliser, find_normaliser, normalise

CHOICES = [("nfc", "nfkc"), ("", "casefold"), ("", "quotes"), ("", "nopunct"), ("", "ws1", "nows")]
NAMES = ["raw", *("+".join(filter(None, steps)) for steps in product(*CHOICES))]
# letters, marks above and below, marks that case or compatibility changes, and what is taken out between them
AWKWARD = (
    "eEaσςΣßİıſ .-!'`´\"“”…″「\u1fef\u1ffd\u0301\u0300\u0308\u0338\u0345\u0327=≠¨\u0385ﬁ１\u00a0\u3000\n\u11001\u1161\u11a8\u2126"
)
texts = st.text(max_size=30) | st.text(alphabet=AWKWARD, max_size=12)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("raw", " Cafe\u0301\n", " Cafe\u0301\n"),
        ("nfc", " Cafe\u0301\n", " Caf\u00e9\n"),
        ("nfc", "\uff21\ufb01", "\uff21\ufb01"),
        ("nfkc", "\uff21\ufb01\u3000x", "Afi x"),
        ("nfc+casefold", "STRASSE Straße ΣΑΣ", "strasse strasse σασ"),
        ("nfc+casefold", "\uff21", "\uff41"),
        ("nfkc+casefold", "\uff21", "a"),
        ("nfc+quotes", "‘a’ “b” „c“ «d» 「e」 f–g—h", '\'a\' "b" "c" "d" "e" f-g-h'),
        ("nfkc+quotes", "don´t 12″ \u1ffd", "don't 12\" '"),
        ("nfc+nopunct", "a.b, c-d! 「合计」：(9) $5+", "ab cd 合计9 $5+"),
        ("nfc+nopunct", "e!\u0301", "\u00e9"),
        ("nfc+ws1", " a \u3000\n b\t", "a b"),
        ("nfc+nows", " a \u3000\n b\t", "ab"),
        ("nfc+nows", "e \u0301", "\u00e9"),
        ("nfkc+casefold+quotes+nopunct+nows", "ＡＢ “c” — Ｄ.", "abcd"),
        ("nfc+quotes+ws1", "It’s  12 ", "It's 12"),
        (MAIN, "  TOTAL\u00a09 ", "total 9"),
    ],
)
def test_steps(name: str, text: str, expected: str) -> None:
    assert find_normaliser(name)(text) == expected


@pytest.mark.parametrize(
    "name",
    [
        *("", "casefold", "ws1", "nfd", "raw+ws1", "nfc+raw", "nfc+nfkc", "nfkc+nfc", "nfc+ws1+nows", "nfc+ws1+casefold"),
        *("nfc+nfc", "nfc+casefold+casefold", "nfc+", "+nfc", "nfc casefold", "NFC", "nfc+lower"),
    ],
)
def test_other_names_are_refused_with_what_can_be_given(name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=r"no normaliser .*; give raw, or nfc or nfkc followed by any of casefold, quotes, "
    ):
        find_normaliser(name)


def test_description_says_what_decides_the_texts() -> None:
    assert describe_normaliser(MAIN) == {"name": MAIN, "version": VERSION, "unicode": unicodedata.unidata_version}


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(text=texts)
def test_every_rule_is_idempotent(name: str, text: str) -> None:
    normalised = find_normaliser(name)
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize("name", NAMES[1:])
@settings(deadline=None)
@given(text=texts)
def test_every_rule_but_raw_is_blind_to_the_unicode_form(name: str, text: str) -> None:
    normalised = find_normaliser(name)
    assert normalised(unicodedata.normalize("NFD", text)) == normalised(unicodedata.normalize("NFC", text)) == normalised(text)
    assert unicodedata.is_normalized("NFKC" if name.startswith("nfkc") else "NFC", normalised(text))


@pytest.mark.parametrize("name", NAMES[1:])
@settings(deadline=None)
@given(text=st.text(st.characters(codec="ascii"), max_size=30))
def test_ascii_goes_the_short_way_to_the_same_text(name: str, text: str) -> None:
    """An ideograph, which no step touches, sends the text the long way; a letter leaves it on the short one."""
    normalised = find_normaliser(name)
    assert normalised(f"{text}合").removesuffix("合") == normalised(f"{text}z").removesuffix("z")


@pytest.mark.parametrize("name", [MAIN, "nfkc+casefold+quotes+nopunct+nows"])
def test_idempotent_on_every_character(name: str) -> None:
    normalised = find_normaliser(name)
    characters = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    assert [character for character in characters if normalised(once := normalised(character)) != once] == []


@settings(deadline=None)
@given(text=texts)
def test_main_rule_is_the_one_that_its_name_says(text: str) -> None:
    assert normalise(text) == find_normaliser("nfc+casefold+ws1")(text)
    assert normalise(text.upper()) == normalise(text.upper().casefold())
