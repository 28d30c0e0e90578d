"""Request -> Answer -> Completion: what goes into an engine, what becomes of it token by token, and what comes out."""

from dataclasses import dataclass, field
from typing import Literal

from yivl_core.inference.sampling import SamplingParams, draw_number
from yivl_core.inference.stopping import StopChecker
from yivl_core.processing.processor import ModelInputs
from yivl_core.processing.tokenization import Tokenizer

# In place of a token where logits were no finite numbers, as overflowing float16 gives them.
NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to answer.

    Attributes:
        sample_id: names the record; with the seed it decides what is drawn.
        inputs: the prompt, without a response.
        params: how tokens are chosen.
        max_new_tokens: most tokens of the answer; fewer where the model's positions end before.
        stop_strings: texts that end the answer, besides the model's own stop.
        stop_token_ids: tokens that end the answer, besides the end-of-text token.
        with_logprobs: whether the completion tells the tokens' log-probabilities.
    """

    sample_id: str
    inputs: ModelInputs
    params: SamplingParams = field(default_factory=SamplingParams)
    max_new_tokens: int = 512
    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    with_logprobs: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        text: without the stop and without white space around it.
        finish_reason: `stop`, or `length` where it was cut at the limit.
        token_ids: tokens written, the stop included.
        logprobs: of each of them the natural logarithm of its probability by the logits alone, before penalty and temperature;
            None where they were not asked for.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens written, the stop included."""
        return len(self.token_ids)


class Answer:
    """What has been written in answer to a request.

    Args:
        request: what was asked; its prompt leaves room for an answer.
        tokenizer: of the model.
        max_positions: tokens that the model reads, prompt and answer together.

    Attributes:
        request: what was asked.
        max_new_tokens: most tokens, by the request and the model's positions.
        is_finished: whether nothing more will be written.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, max_positions: int) -> None:
        self.request = request
        self.max_new_tokens = min(request.max_new_tokens, max_positions - len(request.inputs.input_ids))
        assert self.max_new_tokens > 0, "a prompt has to leave room for an answer"
        self.is_finished = False
        self._checker = StopChecker(tokenizer, self.max_new_tokens, request.stop_strings, request.stop_token_ids)
        self._generator = None if request.params.is_greedy else request.params.make_generator(request.sample_id)
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._is_lost = False

    def draw(self) -> float:
        """The next number of its own stream, for the next token; 0 where nothing is left to chance."""
        return 0.0 if self._generator is None else draw_number(self._generator)

    def append(self, token_id: int, logprob: float | None) -> str:
        """Takes the next token, or `NO_TOKEN`.

        Returns:
            The text that has become certain with it.
        """
        if token_id == NO_TOKEN:
            self._is_lost = self.is_finished = True
            return ""
        self._token_ids.append(token_id)
        if self.request.with_logprobs:
            assert logprob is not None
            self._logprobs.append(logprob)
        text = self._checker.append(token_id)
        self.is_finished = self._checker.finish_reason is not None
        return text

    @property
    def completion(self) -> Completion | None:
        """The whole answer, when it is finished; None where logits were no finite numbers."""
        if self._is_lost:
            return None
        assert self._checker.finish_reason is not None
        return Completion(
            text=self._checker.text,
            finish_reason=self._checker.finish_reason,
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs) if self.request.with_logprobs else None,
        )
