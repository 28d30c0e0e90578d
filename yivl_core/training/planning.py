"""How long packed rows are and what layers keep of them, so that a training fits: worked out before anything is allocated.

All is counted in bytes as a user sees them in `nvidia-smi`: weights, what is trained with its gradients and the optimizer's
memory, what layers keep for the backward pass, what the largest step takes beside, and what CUDA itself takes.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from yivl_core.errors import ConfigurationError
from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.gpu_memory import CONTEXT_BYTES, gigabytes
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.head import CHUNK_TOKENS
from yivl_core.training.layer_memory import Recompute, decoder_shape, tower_shape
from yivl_core.training.layers import Kept
from yivl_core.training.packing import plan_rows, spread_evenly
from yivl_core.training.tuning import part_of

# Gaps between blocks of the allocator, and the libraries' workspaces: fitted to peaks on an H100.
_ALLOCATOR_FACTOR, _LIBRARY_BYTES = 1.02, 200_000_000
# What a row costs beside the work on its tokens, in tokens: launches, and products whose last wave of blocks is not full.
_ROW_OVERHEAD_TOKENS = 450
# Of what a large matrix product reaches; and what a layer's kernels take to be launched, forward and back.
_SHARE_OF_PEAK, _LAUNCH_S = 0.72, 5.5e-3
_NUM_GROUPS = 200  # steps whose packing is tried out
_KINDS = ("attention", "middle", "mlp")
_BY_HAND: dict[Recompute, Kept] = {
    "none": Kept(),
    "selective": Kept(attention=False),
    "full": Kept(attention=False, middle=False, mlp=False),
}


class Kinds(NamedTuple):
    """What the layers of decoder and tower keep, of the fast path; `recompute` says the same of layers that autograd trains."""

    recompute: Recompute
    kept: tuple[Kept, ...]
    tower_kept: tuple[Kept, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """Sizes that fit.

    Attributes:
        row_tokens: most tokens of a row.
        num_rows: rows of a step, in the mean.
        recompute: what layers that autograd trains compute again.
        kept: what each layer of the decoder keeps where the fast path trains it.
        tower_kept: and of the tower.
        needs: bytes by what takes them.
        extra_share: work that is done twice, as a share of all.
    """

    row_tokens: int
    num_rows: float
    recompute: Recompute
    kept: tuple[Kept, ...]
    tower_kept: tuple[Kept, ...]
    needs: Mapping[str, int]
    extra_share: float

    @property
    def total_bytes(self) -> int:
        """All that is needed."""
        return sum(self.needs.values())

    def __str__(self) -> str:
        """What a user is told."""
        again = f"{self.extra_share:.0%} of the work done twice to save memory" if self.extra_share else "nothing computed again"
        listed = ", ".join(f"{name} {gigabytes(size)}" for name, size in self.needs.items())
        return (
            f"a step is {self.num_rows:.3g} row{'' if self.num_rows == 1 else 's'} of at most {self.row_tokens} tokens, {again}; "
            f"{gigabytes(self.total_bytes)} of memory ({listed})"
        )


class _Drop(NamedTuple):
    """What a layer may compute again."""

    is_tower: bool
    kind: str
    layer: int


class Planner:
    """Works out what fits.

    Args:
        config: of the model.
        trained: names and shapes of what is trained.
        settings: of the training.
        fixed: bytes by what takes them, whatever the rows: weights, and what is trained with all that belongs to it.
        lengths: of the samples of each step, in tokens.
        itemsize: bytes of a value in the arithmetic.
        peak: operations a second of a large matrix product on the device.
        is_fused: whether the fast path trains the model; else autograd keeps what it keeps.
    """

    def __init__(
        self,
        config: YiVLConfig,
        trained: Mapping[str, tuple[int, ...]],
        settings: TrainingSettings,
        fixed: Mapping[str, int],
        lengths: Sequence[Sequence[int]],
        itemsize: int,
        *,
        peak: float,
        is_fused: bool,
    ) -> None:
        self._config, self._recompute, self._fixed = config, settings.recompute, dict(fixed)
        self._itemsize, self._peak, self._is_fused = itemsize, peak, is_fused
        self._groups = lengths[:: -(-len(lengths) // _NUM_GROUPS)]
        self._longest = max(max(group) for group in lengths)
        longest_first = sorted((length for group in lengths for length in group), reverse=True)
        self._largest_step = sum(islice(longest_first, max(len(group) for group in lengths)))
        self._decoder, self._tower = decoder_shape(config, trained), tower_shape(config, trained)
        self._is_tower_trained = any(part_of(name) == "vision" for name in trained)

    def plan(self, budget: int | None, row_tokens: int | None = None) -> TrainingPlan:
        """The fastest that fits.

        Args:
            budget: bytes that may be used; None: any number.
            row_tokens: most tokens of a row, where that is decided.

        Raises:
            ConfigurationError: nothing fits.
        """
        budget = budget or sys.maxsize
        sizes = [row_tokens] if row_tokens else self._row_sizes()
        fitting = [plan for size in sizes if (plan := self._first_below(budget, self._plans(size)))]
        if fitting:
            return min(fitting, key=self.cost)
        least = min((plan for size in sizes for plan in self._plans(size)), key=lambda plan: plan.total_bytes)
        raise ConfigurationError(
            f"the training does not fit into {gigabytes(budget)}, since at the least {least}; give a lower max_length"
            + (" or row_tokens" if row_tokens else "")
            + (f", recompute auto in place of {self._recompute}" if self._recompute in ("none", "selective") else "")
            + ", a higher gpu_memory, or a device with more memory"
        )

    def smaller(self, plan: TrainingPlan) -> TrainingPlan | None:
        """A plan with the same rows that takes noticeably less memory; None where no more may be computed again."""
        others = list(self._plans(plan.row_tokens))
        least = min(others, key=lambda other: other.total_bytes)
        noticeably = self._first_below(int(0.95 * plan.total_bytes), iter(others))
        return noticeably or (least if least.total_bytes < plan.total_bytes else None)

    @staticmethod
    def _first_below(budget: int, plans: Iterator[TrainingPlan]) -> TrainingPlan | None:
        return next((plan for plan in plans if plan.total_bytes <= budget), None)

    def _plans(self, row_tokens: int) -> Iterator[TrainingPlan]:
        """With ever more computed again; just one where that was decided by hand."""
        num_rows = sum(len(plan_rows(group, row_tokens)) for group in self._groups) / len(self._groups)
        for kinds in self._kinds():
            needs, extra_share = self._needs(row_tokens, kinds)
            yield TrainingPlan(
                row_tokens=row_tokens, num_rows=num_rows, needs=needs, extra_share=extra_share, **kinds._asdict()
            )  # fmt: skip

    def _kinds(self) -> Iterator[Kinds]:
        shapes = (self._decoder, self._tower)
        levels: tuple[Recompute, ...] = (self._recompute,) if self._recompute != "auto" else ("none", "selective", "full")
        if not self._is_fused or self._recompute != "auto":
            for level in levels:
                yield Kinds(level, *((_BY_HAND[level],) * shape.num_layers for shape in shapes))
            return
        for number in range(len(self._drops) + 1):
            dropped = set(self._drops[:number])
            decoder, tower = (
                tuple(
                    Kept(**{kind: _Drop(is_tower, kind, layer) not in dropped for kind in _KINDS})
                    for layer in range(shape.num_layers)
                )
                for is_tower, shape in zip((False, True), shapes, strict=True)
            )
            yield Kinds("none", decoder, tower)

    @cached_property
    def _drops(self) -> list[_Drop]:
        """What may be computed again, that which costs least for the memory that it saves first."""
        costs: list[tuple[float, _Drop]] = []
        for is_tower, shape in ((False, self._decoder), (True, self._tower)):
            for kind in _KINDS if self._is_tower_trained or not is_tower else ():
                without = Kept(**{kind: False})
                saved = shape.kept_bytes(Kept(), self._itemsize) - shape.kept_bytes(without, self._itemsize)
                cost = shape.recomputed_operations(without) / saved
                costs += [(cost, _Drop(is_tower, kind, layer)) for layer in range(shape.num_layers)]
        return [drop for _, drop in sorted(costs)]

    def _needs(self, row_tokens: int, kinds: Kinds) -> tuple[dict[str, int], float]:
        """Bytes by what takes them, and the share of work that is done twice."""
        num_tokens = max(self._longest, min(row_tokens, self._largest_step))
        num_images = num_tokens // self._config.num_image_tokens
        patches = num_images * (self._config.num_image_tokens + 1)
        stacks = [(self._decoder, kinds.kept, num_tokens)]
        if self._is_tower_trained:
            stacks.append((self._tower, kinds.tower_kept, patches))
        kept_bytes, working, extra, operations = 0, 0, 0, 0
        for shape, layers, tokens in stacks:
            for kept, count in Counter(layers).items():
                of_weights = (0, 0)
                if self._is_fused:
                    own, beside = shape.kept_bytes(kept, self._itemsize), shape.working_bytes(kept, self._itemsize)
                else:
                    own, beside = shape.plain_bytes(kinds.recompute, self._itemsize)
                    of_weights = shape.plain_weight_bytes(kinds.recompute, self._itemsize)
                kept_bytes += (own * tokens + of_weights[0]) * count
                working = max(working, beside * tokens + of_weights[1])
                extra += shape.recomputed_operations(kept) * tokens * count
            operations += shape.operations * tokens * shape.num_layers
        working = max(working, self._head_bytes(num_tokens - num_images * self._config.num_image_tokens))
        needs = self._fixed | {
            "layers": int(_ALLOCATOR_FACTOR * kept_bytes),
            "the largest step": int(_ALLOCATOR_FACTOR * working) + _LIBRARY_BYTES,
            "CUDA": CONTEXT_BYTES,
        }
        return needs, extra / operations

    def _head_bytes(self, num_text_tokens: int) -> int:
        """Logits, with their gradients; the fast path has a part of them at a time."""
        num_tokens = CHUNK_TOKENS if self._is_fused else num_text_tokens
        return num_tokens * self._config.text_config.vocab_size * (self._itemsize + 3 * 4)

    def _row_sizes(self) -> list[int]:
        """Tokens of rows that are worth a try: of the fullest, with the samples of a step evenly in one row, two, and so on."""
        most = max(len(group) for group in self._groups)
        sizes = {
            max(sum(group[number] for number in row) for group in self._groups for row in spread_evenly(group, num_rows))
            for num_rows in range(1, most + 1)
        }
        return sorted({max(size, self._longest) for size in sizes}, reverse=True)

    def cost(self, plan: TrainingPlan) -> float:
        """Seconds of a step: of each of its rows what the device takes, or its launches if they take longer."""
        num_tokens = sum(map(sum, self._groups)) / len(self._groups) / plan.num_rows
        num_layers = self._decoder.num_layers + self._tower.num_layers * self._is_tower_trained
        operations = self._decoder.operations * self._decoder.num_layers  # those of a trained tower are in proportion
        work = (num_tokens * (1 + plan.extra_share) + _ROW_OVERHEAD_TOKENS) * operations / (_SHARE_OF_PEAK * self._peak)
        return plan.num_rows * max(work, num_layers * _LAUNCH_S)
