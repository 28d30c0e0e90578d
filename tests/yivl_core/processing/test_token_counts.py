"""Counting at speed against the tokens that training reads."""

import io
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.records import Record
from yivl_core.digests import canonical_json
from yivl_core.processing import token_counts
from yivl_core.processing.processor import Processor
from yivl_core.processing.token_counts import TokenCounter
from yivl_core.processing.tokenization import Tokenizer

PIECES = [
    "a",
    " ",
    "  ",
    "\n",
    "###",
    "<|endoftext|>",
    "hello",
    "中文",
    "é",
    "\u00a0",
    "\t",
    "Human:",
    "<|Human|>",
    "▁",
    "12",
    "3",
    "<0x41>",
    "٣½",
    "ﬁ",
    "🙂",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
FILLED = TEXTS.filter(str.strip)
RECORDS = st.fixed_dictionaries(
    {"query": FILLED, "response": TEXTS},
    optional={
        "history": st.lists(st.tuples(FILLED, FILLED), max_size=2),
        "system": TEXTS,
        "images": st.sampled_from([[], ["a.png"], ["a.png", "b.png"], [None, "a.png"]]),
    },
)


@pytest.fixture(scope="module", params=["published", "nano"])
def folder(request: pytest.FixtureRequest, repository: Path) -> Path:
    if request.param == "nano":  # its vocabulary has whole sentences in one piece
        return repository / "data/nano"
    reference: Path = request.getfixturevalue("reference")
    return reference / "checkpoint"


@pytest.fixture(scope="module")
def counters(folder: Path) -> dict[bool, TokenCounter]:
    return {
        with_response: TokenCounter.from_checkpoint(str(folder), with_response=with_response) for with_response in (True, False)
    }


@pytest.fixture(scope="module")
def processor(folder: Path) -> Processor:
    return Processor.from_checkpoint(folder)


def test_whether_texts_may_be_cut_at_blanks_is_seen_in_the_vocabulary(folder: Path, processor: Processor) -> None:
    assert processor.tokenizer.splits_at_blanks is ("reference" in str(folder))


@given(values=RECORDS, is_tagged=st.booleans(), with_response=st.booleans())
def test_as_many_tokens_are_counted_as_training_reads(
    counters: dict[bool, TokenCounter], processor: Processor, values: dict[str, Any], is_tagged: bool, with_response: bool
) -> None:
    images = values.get("images", [])
    num_rounds = len(values.get("history", [])) + 1
    num_images = sum(address is not None for address in images)
    if is_tagged:
        values = {**values, "query": "a<image>" * num_images + values["query"]}
    elif num_rounds > 1 and len(images) not in (0, 1, num_rounds):
        values = {name: value for name, value in values.items() if name != "images"}
    content = {name: value for name, value in values.items() if value != []}
    record = Record.model_validate_json(canonical_json(content))
    expected = processor.count_tokens(record, with_response=with_response)
    assert counters[with_response](content) == expected


def test_forgetting_words_changes_no_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [{"query": f"word{number % 7} of {number}", "response": "a b"} for number in range(50)]
    counter = TokenCounter.from_checkpoint(str(folder), with_response=True)
    expected = [counter(text) for text in texts]
    monkeypatch.setattr(token_counts, "_MAX_REMEMBERED_WORDS", 3)
    forgetful = TokenCounter.from_checkpoint(str(folder), with_response=True)
    assert [forgetful(text) for text in texts] == expected
    assert len(forgetful._known_words) <= 3


@pytest.mark.parametrize("splits_digits", [True, False])
def test_numbers_of_as_many_digits_are_alike_where_each_digit_is_a_token(splits_digits: bool) -> None:
    model = io.BytesIO()
    texts = (f"of {number} and {number % 100}" for number in range(1000, 3000))
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=texts,
        model_writer=model,
        model_type="bpe",
        vocab_size=280 if splits_digits else 340,
        byte_fallback=True,
        split_digits=splits_digits,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    tokenizer = Tokenizer(processor, {"<|7|>": processor.vocab_size()})
    numbers = [f"of {number}" for number in range(1000, 3000)]
    assert (len({len(processor.encode(number)) for number in numbers}) == 1) is splits_digits
    for number in numbers:
        assert len(processor.encode(tokenizer.with_zeros(number))) == len(processor.encode(number))
    assert tokenizer.with_zeros("of 1234") == ("of 0000" if splits_digits else "of 1234")
    assert tokenizer.with_zeros("of <|7|>") == "of <|7|>"
