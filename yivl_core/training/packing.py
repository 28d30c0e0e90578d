"""ModelInputs -> PackedBatch: whole samples side by side in rows, so that no position is spent on padding.

```
input_ids     a0 a1 a2 a3 | b0 b1 b2 | c0 c1 c2 c3     three samples in one row
position_ids   0  1  2  3 |  0  1  2 |  0  1  2  3     positions restart
cu_seq_lens    0            4          7           11  no attention across samples
labels         -  -  a2 a3|  -  b1 b2|  -  -  c2 c3    the first of a sample is never learned: nothing in it comes before
```
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import numpy.typing as npt
import torch

from yivl_core.processing.processor import ModelInputs
from yivl_core.processing.tokenization import IGNORE_INDEX


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One row of samples.

    Attributes:
        input_ids: int64 `[S]`.
        labels: int64 `[S]`, not shifted; -100 where nothing is learned, and at the first place of each sample.
        position_ids: int64 `[S]`, from 0 in each sample.
        cu_seq_lens: int32 `[num_samples + 1]`.
        max_length: tokens of the longest sample.
        pixels: uint8 `[num_images, H, W, 3]`, in the order of their places.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    pixels: torch.Tensor

    @property
    def num_samples(self) -> int:
        """Samples in the row."""
        return len(self.cu_seq_lens) - 1

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return int((self.labels != IGNORE_INDEX).sum())


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
    labels = [_without_first(sample) for sample in samples]
    return PackedBatch(
        input_ids=torch.from_numpy(np.concatenate([sample.input_ids for sample in samples])),
        labels=torch.from_numpy(np.concatenate(labels)),
        position_ids=torch.cat([torch.arange(length) for length in lengths]),
        cu_seq_lens=torch.tensor([0, *accumulate(lengths)], dtype=torch.int32),
        max_length=max(lengths),
        pixels=torch.from_numpy(np.concatenate([sample.pixels for sample in samples])),
    )


def _without_first(sample: ModelInputs) -> npt.NDArray[np.int64]:
    assert sample.labels is not None
    labels = sample.labels.copy()
    labels[0] = IGNORE_INDEX
    return labels
