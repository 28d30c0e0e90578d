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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs
from yivl_core.processing.tokenization import IGNORE_INDEX


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One row of samples.

    Attributes:
        input_ids: int64 `[S]`.
        position_ids: int64 `[S]`, from 0 in each sample.
        learned: int64 `[L]`, the positions whose next token is learned.
        targets: int64 `[L]`, those tokens.
        cu_seq_lens: int32 `[num_samples + 1]`.
        max_length: tokens of the longest sample.
        image_places: int64 `[K]`, the positions that are places of images.
        pixels: of its images, in the order of their places.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    learned: torch.Tensor
    targets: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    image_places: torch.Tensor
    pixels: UnpaddedPixels

    def to(self, device: torch.device, *, copy: bool = False) -> "PackedBatch":
        """The same on a device; a copy no longer uses the memory, and open files, that are shared with a worker.

        To a GPU from pinned memory nothing waits for it.
        """
        tensors = {name: getattr(self, name).to(device, non_blocking=True, copy=copy) for name in _TENSORS}
        return replace(self, **tensors, pixels=self.pixels.to(device, copy=copy))

    def pin_memory(self) -> "PackedBatch":
        """The same in memory that a GPU reads by itself; torch's loader calls it."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in _TENSORS}, pixels=self.pixels.pin_memory())

    @property
    def num_samples(self) -> int:
        """Samples in the row."""
        return len(self.cu_seq_lens) - 1

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return len(self.targets)


_TENSORS = ("input_ids", "position_ids", "learned", "targets", "cu_seq_lens", "image_places")


def pack(samples: Sequence[ModelInputs], row_tokens: int) -> list[PackedBatch]:
    """Whole samples in as few rows as first-fit finds, longest first; each sample in exactly one row.

    Args:
        samples: with labels.
        row_tokens: most tokens in a row; a longer sample gets a row of its own.
    """
    rows: list[list[ModelInputs]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.input_ids)):
        length = len(sample.input_ids)
        row = next((number for number, tokens in enumerate(free) if length <= tokens), None)
        if row is None:
            rows.append([sample])
            free.append(row_tokens - length)
        else:
            rows[row].append(sample)
            free[row] -= length
    return [_pack_row(row) for row in rows]


def _pack_row(samples: Sequence[ModelInputs]) -> PackedBatch:
    lengths = [len(sample.input_ids) for sample in samples]
    input_ids = np.concatenate([sample.input_ids for sample in samples])
    labels = np.concatenate([_without_first(sample) for sample in samples])
    learned = np.flatnonzero(labels[1:] != IGNORE_INDEX)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        learned=torch.from_numpy(learned),
        targets=torch.from_numpy(labels[learned + 1]),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seq_lens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max_length=max(lengths),
        image_places=torch.from_numpy(np.flatnonzero(input_ids == IMAGE_TOKEN_INDEX)),
        pixels=UnpaddedPixels.joined([sample.pixels for sample in samples]),
    )


def _without_first(sample: ModelInputs) -> npt.NDArray[np.int64]:
    assert sample.labels is not None
    labels = sample.labels.copy()
    labels[0] = IGNORE_INDEX
    return labels
