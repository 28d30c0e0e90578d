"""The head's loss, a part at a time, against torch's cross entropy on all logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from yivl_core.training import head
from yivl_core.training.head import head_loss


@pytest.mark.parametrize("chunk_tokens", [1, 4, 100])
def test_parts_give_the_loss_of_the_whole(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_TOKENS", chunk_tokens)
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 16, requires_grad=True), torch.randn(40, 16), torch.randint(40, (9,))
    logits = hidden @ weight.t()
    expected = cross_entropy(logits, targets, reduction="sum")
    (expected_grad,) = torch.autograd.grad(0.5 * expected, hidden)
    total, num_correct = head_loss(hidden, weight, targets)
    (grad,) = torch.autograd.grad(0.5 * total, hidden)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(grad, expected_grad)
    assert num_correct == (logits.argmax(dim=-1) == targets).sum()
    with torch.no_grad():
        assert head_loss(hidden, weight, targets)[0] == total
