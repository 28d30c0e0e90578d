from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from yivl_core.settings import explain_validation_error, narrow


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rank: int = Field(default=1, ge=1, le=9)
    share: float = Field(default=0.5, gt=0, lt=1)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    mode: Literal["a", "b"] = "a"
    is_on: bool = False
    files: tuple[str, ...] = Field(default=("x",), min_length=1)
    label: str = Field(default="x", min_length=1)
    inner: Inner = Inner()

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.name == "wrong":
            raise ValueError("this name is taken")
        return self


def explanation(values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return explain_validation_error(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name is missing"),
        ({"name": "n", "nmae": 1}, "nmae is not a setting; check the spelling"),
        ({"name": 3}, "name 3 has to be text"),
        ({"name": "n", "mode": "c"}, "mode 'c' has to be one of 'a' or 'b'"),
        ({"name": "n", "is_on": "perhaps"}, "is_on 'perhaps' has to be true or false"),
        ({"name": "n", "files": []}, "files [] has to have at least 1 entry"),
        ({"name": "n", "files": "abc"}, "files 'abc' has to be a list"),
        ({"name": "n", "label": ""}, "label '' must not be empty"),
        ({"name": "n", "inner": {"rank": 0}}, "inner.rank 0 has to be at least 1"),
        ({"name": "n", "inner": {"rank": 10}}, "inner.rank 10 has to be at most 9"),
        ({"name": "n", "inner": {"rank": 1.5}}, "inner.rank 1.5 has to be a whole number"),
        ({"name": "n", "inner": {"share": 0}}, "inner.share 0 has to be more than 0"),
        ({"name": "n", "inner": {"share": 1.0}}, "inner.share 1.0 has to be less than 1"),
        ({"name": "n", "inner": {"share": "half"}}, "inner.share 'half' has to be a number"),
        ({"name": "n", "inner": 3}, "inner 3 has to be a group of settings"),
        ({"name": "wrong"}, "this name is taken"),
    ],
)
def test_a_refused_setting_is_told_by_name_value_and_what_is_allowed(values, message):
    assert explanation(values) == message


def test_all_refused_settings_are_told():
    assert explanation({"inner": {"rank": 0, "share": 2}}).splitlines() == [
        "name is missing",
        "inner.rank 0 has to be at least 1",
        "inner.share 2 has to be less than 1",
    ]


def test_narrowing_keeps_what_both_have_and_applies_the_changes():
    class Narrow(BaseModel):
        model_config = ConfigDict(extra="forbid")

        name: str
        mode: str
        place: str = "here"

    assert narrow(Outer(name="n", mode="b"), Narrow, place="there") == Narrow(name="n", mode="b", place="there")


def test_narrowing_checks_the_changes():
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        narrow(Inner(), Inner, rank=0)
