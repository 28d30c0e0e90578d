"""Ids and text against those of the original code and of plain SentencePiece."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yivl_core.data.records import ImageSlot, Record, conversation
from yivl_core.errors import CheckpointError, DatasetError
from yivl_core.model.configuration import IMAGE_TOKEN_INDEX as MODEL_IMAGE_TOKEN_INDEX
from yivl_core.processing import tokenization
from yivl_core.processing.prompt import TextSegment, build_prompt
from yivl_core.processing.tokenization import IGNORE_INDEX, IMAGE_TOKEN_INDEX, TextStream, Tokenizer, tokenize_prompt

SPECIAL = ["<unk>", "<|startoftext|>", "<|endoftext|>", "<|Human|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
# Everything that can be written, in which special strings and parts of them are as frequent as other characters.
texts = st.lists(
    st.sampled_from([*SPECIAL, "<", "|", "im_", "end|>", "###", "\n", " ", "▁"]) | st.text(max_size=8), max_size=8
).map("".join)
unlimited = settings(deadline=None)


@pytest.fixture(scope="session")
def tokenizer(reference: Path) -> Tokenizer:
    return Tokenizer.from_folder(reference / "checkpoint")


@pytest.fixture(scope="session")
def plain(reference: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(reference / "checkpoint" / "tokenizer.model"))


def record_of(case: dict[str, Any]) -> Record:
    texts = [message["text"] for message in case["messages"]]
    return Record(query=texts[-1], history=tuple(zip(texts[:-1:2], texts[1::2], strict=True)), images=tuple(case["images"]))


def test_ids_and_text_of_every_encoding_are_the_originals(golden_cases: dict[str, Any], tokenizer: Tokenizer) -> None:
    entries = golden_cases["tokenizer_encode"]
    assert len(entries) == 56
    assert [tokenizer.encode(entry["text"], parse_special=True) for entry in entries] == [entry["ids"] for entry in entries]
    assert [tokenizer.decode(entry["ids"]) for entry in entries] == [entry["decode_skip_special"] for entry in entries]
    with_special = [tokenizer.decode(entry["ids"], skip_special_tokens=False) for entry in entries]
    assert with_special == [entry["decode_keep_special"] for entry in entries]


def test_text_of_every_decoding_is_the_originals(golden_cases: dict[str, Any], tokenizer: Tokenizer) -> None:
    entries = golden_cases["tokenizer_decode"]
    assert len(entries) == 56
    assert [tokenizer.decode(entry["ids"]) for entry in entries] == [entry["skip_special"] for entry in entries]
    with_special = [tokenizer.decode(entry["ids"], skip_special_tokens=False) for entry in entries]
    assert with_special == [entry["keep_special"] for entry in entries]


def test_ids_of_every_prompt_are_the_originals(golden_cases: dict[str, Any], tokenizer: Tokenizer) -> None:
    compared = 0
    for name, case in golden_cases["cases"].items():
        prompt = build_prompt(conversation(record_of(case)))
        tokens = tokenize_prompt(prompt, tokenizer, num_image_tokens=1)
        if name != "special_tokens_in_text":
            assert tokens.input_ids.tolist() == case["input_ids"], name
            compared += 1
        assert len(tokenize_prompt(prompt, tokenizer, 36).input_ids) - len(tokens.input_ids) == 35 * len(case["images"])
    assert compared == 11


def test_special_strings_in_user_text_stay_text_unlike_the_original(golden_cases: dict[str, Any], tokenizer: Tokenizer) -> None:
    case = golden_cases["cases"]["special_tokens_in_text"]
    prompt = build_prompt(conversation(record_of(case)))
    ours = tokenize_prompt(prompt, tokenizer, num_image_tokens=1).input_ids.tolist()
    assert not tokenizer.special_ids.intersection(ours)
    assert {1, 2, 7} == tokenizer.special_ids.intersection(case["input_ids"])
    originals = [
        token_id
        for part in prompt.segments
        for token_id in (
            tokenizer.encode(part.text, parse_special=True) if isinstance(part, TextSegment) else [IMAGE_TOKEN_INDEX]
        )
    ]
    assert originals == case["input_ids"]


def test_special_ids_are_added_tokens_and_markers(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == set(range(9))
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (2, 1280)


@unlimited
@example("<|im_<|im_end|>end|>")
@example("x<|Human|><|Human|> y")
@example("<<|endoftext|>>")
@given(text=texts)
def test_no_text_gives_a_special_id_and_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids.intersection(ids)
    shown = text.replace("▁", " ")  # one sign to SentencePiece
    assert tokenizer.decode(ids) == (shown[1:] if shown.startswith(" ") else shown)


@unlimited
@given(text=texts)
def test_without_special_strings_encoding_is_sentencepieces(
    tokenizer: Tokenizer, plain: sentencepiece.SentencePieceProcessor, text: str
) -> None:
    for special in [*SPECIAL, "<|Assistant|>", "<|System|>"]:
        while special in text:
            text = text.replace(special, "")
    assert tokenizer.encode(text) == plain.encode(text) == tokenizer.encode(text, parse_special=True)


@unlimited
@given(ids=st.lists(st.integers(0, 1279) | st.integers(0, 270), max_size=12))
def test_decoding_is_sentencepieces_in_one_go_and_token_by_token(
    tokenizer: Tokenizer, plain: sentencepiece.SentencePieceProcessor, ids: list[int]
) -> None:
    kept = [token_id for token_id in ids if token_id not in (0, 1, 2, 6, 7, 8)]
    expected = plain.decode(kept)
    if kept and plain.id_to_piece(kept[0]).startswith("▁"):
        assert tokenizer.decode(ids) == expected[1:]
    else:
        assert tokenizer.decode(ids) == expected
    stream = TextStream(tokenizer)
    assert "".join([*(stream.append(token_id) for token_id in ids), stream.finish()]) == expected


def test_a_character_is_streamed_when_its_last_byte_is_there(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.append(token_id) for token_id in tokenizer.encode("🐱a")] == ["", "", "", "🐱", "a"]


def test_ids_beyond_the_vocabulary_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([1279, 1280, 5000]) == tokenizer.decode([1279])


@unlimited
@given(
    query=texts,
    response=texts,
    history=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    system=st.none() | texts,
)
def test_a_training_sample_is_the_prompt_of_inference_and_the_answers_tokens(
    tokenizer: Tokenizer, query: str, response: str, history: tuple[tuple[str, str], ...], system: str | None
) -> None:
    record = Record(query=query, history=history, system=system)
    prompt = tokenize_prompt(build_prompt(conversation(record)), tokenizer, 36)
    trained = tokenize_prompt(build_prompt(conversation(record), response), tokenizer, 36)
    answer = tokenizer.encode(f" {response}\n###")
    assert trained.input_ids.tolist() == prompt.input_ids.tolist() + answer
    assert trained.labels.tolist() == prompt.labels.tolist() + answer
    whole = tokenizer.encode(str(build_prompt(conversation(record), response)))
    assert trained.input_ids.tolist() == whole  # divided at what is learned or not
    learned = [token_id for token_id in trained.labels.tolist() if token_id != IGNORE_INDEX]
    answers = [*(earlier for _, earlier in history), response]
    assert learned == [token_id for text in answers for token_id in tokenizer.encode(f" {text}\n###")]


def test_no_piece_reaches_over_the_start_of_a_word(plain: sentencepiece.SentencePieceProcessor) -> None:
    pieces = [plain.id_to_piece(token_id) for token_id in range(plain.vocab_size())]
    assert not [piece for piece in pieces if "▁" in piece.lstrip("▁")]


def test_images_fill_their_slots_and_are_not_learned(tokenizer: Tokenizer) -> None:
    record = Record(query="<image>a<image>", history=(("b", "<image>"),), images=("1", "2", "3"))
    tokens = tokenize_prompt(build_prompt(conversation(record), "c"), tokenizer, num_image_tokens=5)
    is_image = tokens.input_ids == IMAGE_TOKEN_INDEX
    assert is_image.sum() == 15
    assert (tokens.labels[is_image] == IGNORE_INDEX).all()
    assert tokens.input_ids.dtype == tokens.labels.dtype == "int64"
    assert tokens.labels[0] == IGNORE_INDEX
    assert isinstance(build_prompt(conversation(record)).segments[2], ImageSlot)


@pytest.mark.parametrize("text", ["\ud83d", "ok \ud800 <|im_end|>"])
@pytest.mark.parametrize("parse_special", [False, True])
def test_half_a_surrogate_pair_is_a_named_error(tokenizer: Tokenizer, text: str, parse_special: bool) -> None:
    with pytest.raises(DatasetError, match=r"'\\ud8.{2}', half of a surrogate pair"):
        tokenizer.encode(text, parse_special=parse_special)


def test_the_numbers_of_images_and_ignored_labels_are_the_originals_and_the_models(golden_cases: dict[str, Any]) -> None:
    assert golden_cases["image_token_index"] == MODEL_IMAGE_TOKEN_INDEX == IMAGE_TOKEN_INDEX
    assert golden_cases["ignore_index"] == IGNORE_INDEX


@unlimited
@given(repeated=st.lists(st.sampled_from(["", "Read it.", *SPECIAL]) | texts, max_size=8))
def test_texts_that_are_remembered_have_the_ids_of_those_that_are_not(tokenizer: Tokenizer, repeated: list[str]) -> None:
    for text in [*repeated, *repeated]:
        ids = tokenizer.encode_repeated(text)
        assert ids.dtype == "int64"
        assert ids.tolist() == tokenizer.encode(text)


def test_only_some_short_texts_are_remembered_and_none_can_be_changed(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_MAX_REMEMBERED_TEXTS", 3)
    monkeypatch.setattr(tokenization, "_MAX_REMEMBERED_CHARS", 5)
    tokenizer = Tokenizer.from_folder(reference / "checkpoint")
    kept = [tokenizer.encode_repeated("a" * length) for length in range(8)]
    assert kept[5] is tokenizer.encode_repeated("aaaaa")
    assert kept[1] is not tokenizer.encode_repeated("a"), "others have been used since"
    assert kept[6] is not tokenizer.encode_repeated("aaaaaa")
    with pytest.raises(ValueError, match="read-only"):
        kept[5][:] = 0
    first = tokenize_prompt(build_prompt(conversation(Record(query="abc"))), tokenizer, num_image_tokens=1)
    first.input_ids[:] = 0
    assert tokenizer.encode_repeated("abc").tolist() == tokenizer.encode("abc")


@pytest.fixture
def folder(reference: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.model", "added_tokens.json", "tokenizer_config.json"):
        shutil.copyfile(reference / "checkpoint" / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_either_list_of_added_tokens_will_do(tokenizer: Tokenizer, folder: Path, name: str) -> None:
    (folder / name).unlink()
    text = "a<unk> <|endoftext|>b<|im_sep|><|im_start|>"
    assert Tokenizer.from_folder(folder).encode(text, parse_special=True) == tokenizer.encode(text, parse_special=True)


def test_a_folder_without_a_model_is_a_named_error(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: file is missing; copy it"):
        Tokenizer.from_folder(folder)


def test_a_broken_model_is_a_named_error(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"tokenizer\.model: cannot be read as a SentencePiece model; fetch"):
        Tokenizer.from_folder(folder)


def test_a_model_without_added_tokens_is_a_named_error(folder: Path) -> None:
    (folder / "added_tokens.json").unlink()
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"neither added_tokens\.json nor tokenizer_config\.json names any token"):
        Tokenizer.from_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("added_tokens.json", '{"<unk>": "zero"}', "<unk> is 'zero'; it should be a valid integer"),
        ("added_tokens.json", '{"<unk>": -1}', "<unk> is -1; it should be greater than or equal to 0"),
        ("added_tokens.json", '{"": 0}', "it should have at least 1 character"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"0": {}}}', "lacks added_tokens_decoder.0.content"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"zero": {"content": "<unk>"}}}', "added_tokens_decoder.zero"),
        ("tokenizer_config.json", '{"added_tokens_decoder": ["<unk>"]}', "added_tokens_decoder is ['<unk>']; it should be"),
    ],
)
def test_added_tokens_of_another_form_are_a_named_error(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: .*{re.escape(message)}.*fetch the file again"):
        Tokenizer.from_folder(folder)
