import argparse
import os
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from flows.commands import COMMANDS
from flows.options import Spelling, add_options, read_options, usage
from yivl_core.errors import ConfigurationError


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=8, ge=1, description="a rank")
    mode: Literal["a", "b"] = Field(default="a", description="a mode")


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    files: tuple[str, ...] = Field(min_length=1, description="some files")
    purpose: str = Field(description="what for")
    share: float | None = Field(default=None, gt=0, description="100 % at most; default: all")
    is_kept: bool = Field(default=True, description="keep it")
    inner: Inner = Field(default=Inner(), description="what is inside")

    @model_validator(mode="after")
    def _check(self) -> "Outer":
        if self.share == 13 and not self.is_kept:
            raise ValueError("`share` 13 needs is_kept, says the rule of training.data")
        return self


SPELLING = Spelling(names={"purpose": "--for"})


def parser_of(spelling: Spelling = SPELLING) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test", exit_on_error=False, allow_abbrev=False)
    add_options(parser, Outer, spelling)
    return parser


def read(*arguments: str, spelling: Spelling = SPELLING) -> Outer:
    return read_options(parser_of(spelling).parse_args(arguments), Outer, spelling)


def test_what_is_not_given_keeps_the_default_of_the_model():
    assert read("--files", "a", "--for", "x") == Outer(files=("a",), purpose="x")


def test_every_kind_of_field_can_be_given():
    given_all = read(
        "--files",
        "a",
        "b",
        "--files",
        "c",
        "--for",
        "x",
        "--share",
        "0.5",
        "--no-is-kept",
        "--inner.rank",
        "3",
        "--inner.mode",
        "b",
    )
    assert given_all == Outer(files=("a", "b", "c"), purpose="x", share=0.5, is_kept=False, inner=Inner(rank=3, mode="b"))


def test_a_tuple_can_be_given_without_a_name():
    spelling = Spelling(positional="files")
    assert read("a", "b", "--purpose", "x", spelling=spelling).files == ("a", "b")


@given(rank=st.integers(min_value=1), share=st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_numbers_come_through_as_they_are_written(rank, share):
    config = read("--files", "a", "--for", "x", "--inner.rank", str(rank), "--share", repr(share))
    assert (config.inner.rank, config.share) == (rank, share)


def test_help_tells_meaning_default_and_choices():
    text = " ".join(parser_of().format_help().split())
    assert "--inner.rank N a rank (default: 8)" in text
    assert "--inner.mode {a,b} a mode (default: a)" in text
    assert "--is-kept, --no-is-kept keep it (default: on)" in text
    assert "100 % at most; default: all" in text
    assert "--for PURPOSE what for" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inner.rank", "0"], "--inner.rank '0' has to be at least 1"),
        (["--inner.rank", "many"], "--inner.rank 'many' has to be a whole number"),
        (["--share", "half"], "--share 'half' has to be a number"),
        (["--share", "0"], "--share '0' has to be more than 0"),
        (["--share", "13", "--no-is-kept"], "--share 13 needs --is-kept, says the rule of training.data"),
    ],
)
def test_a_refused_value_is_told_by_option_value_and_what_is_allowed(arguments, message):
    with pytest.raises(ConfigurationError) as caught:
        read("--files", "a", "--for", "x", *arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "give exactly one of --dataset, --images and --load-dataset-config (given: none)"),
        (
            "--dataset a.jsonl --images photos",
            "give exactly one of --dataset, --images and --load-dataset-config (given: --dataset and --images)",
        ),
        (
            "--images photos",
            "--images goes together with --prompt or --task: give the folder or glob, and what to ask about each image",
        ),
    ],
)
def test_inference_names_the_options_of_an_input_that_is_missing_or_given_twice(arguments, message):
    command = COMMANDS["infer"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_options(parser, command.config, command.spelling)
    given = parser.parse_args(f"--model m --output o {arguments}".split())
    with pytest.raises(ConfigurationError) as caught:
        read_options(given, command.config, command.spelling)
    assert str(caught.value) == message


def test_all_refused_values_are_told_at_once():
    with pytest.raises(ConfigurationError) as caught:
        read("--files", "a", "--for", "x", "--inner.rank", "0", "--share", "x")
    assert len(str(caught.value).splitlines()) == 2


def test_a_usage_line_names_what_has_to_be_given():
    assert usage(Outer, SPELLING) == ["--files FILES", "--for PURPOSE"]
    assert usage(Outer, Spelling(positional="files")) == ["FILES...", "--purpose PURPOSE"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_setting_of_every_command_has_a_description(name):
    def check(model: type[BaseModel]) -> None:
        for field_name, info in model.model_fields.items():
            assert info.description, f"{model.__name__}.{field_name}"
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                check(info.annotation)

    check(COMMANDS[name].config)


def test_a_name_that_is_no_text_is_refused_with_its_option():
    """No JSON holds it, and so no run of Prefect."""
    with pytest.raises(ConfigurationError, match=r"^--files bad\\xff\.jsonl: this is not UTF-8; rename the file or folder$"):
        read("--files", "a", os.fsdecode(b"bad\xff.jsonl"), "--for", "x")
    with pytest.raises(ConfigurationError, match=r"^--for \\xff: this is not UTF-8"):
        read("--files", "a", "--for", os.fsdecode(b"\xff"))
