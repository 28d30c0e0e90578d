"""What happens at which step, as pure functions of the step: the order of samples and the learning rate.

Because nothing here has a state, a resumed run needs only the number of its step to go on as if it had never stopped.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from yivl_core.training.configuration import TrainingSettings


def count_steps(num_samples: int, settings: TrainingSettings) -> int:
    """Optimizer steps of the whole run; the last may hold fewer samples."""
    if settings.cache_samples:
        return max(1, round(settings.num_epochs * _steps_per_epoch(num_samples, settings)))
    return math.ceil(_count_places(num_samples, settings) / settings.batch_size)


def group_of_step(step: int, num_samples: int, settings: TrainingSettings) -> int:
    """The step (from 0) whose samples a step has: its own, or with `cache_samples` one of the first epoch."""
    if not settings.cache_samples:
        return step
    epoch, place = divmod(step, _steps_per_epoch(num_samples, settings))
    return place if epoch == 0 else int(_order(epoch, _steps_per_epoch(num_samples, settings), settings.seed)[place])


def samples_of_step(step: int, num_samples: int, settings: TrainingSettings) -> list[int]:
    """The samples of a step (from 0): the next `batch_size` of the epochs' shuffled orders, one behind the other.

    With `cache_samples` each epoch has the steps of the first, in a shuffled order.
    """
    if settings.cache_samples:
        first = group_of_step(step, num_samples, settings) * settings.batch_size
        return _order(0, num_samples, settings.seed)[first : first + settings.batch_size].tolist()
    places = range(step * settings.batch_size, min((step + 1) * settings.batch_size, _count_places(num_samples, settings)))
    orders = {epoch: _order(epoch, num_samples, settings.seed) for epoch in {place // num_samples for place in places}}
    return [int(orders[place // num_samples][place % num_samples]) for place in places]


def rate_share(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """The share of the highest rate at a step (from 0): linear warm-up, then constant, or to zero by a line or half a cosine."""
    warmup_steps = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if settings.lr_schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 1 - progress if settings.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2


def step_seed(step: int, seed: int) -> int:
    """The seed of a step's random numbers (dropout)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _count_places(num_samples: int, settings: TrainingSettings) -> int:
    return max(1, round(num_samples * settings.num_epochs))


def _steps_per_epoch(num_samples: int, settings: TrainingSettings) -> int:
    return math.ceil(num_samples / settings.batch_size)


@lru_cache(maxsize=4)  # a step reaches from one epoch into the next
def _order(epoch: int, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
