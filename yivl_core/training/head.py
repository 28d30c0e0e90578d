"""The language-model head's loss on learned tokens, a part of them at a time: all logits of a row would take gigabytes.

Shapes: L learned tokens, D width of the decoder, V vocabulary.
"""

from typing import Any

import torch
from torch.autograd import Function

# Logits of so many tokens at a time, in float32 and once more as gradients: 0.4 GB of Yi-VL's.
CHUNK_TOKENS = 512


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross entropy of the next tokens, and how many of them the model would have chosen.

    Args:
        hidden: `[L, D]`, after the decoder's last norm.
        weight: of the head, frozen, `[V, D]`.
        targets: int64 `[L]`.

    Returns:
        A float32 scalar with gradient, and an int64 scalar.
    """
    total, num_correct = _HeadLoss.apply(hidden, weight, targets, torch.is_grad_enabled())
    return total, num_correct


class _HeadLoss(Function):
    """The gradient is made along with the loss, since both want the same logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, is_recorded: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        num_correct = torch.zeros((), dtype=torch.int64, device=hidden.device)
        grads = []
        for part, wanted in zip(hidden.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True):
            logits = (part @ weight.t()).float()  # [chunk, V]
            num_correct += (logits.argmax(dim=-1) == wanted).sum()
            normaliser = logits.logsumexp(dim=-1, keepdim=True)
            total += (normaliser - logits.gather(1, wanted.unsqueeze(1))).sum()
            if is_recorded:
                slope = logits.sub_(normaliser).exp_()
                slope.scatter_add_(1, wanted.unsqueeze(1), slope.new_full((len(wanted), 1), -1.0))
                grads.append(slope.to(weight.dtype) @ weight)
        if is_recorded:
            ctx.save_for_backward(torch.cat(grads))
        ctx.mark_non_differentiable(num_correct)
        return total, num_correct

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slope,) = ctx.saved_tensors
        return (slope * grad).to(slope.dtype), None, None, None
