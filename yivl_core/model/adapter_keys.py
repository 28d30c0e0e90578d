"""The keys of adapter_config.json that are read, with type and bounds. No torch here.

Names and meaning are those of PEFT 0.21; null is allowed where PEFT writes it. Other keys are PEFT's alone.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from yivl_core.model.json_files import FileKeys

_LARGEST_ALPHA = 2.0**24
_Rank = Annotated[int, Field(ge=1, le=2**16)]
_Alpha = Annotated[float, Field(ge=-_LARGEST_ALPHA, le=_LARGEST_ALPHA)]


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it should be a regular expression ({error})") from error
    return pattern


_Pattern = Annotated[str, AfterValidator(_check_pattern)]


class AdapterKeys(FileKeys):
    """Adapters of any kind, some of which cannot be used here; what is done with them says so by name."""

    peft_type: str
    base_model_name_or_path: str | None = None


class LoraKeys(AdapterKeys):
    """Adapters of the kind LORA."""

    r: _Rank
    lora_alpha: _Alpha
    lora_dropout: Annotated[float, Field(ge=0, le=1)] = 0.0
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: _Pattern | list[str] | None = None
    exclude_modules: _Pattern | list[str] | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[_Pattern, _Rank] | None = None
    alpha_pattern: dict[_Pattern, _Alpha] | None = None
    bias: str | None = None
    init_lora_weights: bool | str | None = None
    megatron_config: None = None  # else PEFT would import a module whose name stands in the file


def keys_of(config: dict[str, Any]) -> type[AdapterKeys]:
    """The table for an adapter's kind."""
    return LoraKeys if config.get("peft_type") == "LORA" else AdapterKeys
