"""Text <-> token ids with the checkpoint's SentencePiece model, and prompt -> input_ids and labels. No torch here.

transformers' own Llama tokenizers are not used: they put a blank before every piece of a prompt, or decode some ids to other
text than the original did. Plain SentencePiece behind a split at the added tokens gives the original's ids and text exactly.
"""

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from pydantic import ConfigDict, Field, RootModel

from yivl_core.data.records import ImageSlot
from yivl_core.errors import CheckpointError, DatasetError
from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX, TokenId
from yivl_core.model.json_files import FileKeys, read_keys
from yivl_core.processing.prompt import Prompt

# No loss in labels; the original code's number (01-ai/Yi, VL/llava/model/constants.py), and PyTorch's.
IGNORE_INDEX = -100

_MARKER = re.compile(r"<\|.+\|>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_MAX_REMEMBERED_TEXTS, _MAX_REMEMBERED_CHARS = 512, 4000
_DIGITS = "0123456789"
_ZEROS = str.maketrans(_DIGITS, "0" * len(_DIGITS))
_WORD_START = "▁"  # stands for a blank in SentencePiece's pieces
_CUT_TEXTS = (("a.\n\n###", " Human:"), (" Human:", " b"), ("a:", "   b  \n"), ("\n###", " Assistant:"), ("Ａ", " ①ﬁ e\u0301"))
# `surrogateescape` turns each byte that is no UTF-8 into one of these; the original shows each as a replacement character.
_ESCAPED_BYTES = dict.fromkeys(range(0xDC80, 0xDD00), "\N{REPLACEMENT CHARACTER}")


class Tokenizer:
    """A SentencePiece model together with its added tokens.

    Args:
        processor: the SentencePiece model.
        added_tokens: text -> id of the tokens that stand outside of ordinary text, such as `<|endoftext|>`.

    Attributes:
        special_ids: ids of added tokens and of markers in the vocabulary such as `<|Human|>`; no text of users gets one.
        eos_id: the end-of-text token.
        vocab_size: one more than the highest id.
    """

    def __init__(self, processor: sentencepiece.SentencePieceProcessor, added_tokens: Mapping[str, int]) -> None:
        self._processor = processor
        self._pieces: list[str] = [processor.id_to_piece(token_id) for token_id in range(processor.vocab_size())]
        reserved = {
            piece: token_id
            for token_id, piece in enumerate(self._pieces)
            if processor.is_control(token_id) or processor.is_unknown(token_id)
        }
        self._added_tokens = {**reserved, **added_tokens}
        self._added_texts = {token_id: text for text, token_id in self._added_tokens.items()}
        self._bytes = [self._bytes_of_piece(token_id) for token_id in range(len(self._pieces))]
        # SentencePiece matches markers in any text by itself, which makes them as special as the added tokens.
        markers = {piece: token_id for token_id, piece in enumerate(self._pieces) if _MARKER.fullmatch(piece)}
        self._added_pattern = re.compile(f"({_any_of(self._added_tokens)})")
        self._special_pattern = re.compile(f"(?={_any_of([*markers, *self._added_tokens])})")
        # A hundred times as fast as the pattern, which nearly no text needs.
        self._special_starts = re.compile(f"[{re.escape(''.join({text[:1] for text in [*markers, *self._added_tokens]}))}]")
        self._encode_once = lru_cache(_MAX_REMEMBERED_TEXTS)(self._encode_read_only)
        self.special_ids = frozenset([*markers.values(), *self._added_tokens.values()])
        self._splits_digits = sorted(self._pieces_with_digits()) == list(_DIGITS)
        self.eos_id: int = processor.eos_id()
        self.vocab_size: int = max(len(self._pieces), max(self.special_ids) + 1)

    @property
    def splits_at_blanks(self) -> bool:
        """Whether a text may be cut in front of any blank, and its two parts encoded alone."""
        if any(_WORD_START in piece.lstrip(_WORD_START) for piece in self._pieces) or any(
            " " in text for text in self._added_tokens
        ):
            return False
        # Vocabularies whose texts are normalised first, or get a blank in front, show it here.
        return all(self.encode(left + right) == self.encode(left) + self.encode(right) for left, right in _CUT_TEXTS)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self._processor, self._added_tokens)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a checkpoint: its `tokenizer.model`, and the tokens of `added_tokens.json` or `tokenizer_config.json`.

        Raises:
            CheckpointError: a file is missing or does not hold what it should.
        """
        folder = Path(folder)
        path = folder / "tokenizer.model"
        if not path.is_file():
            raise CheckpointError(f"{path}: file is missing; copy it from the model's repository")
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as a SentencePiece model; fetch the file again") from error
        return cls(processor, _read_added_tokens(folder))

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """The ids of a text, without any beginning- or end-of-text token.

        Args:
            text: what to encode.
            parse_special: whether special strings in the text become the tokens that they name, as in the original code. If not,
                they are encoded like other text, and none of `special_ids` comes out.

        Raises:
            DatasetError: the text holds half of a surrogate pair, which has no UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DatasetError(
                f"the text holds {error.object[error.start]!a}, half of a surrogate pair and thus no character; remove it, or "
                r'write the pair (in JSON: "\ud83d\ude00")'
            ) from error
        ids: list[int] = []
        if parse_special:
            for piece in self._added_pattern.split(text):
                ids += [self._added_tokens[piece]] if piece in self._added_tokens else self._processor.encode(piece)
        elif self._special_starts.search(text) is None:
            return self._processor.encode(text)  # type: ignore[no-any-return]
        else:
            # Cut behind the first character, a special string is never whole, so SentencePiece cannot find it.
            cuts = [match.start() + 1 for match in self._special_pattern.finditer(text)]
            for start, end in pairwise([0, *cuts, len(text)]):
                ids += self._processor.encode(text[start:end])
        return ids

    def with_zeros(self, text: str) -> str:
        """A text of as many tokens: zeros for all digits where the vocabulary has each digit alone, otherwise the same text."""
        return text.translate(_ZEROS) if self._splits_digits and self._special_starts.search(text) is None else text

    def encode_repeated(self, text: str) -> npt.NDArray[np.int64]:
        """As `encode`, for system texts and questions, which many records share: the latest ones are not encoded again.

        Returns:
            The ids, int64, not to be written to.
        """
        return self._encode_once(text) if len(text) <= _MAX_REMEMBERED_CHARS else self._encode_read_only(text)

    def _pieces_with_digits(self) -> Iterator[str]:
        """The pieces that match digits in the text of a user."""
        digits = frozenset(_DIGITS)
        for token_id, piece in enumerate(self._pieces):
            if not digits.isdisjoint(piece) and token_id not in self.special_ids and not self._processor.is_byte(token_id):
                yield piece

    def _encode_read_only(self, text: str) -> npt.NDArray[np.int64]:
        ids = np.array(self.encode(text), dtype=np.int64)
        ids.flags.writeable = False
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids, as the original code decodes them.

        Args:
            ids: token ids.
            skip_special_tokens: whether added tokens are left out. If not, ordinary text that stands before one gets a blank in
                front, as in the original.

        Returns:
            The text, without the blank of a first piece that starts a word; a byte that is no UTF-8 is a replacement character.
        """
        kept = [token_id for token_id in ids if not (skip_special_tokens and token_id in self._added_texts)]
        runs = [(is_added, list(run)) for is_added, run in groupby(kept, self._added_texts.__contains__)]
        parts = []
        for number, (is_added, run) in enumerate(runs):
            if is_added:
                parts.append("".join(self._added_texts[token_id] for token_id in run))
                continue
            data = b"".join(self.token_bytes(token_id) for token_id in run)
            if number == 0 and self._starts_word(run[0]):
                data = data[1:]
            blank = "" if number == len(runs) - 1 else " "
            parts.append(blank + data.decode("utf-8", "surrogateescape").translate(_ESCAPED_BYTES))
        return "".join(parts)

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token adds to a text; none for an added token, and for an id that only pads the vocabulary."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def _starts_word(self, token_id: int) -> bool:
        return token_id < len(self._pieces) and self._pieces[token_id].startswith(_WORD_START)

    def _bytes_of_piece(self, token_id: int) -> bytes:
        piece = self._pieces[token_id]
        if token_id in self._added_texts:
            return b""
        if self._processor.is_byte(token_id):
            match = _BYTE_PIECE.fullmatch(piece)
            assert match is not None
            return bytes.fromhex(match[1])
        return piece.replace(_WORD_START, " ").encode()


class TextStream:
    """Token ids in, text out as soon as it is certain: a character's bytes are held back until all of them are there."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def append(self, token_id: int) -> str:
        """The text that becomes certain with one more token."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id)).translate(_ESCAPED_BYTES)

    def finish(self) -> str:
        """The text of bytes that wait for more: a replacement character each."""
        return self._decoder.decode(b"", final=True).translate(_ESCAPED_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """A prompt as the model reads it.

    Attributes:
        input_ids: int64 `[S]`; `IMAGE_TOKEN_INDEX` in each slot of an image.
        labels: int64 `[S]`; the token itself where it is learned, `IGNORE_INDEX` elsewhere. Not shifted.
    """

    input_ids: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer, num_image_tokens: int) -> PromptTokens:
    """The tokens of a prompt, each image widened to `num_image_tokens` slots.

    Every segment is encoded on its own, in training and inference alike, so a training sample is exactly the prompt of inference
    followed by the answer's tokens. Segments of text meet between a colon or `###` and a blank. No piece of a vocabulary that was
    trained to split at white space, as Yi's was, reaches over such a place, so the tokens are also those of the text as a whole.

    Raises:
        DatasetError: a text holds half of a surrogate pair.
    """
    parts: list[npt.NDArray[np.int64]] = []
    learned: list[slice] = []
    length = 0
    for segment in prompt.segments:
        if isinstance(segment, ImageSlot):
            ids = np.full(num_image_tokens, IMAGE_TOKEN_INDEX, dtype=np.int64)
        elif segment.is_learned:
            ids = np.array(tokenizer.encode(segment.text), dtype=np.int64)
            learned.append(slice(length, length + len(ids)))
        else:
            ids = tokenizer.encode_repeated(segment.text)
        parts.append(ids)
        length += len(ids)
    input_ids = np.concatenate(parts)
    labels = np.full(length, IGNORE_INDEX, dtype=np.int64)
    for span in learned:
        labels[span] = input_ids[span]
    return PromptTokens(input_ids=input_ids, labels=labels)


def _any_of(texts: Iterable[str]) -> str:
    """A pattern for any of the texts, the longest first, as the original prefers it."""
    longest_first = sorted(texts, key=len, reverse=True)
    return f"(?:{'|'.join(map(re.escape, longest_first))})"


class _AddedToken(FileKeys):
    content: str = Field(min_length=1)


class _TokenizerKeys(FileKeys):
    added_tokens_decoder: dict[Annotated[str, Field(pattern=r"^[0-9]{1,7}$")], _AddedToken] = Field(default_factory=dict)


class _AddedTokens(RootModel[dict[Annotated[str, Field(min_length=1)], TokenId]]):
    model_config = ConfigDict(strict=True, frozen=True)


def _read_added_tokens(folder: Path) -> dict[str, int]:
    tokens: dict[str, int] = {}
    listed, described = folder / "added_tokens.json", folder / "tokenizer_config.json"
    if described.exists():
        decoder = read_keys(_TokenizerKeys, described, "").added_tokens_decoder
        tokens |= {token.content: int(token_id) for token_id, token in decoder.items()}
    if listed.exists():
        tokens |= read_keys(_AddedTokens, listed, "").root
    if not tokens:
        raise CheckpointError(f"{folder}: neither added_tokens.json nor tokenizer_config.json names any token; fetch both again")
    return tokens
