"""Command-line options made of the fields of a pydantic model, and the model made of what was given: no setting is written twice.

| field | option |
|---|---|
| `lora_rank: int` | `--lora-rank N` |
| `training: TrainingSettings` | a group, `--training.lora-rank N` |
| `purpose: Literal[...]` | choices |
| `evaluate_base: bool` | `--evaluate-base`, `--no-evaluate-base` |
| `dataset: tuple[str, ...]` | `--dataset FILE [FILE ...]`, which may be repeated; or the arguments without a name |

Values stay text here: pydantic reads and checks them, and its refusals are told by the options' names.
"""

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from yivl_core.errors import ConfigurationError
from yivl_core.settings import Config, Location, dotted, explain_validation_error

_METAVARS: dict[Any, str] = {int: "N", float: "X"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How a command differs from the rule.

    Attributes:
        names: option by place in the model (`purpose`: `--for`).
        positional: the place of the field that is given without a name.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    positional: str | None = None

    def option(self, place: str) -> str:
        """What a user types for a field."""
        if place == self.positional:
            return place.upper()
        return self.names.get(place, "--" + place.replace("_", "-"))

    def option_of(self, location: Location) -> str:
        """The same for a place in the values: the second file of `dataset` is still `dataset`."""
        return self.option(dotted(tuple(part for part in location if isinstance(part, str))))


def add_options(parser: argparse.ArgumentParser, config: type[BaseModel], spelling: Spelling) -> None:
    """Give the parser an option for each field; one that was not given is absent from the result."""
    _add_fields(parser, parser, config, spelling, prefix="")


def usage(config: type[BaseModel], spelling: Spelling) -> list[str]:
    """What has to be given, as it is shown in a usage line."""
    required = [name for name, info in config.model_fields.items() if info.is_required()]
    return [
        f"{name.upper()}..." if name == spelling.positional else f"{spelling.option(name)} {name.upper()}" for name in required
    ]


def read_options(arguments: argparse.Namespace, config: type[Config], spelling: Spelling) -> Config:
    """The model made of what was given.

    Raises:
        ConfigurationError: pydantic refused it, or it is no text; the message names option, value and what is allowed.
    """
    given = vars(arguments)
    values: dict[str, Any] = {}
    for place in _places(config):
        if place in given:
            *groups, name = place.split(".")
            group = values
            for part in groups:
                group = group.setdefault(part, {})
            group[name] = given[place]
            _refuse_broken_text(spelling.option(place), given[place])
    try:
        return config.model_validate(values)
    except ValidationError as error:
        message = explain_validation_error(error, spelling.option_of)
        raise ConfigurationError(_with_option_names(message, set(_places(config)), spelling)) from error


def _refuse_broken_text(option: str, value: Any) -> None:
    """Refuse what no report, no run of Prefect and no JSON can hold."""
    for text in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        if not _is_utf8(text):
            shown = os.fsencode(text).decode(errors="backslashreplace")
            raise ConfigurationError(f"{option} {shown}: this is not UTF-8; rename the file or folder")


def _is_utf8(text: Any) -> bool:
    try:
        str(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _add_fields(
    parser: argparse.ArgumentParser, group: argparse._ActionsContainer, config: type[BaseModel], spelling: Spelling, prefix: str
) -> None:
    required_first = sorted(config.model_fields.items(), key=lambda field: not field[1].is_required())
    for name, info in required_first:
        place, annotation = prefix + name, _without_none(info.annotation)
        if _is_model(annotation):
            own_group = parser.add_argument_group(f"{place}: {info.description}")
            _add_fields(parser, own_group, annotation, spelling, prefix=f"{place}.")
        else:
            _add_option(group, spelling.option(place), place, info, annotation)


def _add_option(parser: argparse._ActionsContainer, option: str, place: str, info: FieldInfo, annotation: Any) -> None:
    keywords: dict[str, Any] = {"help": _help(info), "default": argparse.SUPPRESS}
    if annotation is bool:
        parser.add_argument(option, dest=place, action=argparse.BooleanOptionalAction, **keywords)
        return
    if get_origin(annotation) is Literal:
        keywords["choices"] = get_args(annotation)
    elif get_origin(annotation) is tuple:
        keywords |= {"nargs": "+", "action": "extend", "metavar": _metavar(place, get_args(annotation)[0])}
    else:
        keywords["metavar"] = _metavar(place, annotation)
    if option.startswith("-"):
        parser.add_argument(option, dest=place, required=info.is_required(), **keywords)
    else:
        parser.add_argument(place, **{**keywords, "metavar": option, "action": "store"})


def _help(info: FieldInfo) -> str:
    text = info.description or ""
    if info.is_required() or info.default in (None, ()) or "default:" in text:
        return text.replace("%", "%%")
    default = {True: "on", False: "off"}[info.default] if isinstance(info.default, bool) else info.default
    return f"{text} (default: {default})".replace("%", "%%")


def _metavar(place: str, annotation: Any) -> str:
    return _METAVARS.get(annotation, place.rpartition(".")[2].upper())


def _places(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, info in config.model_fields.items():
        annotation = _without_none(info.annotation)
        if _is_model(annotation):
            yield from _places(annotation, prefix=f"{prefix}{name}.")
        else:
            yield prefix + name


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _without_none(annotation: Any) -> Any:
    """`X | None` as X: that an option was not given says None."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (choice for choice in get_args(annotation) if choice is not type(None))
    return annotation


def _with_option_names(message: str, places: set[str], spelling: Spelling) -> str:
    """A message of the model's own checks with options in place of fields: those in backticks, and those of several words."""

    def option(match: re.Match[str]) -> str:
        place = match[1] or match[2]
        return spelling.option(place) if place in places else match[0]

    return re.sub(r"`([a-z._]+)`|(?<![-\w.])([a-z]+(?:[._][a-z]+)+)\b", option, message)
