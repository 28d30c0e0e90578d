"""What stops a run that no longer learns."""

import math

import pytest
import torch

from yivl_core.training.health import Divergence, Finiteness


def test_the_first_step_that_is_no_number_is_remembered() -> None:
    finiteness = Finiteness(torch.device("cpu"))
    assert finiteness.first_bad_step is None
    for step, value in enumerate([1.0, 2.0, math.nan, 3.0, math.inf], start=1):
        finiteness.note(step, torch.tensor(value))
    assert finiteness.first_bad_step == 3


def said(losses: list[float]) -> list[int]:
    divergence = Divergence()
    return [number for number, loss in enumerate(losses) if divergence.note(loss)]


def test_a_loss_that_falls_or_is_noisy_is_left_alone() -> None:
    assert said([6 * 0.97**number for number in range(200)]) == []
    assert said([2 + 1.5 * (-1) ** number for number in range(200)]) == []
    assert said([1.0] * 50 + [30.0] + [1.0] * 50) == [], "one bad step"


def test_a_loss_that_is_still_below_its_start_is_left_alone() -> None:
    assert said([9.0] * 20 + [1.0] * 40 + [7.0] * 60) == []


@pytest.mark.parametrize("level", [4.5, 11.0, 1e6])
def test_a_loss_that_has_risen_for_good_is_seen_soon(level: float) -> None:
    found = said([2.0] * 30 + [1.5] * 30 + [level] * 30)
    assert found
    assert 60 <= found[0] < 76
