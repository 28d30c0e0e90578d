"""Digests: the same for the same content, and for no other."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.digests import canonical_json, digest_each, digest_file, digest_files, digest_json, digest_of_digests

texts = st.text(st.characters(exclude_categories=["Cs"]))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(texts, values, max_size=4),
    max_leaves=12,
)


def shuffled(value: Any) -> Any:
    """The same value with the keys of its objects in another order."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(item) for item in value] if isinstance(value, list) else value


@given(json_values)
def test_canonical_json_says_the_same_on_one_line(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert "\n" not in text
    assert canonical_json(json.loads(text)) == text


@given(json_values)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    assert digest_json(shuffled(value)) == digest_json(value)


@given(json_values, json_values)
def test_other_content_has_another_digest(one: Any, other: Any) -> None:
    assert (digest_json(one) == digest_json(other)) == (canonical_json(one) == canonical_json(other))


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_what_is_no_json_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        digest_json(value)


def test_digests_stay_what_they_are() -> None:
    """Stored in manifests for years: computed with the tools of the shell."""
    assert digest_json({"b": [1, 2.5, None], "a": "é"}) == hashlib.sha256('{"a":"é","b":[1,2.5,null]}'.encode()).hexdigest()


@given(st.binary(max_size=300_000))
def test_a_file_has_the_digest_of_its_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "digested"
    path.write_bytes(data)
    assert digest_file(path) == hashlib.sha256(data).hexdigest()


def test_files_count_with_their_names_below_the_root_in_any_order(tmp_path: Path) -> None:
    for root in ("one", "two"):
        (tmp_path / root / "sub").mkdir(parents=True)
        for number in range(20):
            (tmp_path / root / "sub" / f"{number}").write_text(str(number))
    file_names = [f"sub/{number}" for number in range(20)]
    digest = digest_files(tmp_path / "one", file_names)
    assert digest == digest_files(tmp_path / "two", reversed(file_names))
    assert digest != digest_files(tmp_path / "one", file_names[1:])
    (tmp_path / "two" / "sub" / "7").rename(tmp_path / "two" / "sub" / "x")
    assert digest != digest_files(tmp_path / "two", [name.replace("/7", "/x") for name in file_names])
    (tmp_path / "one" / "sub" / "3").write_text("4")
    assert digest != digest_files(tmp_path / "one", file_names)


def test_one_pass_over_files_gives_the_digest_of_each_and_of_all(tmp_path: Path) -> None:
    contents = {"b": b"2", "a/c": b"", "a/b": b"1"}
    (tmp_path / "a").mkdir()
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    digests = digest_each(tmp_path, contents)
    assert list(digests) == ["a/b", "a/c", "b"]
    assert digests == {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    assert digest_of_digests(dict(reversed(digests.items()))) == digest_files(tmp_path, contents)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone"):
        digest_files(tmp_path, ["gone"])
