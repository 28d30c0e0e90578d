"""Order and learning rate, against transformers' schedules."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.schedule import count_steps, rate_share, samples_of_step, step_seed

THEIRS = {
    "cosine": get_cosine_schedule_with_warmup,
    "linear": get_linear_schedule_with_warmup,
    "constant": lambda optimizer, warmup_steps, _: get_constant_schedule_with_warmup(optimizer, warmup_steps),
}


def all_samples(num_samples: int, settings: TrainingSettings) -> list[list[int]]:
    return [samples_of_step(step, num_samples, settings) for step in range(count_steps(num_samples, settings))]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 4), st.integers(0, 10**6))
def test_every_sample_is_seen_once_an_epoch(num_samples: int, batch_size: int, num_epochs: int, seed: int) -> None:
    settings = TrainingSettings(batch_size=batch_size, num_epochs=num_epochs, seed=seed)
    order = [sample for samples in all_samples(num_samples, settings) for sample in samples]
    assert len(order) == num_samples * num_epochs
    for epoch in range(num_epochs):
        assert sorted(order[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@given(st.integers(1, 40), st.integers(1, 50), st.floats(0.01, 3))
def test_a_step_has_batch_size_samples_but_the_last(num_samples: int, batch_size: int, num_epochs: float) -> None:
    settings = TrainingSettings(batch_size=batch_size, num_epochs=num_epochs)
    sizes = [len(samples) for samples in all_samples(num_samples, settings)]
    assert all(size == batch_size for size in sizes[:-1])
    assert 1 <= sizes[-1] <= batch_size
    assert sum(sizes) == max(1, round(num_samples * num_epochs))


def test_epochs_are_shuffled_by_themselves_and_by_the_seed() -> None:
    settings = TrainingSettings(batch_size=30, num_epochs=2)
    first, second = all_samples(30, settings)
    assert first != second != list(range(30)) != first
    assert all_samples(30, settings) == [first, second]
    assert all_samples(30, TrainingSettings(batch_size=30, num_epochs=2, seed=1))[0] != first


@pytest.mark.parametrize("schedule", THEIRS)
@given(st.integers(1, 200), st.sampled_from([0, 0.05, 0.1, 0.3, 0.99]))
def test_the_rate_is_that_of_transformers_but_the_first_step_learns_too(schedule: str, total: int, warmup_ratio: float) -> None:
    """Theirs begins at nought and reaches the highest rate one step later, so its first step is lost."""
    settings = TrainingSettings.model_validate({"lr_schedule": schedule, "warmup_ratio": warmup_ratio})
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    warmup_steps = -int(-warmup_ratio * total // 1)
    [factor] = THEIRS[schedule](optimizer, warmup_steps, total).lr_lambdas
    for step in range(total):
        theirs = (step + 1) / warmup_steps if step < warmup_steps else factor(step)
        assert step >= warmup_steps - 1 or theirs == factor(step + 1)
        assert rate_share(step, total, settings) == pytest.approx(theirs, rel=1e-9, abs=1e-15)
    assert rate_share(0, total, settings) > 0


def test_a_single_step_has_the_highest_rate() -> None:
    assert rate_share(0, 1, TrainingSettings()) == 1


@given(st.integers(0, 2**63 - 1), st.integers(0, 10**6))
def test_a_step_has_a_seed_of_its_own_that_torch_takes(seed: int, step: int) -> None:
    seeds = [step_seed(step, seed), step_seed(step + 1, seed), step_seed(step, seed + 1)]
    assert len(set(seeds)) == 3
    for one in seeds:
        torch.Generator().manual_seed(one)
    assert step_seed(step, seed) == seeds[0]
