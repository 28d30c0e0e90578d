"""JSON files that others wrote, checked before anything is computed from them. No torch here.

A table of keys is a subclass of `FileKeys`, one field for each key. Keys that it does not name may hold anything.
"""

import json
import re
import reprlib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from yivl_core.errors import CheckpointError

_Keys = TypeVar("_Keys", bound=BaseModel)


class FileKeys(BaseModel):
    """Base of the tables of keys. Text is no number, a truth value is neither, and no number is infinite."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", allow_inf_nan=False)


def only(expected: Any) -> AfterValidator:
    """For keys that have one value in every Yi-VL; with a type beside it, since 1 equals True and 3.0 equals 3."""

    def check(value: Any) -> Any:
        if value != expected:
            raise ValueError(f"Yi-VL has {expected!r}")
        return value

    return AfterValidator(check)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file (the message ends with `remedy`), or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing; {remedy}") from error
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__} where an object belongs; fetch the file again")
    return value


def read_keys(keys: type[_Keys], path: Path, remedy: str) -> _Keys:
    """The keys of a JSON file.

    Raises:
        CheckpointError: as `read_json` and `check_keys`.
    """
    return check_keys(keys, read_json(path, remedy), path)


def check_keys(keys: type[_Keys], content: dict[str, Any], path: Path) -> _Keys:
    """The keys of what a JSON file holds.

    Raises:
        CheckpointError: keys are missing (all of them are named), or one has a value that cannot be right.
    """
    try:
        return keys.model_validate(content)
    except ValidationError as error:
        message = f"{path}: {_describe(error)}; correct it, or fetch the file again"
        # Half of a surrogate pair in a key could not be printed.
        raise CheckpointError(message.encode(errors="backslashreplace").decode()) from error


def _describe(error: ValidationError) -> str:
    details = error.errors(include_url=False)
    if missing := [_name(detail["loc"]) for detail in details if detail["type"] == "missing"]:
        return f"lacks {', '.join(missing)}"
    reason = re.sub(r"^\w+ should", "it should", details[0]["msg"].removeprefix("Value error, "))  # "Input should", "List should"
    return f"{_name(details[0]['loc'])} is {reprlib.repr(details[0]['input'])}; {reason}"


def _name(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)
