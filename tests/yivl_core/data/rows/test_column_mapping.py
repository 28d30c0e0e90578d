import pytest

from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.formats import detect_format, to_record_values
from yivl_core.data.rows.parsing import parse_record
from yivl_core.errors import ConfigurationError


def mapping(*options: str) -> ColumnMapping:
    return ColumnMapping.of_options(options)


def test_mapped_columns_are_moved_and_all_others_stay() -> None:
    row = {"question": "What?", "answer": "This.", "page": 3}
    assert mapping("query=question", " response = answer ").apply(row) == {"query": "What?", "response": "This.", "page": 3}
    assert row == {"question": "What?", "answer": "This.", "page": 3}


def test_dots_lead_into_objects_unless_a_column_has_such_a_name() -> None:
    options = mapping("query=data.question")
    assert options.apply({"data": {"question": "What?", "n": 1}}) == {"data": {"question": "What?", "n": 1}, "query": "What?"}
    assert options.apply({"data.question": "Who?", "data": {"question": "What?"}}) == {
        "data": {"question": "What?"},
        "query": "Who?",
    }
    for row in ({"data": ["question"]}, {"data": None}, {}):
        assert "query" not in options.apply(row)


def test_columns_can_be_exchanged_and_give_way_to_mapped_ones() -> None:
    row = {"query": "a", "response": "b"}
    assert mapping("query=response", "response=query").apply(row) == {"query": "b", "response": "a"}
    assert mapping("query=text").apply({"query": "a", "text": "b"}) == {"query": "b"}


def test_one_address_becomes_a_list_of_images() -> None:
    assert mapping("images=file").apply({"file": "a.png"}) == {"images": ["a.png"]}
    assert mapping("images=files").apply({"files": ["a.png", None]}) == {"images": ["a.png", None]}


def test_a_mapped_list_of_messages_decides_the_format() -> None:
    assert detect_format(mapping("messages=dialog").apply({"dialog": []})) == "messages"


def test_a_missing_column_is_named_beside_the_field() -> None:
    options = mapping("query=question")
    finding = parse_record(options.apply({"query": "not meant"}), "inference").findings[0]
    assert options.in_their_words(finding).message == "there is no `query` (column `question`)"
    (finding,) = to_record_values(mapping("messages=dialog.turns").apply({"dialog": {"turns": [3]}}), "messages")[1]
    assert mapping("messages=dialog.turns").in_their_words(finding).message == (
        "`messages[0]` (column `dialog.turns`) is a number: 3"
    )
    other = parse_record({"query": "a", "response": 3}, "inference").findings[0]
    assert options.in_their_words(other) is other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["query"], "column mapping 'query': write FIELD=COLUMN, such as query=question"),
        (["query="], "write FIELD=COLUMN"),
        (["query=a..b"], "write FIELD=COLUMN"),
        (["qurey=a"], "column mapping 'qurey=a': there is no field 'qurey'; did you mean query?"),
        (["zzz=a"], "there is no field 'zzz'; the fields are query, response,"),
        (["query=a", "query=b"], "column mapping 'query=b': query is mapped to 'a' already; name one column for it"),
    ],
)
def test_a_mapping_that_cannot_be_meant_is_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        mapping(*options)
    assert message in str(caught.value)
