"""torch's Muon, but matrices of one shape are orthogonalised together: many small layers would wait for launches otherwise."""

from typing import Any

import torch


class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with `match_rms_adamw` and Nesterov's momentum, to the rounding of bfloat16 the same.

    Source: Jordan et al., https://kellerjordan.github.io/posts/muon; the step's size: Liu et al., arXiv 2502.16982, section 2.2.

    Args:
        params: parameter groups of matrices.
        lr: learning rate.
    """

    def __init__(self, params: list[dict[str, Any]], lr: float) -> None:
        super().__init__(params, lr=lr, nesterov=True, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Change each matrix by the orthogonal matrix that is nearest to its momentum."""
        assert closure is None
        for group in self.param_groups:
            for parameters in _by_shape(group["params"]):
                self._step(parameters, group)

    def _step(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self._momentum(parameter) for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        looking_ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        updates = _orthogonalised(torch.stack(looking_ahead), group)
        rows, columns = parameters[0].shape
        rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(updates.to(parameters[0].dtype).unbind()), alpha=-rate)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum_buffer"]
        return momentum


def _by_shape(parameters: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    shapes: dict[tuple[int, ...], list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault(tuple(parameter.shape), []).append(parameter)
    return list(shapes.values())


def _orthogonalised(matrices: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Newton and Schulz' iteration, as torch's own: `[N, rows, columns]`, in bfloat16, each by itself."""
    a, b, c = group["ns_coefficients"]
    result = matrices.bfloat16()
    is_high = result.shape[1] > result.shape[2]
    if is_high:
        result = result.mT
    result = result / result.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = result @ result.mT
        update = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.baddbmm(result, update, result, beta=a)
    return result.mT if is_high else result
