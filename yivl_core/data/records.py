"""One sample as the user wrote it: the record, its images, and the conversation that it stands for.

Nothing here touches a file. `reading.py` makes records of files, `processing/prompt.py` makes prompts of messages.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.digests import digest_json
from yivl_core.errors import DatasetError

IMAGE_TAG = re.compile(r"<image>|<image_placeholder>")


class ImageCountError(DatasetError):
    """The images of a record cannot be given to its rounds without guessing.

    Attributes:
        message: what is wrong.
        remedy: how to mend it.
    """

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}")
        self.message = message
        self.remedy = remedy


class Record(BaseModel):
    """One sample: what is asked, about which images, after which conversation, and the right answer if known."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    query: str = Field(description="what is asked; `<image>` marks where an image stands")
    response: str | None = Field(default=None, description="the right answer; needed for training")
    history: tuple[tuple[str, str], ...] = Field(default=(), description="earlier rounds: (query, response)")
    images: tuple[str | None, ...] = Field(default=(), description="image addresses; None for a round without one")
    system: str | None = Field(default=None, description="system text; None: the model's own, empty: none")
    id: str | None = Field(default=None, description="the user's name for this record")
    references: tuple[str, ...] = Field(default=(), description="further right answers, for evaluation")
    cluster_id: str | None = Field(default=None, description="what belongs together in statistics: a page, a receipt")
    meta: dict[str, Any] = Field(default_factory=dict, description="fields that the pipeline does not know, kept as they are")

    @property
    def image_addresses(self) -> tuple[str, ...]:
        """The images that are really there, in order."""
        return tuple(address for address in self.images if address is not None)


class Role(StrEnum):
    """Who speaks."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class ImageSlot:
    """The place of an image in a message.

    Attributes:
        index: which of `Record.image_addresses` stands here.
    """

    index: int


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance: text and images in the order in which they are read."""

    role: Role
    content: tuple[str | ImageSlot, ...]


def split_at_image_tags(text: str) -> list[str]:
    """The pieces of text around `<image>` and `<image_placeholder>` tags: n tags give n + 1 pieces."""
    return IMAGE_TAG.split(text)


def conversation(record: Record) -> list[Message]:
    """The record's rounds as messages, each image where it belongs; the answer of the last round is not included.

    Tags place images exactly where they stand. Without a tag, images go in front of their round's text, followed by one
    newline: all of them where there is one round, one for each round where there are as many entries as rounds (None for a
    round without), and in the first round where there is just one image.

    Raises:
        ImageCountError: the number of tags, or of entries in `images`, fits neither rule.
    """
    untagged = untagged_images(record)
    rounds = [*record.history, (record.query, None)]
    messages = []
    if record.system is not None:
        messages.append(Message(Role.SYSTEM, (record.system,)))
    next_index = 0
    for (query, answer), indices in zip(rounds, untagged, strict=True):
        for role, text in ((Role.USER, query), (Role.ASSISTANT, answer)):
            if text is None:
                continue
            if role is Role.USER and indices:
                content: tuple[str | ImageSlot, ...] = (*(ImageSlot(index) for index in indices), "\n" + text)
            else:
                content, next_index = _place_at_tags(text, next_index)
            messages.append(Message(role, content))
    return messages


def untagged_images(record: Record) -> list[list[int]]:
    """Which images stand in front of the text of each round, as indices of `record.image_addresses`; none where there are tags.

    Raises:
        ImageCountError: as `conversation`.
    """
    num_tags = _count_tags(record.query)
    for question, answer in record.history:
        num_tags += _count_tags(question) + _count_tags(answer)
    if not num_tags:
        return _images_by_round(record)
    if num_tags != len(record.image_addresses):
        raise ImageCountError(
            f"{num_tags} <image> tag(s) in query and history for {len(record.image_addresses)} image(s)",
            "write one tag for each image of `images`, or none at all",
        )
    return [[] for _ in range(len(record.history) + 1)]


def _count_tags(text: str) -> int:
    return len(IMAGE_TAG.findall(text)) if "<image" in text else 0  # the second question is dearer, and rarely put


def sample_digest(record: Record, image_digests: tuple[str, ...]) -> str:
    """sha256 (hex) of what the model is shown: image digests, history, query and system, never an address or the answer."""
    return digest_json(
        [list(image_digests), [list(pair) for pair in record.history], record.query, record.system, _layout(record)]
    )


def _layout(record: Record) -> list[bool]:
    return [address is not None for address in record.images]


def _images_by_round(record: Record) -> list[list[int]]:
    num_rounds, images = len(record.history) + 1, record.images
    by_round: list[list[int]] = [[] for _ in range(num_rounds)]
    if num_rounds == 1 or len(record.image_addresses) == 1 == len(images):
        by_round[0] = list(range(len(record.image_addresses)))
    elif len(images) == num_rounds:
        present = [number for number, address in enumerate(images) if address is not None]
        for index, number in enumerate(present):
            by_round[number] = [index]
    elif images:
        raise ImageCountError(
            f"{len(images)} entries in `images` for {num_rounds} rounds and no <image> tag",
            "give one entry a round (null for none), or write <image> where each image belongs",
        )
    return by_round


def _place_at_tags(text: str, next_index: int) -> tuple[tuple[str | ImageSlot, ...], int]:
    pieces = split_at_image_tags(text)
    content: list[str | ImageSlot] = []
    for number, piece in enumerate(pieces):
        if number:
            content.append(ImageSlot(next_index))
            next_index += 1
        if piece:
            content.append(piece)
    return tuple(content), next_index
