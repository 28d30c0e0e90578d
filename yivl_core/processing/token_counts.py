r"""How many tokens a record has, much faster than by making them all: words that came before are not encoded again, nor numbers
of as many digits. No torch.

Where no piece of a vocabulary reaches over the front of a blank, as in Yi's, each word of

    SYSTEM TEXT ... ###| Human:| What| is| this?\n###| Assistant:| A| cat.\n###

has its tokens whatever stands before and behind it. Whether that is so is looked at once; otherwise, and for records whose images
stand in the middle of a text, all is tokenised as in training.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from yivl_core.data.records import IMAGE_TAG, Record, conversation
from yivl_core.digests import canonical_json
from yivl_core.model.files import open_checkpoint
from yivl_core.processing.prompt import STOP_STRING, SYSTEM_PROMPT, build_prompt
from yivl_core.processing.tokenization import Tokenizer, tokenize_prompt

_MAX_REMEMBERED_STARTS = 1000  # system texts, and first words of questions about images
_MAX_REMEMBERED_WORDS, _MAX_REMEMBERED_CHARS = 200_000, 24  # tens of megabytes


class TokenCounter:
    """Counts the tokens of records.

    Args:
        tokenizer: text -> ids.
        num_image_tokens: slots that an image takes.
        with_response: whether the response counts, as in training.
        max_positions: most tokens that the model reads.

    Attributes:
        max_positions: as it was given.
    """

    def __init__(self, tokenizer: Tokenizer, num_image_tokens: int, max_positions: int, *, with_response: bool) -> None:
        self.max_positions = max_positions
        self._tokenizer = tokenizer
        self._num_image_tokens = num_image_tokens
        self._with_response = with_response
        self._may_cut = tokenizer.splits_at_blanks
        self._known_words: dict[str, int] = {}
        self._num_frame = self._count(" Human:") + self._count(" Assistant:")
        self._num_image_frame = self._count(" Human: ") + self._count(" Assistant:")
        self._count_start = lru_cache(_MAX_REMEMBERED_STARTS)(self._count)

    @classmethod
    def from_checkpoint(cls, folder: str, *, with_response: bool) -> "TokenCounter":
        """The counter of a checkpoint.

        Raises:
            CheckpointError: a file of it is missing or malformed.
        """
        files = open_checkpoint(folder)
        tokenizer = Tokenizer.from_folder(files.folder)
        return cls(tokenizer, files.num_image_tokens, files.max_positions, with_response=with_response)

    def __call__(self, content: Mapping[str, Any]) -> int:
        """As many tokens as `Processor.count_tokens` gives, images included.

        Args:
            content: the record as `record_to_json` gives it.
        """
        images = content.get("images", ())
        history = content.get("history", ())
        if not self._may_cut or (images and (history or IMAGE_TAG.search(content["query"]))):
            return self._count_whole(content)
        system = content.get("system")
        number = self._count_start(f"{SYSTEM_PROMPT if system is None else system}\n\n{STOP_STRING}")
        response = content.get("response") if self._with_response else None
        num_images = sum(address is not None for address in images)
        for question, answer in [*history, (content["query"], response)]:
            if num_images:
                start, blank, words = f"\n{question}\n{STOP_STRING}".partition(" ")
                number += self._num_image_frame + num_images * self._num_image_tokens + self._count_start(start)
                number += self._count_words(words) if blank else 0
                num_images = 0
            else:
                number += self._num_frame + self._count_words(f"{question}\n{STOP_STRING}")
            if answer is not None:
                number += self._count_words(f"{answer}\n{STOP_STRING}")
        return number

    def _count_words(self, text: str) -> int:
        """The tokens of a blank and a text behind it."""
        if "  " in text or text.startswith(" "):  # blanks that follow each other may be one piece
            return self._count(" " + text)
        known = self._known_words
        number = 0
        for word in text.split(" "):
            number += known.get(word) or self._learn(word)
        return number

    def _learn(self, word: str) -> int:
        word = self._tokenizer.with_zeros(word)
        number = self._known_words.get(word) or self._count(" " + word)
        if len(word) <= _MAX_REMEMBERED_CHARS:
            if len(self._known_words) >= _MAX_REMEMBERED_WORDS:
                self._known_words.clear()
            self._known_words[word] = number
        return number

    def _count(self, text: str) -> int:
        return len(self._tokenizer.encode(text))

    def _count_whole(self, content: Mapping[str, Any]) -> int:
        record = Record.model_validate_json(canonical_json(content))
        prompt = build_prompt(conversation(record), record.response if self._with_response else None)
        return len(tokenize_prompt(prompt, self._tokenizer, self._num_image_tokens).input_ids)
