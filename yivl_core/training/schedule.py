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
    return math.ceil(_count_places(num_samples, settings) / settings.batch_size)


def samples_of_step(step: int, num_samples: int, settings: TrainingSettings) -> list[int]:
    """The samples of a step (from 0): the next `batch_size` of the epochs' shuffled orders, one behind the other."""
    places = range(step * settings.batch_size, min((step + 1) * settings.batch_size, _count_places(num_samples, settings)))
    orders = {epoch: _order(epoch, num_samples, settings.seed) for epoch in {place // num_samples for place in places}}
    return [int(orders[place // num_samples][place % num_samples]) for place in places]


def learning_rate(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """The rate of a step (from 0): linear warm-up, then constant, linear to zero, or half a cosine to zero."""
    warmup_steps = math.ceil(settings.warmup_ratio * total_steps)
    if step < warmup_steps:
        return settings.learning_rate * (step + 1) / warmup_steps
    if settings.lr_schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    factor = 1 - progress if settings.lr_schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return settings.learning_rate * factor


def step_seed(step: int, seed: int) -> int:
    """The seed of a step's random numbers (dropout)."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _count_places(num_samples: int, settings: TrainingSettings) -> int:
    return max(1, round(num_samples * settings.num_epochs))


@lru_cache(maxsize=2)  # a step reaches from one epoch into the next
def _order(epoch: int, num_samples: int, seed: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(num_samples)
