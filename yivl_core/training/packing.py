"""ModelInputs -> PackedBatch: whole samples side by side in rows, so that no position is spent on padding.

```
input_ids     a0 a1 a2 a3 | b0 b1 b2 | c0 c1 c2 c3     three samples in one row
position_ids   0  1  2  3 |  0  1  2 |  0  1  2  3     positions restart
cu_seq_lens    0            4          7           11  no attention across samples
labels         -  -  a2 a3|  -  b1 b2|  -  -  c2 c3    the first of a sample is never learned: nothing in it comes before
learned           1  2       4  5           8  9       positions before those of a label, whose logits are wanted
targets           a2 a3      b1 b2          c2 c3      and what they are to be
```

What a step needs is worked out here, so that it never has to wait for the GPU to tell it.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs
from yivl_core.processing.tokenization import IGNORE_INDEX
from yivl_core.training.layout import RowLayout, plan_slots


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One row of samples.

    Attributes:
        input_ids: int64 `[S]`.
        position_ids: int64 `[S]`, from 0 in each sample.
        learned: int64 `[L]`, the positions whose next token is learned.
        targets: int64 `[L]`, those tokens.
        cu_seq_lens: int32 `[num_samples + 1]`.
        lengths: tokens of each sample.
        image_places: int64 `[K]`, the positions that are places of images.
        pixels: of its images, in the order of their places.
        features: `[N, P, C]`, what the vision tower gave of them before, in place of pixels; None: nothing.
        slots, places: of the row's layout, where attention has slots; else None.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    learned: torch.Tensor
    targets: torch.Tensor
    cu_seq_lens: torch.Tensor
    lengths: tuple[int, ...]
    image_places: torch.Tensor
    pixels: UnpaddedPixels
    features: torch.Tensor | None = None
    slots: torch.Tensor | None = None
    places: torch.Tensor | None = None

    def to(self, device: torch.device, *, copy: bool = False) -> "PackedBatch":
        """The same on a device; a copy no longer uses the memory, and open files, that are shared with a worker.

        To a GPU from pinned memory nothing waits for it.
        """
        tensors: dict[str, Any] = {
            name: value.to(device, non_blocking=True, copy=copy) for name, value in self._tensors().items()
        }
        return replace(self, **tensors, pixels=self.pixels.to(device, copy=copy))

    def pin_memory(self) -> "PackedBatch":
        """The same in memory that a GPU reads by itself; torch's loader calls it."""
        tensors: dict[str, Any] = {name: value.pin_memory() for name, value in self._tensors().items()}
        return replace(self, **tensors, pixels=self.pixels.pin_memory())

    @property
    def num_samples(self) -> int:
        """Samples in the row."""
        return len(self.lengths)

    @property
    def max_length(self) -> int:
        """Tokens of the longest sample."""
        return max(self.lengths)

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return len(self.targets)

    @property
    def layout(self) -> RowLayout:
        """Where its tokens stand for attention."""
        return RowLayout(
            position_ids=self.position_ids, cu_seq_lens=self.cu_seq_lens, max_length=self.max_length,
            num_samples=self.num_samples, slots=self.slots, places=self.places,
        )  # fmt: skip

    def _tensors(self) -> dict[str, torch.Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}


def pack(samples: Sequence[ModelInputs], row_tokens: int, *, has_slots: bool = False) -> list[PackedBatch]:
    """Whole samples in as few rows as first-fit finds, evenly filled where that is possible; each sample in exactly one row.

    Args:
        samples: with labels.
        row_tokens: most tokens in a row; a longer sample gets a row of its own.
        has_slots: whether attention may have slots of one length, where they pay.
    """
    rows = plan_rows([len(sample.input_ids) for sample in samples], row_tokens)
    return [_pack_row([samples[number] for number in row], has_slots=has_slots) for row in rows]


def plan_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which samples of these lengths share a row: their numbers; see `pack`."""
    longest_first = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    rows = _first_fit(longest_first, lengths, row_tokens)
    even = spread_evenly(lengths, len(rows))
    return even if all(sum(lengths[number] for number in row) <= row_tokens for row in even) else rows


def spread_evenly(lengths: Sequence[int], num_rows: int) -> list[list[int]]:
    """Samples in so many rows, each in that with the fewest tokens: a nearly empty row takes a GPU no less time than a fuller."""
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    emptiest = [(0, row) for row in range(num_rows)]
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        tokens, row = heapq.heappop(emptiest)
        rows[row].append(number)
        heapq.heappush(emptiest, (tokens + lengths[number], row))
    return rows


def _first_fit(numbers: Iterable[int], lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for number in numbers:
        row = next((row for row, tokens in enumerate(free) if lengths[number] <= tokens), None)
        if row is None:
            rows.append([number])
            free.append(row_tokens - lengths[number])
        else:
            rows[row].append(number)
            free[row] -= lengths[number]
    return rows


def _pack_row(samples: Sequence[ModelInputs], *, has_slots: bool) -> PackedBatch:
    lengths = [len(sample.input_ids) for sample in samples]
    slots, places = (plan_slots(lengths) if has_slots else None) or (None, None)
    features = [sample.features for sample in samples if sample.features is not None]
    input_ids = np.concatenate([sample.input_ids for sample in samples])
    labels = np.concatenate([_without_first(sample) for sample in samples])
    learned = np.flatnonzero(labels[1:] != IGNORE_INDEX)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        learned=torch.from_numpy(learned),
        targets=torch.from_numpy(labels[learned + 1]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seq_lens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        lengths=tuple(lengths),
        image_places=torch.from_numpy(np.flatnonzero(input_ids == IMAGE_TOKEN_INDEX)),
        pixels=UnpaddedPixels.joined([sample.pixels for sample in samples]),
        features=torch.cat(features) if features else None,
        slots=slots,
        places=places,
    )


def _without_first(sample: ModelInputs) -> npt.NDArray[np.int64]:
    assert sample.labels is not None
    labels = sample.labels.copy()
    labels[0] = IGNORE_INDEX
    return labels
