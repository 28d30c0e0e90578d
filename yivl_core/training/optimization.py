"""The optimizers of a run: which parameter goes to which, at which rate, and what of them is stored.

AdamW: Loshchilov and Hutter, arXiv 1711.05101. Muon: Jordan et al., https://kellerjordan.github.io/posts/muon, for the matrices
of layers alone; its step is scaled to the size of AdamW's (Liu et al., arXiv 2502.16982, section 2.2), so that rates compare.
LoRA+: Hayou et al., arXiv 2402.12354.
"""

from collections.abc import Mapping

import torch

from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.muon import BatchedMuon
from yivl_core.training.tuning import part_of

# Of these every column or row is an own vector, or they are no matrices of a layer: Muon's authors leave them to AdamW.
_VECTORS = ("embed_tokens", "lm_head", "class_embedding", "patch_embedding", "position_embedding")


class Optimizers:
    """One or two of torch's optimizers as one.

    Args:
        parameters: what is trained, by name.
        settings: rates, decay, and which optimizer.

    Attributes:
        highest_rate: the highest learning rate of what has none of its own; of the others, where all have one. For LoRA+, A's.
    """

    def __init__(self, parameters: Mapping[str, torch.nn.Parameter], settings: TrainingSettings) -> None:
        self._names: dict[torch.Tensor, str] = {parameter: name for name, parameter in parameters.items()}
        muon = {name: value for name, value in parameters.items() if _has_muon(name, value.shape, settings)}
        adamw = {name: value for name, value in parameters.items() if name not in muon}
        self._all: list[torch.optim.Optimizer] = []
        if adamw:
            betas = (settings.adam_beta1, settings.adam_beta2)
            # On a GPU torch's default asks each parameter for its number of steps, and launches a dozen kernels more.
            is_fused = all(parameter.is_cuda for parameter in adamw.values()) or None
            self._all.append(torch.optim.AdamW(_groups(adamw, settings), lr=0.0, betas=betas, fused=is_fused))
        if muon:
            self._all.append(BatchedMuon(_groups(muon, settings), lr=0.0))
        rates = {_rate_of_part(name, settings) for name in parameters}
        self.highest_rate = settings.highest_learning_rate if settings.highest_learning_rate in rates else max(rates)

    def set_rate(self, share: float) -> None:
        """Let every parameter be learned at this share of its highest rate."""
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = share * group["highest_rate"]

    def step(self, scaler: torch.amp.GradScaler) -> None:
        """Change the parameters by their gradients, and drop the gradients; a step whose gradients overflow is left out."""
        stepping = self._with_gradients()
        for optimizer in stepping:
            scaler.step(optimizer)
        if stepping:
            scaler.update()
        for optimizer in stepping:
            optimizer.zero_grad(set_to_none=True)

    def unscale(self, scaler: torch.amp.GradScaler) -> None:
        """Take the scale of the loss out of the gradients."""
        for optimizer in self._with_gradients():
            scaler.unscale_(optimizer)

    def _with_gradients(self) -> list[torch.optim.Optimizer]:
        """Those with something to do: the samples of a step may all be without images, and nothing but the tower be trained."""
        return [
            optimizer
            for optimizer in self._all
            if any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
        ]

    def state(self) -> dict[str, torch.Tensor]:
        """What they remember of each parameter: `NAME:KEY`."""
        return {
            f"{self._names[parameter]}:{key}": value
            for optimizer in self._all
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take what `state` gave."""
        remembered: dict[str, dict[str, torch.Tensor]] = {}
        for place, value in state.items():
            name, _, key = place.rpartition(":")
            remembered.setdefault(name, {})[key] = value
        for optimizer in self._all:
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            names = [self._names[parameter] for parameter in parameters]
            states = {number: remembered[name] for number, name in enumerate(names) if name in remembered}
            optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def num_remembered(name: str, shape: tuple[int, ...], settings: TrainingSettings) -> int:
    """How many values are remembered of each value of a parameter."""
    return 1 if _has_muon(name, shape, settings) else 2


def _has_muon(name: str, shape: tuple[int, ...], settings: TrainingSettings) -> bool:
    return settings.optimizer == "muon" and len(shape) == 2 and not any(part in name for part in _VECTORS)


def _groups(parameters: Mapping[str, torch.nn.Parameter], settings: TrainingSettings) -> list[dict[str, object]]:
    """Parameters that share rate and decay."""
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for name, parameter in parameters.items():
        decay = settings.weight_decay if parameter.ndim > 1 else 0.0
        rate = _rate_of_part(name, settings) * (settings.loraplus_lr_ratio if _is_faster(name, parameter) else 1.0)
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": group, "highest_rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]


def _is_faster(name: str, parameter: torch.nn.Parameter) -> bool:
    """Whether LoRA+ learns a parameter at the higher rate: B, and as PEFT has it vectors, which of a LoRA are DoRA's norms."""
    return ".lora_B." in name or parameter.ndim == 1


def _rate_of_part(name: str, settings: TrainingSettings) -> float:
    rates = {"vision": settings.vision_learning_rate, "projector": settings.projector_learning_rate, "llm": None}
    return rates[part_of(name)] or settings.highest_learning_rate
