"""Whether a request gets the same tokens whatever runs beside it: a probe, by answering the same requests in several ways."""

from collections.abc import Sequence

from yivl_core.inference.loading import Engine
from yivl_core.inference.requests import Completion, Request


def find_variant(engine: Engine, requests: Sequence[Request]) -> list[int]:
    """The places of requests whose tokens differ between together, together in reverse, and alone.

    Args:
        engine: to probe.
        requests: answered three times each.
    """
    together = _answers(engine, requests)
    reverse = _answers(engine, requests[::-1])[::-1]
    alone = [completion for request in requests for completion in _answers(engine, [request])]
    return [
        place
        for place, ways in enumerate(zip(together, reverse, alone, strict=True))
        if len({completion and completion.token_ids for completion in ways}) > 1
    ]


def _answers(engine: Engine, requests: Sequence[Request]) -> list[Completion | None]:
    completions = dict(engine.generate(requests))
    return [completions[number] for number in range(len(requests))]
