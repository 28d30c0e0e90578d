"""Where the tokens of a packed row stand for attention: side by side, or each sample in a slot of one length.

```
row      | a0 a1 a2 a3 | b0 b1 b2 |               S tokens
slots    | a0 a1 a2 a3 . | b0 b1 b2 . . |         N samples times L: noughts behind each, which causal attention never sees
```

In slots one kernel for equal lengths does the row, which is nearly twice as fast as that for any lengths (an H100, heads of 128).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_SLOT_MULTIPLE = 64
# A slot's square is computed whole: beyond this the saved time is spent on noughts.
_MAX_SLOT_TOKENS_A_TOKEN = 1.15
_MIN_SLOT_TOKENS = 256  # shorter samples leave nothing to gain


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLayout:
    """The places of a row, on the device.

    Attributes:
        position_ids: int64 `[S]`.
        cu_seq_lens: int32 `[N + 1]`, where each sample starts.
        max_length: tokens of the longest sample.
        num_samples: N.
        slots: int64 `[N * L]`, the token that stands there, or -1; None where tokens stand side by side.
        places: int64 `[S]`, where each token stands in the slots.
    """

    position_ids: torch.Tensor
    cu_seq_lens: torch.Tensor
    max_length: int
    num_samples: int
    slots: torch.Tensor | None = None
    places: torch.Tensor | None = None


def plan_slots(lengths: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`slots` and `places` of a row of samples of these lengths; None where slots of one length do not pay."""
    longest = -(-max(lengths) // _SLOT_MULTIPLE) * _SLOT_MULTIPLE
    if longest < _MIN_SLOT_TOKENS or longest * len(lengths) > _MAX_SLOT_TOKENS_A_TOKEN * sum(lengths):
        return None
    starts = np.cumsum([0, *lengths[:-1]])
    places = np.concatenate([number * longest + np.arange(length) for number, length in enumerate(lengths)])
    slots = np.full(longest * len(lengths), -1, dtype=np.int64)
    slots[places] = np.concatenate([start + np.arange(length) for start, length in zip(starts, lengths, strict=True)])
    return torch.from_numpy(slots), torch.from_numpy(places)
