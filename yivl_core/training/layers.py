"""A transformer layer on frozen weights as the fast path trains it: forward and backward pass written out.

What autograd would keep of a layer is three times as much as its backward pass needs. Here a layer keeps

```
hidden --+- norm - qkv ------ rotate - attend - out --+-- middle --+- norm - up --- activate - down --+-- output
         |          |            |        |           |            |         |                        |
 kept    x                       x     x (+sums)                   x         x
```

and computes norms and activations again. What else is computed again, for want of memory, is a matter of `Kept`; seeds of dropout
are given, so that it comes out the same.

Shapes: S tokens, D width, H query heads, G key-value heads, E head width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch.autograd import Function

from yivl_core.training.layout import RowLayout
from yivl_core.training.operations import Activation, Norm, Operations
from yivl_core.training.projection import Projection

_QKV, _OUT, _UP, _DOWN = range(4)
SEEDS_PER_LAYER = 4
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RowLayout], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What a layer keeps for its backward pass beside its input; the rest is computed again.

    Attributes:
        attention: queries, keys, values and what they attend to.
        middle: the sum after attention.
        mlp: what the MLP's first product gives.
    """

    attention: bool = True
    middle: bool = True
    mlp: bool = True


class Heads(NamedTuple):
    """How a layer's queries, keys and values are cut, and turned by `rotation`, float32 `[2, positions, E / 2]`, if they are."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rotation: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a pass through a layer is told.

    Attributes:
        layout: of the row.
        kept: what is kept.
        seeds: of dropout, one for each projection; None: nothing is dropped.
        rows: int64, the tokens whose output alone is wanted; None: all.
    """

    layout: RowLayout
    kept: Kept = Kept()
    seeds: Sequence[int] | None = None
    rows: torch.Tensor | None = None

    @property
    def attended_rows(self) -> torch.Tensor | None:
        """Where what is wanted stands in the output of attention; None: it is all of it."""
        places = self.layout.places
        if places is None or self.rows is None:
            return self.rows if places is None else places
        return places[self.rows]


@dataclass(slots=True)
class _Attended:
    """What attention keeps; `output` is the end of a small graph that begins at `inputs`."""

    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    output: torch.Tensor  # [rows of the layout, H, E]


@dataclass(slots=True)
class _Pass:
    """A pass through a layer: what it was told, and what is kept of it, which is dropped as it is used.

    What the adapters' first halves gave is hardly any memory, and always kept.
    """

    call: Call
    parameters: Sequence[Sequence[torch.Tensor]]  # of each projection
    lows: list[torch.Tensor | None]  # of each projection
    attended: _Attended | None = None
    middle: torch.Tensor | None = None
    up: torch.Tensor | None = None

    def seed(self, number: int) -> int | None:
        """Of a projection's dropout."""
        return None if self.call.seeds is None else self.call.seeds[number]


class Layer:
    """One layer.

    Args:
        norms: before attention and before the MLP.
        projections: queries with keys and values, the output of attention, up (with the gate), down.
        heads: how attention is cut.
        attend: attention itself, differentiable, `[rows of the layout, H, E]` of that and twice `[rows of the layout, G, E]`.
        activation: of the MLP.
        operations: of the device.
    """

    def __init__(
        self,
        norms: tuple[Norm, Norm],
        projections: tuple[Projection, Projection, Projection, Projection],
        heads: Heads,
        attend: Attend,
        activation: Activation,
        operations: Operations,
    ) -> None:
        self._first_norm, self._second_norm = norms
        self._projections = projections
        self._heads, self._attend, self._activation, self._operations = heads, attend, activation, operations
        self._parameters = [parameter for projection in projections for parameter in projection.parameters]

    def __call__(self, hidden: torch.Tensor, call: Call) -> torch.Tensor:
        """Hidden states `[S, D]` after the layer; with `call.rows` of those tokens alone."""
        is_recorded = torch.is_grad_enabled() and any(each.requires_grad for each in (hidden, *self._parameters))
        output: torch.Tensor = _LayerFunction.apply(hidden, self, call, is_recorded, *self._parameters)
        return output

    def start(self, call: Call, parameters: Sequence[torch.Tensor]) -> _Pass:
        """A pass with these parameters."""
        given = iter(parameters)
        own = [tuple(islice(given, len(projection.parameters))) for projection in self._projections]
        return _Pass(call, own, [None] * len(self._projections))

    def forward(self, hidden: torch.Tensor, run: _Pass, *, is_recorded: bool) -> torch.Tensor:
        """The output; what the backward pass wants is left in `run`."""
        kept = run.call.kept
        attended = self._attended(hidden, run, is_recorded=is_recorded and kept.attention)
        middle = self._middle(hidden, attended, run)
        run.attended = attended if kept.attention else None
        del attended
        up = self._project(_UP, self._operations.norm(middle, self._second_norm), run)
        output = self._project(_DOWN, self._operations.activate(up, self._activation), run, middle)
        run.middle, run.up = middle if kept.middle else None, up if kept.mlp else None
        return output

    def backward(
        self, grad: torch.Tensor, hidden: torch.Tensor, run: _Pass, *, wants_hidden: bool
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """Gradients of the input and of the parameters."""
        attended, middle = run.attended, run.middle
        run.attended = run.middle = None
        if middle is None:
            attended = attended or self._attended(hidden, run, is_recorded=True)
            middle = self._middle(hidden, attended, run)
        grad_middle, grads_of_mlp = self._mlp_backward(grad, middle, run)
        del middle, grad
        attended = attended or self._attended(hidden, run, is_recorded=True)
        grad_context, grads_of_out = self._out_backward(grad_middle, attended, run)
        grad_qkv = self._attention_backward(grad_context, attended, run)
        del attended, grad_context
        normed = self._operations.norm(hidden, self._first_norm) if run.parameters[_QKV] else None
        grad_normed, grads_of_qkv = self._project_backward(_QKV, grad_qkv, normed, run, wants_inputs=wants_hidden)
        grads = grads_of_qkv + grads_of_out + grads_of_mlp
        if grad_normed is None:
            return None, grads
        grad_residual = _spread(grad_middle, run.call.rows, len(hidden))
        return self._operations.norm_backward(grad_normed, hidden, self._first_norm, grad_residual), grads

    def _attended(self, hidden: torch.Tensor, run: _Pass, *, is_recorded: bool) -> _Attended:
        heads, operations, layout = self._heads, self._operations, run.call.layout
        qkv = self._project(_QKV, operations.norm(hidden, self._first_norm), run)
        if heads.rotation is not None:
            qkv = operations.rotate(qkv, heads.rotation, heads.num_heads + heads.num_kv_heads, heads.head_dim, layout)
        parts = qkv.unflatten(1, (-1, heads.head_dim)).split([heads.num_heads, heads.num_kv_heads, heads.num_kv_heads], dim=1)
        with torch.set_grad_enabled(is_recorded):
            query, key, value = (part.detach().requires_grad_(is_recorded) for part in parts)
            return _Attended((query, key, value), self._attend(query, key, value, layout))

    def _middle(self, hidden: torch.Tensor, attended: _Attended, run: _Pass) -> torch.Tensor:
        """The sum after attention, `[S, D]`."""
        return self._project(_OUT, _context(attended, run.call), run, _rows(hidden, run.call.rows))

    def _mlp_backward(self, grad: torch.Tensor, middle: torch.Tensor, run: _Pass) -> tuple[torch.Tensor, list[torch.Tensor]]:
        operations = self._operations
        up, run.up = run.up, None
        if up is None:
            up = self._project(_UP, operations.norm(middle, self._second_norm), run)
        active = operations.activate(up, self._activation) if run.parameters[_DOWN] else None
        grad_active, grads_of_down = self._project_backward(_DOWN, grad, active, run)
        del active
        assert grad_active is not None
        grad_up = operations.activate_backward(up, grad_active, self._activation)
        del up, grad_active
        normed = operations.norm(middle, self._second_norm) if run.parameters[_UP] else None
        grad_normed, grads_of_up = self._project_backward(_UP, grad_up, normed, run)
        del grad_up, normed
        assert grad_normed is not None
        return operations.norm_backward(grad_normed, middle, self._second_norm, grad), grads_of_up + grads_of_down

    def _out_backward(
        self, grad_middle: torch.Tensor, attended: _Attended, run: _Pass
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The gradient of what attention gives, `[rows of the layout, H, E]`, and those of the parameters behind it."""
        context = _context(attended, run.call) if run.parameters[_OUT] else None
        grad_context, grads = self._project_backward(_OUT, grad_middle, context, run)
        assert grad_context is not None
        output = attended.output
        return _spread(grad_context, run.call.attended_rows, len(output)).view_as(output), grads

    def _attention_backward(self, grad: torch.Tensor, attended: _Attended, run: _Pass) -> torch.Tensor:
        """The gradient of queries, keys and values side by side, `[S, all heads * E]`."""
        query, key, value = torch.autograd.grad(attended.output, attended.inputs, grad)
        rotation = self._heads.rotation
        return self._operations.rotate_back(query, key, value, rotation, run.call.layout if rotation is not None else None)

    def _project(self, number: int, inputs: torch.Tensor, run: _Pass, residual: torch.Tensor | None = None) -> torch.Tensor:
        outputs, run.lows[number] = self._projections[number].forward(
            inputs, run.parameters[number], run.seed(number), residual=residual, low=run.lows[number]
        )
        return outputs

    def _project_backward(
        self, number: int, grad: torch.Tensor, inputs: torch.Tensor | None, run: _Pass, *, wants_inputs: bool = True
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        return self._projections[number].backward(
            grad, inputs, run.lows[number], run.parameters[number], run.seed(number), wants_inputs=wants_inputs
        )


class _LayerFunction(Function):
    """A layer as autograd sees it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, layer: Layer, call: Call, is_recorded: bool, *parameters: torch.Tensor
    ) -> torch.Tensor:
        run = layer.start(call, parameters)
        output = layer.forward(hidden, run, is_recorded=is_recorded)
        if is_recorded:
            ctx.save_for_backward(hidden)
            ctx.layer, ctx.run = layer, run
        return output

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        (hidden,) = ctx.saved_tensors
        run, ctx.run = ctx.run, None
        assert run is not None, "a backward pass uses up what was kept for it"
        grad_hidden, grads = ctx.layer.backward(grad.contiguous(), hidden, run, wants_hidden=ctx.needs_input_grad[0])
        return grad_hidden, None, None, None, *grads


def _context(attended: _Attended, call: Call) -> torch.Tensor:
    """What attention gives for the tokens that are wanted, `[S, H * E]`."""
    return _rows(attended.output.detach().flatten(1), call.attended_rows)


def _rows(values: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    return values if rows is None else values[rows]


def _spread(values: torch.Tensor, rows: torch.Tensor | None, num_rows: int) -> torch.Tensor:
    """The values at their rows, noughts elsewhere."""
    if rows is None:
        return values
    return values.new_zeros(num_rows, values.shape[1]).index_copy_(0, rows, values)
