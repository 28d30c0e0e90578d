from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.findings import KINDS, Finding
from yivl_core.data.records import ImageSlot, Message, Record, Role, conversation
from yivl_core.data.rows.formats import FORMATS, Format, detect_format, to_record_values
from yivl_core.data.rows.parsing import parse_record

# Small rows of the shapes that the formats' own documentation shows.
OPENAI = {
    "messages": [
        {"role": "developer", "content": "Answer briefly."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this image?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO", "detail": "low"}},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "What colour?"},
        {"role": "assistant", "content": "Grey."},
    ]
}
RESPONSES_API = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "Read it."}],
        },
        {"role": "assistant", "content": [{"type": "output_text", "text": "12.50"}]},
    ]
}
TRANSFORMERS = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "a.png"},
                {"type": "image", "url": "http://example.com/b.png"},
                {"type": "image", "path": "/images/c.png"},
                {"type": "text", "text": "Compare them."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "All alike."}]},
    ]
}
TRL = {
    "images": ["a.png"],
    "messages": [
        {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ],
}
MS_SWIFT = {
    "messages": [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "And this<image>?"},
    ],
    "images": ["a.png", "b.png"],
}
LLAVA = {
    "id": "000000033471",
    "image": "coco/000000033471.jpg",
    "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colours of the bus?"},
        {"from": "gpt", "value": "White and red."},
        {"from": "human", "value": "What is on its back?"},
        {"from": "gpt", "value": "An advertisement."},
    ],
}
SHAREGPT = {
    "system": "You help.",
    "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}],
}
ALPACA = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day", "history": [["Hello", "Hi"]]}
SWIFT = {"query": "Read it.", "response": "12.50", "images": ["a.png"], "page": 3}


def read(row: dict[str, Any]) -> Record:
    values, findings = to_record_values(row, detect_format(row))
    assert findings == []
    record = parse_record(values, "inference").record
    assert record is not None
    return record


def faults(row: dict[str, Any], format_: Format | None = None) -> list[tuple[str, str]]:
    _, findings = to_record_values(row, format_ or detect_format(row))
    return [(finding.kind, finding.message) for finding in findings]


def chat(*messages: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in messages]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (SWIFT, "swift"), (OPENAI, "messages"), (LLAVA, "conversations"), ({"conversation": []}, "conversations"),
        (ALPACA, "alpaca"), ({**OPENAI, **SWIFT}, "swift"), ({"question": "?"}, "swift"), ({}, "swift"),
    ],
)  # fmt: skip
def test_the_names_of_the_fields_tell_the_format(row: dict[str, Any], expected: Format) -> None:
    assert detect_format(row) == detect_format(list(row)) == expected


def test_an_openai_conversation_with_an_image_url_stands_as_it_was_written() -> None:
    record = read(OPENAI)
    assert conversation(record) == [
        Message(Role.SYSTEM, ("Answer briefly.",)),
        Message(Role.USER, ("What is in this image?", ImageSlot(0))),
        Message(Role.ASSISTANT, ("A cat.",)),
        Message(Role.USER, ("What colour?",)),
    ]
    assert record.response == "Grey."
    assert record.images == ("data:image/png;base64,iVBO",)


def test_images_in_front_of_a_text_are_tags_and_one_newline_whatever_the_part_is_called() -> None:
    record = read(RESPONSES_API)
    assert (record.query, record.response, record.images) == ("<image>\nRead it.", "12.50", ("a.png",))
    record = read(TRANSFORMERS)
    assert record.query == "<image><image><image>\nCompare them."
    assert record.images == ("a.png", "http://example.com/b.png", "/images/c.png")


def test_interleaved_images_stand_exactly_where_they_are() -> None:
    parts = [
        {"image": "a.png"},
        {"type": "text", "text": "Left of"},
        {"type": "image", "image": {"path": "b.png", "bytes": None}},
        {"type": "text", "text": "is what?"},
    ]
    record = read(chat(("user", parts)))
    assert conversation(record) == [Message(Role.USER, (ImageSlot(0), "\nLeft of", ImageSlot(1), "is what?"))]
    assert record.images == ("a.png", "b.png")


def test_parts_without_an_address_and_tags_take_the_images_of_the_row_in_order() -> None:
    assert read(TRL).images == ("a.png",)
    assert read(TRL).query == "<image>\nWhat is it?"
    record = read(MS_SWIFT)
    assert record.system == "You help."
    assert record.history == (("<image>What is it?", "A cat."),)
    assert (record.query, record.response, record.images) == ("And this<image>?", None, ("a.png", "b.png"))
    mixed = chat(
        ("user", [{"type": "image_url", "image_url": "own.png"}, {"type": "text", "text": "and <image> and"}, {"type": "image"}])
    )
    assert read({**mixed, "images": ["x.png", "y.png"]}).images == ("own.png", "x.png", "y.png")


def test_a_tag_beside_an_image_part_is_never_miscounted() -> None:
    parts = [{"type": "image_url", "image_url": "a.png"}, {"type": "text", "text": "What does <image> mean?"}]
    ((kind, message),) = faults(chat(("user", parts)))
    assert kind == "image_count_mismatch"
    assert message == "1 image(s) without an address of their own (tags in texts, parts) for 0 in `images`"
    answer = chat(("user", [{"type": "image", "image": "a.png"}]), ("assistant", "The tag <image> is text here."))
    assert read(answer).images == ("a.png",)


def test_llava_and_sharegpt_conversations_are_rounds_with_the_image_where_its_tag_stands() -> None:
    record = read(LLAVA)
    assert record.id == "000000033471"
    assert record.history == (("<image>\nWhat are the colours of the bus?", "White and red."),)
    assert (record.query, record.response) == ("What is on its back?", "An advertisement.")
    assert record.images == ("coco/000000033471.jpg",)
    assert not record.meta
    record = read(SHAREGPT)
    assert (record.system, record.query, record.response) == ("You help.", "Hello", "Hi")


def test_both_spellings_of_a_message_say_the_same() -> None:
    values = to_record_values(LLAVA, "conversations")[0]
    turns = [{"role": turn["from"], "content": turn["value"]} for turn in LLAVA["conversations"]]  # type: ignore[index]
    respelt = {"id": LLAVA["id"], "images": [LLAVA["image"]], "messages": turns}
    assert to_record_values(respelt, "messages")[0] == values


def test_alpaca_puts_the_input_behind_the_instruction() -> None:
    record = read(ALPACA)
    assert (record.query, record.response, record.history) == ("Translate.\nGuten Tag", "Good day", (("Hello", "Hi"),))
    record = read({"instruction": "Name a colour.", "input": "", "images": ["a.png"], "system": "Short."})
    assert (record.query, record.response, record.images, record.system) == ("Name a colour.", None, ("a.png",), "Short.")
    assert read({"instruction": "Name a colour.", "input": None, "image": None}) == Record(query="Name a colour.")
    assert faults({"instruction": 3, "input": []}) == [
        ("wrong_type", "`instruction` is a number: 3"),
        ("wrong_type", "`input` is a list: []"),
    ]


def test_our_own_rows_are_left_as_they_are_and_unknown_fields_land_in_meta() -> None:
    assert to_record_values(SWIFT, "swift") == (SWIFT, [])
    assert parse_record(to_record_values({**LLAVA, "model": "v1"}, "conversations")[0], "training").record.meta == {"model": "v1"}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat(("user", "a"), ("user", "b")), ["`messages[1]` is from user, where it is the turn of assistant"]),
        (chat(("assistant", "a"), ("user", "b")), ["`messages[0]` is from assistant, where it is the turn of user"]),
        (chat(("user", "a"), ("system", "b")), ["`messages[1]` is from system, which speaks first or not at all"]),
        (chat(("system", "a")), ["`messages` holds no message of the user"]),
        ({"messages": []}, ["`messages` holds no message of the user"]),
        (
            chat(("user", "a"), ("assistant", "b"), ("assistant", "c"), ("system", "d"), ("user", "e"), ("user", "f")),
            [
                "`messages[2]` is from assistant, where it is the turn of user",
                "`messages[3]` is from system, which speaks first or not at all",
                "`messages[5]` is from user, where it is the turn of assistant",
            ],
        ),
    ],
)  # fmt: skip
def test_who_speaks_out_of_turn_is_named_with_the_messages_number(row: dict[str, Any], expected: list[str]) -> None:
    assert faults(row) == [("role_order", message) for message in expected]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"role": "tool", "content": "42"}, ("unsupported_content", '`messages[0]` is from "tool": the model knows no tools')),
        ({"role": "narrator", "content": "x"}, ("unknown_role", '`messages[0].role` is "narrator"')),
        ({"from": None, "value": "x"}, ("unknown_role", "`messages[0].from` is null")),
        ({"content": "x"}, ("unknown_role", "`messages[0]` has neither `role` nor `from`")),
        ({"role": "user"}, ("missing_field", "there is no `messages[0].content`")),
        ({"role": "user", "content": None}, ("wrong_type", "`messages[0].content` is null")),
        ({"from": "human", "value": 3}, ("wrong_type", "`messages[0].value` is a number: 3")),
        ("Hello", ("wrong_type", '`messages[0]` is a string: "Hello"')),
        ({"role": "user", "content": ["Hello"]}, ("wrong_type", '`messages[0].content[0]` is a string: "Hello"')),
        (
            {"role": "user", "content": [{"type": "text", "text": None}]},
            ("wrong_type", "`messages[0].content[0].text` is null"),
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 7}}]},
            ("wrong_type", "`messages[0].content[0].image_url.url` is a number: 7"),
        ),
        (
            {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
            ("unsupported_content", '`messages[0].content[0]` is of type "input_audio"'),
        ),
        (
            {"role": "user", "content": [{"type": "input_image", "file_id": "file-1"}]},
            ("unsupported_content", '`messages[0].content[0].file_id` is "file-1", which is no address'),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_in_a_message_is_named_with_its_path(message: Any, expected: tuple[str, str]) -> None:
    assert expected in faults({"messages": [message]})


def test_calls_of_tools_and_images_in_the_answer_are_refused_and_other_fields_are_told() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}], "refusal": None}
    assert faults({"messages": [{"role": "user", "content": "a"}, call]}) == [
        ("unsupported_content", '`messages[1].tool_calls` is [{"id": "1"}]: the model knows neither tools nor sound')
    ]
    answer = chat(("user", "Draw."), ("assistant", [{"type": "image", "image": "a.png"}]))
    assert ("unsupported_content", "`messages[1]` is from assistant and holds an image") in faults(answer)
    weighted = {"messages": [{"role": "user", "content": "a", "weight": 0}]}
    assert faults(weighted) == [("unknown_field", '`messages[0]` has fields that are not read: ["weight"]')]
    assert faults({**SHAREGPT, "videos": ["a.mp4"]}) == [("unsupported_content", '`videos` is ["a.mp4"]')]


def test_what_is_said_twice_is_refused_unless_it_is_the_same() -> None:
    assert read({**MS_SWIFT, "system": "You help."}).system == "You help."
    assert faults({**SHAREGPT, "response": "Hi"}) == []
    assert faults({**SHAREGPT, "response": "Ho"}) == [
        ("duplicate_key", '`response` is "Ho" beside `conversations`, which says it too')
    ]
    assert faults({**LLAVA, "images": ["b.png"]}) == [("duplicate_key", "images stand in `image` and in `images`")]
    assert ("duplicate_key", "`response` stands beside `instruction` and `output`, which say it too") in faults(
        {**ALPACA, "response": "x"}
    )


def test_a_row_of_another_format_than_its_dataset_is_a_finding() -> None:
    assert faults(LLAVA, "messages") == [("format_mismatch", "the row has the format conversations, the dataset messages")]
    assert faults(OPENAI, "swift") == [("format_mismatch", "the row has the format messages, the dataset swift")]
    assert faults(SWIFT, "alpaca") == [("format_mismatch", "the row has the format swift, the dataset alpaca")]
    assert faults({"answer": "x"}, "messages") == [("missing_field", "there is no `messages`")]
    assert faults({"answer": "x"}, "swift") == []  # `parse_record` says what is missing


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.sampled_from(
    ["user", "assistant", "system", "human", "gpt", "tool", "text", "image", "image_url", "<image>", "a.png"]
)  # fmt: skip
NAMES = st.text(max_size=4) | st.sampled_from([
    "query", "response", "history", "images", "image", "system", "messages", "conversations", "conversation", "instruction",
    "input", "output", "role", "content", "from", "value", "type", "text", "image_url", "url", "path", "tool_calls", "videos",
])  # fmt: skip
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5), max_leaves=30)


@given(row=st.dictionaries(NAMES, JSON, max_size=6), format_=st.sampled_from([None, *FORMATS]))
def test_rows_of_any_shape_give_values_or_findings_and_never_an_exception(row: dict[str, Any], format_: Format | None) -> None:
    values, findings = to_record_values(row, format_ or detect_format(row))
    assert all(finding.kind in KINDS and finding.message and finding.remedy for finding in findings)
    if not any(finding.severity == "error" for finding in findings):
        parse_record(values, "training")


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=8).filter(
    lambda text: bool(text.strip()) and "<" not in text
)
CONTENTS = TEXTS | st.lists(TEXTS | st.integers(0, 99), min_size=1, max_size=4)


@given(
    system=st.none() | TEXTS,
    turns=st.lists(st.tuples(CONTENTS, TEXTS), min_size=1, max_size=4),
    ends_with_user=st.booleans(),
)
def test_a_conversation_is_read_back_message_by_message(
    system: str | None, turns: list[tuple[str | list[str | int], str]], ends_with_user: bool
) -> None:
    messages: list[tuple[str, Any]] = [] if system is None else [("system", system)]
    shown: list[tuple[str | ImageSlot, ...]] = [] if system is None else [(system,)]
    addresses: list[str] = []
    for content, answer in turns:
        pieces = [content] if isinstance(content, str) else content
        parts: list[dict[str, Any]] = []
        for piece in pieces:
            if isinstance(piece, str):
                parts.append({"type": "text", "text": piece})
            else:
                parts.append({"type": "image_url", "image_url": {"url": f"{piece}.png"}})
                addresses.append(f"{piece}.png")
        messages += [("user", content if isinstance(content, str) else parts), ("assistant", answer)]
        shown += [_expected(pieces, len(addresses)), (answer,)]
    record = read(chat(*(messages[:-1] if ends_with_user else messages)))
    assert [message.content for message in conversation(record)] == shown[:-1]
    assert record.image_addresses == tuple(addresses)
    assert record.response == (None if ends_with_user else turns[-1][1])


def _expected(pieces: list[str | int], end: int) -> tuple[str | ImageSlot, ...]:
    """Pieces as the model is shown them, texts that touch each other as one; the images are the last before `end`."""
    index = end - sum(isinstance(piece, int) for piece in pieces)
    content: list[str | ImageSlot] = []
    leads, text = isinstance(pieces[0], int), ""
    for piece in pieces:
        if isinstance(piece, str):
            text += "\n" + piece if leads else piece
            leads = False
            continue
        content += [text] if text else []
        content.append(ImageSlot(index))
        index, text = index + 1, ""
    return (*content, text) if text else tuple(content)


def test_findings_of_several_messages_are_all_told() -> None:
    findings: list[Finding] = to_record_values({"messages": [{"role": "x"}, 3, {"role": "user", "content": 1}]}, "messages")[1]
    assert [finding.kind for finding in findings] == ["unknown_role", "wrong_type", "wrong_type"]
    assert str(findings[0]) == '`messages[0].role` is "x"; write user, assistant or system'
