"""Prompts against those of the original code, and what training learns of them."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.records import IMAGE_TAG, ImageSlot, Message, Record, Role, conversation
from yivl_core.processing import prompt as prompt_module
from yivl_core.processing.prompt import PROMPT_VERSION, SYSTEM_PROMPT, Prompt, TextSegment, build_prompt, describe_prompt, shorten

CASES = [
    "text_only_en", "text_only_zh", "one_image_en", "one_image_zh", "two_images_one_turn", "multi_turn_two_images",
    "multi_turn_one_image", "literal_hash", "placeholder_inside_text", "literal_placeholder_enough_images",
    "special_tokens_in_text", "odd_text",
]  # fmt: skip


def record_of(case: dict[str, Any], **fields: Any) -> Record:
    texts = [message["text"] for message in case["messages"]]
    return Record(
        query=texts[-1], history=tuple(zip(texts[:-1:2], texts[1::2], strict=True)), images=tuple(case["images"]), **fields
    )


def learned(prompt: Prompt) -> list[str]:
    return [segment.text for segment in prompt.segments if isinstance(segment, TextSegment) and segment.is_learned]


def test_system_prompt_is_the_originals(golden_cases: dict[str, Any]) -> None:
    assert golden_cases["system_prompt"] == SYSTEM_PROMPT


def test_every_case_is_tested(golden_cases: dict[str, Any]) -> None:
    assert sorted(golden_cases["cases"]) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_prompt_is_the_originals(golden_cases: dict[str, Any], name: str) -> None:
    case = golden_cases["cases"][name]
    assert str(build_prompt(conversation(record_of(case)))) == case["prompt"]


@pytest.mark.parametrize("name", ["one_image_en", "two_images_one_turn", "multi_turn_two_images", "multi_turn_one_image"])
def test_images_without_tags_give_the_originals_prompt_too(golden_cases: dict[str, Any], name: str) -> None:
    case = golden_cases["cases"][name]
    untagged = [{"text": message["text"].replace("<image_placeholder>", "").lstrip("\n")} for message in case["messages"]]
    record = record_of({**case, "messages": untagged})
    assert str(build_prompt(conversation(record))) == case["prompt"]


def test_a_finished_exchange_is_the_originals(golden_cases: dict[str, Any]) -> None:
    case = golden_cases["prompt_building"]["complete_exchange"]
    query, answer = case["messages"]
    assert str(build_prompt(conversation(Record(query=query)), answer)) + " " == case["prompt"]


def test_an_empty_conversation_is_the_originals(golden_cases: dict[str, Any]) -> None:
    assert str(build_prompt([])) + " " == golden_cases["prompt_building"]["empty_conversation"]["prompt"]


def test_the_web_demos_first_message_is_a_tag_a_newline_and_the_text(golden_cases: dict[str, Any]) -> None:
    record = Record(query="What?", images=("a.png",))
    assert str(build_prompt(conversation(record))) == golden_cases["prompt_building"]["web_demo_tuple_first_message"]["prompt"]


def test_an_empty_answer_in_the_history_keeps_its_frame_unlike_the_original(golden_cases: dict[str, Any]) -> None:
    ours = str(build_prompt(conversation(Record(query="Again", history=(("Hello", ""),)))))
    original = golden_cases["prompt_building"]["empty_assistant_message_in_history"]["prompt"]
    assert ours == f"{SYSTEM_PROMPT}\n\n### Human: Hello\n### Assistant: \n### Human: Again\n### Assistant:"
    assert ours == original.replace("### Assistant:Human:", "### Assistant: \n### Human:")


@pytest.mark.parametrize(("system", "start"), [("", "\n\n### Human: Hi"), ("Be brief.", "Be brief.\n\n### Human: Hi")])
def test_a_system_text_takes_the_place_of_the_default(system: str, start: str) -> None:
    assert str(build_prompt(conversation(Record(query="Hi", system=system)))) == start + "\n### Assistant:"


def test_every_answer_is_learned_with_its_stop_and_nothing_else_is() -> None:
    record = Record(query="Two?", response=" 2\n", history=(("One?", "1"), ("", "")), images=("a.png", None, None))
    prompt = build_prompt(conversation(record), record.response)
    assert learned(prompt) == [" 1\n###", " \n###", "  2\n\n###"]
    assert str(prompt).endswith(" Human: Two?\n### Assistant:  2\n\n###")


def test_an_image_in_an_earlier_answer_divides_what_is_learned() -> None:
    record = Record(query="Why?", history=(("Draw", "Here <image> it is"),), images=("a.png",))
    prompt = build_prompt(conversation(record), "So")
    assert learned(prompt) == [" Here ", " it is\n###", " So\n###"]
    assert prompt.segments[2] == ImageSlot(0)


def test_another_prompt_needs_another_version() -> None:
    record = Record(query="Q <image>", history=(("q", "a"),), images=("1",), response="A")
    text = "|".join(repr(segment) for segment in build_prompt(conversation(record), record.response).segments)
    assert (PROMPT_VERSION, hashlib.sha256(text.encode()).hexdigest()[:8]) == ("yi-vl-1", "ac11680b")


texts = st.text(max_size=12).filter(lambda text: not IMAGE_TAG.search(text))  # the records have no images
records = st.builds(
    Record,
    query=texts,
    response=texts,
    history=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    system=st.none() | texts,
)


@given(records)
def test_a_training_prompt_is_the_open_prompt_and_the_answer(record: Record) -> None:
    messages = conversation(record)
    trained, opened = build_prompt(messages, record.response), build_prompt(messages)
    assert trained.segments[:-1] == opened.segments
    assert trained.segments[-1] == TextSegment(f" {record.response}\n###", is_learned=True)


@given(records)
def test_neighbouring_texts_are_one_segment_and_none_is_empty(record: Record) -> None:
    segments = build_prompt(conversation(record), record.response).segments
    flags = [segment.is_learned for segment in segments if isinstance(segment, TextSegment)]
    assert len(flags) == len(segments)
    assert flags == [number % 2 == 1 for number in range(len(flags))]
    assert all(segment.text for segment in segments if isinstance(segment, TextSegment))


@given(records, st.integers(0, 12))
def test_shortening_cuts_the_end_of_long_texts_and_nothing_else(record: Record, limit: int) -> None:
    messages, answer = shorten(conversation(record), record.response, limit)
    expected = Record(
        query=record.query[:limit], history=tuple((q[:limit], a[:limit]) for q, a in record.history), system=record.system
    )
    assert str(build_prompt(messages, answer)) == str(build_prompt(conversation(expected), (record.response or "")[:limit]))


def test_shortening_keeps_images() -> None:
    message = Message(Role.USER, (ImageSlot(0), ImageSlot(1), "\nCompare"))
    shortened, _ = shorten([message], None, 1)
    assert shortened == [Message(Role.USER, (ImageSlot(0), ImageSlot(1), "\n"))]


def test_what_is_told_of_the_prompt_shows_every_part_of_its_frame() -> None:
    told = describe_prompt()
    assert (told["version"], told["system"], told["stop"]) == (PROMPT_VERSION, SYSTEM_PROMPT, "###")
    assert told["example"] == (
        f"{SYSTEM_PROMPT}\n\n### Human: <image_placeholder>\nWhat is in this image?\n### Assistant: A cat.\n"
        "### Human: Which colour?\n### Assistant:"
    )
    for name in ("system", "example"):
        assert told[f"{name}_sha256"] == hashlib.sha256(told[name].encode()).hexdigest()


@pytest.mark.parametrize("name", ["SYSTEM_PROMPT", "STOP_STRING", "IMAGE_PLACEHOLDER", "_USER_TURN", "PROMPT_VERSION"])
def test_any_other_character_of_the_frame_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe_prompt()
    monkeypatch.setattr(prompt_module, name, getattr(prompt_module, name) + ".")
    now = describe_prompt()
    assert now != before
    assert (now["example_sha256"] != before["example_sha256"]) == (name != "PROMPT_VERSION")
