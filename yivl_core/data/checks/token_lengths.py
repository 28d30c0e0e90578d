"""Lengths of records in tokens, counted by who knows the tokenizer, which this package does not."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol

# Named and not imported: `processing` stands above this package, and uses it.
_COUNTER = ("yivl_core.processing.token_counts", "TokenCounter")


class CountTokens(Protocol):
    """Counts the tokens of a record as `record_to_json` gives it, with a sha256 or an address for each image.

    Attributes:
        max_positions: most tokens that the model reads.
    """

    max_positions: int

    def __call__(self, content: Mapping[str, Any]) -> int:
        """Tokens, those of images included."""


def open_token_counter(model: str, *, with_response: bool) -> CountTokens:
    """What counts with the tokenizer of a checkpoint.

    Args:
        model: the checkpoint's folder.
        with_response: whether the response counts, as in training.

    Raises:
        CheckpointError: a file of it is missing or malformed.
    """
    module, name = _COUNTER
    counter: CountTokens = getattr(import_module(module), name).from_checkpoint(model, with_response=with_response)
    return counter
