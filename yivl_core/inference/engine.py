"""InferenceEngine: requests in, answers out as they end; one loop for batches, conversations and streams.

`scheduler.py` says what runs, `runner.py` runs it, `stopping.py` says where an answer ends.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from yivl_core.inference.prefixes import prefix_length
from yivl_core.inference.requests import NO_TOKEN, Answer, Completion, Request
from yivl_core.inference.runner import ModelRunner
from yivl_core.inference.scheduler import Decode, Generation, Prefill, Scheduler
from yivl_core.inference.steps import RunningRequest, StepResult
from yivl_core.processing.tokenization import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """News of one request.

    Attributes:
        number: of the request, as it was given.
        text: what of its answer has become certain.
        is_finished: whether this was the last.
        completion: the whole answer, when it is finished; None with it where logits were no finite numbers, as overflowing
            float16 gives them.
    """

    number: int
    text: str
    is_finished: bool
    completion: Completion | None


@dataclass(slots=True, kw_only=True)
class EngineCounts:
    """What an engine has done.

    Attributes:
        num_prefills, num_decodes: steps.
        num_decoded_rows: rows of all decodes together.
        num_tokens: tokens of answers.
        waited_s: seconds in which the next request was waited for, and nothing was ordered.
        idle_s: seconds between steps in which a GPU had nothing to do.
    """

    num_prefills: int = 0
    num_decodes: int = 0
    num_decoded_rows: int = 0
    num_tokens: int = 0
    waited_s: float = 0.0
    idle_s: float = 0.0


class InferenceEngine:
    """Answers requests, many at a time.

    Args:
        runner: the model.
        tokenizer: of its checkpoint.

    Attributes:
        runner: the model.
        counts: of what was done so far.
    """

    def __init__(self, runner: ModelRunner, tokenizer: Tokenizer) -> None:
        self.runner, self._tokenizer = runner, tokenizer
        self._scheduler = Scheduler(
            num_rows=runner.settings.num_rows,
            cache_tokens=runner.settings.cache_tokens,
            prefill_rows=runner.settings.prefill_rows,
            prefill_tokens=runner.settings.prefill_tokens,
        )
        self._running: dict[int, RunningRequest] = {}
        self._ordered: deque[StepResult] = deque()
        self._last: StepResult | None = None
        self.counts = EngineCounts()

    @property
    def mean_slot_use(self) -> float:
        """Mean share of rows that were in use in a decode; 0 before the first."""
        steps = self.counts.num_decodes * self.runner.settings.num_rows
        return self.counts.num_decoded_rows / steps if steps else 0.0

    def generate(self, requests: Iterable[Request]) -> Generator[tuple[int, Completion | None]]:
        """Answers as they end.

        Args:
            requests: taken one after the other, when there is room for them.

        Yields:
            The place of a request among them, and its answer; None where its logits were no finite numbers.
        """
        for update in self.run(requests):
            if update.is_finished:
                yield update.number, update.completion

    def stream(self, request: Request) -> Generator[Update]:
        """News of one request as they come; the last holds the answer."""
        return (update for update in self.run([request]) if update.text or update.is_finished)

    def run(self, requests: Iterable[Request]) -> Generator[Update]:
        """News of all requests as they come. Whoever stops listening gives up what has not ended."""
        assert not self._running, "an engine answers one batch or stream at a time"
        source = enumerate(requests)
        self._scheduler.is_input_over, self._last = False, None
        try:
            while self._running or not self._scheduler.is_input_over:
                self._take(source)
                yield from self._step()
        finally:
            self._give_up()

    def _take(self, source: Iterator[tuple[int, Request]]) -> None:
        """Takes as many requests as the next step would look at."""
        while self._scheduler.num_wanted and not self._scheduler.is_input_over:
            started = time.perf_counter()
            item = next(source, None)
            self.counts.waited_s += time.perf_counter() - started
            if item is None:
                self._scheduler.is_input_over = True
            else:
                self._add(*item)

    def _add(self, number: int, request: Request) -> None:
        answer = Answer(request, self._tokenizer, self.runner.max_positions)
        prompt_tokens = len(request.inputs.input_ids)
        generation = Generation(
            number=number,
            prompt_tokens=prompt_tokens,
            new_tokens=prompt_tokens - prefix_length(request),
            max_new_tokens=answer.max_new_tokens,
        )
        self._scheduler.add(generation)
        self._running[number] = RunningRequest(answer=answer, generation=generation)

    def _step(self) -> Iterator[Update]:
        """Orders a step, then looks at the one before it, or at this one where nothing runs beside."""
        step = self._scheduler.next_step()
        match step:
            case Prefill(generations):
                self._ordered.append(self.runner.prefill(self._places(generations)))
                self.counts.num_prefills += 1
            case Decode(generations):
                self._ordered.append(self.runner.decode(self._places(generations)))
                self.counts.num_decodes += 1
                self.counts.num_decoded_rows += len(generations)
        while self._ordered and (step is None or len(self._ordered) > self.runner.lag):
            yield from self._look_at(self._ordered.popleft())
            if step is None:
                break

    def _places(self, generations: Sequence[Generation]) -> list[RunningRequest]:
        return [self._running[generation.number] for generation in generations]

    def _look_at(self, result: StepResult) -> Iterator[Update]:
        token_ids, logprobs = result.wait()
        if self._last is not None:
            self.counts.idle_s += result.idle_s_after(self._last)
        self._last = result
        for place, (running, token_id) in enumerate(zip(result.running, token_ids, strict=True)):
            if not running.generation.is_running:
                continue  # it had ended when this token was ordered
            text = running.answer.append(token_id, logprobs[place] if logprobs else None)
            is_finished = running.answer.is_finished
            self.counts.num_tokens += token_id != NO_TOKEN
            if token_id == NO_TOKEN:
                self.runner.forget(running.generation)
            if is_finished:
                self._scheduler.finish(running.generation)
                del self._running[running.generation.number]
            yield Update(
                number=running.generation.number,
                text=text,
                is_finished=is_finished,
                completion=running.answer.completion if is_finished else None,
            )

    def _give_up(self) -> None:
        """Frees what is left of requests that nobody waits for any more."""
        for running in self._running.values():
            self._scheduler.finish(running.generation)
        self._running.clear()
        self._ordered.clear()
