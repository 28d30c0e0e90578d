"""The batched optimizer against torch's own."""

import torch

from yivl_core.training.muon import BatchedMuon

SHAPES = [(16, 16), (16, 16), (48, 16), (16, 48), (16, 16), (48, 16)]


def make(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def test_it_goes_where_torchs_own_goes() -> None:
    ours, theirs = make(0), make(0)
    groups = [{"params": slice(0, 3), "weight_decay": 0.1}, {"params": slice(3, 6), "weight_decay": 0.0}]
    batched = BatchedMuon([{**group, "params": ours[group["params"]]} for group in groups], lr=0.02)
    plain = torch.optim.Muon(
        [{**group, "params": theirs[group["params"]]} for group in groups], lr=0.02, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(8):
        gradients = make(step + 1)
        for one, other, gradient in zip(ours, theirs, gradients, strict=True):
            one.grad, other.grad = gradient.detach().clone(), gradient.detach().clone()
        batched.step()
        plain.step()
    for one, other, start in zip(ours, theirs, make(0), strict=True):
        way = (other - start).norm()
        assert (one - other).norm() < 0.01 * way
        assert way > 0.1
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(batched.state[one]["momentum_buffer"], plain.state[other]["momentum_buffer"])


def test_a_matrix_without_gradient_stays() -> None:
    parameters = make(0)
    for parameter in parameters[1:]:
        parameter.grad = torch.ones_like(parameter)
    BatchedMuon([{"params": parameters, "weight_decay": 0.1}], lr=0.1).step()
    assert torch.equal(parameters[0], make(0)[0])
    assert not torch.equal(parameters[1], make(0)[1])
