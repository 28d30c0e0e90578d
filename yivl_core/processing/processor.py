"""Processor: Record and its images -> ModelInputs. The one path that training and inference share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from yivl_core.data.records import ImageSlot, Record, conversation
from yivl_core.errors import CheckpointError, DatasetError
from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.model.files import CheckpointFiles, open_checkpoint
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.prompt import Prompt, build_prompt, opens_user_turn, shorten
from yivl_core.processing.tokenization import PromptTokens, Tokenizer, tokenize_prompt


class TooLongError(DatasetError):
    """A record does not fit, even with every text cut to a character."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInputs:
    """One sample as the model reads it.

    Attributes:
        input_ids: int64 `[S]`; `IMAGE_TOKEN_INDEX` in each of the slots of an image.
        labels: int64 `[S]`, not shifted, `IGNORE_INDEX` where nothing is learned; None without the response.
        pixels: of its images, in the order of their slots; pixel_values before `ImagePreprocessor.normalise`.
        num_shared: tokens at its start that every sample has which begins with an image and has the same system text; 0 where it
            does not begin with an image.
        features: what a vision tower gave of its images before, `[N, P, C]`, in place of pixels; None: nothing.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64] | None
    pixels: UnpaddedPixels
    num_shared: int = 0
    features: torch.Tensor | None = None


class Processor:
    """Tokenizer and image preparation of one checkpoint.

    Args:
        tokenizer: text -> ids.
        preprocessor: image -> pixels.
        num_image_tokens: slots that an image takes.
    """

    def __init__(self, tokenizer: Tokenizer, preprocessor: ImagePreprocessor, num_image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.preprocessor = preprocessor
        self.num_image_tokens = num_image_tokens

    @classmethod
    def from_checkpoint(cls, checkpoint: CheckpointFiles | str | Path) -> "Processor":
        """The processor of a checkpoint folder; no weight is read.

        Raises:
            CheckpointError: a file is missing or malformed, or the preprocessor's size is not the vision tower's.
        """
        files = checkpoint if isinstance(checkpoint, CheckpointFiles) else open_checkpoint(checkpoint)
        preprocessor = ImagePreprocessor.from_file(files.preprocessor_path)
        image_size_px = files.vision_config["image_size"]
        if preprocessor.image_size_px != image_size_px:
            raise CheckpointError(
                f"{files.preprocessor_path}: size is {preprocessor.image_size_px}, but the vision tower reads {image_size_px} "
                "pixels; take both files from the same repository"
            )
        return cls(Tokenizer.from_folder(files.folder), preprocessor, files.num_image_tokens)

    def count_tokens(self, record: Record, *, with_response: bool, max_length: int | None = None) -> int:
        """How many tokens `process` gives, image tokens counted; no image is needed.

        Raises:
            DatasetError: as `process`.
        """
        _, tokens = self._tokenize(record, with_response, max_length)
        return len(tokens.input_ids)

    def process(
        self,
        record: Record,
        images: Sequence[Image.Image],
        *,
        with_response: bool,
        max_length: int | None = None,
        features: Sequence[torch.Tensor] | None = None,
    ) -> ModelInputs:
        """What the model reads of a record.

        Args:
            record: the sample.
            images: RGB, one for each of `record.image_addresses`.
            with_response: whether the response follows, with labels, for training; else the prompt waits for an answer.
            max_length: most tokens; where there are more, every text of users and assistants is cut at its end to the same number
                of characters, the largest that fits. Images, system text, frame and stops stay.
            features: what the vision tower gave of each image before, `[P, C]`; `images` are not needed then.

        Raises:
            DatasetError: the record has no response where one is wanted, its images do not go with its rounds, there are more or
                fewer `images` than it names, or an image or text cannot be used.
            TooLongError: it has more than `max_length` tokens even with every text cut to one character.
        """
        prompt, tokens = self._tokenize(record, with_response, max_length)
        given = images if features is None else features
        if len(given) != len(record.image_addresses):
            raise DatasetError(f"{_name(record)}{len(given)} images given for {len(record.image_addresses)} in the record")
        slots = [segment.index for segment in prompt.segments if isinstance(segment, ImageSlot)]
        pixels = self.preprocessor.to_squares([images[index] for index in slots] if features is None else [])
        return ModelInputs(
            input_ids=tokens.input_ids,
            labels=tokens.labels if with_response else None,
            pixels=pixels,
            num_shared=_num_shared(prompt, tokens.input_ids),
            features=torch.stack([features[index] for index in slots]) if features and slots else None,
        )

    def _tokenize(self, record: Record, with_response: bool, max_length: int | None) -> tuple[Prompt, PromptTokens]:
        if with_response and record.response is None:
            raise DatasetError(f'{_name(record)}has no "response" to learn from; add one')
        messages, answer = conversation(record), record.response if with_response else None
        prompt = build_prompt(messages, answer)
        tokens = tokenize_prompt(prompt, self.tokenizer, self.num_image_tokens)
        if max_length is None or len(tokens.input_ids) <= max_length:
            return prompt, tokens
        # More characters need more tokens, but for a few where a longer text has a longer piece: halving finds a limit that fits.
        fitting, fits, exceeds = None, 0, len(str(prompt))
        while exceeds - fits > 1:
            max_characters = (fits + exceeds) // 2
            prompt = build_prompt(*shorten(messages, answer, max_characters))
            tokens = tokenize_prompt(prompt, self.tokenizer, self.num_image_tokens)
            if len(tokens.input_ids) <= max_length:
                fitting, fits = (prompt, tokens), max_characters
            else:
                exceeds = max_characters
        if fitting is None:
            raise TooLongError(
                f"{_name(record)}{len(tokens.input_ids)} tokens with every text cut to one character; leave out images "
                f"or rounds, or raise max_length (now {max_length})"
            )
        return fitting


def _num_shared(prompt: Prompt, input_ids: npt.NDArray[np.int64]) -> int:
    is_image_first = (
        len(prompt.segments) > 1 and isinstance(prompt.segments[1], ImageSlot) and opens_user_turn(prompt.segments[0])
    )
    return int((input_ids == IMAGE_TOKEN_INDEX).argmax()) if is_image_first else 0


def _name(record: Record) -> str:
    return "" if record.id is None else f'record "{record.id}": '
