"""What `fuzz_validation.py` looks for, on the seeds and on some changes of them: without atheris, the same in each run."""

import importlib
import random
from pathlib import Path
from typing import Any

import pytest

NUM_CHANGED = {"rows": 300, "formats": 600, "images": 400}


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A fuzz target; its modules lie beside this file, as for the script."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    return importlib.import_module("fuzz_targets").open_target(request.param, tmp_path)


def check_seeds(target: Any) -> None:
    for seed in target.seeds():
        target.check(seed)


@pytest.mark.parametrize("target", NUM_CHANGED, indirect=True)
def test_seeds_hold_what_is_promised(target: Any) -> None:
    check_seeds(target)


@pytest.mark.parametrize(("target", "num_changed"), NUM_CHANGED.items(), indirect=["target"])
def test_inputs_near_the_seeds_hold_what_is_promised(target: Any, num_changed: int) -> None:
    chance = random.Random(7)
    seeds = list(target.seeds())
    for _ in range(num_changed):
        data = chance.choice(seeds)
        for _ in range(chance.choice((1, 1, 2, 3))):
            data = target.mutate(data, chance)
        try:
            target.check(data)
        except Exception as cause:
            pytest.fail(f"{type(cause).__name__}: {cause}, on {data!r}")


@pytest.mark.parametrize(
    ("target", "place", "broken"),
    [
        ("rows", "yivl_core.data.checks.row_checks.plain_content", lambda values, purpose: {"query": "another"}),
        ("rows", "yivl_core.data.rows.raw_rows.read_line_blocks", lambda num_bytes, file, max_bytes: iter([])),
        ("rows", "yivl_core.data.rows.json_items.JsonDocument.take_comma", lambda document: False),
        ("formats", "yivl_core.data.rows.formats.read_messages", lambda messages, name, images, findings: messages[0]),
        ("formats", "yivl_core.data.findings.shown", lambda value: value * 10_000),
        ("images", "yivl_core.data.decoding._to_rgb", lambda image: image.rotate(90, expand=True)),
    ],
    indirect=["target"],
)
def test_a_fault_is_found_on_the_seeds(target: Any, place: str, broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, broken)
    with pytest.raises((AssertionError, TypeError, AttributeError, KeyError)):
        check_seeds(target)
