from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.records import ImageCountError, ImageSlot, Message, Record, Role, conversation, sample_digest

PLAIN_TEXT = st.text(alphabet="ab <>i\n中", min_size=1, max_size=12).filter(lambda text: "<image" not in text)


def contents(record: Record) -> list[tuple[str | ImageSlot, ...]]:
    return [message.content for message in conversation(record)]


def as_tagged_text(message: Message) -> str:
    return "".join("<image>" if isinstance(part, ImageSlot) else part for part in message.content)


def test_one_round_gets_all_images_in_front_and_one_newline() -> None:
    record = Record(query="Compare them.", images=("a.png", "b.png"))
    assert contents(record) == [(ImageSlot(0), ImageSlot(1), "\nCompare them.")]


def test_a_tag_is_replaced_where_it_stands_and_nothing_is_added() -> None:
    record = Record(query="Is <image> like <image_placeholder>?", images=("a.png", "b.png"))
    assert contents(record) == [("Is ", ImageSlot(0), " like ", ImageSlot(1), "?")]


def test_as_many_entries_as_rounds_give_one_to_each_and_none_for_null() -> None:
    record = Record(query="3", history=(("1", "one"), ("2", "two")), images=("a.png", None, "c.png"))
    assert contents(record) == [(ImageSlot(0), "\n1"), ("one",), ("2",), ("two",), (ImageSlot(1), "\n3")]


def test_a_first_round_without_image_stays_without() -> None:
    record = Record(query="Look.", history=(("Hello", "Hello!"),), images=(None, "a.png"))
    assert contents(record) == [("Hello",), ("Hello!",), (ImageSlot(0), "\nLook.")]


def test_one_image_and_several_rounds_is_the_first_rounds() -> None:
    record = Record(query="And now?", history=(("What is it?", "A cat."),), images=("a.png",))
    assert contents(record) == [(ImageSlot(0), "\nWhat is it?"), ("A cat.",), ("And now?",)]


def test_tags_in_history_count_and_images_go_in_the_order_of_tags() -> None:
    record = Record(query="Or <image>?", history=(("This <image>?", "No."),), images=("a.png", "b.png"))
    assert contents(record) == [("This ", ImageSlot(0), "?"), ("No.",), ("Or ", ImageSlot(1), "?")]


@pytest.mark.parametrize(("system", "num_messages"), [(None, 1), ("", 2), ("Be brief.", 2)])
def test_an_absent_system_text_is_not_an_empty_one(system: str | None, num_messages: int) -> None:
    messages = conversation(Record(query="Hi", system=system))
    assert len(messages) == num_messages
    if system is not None:
        assert messages[0] == Message(Role.SYSTEM, (system,))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (("a.png",), r"2 <image> tag\(s\) in query and history for 1 image\(s\); write one tag for each image"),
        (("a.png", "b.png", "c.png"), r"2 <image> tag\(s\) in query and history for 3 image\(s\)"),
        ((None, None), r"2 <image> tag\(s\) in query and history for 0 image\(s\)"),
    ],
)
def test_tags_that_are_not_as_many_as_images_are_refused(images: tuple[str | None, ...], message: str) -> None:
    with pytest.raises(ImageCountError, match=message):
        conversation(Record(query="<image> and <image>", images=images))


def test_images_that_fit_no_rule_are_refused() -> None:
    record = Record(query="3", history=(("1", "one"), ("2", "two")), images=("a.png", "b.png"))
    with pytest.raises(ImageCountError, match="2 entries in `images` for 3 rounds and no <image> tag; give one entry a round"):
        conversation(record)


@given(
    history=st.lists(st.tuples(PLAIN_TEXT, PLAIN_TEXT), max_size=3),
    query=PLAIN_TEXT,
    present=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_one_entry_a_round_keeps_texts_and_places_every_image_once(
    history: list[tuple[str, str]], query: str, present: list[bool]
) -> None:
    images = tuple(f"{index}.png" if there else None for index, there in enumerate(present[: len(history) + 1]))
    messages = conversation(Record(query=query, history=tuple(history), images=images))
    slots = [part.index for message in messages for part in message.content if isinstance(part, ImageSlot)]
    assert slots == list(range(sum(image is not None for image in images)))
    # Laid out flat, rounds alternate between a question, which may have an image, and an answer, which has none.
    has_image = list(chain(*((image is not None, False) for image in images)))[:-1]
    texts = ["".join(part for part in message.content if isinstance(part, str)) for message in messages]
    assert texts == ["\n" * there + text for there, text in zip(has_image, [*chain(*history), query], strict=True)]
    assert [isinstance(message.content[0], ImageSlot) for message in messages] == has_image


@given(pieces=st.lists(st.lists(PLAIN_TEXT, min_size=1, max_size=3), min_size=1, max_size=5).filter(lambda p: len(p) % 2))
def test_tagged_text_is_a_round_trip(pieces: list[list[str]]) -> None:
    texts = ["<image>".join(piece) for piece in pieces]
    num_tags = sum(len(piece) - 1 for piece in pieces)
    history = tuple(zip(texts[:-1:2], texts[1::2], strict=True))
    record = Record(query=texts[-1], history=history, images=tuple(f"{index}.png" for index in range(num_tags)))
    messages = conversation(record)
    assert [as_tagged_text(message) for message in messages] == texts
    slots = [part.index for message in messages for part in message.content if isinstance(part, ImageSlot)]
    assert slots == list(range(num_tags))


def test_the_sample_digest_covers_what_is_shown_and_nothing_else() -> None:
    record = Record(query="Read it.", images=("a.png",), response="A", id="1")
    same = Record(query="Read it.", images=("elsewhere/b.png",), response="B", id="2", cluster_id="c")
    assert sample_digest(record, ("d1",)) == sample_digest(same, ("d1",))
    shown = [
        sample_digest(record, ("d1",)),
        sample_digest(record, ("d2",)),
        sample_digest(record.model_copy(update={"query": "Read it!"}), ("d1",)),
        sample_digest(record.model_copy(update={"system": ""}), ("d1",)),
        sample_digest(record.model_copy(update={"history": (("a", "b"),)}), ("d1",)),
        sample_digest(record.model_copy(update={"history": (("a", "b"),), "images": (None, "a.png")}), ("d1",)),
    ]
    assert len(set(shown)) == len(shown)
