"""What goes into a step and what comes out: sizes, requests with their places, and tokens that were ordered."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from yivl_core.inference.requests import Answer, Request
from yivl_core.inference.scheduler import Generation


@dataclass(slots=True, kw_only=True)
class RunningRequest:
    """A request with its place.

    Attributes:
        answer: what was asked, and what has been written.
        generation: where it stands.
    """

    answer: Answer
    generation: Generation

    @property
    def request(self) -> Request:
        """What was asked."""
        return self.answer.request

    @property
    def prefix_length(self) -> int:
        """Tokens before the first image, which many prompts share; 0 where there are few."""
        return self.generation.prompt_tokens - self.generation.new_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Tokens that were ordered.

    Attributes:
        running: the requests that they belong to.
        token_ids: int64, on the host as soon as `ready` has come; `NO_TOKEN` where logits were no finite numbers.
        logprobs: float32, the same; None where nobody asked.
        begun: when the device took the step up; None where it does not work by itself.
        ready: when; None: now.
    """

    running: Sequence[RunningRequest]
    token_ids: torch.Tensor
    logprobs: torch.Tensor | None
    begun: torch.cuda.Event | None = None
    ready: torch.cuda.Event | None = None

    def wait(self) -> tuple[list[int], list[float] | None]:
        """The tokens and their log-probabilities; this is where a GPU is waited for."""
        if self.ready is not None:
            self.ready.synchronize()
        num_rows = len(self.running)
        return self.token_ids[:num_rows].tolist(), None if self.logprobs is None else self.logprobs[:num_rows].tolist()

    def idle_s_after(self, previous: "StepResult") -> float:
        """Seconds that the device had nothing to do since the step before; both have been waited for."""
        if previous.ready is None or self.begun is None:
            return 0.0
        return max(0.0, previous.ready.elapsed_time(self.begun) / 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerSettings:
    """Sizes of a runner.

    Attributes:
        num_rows: most requests that run at a time.
        cache_tokens: tokens of their keys and values.
        prefill_rows: most requests that one step starts.
        prefill_tokens: most tokens of prompts that one step computes; a longer prompt gets one of its own.
        vision_images: most images that the tower reads at a time.
        is_invariant: whether every step is filled up to its full size. All matrix products have one size each then, so a request
            gets the same tokens whatever runs beside it.
        is_fp8: whether the matrix products of all layers are in 8 bits.
        is_plain: whether to do without kernels where there would be some.
    """

    num_rows: int
    cache_tokens: int
    prefill_rows: int
    prefill_tokens: int
    vision_images: int = 16
    is_invariant: bool = False
    is_fp8: bool = False
    is_plain: bool = False
