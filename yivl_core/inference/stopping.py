"""Where an answer ends, and how much of it can be shown already. Plain Python, no torch: token ids in, text out.

An answer ends with the end-of-text token, with `###` (as one token, as part of one, or made of several), and with `Human:` at the
start of a new line, which some tuned models write when they go on with the conversation by themselves. None of it is part of the
text, and white space around the text is not either.

The original code looks for `###` from the second token on only, and takes it off the very end only: an answer that begins with it
keeps it there together with one more token, and one that ends in `####` keeps a `#`. Here neither is left.
"""

from collections.abc import Sequence
from typing import Literal

from yivl_core.processing.prompt import STOP_STRING
from yivl_core.processing.tokenization import TextStream, Tokenizer

STOP_STRINGS = (STOP_STRING, "\nHuman:")


class StopChecker:
    """Follows one answer, token by token.

    Args:
        tokenizer: the tokenizer of the model that writes.
        max_new_tokens: most tokens of the answer, the one that ends it included.
        stop_strings: further texts that end it, none of them empty.
        stop_token_ids: further tokens that end it; their text is left out.

    Attributes:
        finish_reason: `stop` or `length` as soon as the answer has ended, None before.
        num_tokens: tokens taken so far, the one that ended the answer included.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        stop_strings: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
    ) -> None:
        self._stop_strings = (*STOP_STRINGS, *stop_strings)
        self._stop_token_ids = frozenset((tokenizer.eos_id, *stop_token_ids))
        self._max_new_tokens = max_new_tokens
        self._stream = TextStream(tokenizer)
        self._shown: list[str] = []
        self._held = ""
        self.finish_reason: Literal["stop", "length"] | None = None
        self.num_tokens = 0

    @property
    def text(self) -> str:
        """What could be shown so far; the whole answer once it has ended."""
        return "".join(self._shown)

    def append(self, token_id: int) -> str:
        """Takes the next token of the answer.

        Returns:
            The text that is certain now and was not before, for streaming; all of these together are `text`. Held back are
            incomplete characters, what may be the start of a stop, and white space that may be the last of the answer.
        """
        assert self.finish_reason is None, "the answer has ended"
        self.num_tokens += 1
        if token_id in self._stop_token_ids:
            self.finish_reason = "stop"
        else:
            self._held += self._stream.append(token_id)
        if self.finish_reason is None and self.num_tokens == self._max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason:
            self._held += self._stream.finish()
        stops = [self._held.find(stop) for stop in self._stop_strings if stop in self._held]
        if stops:
            self.finish_reason = "stop"
            self._held = self._held[: min(stops)]
        return self._show(len(self._held) if self.finish_reason else self._start_of_possible_stop())

    def _show(self, end: int) -> str:
        """Moves the held text up to `end`, less the white space before it, to what is shown."""
        certain = self._held[:end].rstrip()
        self._held = self._held[len(certain) :]
        if not self._shown:
            certain = certain.lstrip()
        if certain:
            self._shown.append(certain)
        return certain

    def _start_of_possible_stop(self) -> int:
        """Where the longest end of what is held starts that more text could make a stop; its length if there is none."""
        text, longest = self._held, max(map(len, self._stop_strings)) - 1
        for start in range(max(len(text) - longest, 0), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop_strings):
                return start
        return len(text)
