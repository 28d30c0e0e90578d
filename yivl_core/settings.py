"""Settings as pydantic models: the part of them that another model takes, and what is wrong with refused ones."""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

Location = tuple[int | str, ...]
Config = TypeVar("Config", bound=BaseModel)


def _without_unit(value: Any) -> Any:
    """`18GB`, `18` and 18 all say 18."""
    return value.strip().upper().removesuffix("GB").strip() if isinstance(value, str) else value


Gigabytes = Annotated[float, Field(gt=0), BeforeValidator(_without_unit)]

_WORDS = {
    "greater_than": "has to be more than {gt}",
    "greater_than_equal": "has to be at least {ge}",
    "less_than": "has to be less than {lt}",
    "less_than_equal": "has to be at most {le}",
    "int_parsing": "has to be a whole number",
    "int_type": "has to be a whole number",
    "int_from_float": "has to be a whole number",
    "float_parsing": "has to be a number",
    "float_type": "has to be a number",
    "finite_number": "has to be a finite number",
    "bool_parsing": "has to be true or false",
    "bool_type": "has to be true or false",
    "string_type": "has to be text",
    "tuple_type": "has to be a list",
    "list_type": "has to be a list",
    "dict_type": "has to be a mapping",
    "too_short": "has to have at least {min_length} entry",
    "string_too_short": "must not be empty",
    "literal_error": "has to be one of {expected}",
    "model_type": "has to be a group of settings",
}


def narrow(config: BaseModel, target: type[Config], **changes: Any) -> Config:
    """The fields of `config` that `target` has too, as a `target`, with some of them changed."""
    return target.model_validate({**config.model_dump(include=set(target.model_fields)), **changes})


def dotted(location: Location) -> str:
    """A place in nested settings as `training.lora_rank`."""
    return ".".join(str(part) for part in location)


def explain_validation_error(error: ValidationError, name_setting: Callable[[Location], str] = dotted) -> str:
    """One line for each setting that was refused.

    Args:
        error: what pydantic raised.
        name_setting: the name that the user knows a setting by, given its place.
    """
    return "\n".join(_explain_one(dict(detail), name_setting) for detail in error.errors(include_url=False))


def _explain_one(detail: dict[str, Any], name_setting: Callable[[Location], str]) -> str:
    location, kind, value = detail["loc"], detail["type"], detail["input"]
    context = {name: f"{limit:g}" if isinstance(limit, float) else limit for name, limit in detail.get("ctx", {}).items()}
    if kind == "value_error":
        reason = str(context["error"])
        return f"{name_setting(location)} {value!r}: {reason}" if location else reason
    if kind == "missing":
        return f"{name_setting(location)} is missing"
    if kind == "extra_forbidden":
        return f"{name_setting(location)} is not a setting; check the spelling"
    words = _WORDS.get(kind)
    reason = words.format_map(context) if words else detail["msg"]
    return f"{name_setting(location)} {value!r} {reason}"
