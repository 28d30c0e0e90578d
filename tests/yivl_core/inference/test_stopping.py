"""Where answers end, against the original's texts; what is streamed against what is left at the end."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yivl_core.inference.stopping import STOP_STRINGS, StopChecker
from yivl_core.processing.tokenization import Tokenizer

EOS = 2


@pytest.fixture(scope="session")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.from_folder(reference / "checkpoint")


def follow(tokenizer: Tokenizer, ids: list[int], max_new_tokens: int = 1000) -> tuple[StopChecker, list[str]]:
    """Feeds ids until the answer ends; the checker and what it gave for each."""
    checker, deltas = StopChecker(tokenizer, max_new_tokens), []
    for token_id in ids:
        deltas.append(checker.append(token_id))
        if checker.finish_reason:
            break
    return checker, deltas


def test_texts_and_reasons_of_every_case_are_the_originals(golden_cases: dict[str, Any], tokenizer: Tokenizer) -> None:
    reasons = []
    for name, case in golden_cases["cases"].items():
        greedy = case["greedy"]
        checker, deltas = follow(tokenizer, greedy["new_ids_without_stop_string"], greedy["max_new_tokens"])
        assert checker.num_tokens == len(greedy["new_ids"]), name
        assert checker.text == greedy["text"] == "".join(deltas), name
        assert checker.finish_reason == ("length" if greedy["finish"] == "length" else "stop"), name
        reasons.append(greedy["finish"])
    assert sorted(set(reasons)) == ["eos", "length", "stop_string"]
    assert len(reasons) == 12


def test_a_stop_as_the_first_token_ends_the_answer_unlike_in_the_original(
    golden_cases: dict[str, Any], tokenizer: Tokenizer
) -> None:
    examples = golden_cases["quirks"]["stop_string_is_first_token"]["examples"]
    assert examples
    for entry in examples:
        assert entry["text"].startswith("###")
        checker, _ = follow(tokenizer, entry["new_ids"])
        assert (checker.text, checker.finish_reason, checker.num_tokens) == ("", "stop", 1)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["###"], ""),
        (["a", "###"], "a"),
        (["a", "##", "#"], "a"),
        (["a", "#", "#", "#"], "a"),
        (["a", "#", "##"], "a"),
        (["a", "####"], "a"),
        (["#", "a", "##", "b", "###"], "#a##b"),
        ([" a", " ", "<0x0A>", "###", "▁Human", ":"], "a"),
        (["a", "<0x0A>", "H", "uman", ":", "b"], "a"),
        (["<0x0A>", "H", "uman", ":", "b"], ""),
        (["<0xE7>", "###"], "\N{REPLACEMENT CHARACTER}"),
        (["a", "#", "<|endoftext|>"], "a#"),
        (["a", "<0x0A>", "H", "uman", "<|endoftext|>"], "a\nHuman"),
        (["a", "#", "<|im_end|>", "##"], "a"),
    ],
)
def test_every_form_of_a_stop_ends_the_answer_and_leaves_no_trace(tokenizer: Tokenizer, pieces: list[str], text: str) -> None:
    checker, deltas = follow(tokenizer, ids_of(tokenizer, pieces))
    assert (checker.text, checker.finish_reason) == (text, "stop")
    assert "".join(deltas) == text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["H", "uman", ":", "a"], "Human:a"),
        (["a", "▁Human", ":"], "a Human:"),
        (["a", "<0x0A>", "▁Human", ":"], "a\n Human:"),
        (["a", "<0x0A>", "H", "uman", "s"], "a\nHumans"),
        (["##", "a", "#"], "##a#"),
        (["a", "<|im_end|>", "b"], "ab"),
    ],
)
def test_what_only_looks_like_a_stop_stays(tokenizer: Tokenizer, pieces: list[str], text: str) -> None:
    checker, deltas = follow(tokenizer, ids_of(tokenizer, pieces), max_new_tokens=len(pieces))
    assert (checker.text, checker.finish_reason) == (text, "length")
    assert "".join(deltas) == text


def ids_of(tokenizer: Tokenizer, pieces: list[str]) -> list[int]:
    return [
        (tokenizer.encode(piece, parse_special=True) if "<0x" not in piece else [9 + int(piece[3:5], 16)])[-1] for piece in pieces
    ]


def test_deltas_hold_back_incomplete_characters_possible_stops_and_last_blanks(tokenizer: Tokenizer) -> None:
    pieces = ["▁", "a", "▁", "b", "<0xE7>", "<0x8C>", "<0xAB>", "#", "c", "<0x0A>", "H", "d", "▁", "<|endoftext|>"]
    _, deltas = follow(tokenizer, ids_of(tokenizer, pieces))
    assert deltas == ["", "a", "", " b", "", "", "猫", "", "#c", "", "", "\nHd", "", ""]


def test_a_stop_in_the_last_token_allowed_is_a_stop(tokenizer: Tokenizer) -> None:
    for last in ("###", "<|endoftext|>"):
        checker, _ = follow(tokenizer, ids_of(tokenizer, ["a", last]), max_new_tokens=2)
        assert (checker.finish_reason, checker.text) == ("stop", "a")


def test_nothing_is_taken_after_the_end(tokenizer: Tokenizer) -> None:
    checker, _ = follow(tokenizer, [EOS])
    with pytest.raises(AssertionError, match="the answer has ended"):
        checker.append(EOS)


tokens = st.integers(0, 1279) | st.sampled_from([294, 486, 266, 880, 19, 933, 383, 898, 863, 450, 2, 156, 240, 149, 180])


@settings(deadline=None, max_examples=300)
@example([19, 933, 383, 898])
@example([880, 880, 19, 880, 880, 880])
@given(st.lists(tokens, min_size=1, max_size=25))
def test_the_answer_is_what_stands_before_the_first_stop_of_the_whole_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    checker, deltas = follow(tokenizer, ids, max_new_tokens=len(ids))
    before_eos = ids[: ids.index(EOS)] if EOS in ids else ids
    whole = tokenizer.decode([863, *before_eos])  # the piece that decoding drops the blank of
    stops = [whole.find(stop) for stop in STOP_STRINGS if stop in whole]
    assert checker.text == "".join(deltas) == whole[: min(stops, default=len(whole))].strip()
    assert checker.finish_reason == ("stop" if stops or EOS in ids else "length")
    texts = [tokenizer.decode([863, *before_eos[:number]]) for number in range(len(before_eos) + 1)]
    first = next((number for number, text in enumerate(texts) if any(stop in text for stop in STOP_STRINGS)), None)
    expected = ids.index(EOS) + 1 if EOS in ids else len(ids)
    assert checker.num_tokens == (expected if first is None else first)


def test_it_loads_no_torch() -> None:
    code = "import sys, yivl_core.inference.stopping; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
