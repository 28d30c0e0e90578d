"""Messages -> prompt: pieces of text and places of images in order, with the pieces that training learns from.

The frame is that of the original code (01-ai/Yi, VL/llava/conversation.py, `mm_default_conv`); `|...|` marks what is learned:

```
SYSTEM TEXT
                                            (an empty line)
### Human: <image_placeholder>
What is in this image?
### Assistant:| A cat.
###| Human: Which colour?
### Assistant:| Black.
###|
```

There is no beginning-of-text token, and no system text leaves the two newlines in front of the first `###`, as in the original.
One difference: an empty text in the history keeps its role's frame here (`### Assistant: ` and a newline), where the original
leaves out everything behind the colon, so that the next role follows in the same line.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from yivl_core.data.records import ImageSlot, Message, Record, Role, conversation

# Changes whenever the same record gives another prompt; predictions and adapters name it.
PROMPT_VERSION = "yi-vl-1"

SYSTEM_PROMPT = (
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all the images "
    "carefully, and respond to the human's questions with informative, helpful, detailed and polite answers. "
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。"
)
STOP_STRING = "###"
IMAGE_PLACEHOLDER = "<image_placeholder>"
_USER_TURN = " Human: "
# Has all that a prompt can have: rounds before, an image that is placed by rule, and a text behind it.
_EXAMPLE = Record(history=(("What is in this image?", "A cat."),), images=("cat.png",), query="Which colour?")


@dataclass(frozen=True, slots=True)
class TextSegment:
    """Text between two images or learned spans.

    Attributes:
        text: as the model reads it, never empty.
        is_learned: whether training computes a loss on its tokens.
    """

    text: str
    is_learned: bool = False


Segment = TextSegment | ImageSlot


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads, in order. Each text segment is tokenised on its own, as the original does between images."""

    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        """The prompt as the original writes it, with `<image_placeholder>` for each image."""
        return "".join(IMAGE_PLACEHOLDER if isinstance(segment, ImageSlot) else segment.text for segment in self.segments)


def build_prompt(messages: Sequence[Message], answer: str | None = None) -> Prompt:
    """The prompt of a conversation that ends with the user's turn.

    Args:
        messages: what `conversation(record)` gives: a system message or none, then user and assistant in turn.
        answer: the last answer, for training; None leaves the prompt open for the model to answer.

    Returns:
        The prompt. Answers are learned with the blank in front and the stop behind; what follows a stop is not.
    """
    system = SYSTEM_PROMPT
    if messages and messages[0].role is Role.SYSTEM:
        system = "".join(part for part in messages[0].content if isinstance(part, str))
        messages = messages[1:]
    parts: list[Segment] = [TextSegment(f"{system}\n\n{STOP_STRING}")]
    for message in messages:
        if message.role is Role.USER:
            parts += [TextSegment(_USER_TURN), *_segments(message, is_learned=False), TextSegment(f"\n{STOP_STRING} Assistant:")]
        else:
            parts += _answer_segments(message)
    if answer is not None:
        parts += _answer_segments(Message(Role.ASSISTANT, (answer,)))
    return Prompt(tuple(_joined(parts)))


def describe_prompt() -> dict[str, str]:
    """What a manifest tells of the frame that records are put into, so that any change of it shows and its text can be read.

    Returns:
        `version`; `system`, the text where a record has none; `stop`; `image_placeholder`; `example`, the prompt of a
        conversation with an image; sha256 (hex) of the system text and of the example.
    """
    example = str(build_prompt(conversation(_EXAMPLE)))
    return {
        "version": PROMPT_VERSION,
        "system": SYSTEM_PROMPT,
        "system_sha256": hashlib.sha256(SYSTEM_PROMPT.encode()).hexdigest(),
        "stop": STOP_STRING,
        "image_placeholder": IMAGE_PLACEHOLDER,
        "example": example,
        "example_sha256": hashlib.sha256(example.encode()).hexdigest(),
    }


def opens_user_turn(segment: Segment) -> bool:
    """Whether a segment ends where the text of a user begins."""
    return isinstance(segment, TextSegment) and segment.text.endswith(f"{STOP_STRING}{_USER_TURN}")


def shorten(messages: Sequence[Message], answer: str | None, max_characters: int) -> tuple[list[Message], str | None]:
    """The same conversation with every text of users and assistants cut at its end to at most `max_characters`.

    A common limit takes the excess from the longest texts and leaves short instructions and answers whole. The system text and
    the frame stay, and so does every image.
    """
    shortened = [
        message
        if message.role is Role.SYSTEM
        else Message(message.role, tuple(part[:max_characters] if isinstance(part, str) else part for part in message.content))
        for message in messages
    ]
    return shortened, None if answer is None else answer[:max_characters]


def _answer_segments(message: Message) -> list[Segment]:
    return [
        TextSegment(" ", is_learned=True),
        *_segments(message, is_learned=True),
        TextSegment(f"\n{STOP_STRING}", is_learned=True),
    ]


def _segments(message: Message, *, is_learned: bool) -> list[Segment]:
    return [TextSegment(part, is_learned) if isinstance(part, str) else part for part in message.content]


def _joined(parts: Sequence[Segment]) -> list[Segment]:
    """The same parts with neighbouring texts of one kind made one, and empty ones left out."""
    joined: list[Segment] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, TextSegment) and isinstance(last, TextSegment) and part.is_learned == last.is_learned:
            joined[-1] = TextSegment(last.text + part.text, part.is_learned)
        elif not isinstance(part, TextSegment) or part.text:
            joined.append(part)
    return joined
