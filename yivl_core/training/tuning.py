"""What a training run trains, how that is stored while it runs, and what comes out: an adapter, or a whole checkpoint.

What is trained is kept in float32, since bfloat16 loses updates smaller than 1/256 of a weight; the arithmetic runs in the run's
dtype. Frozen weights are held in that dtype alone, or in 4 bits.
"""

import re
import shutil
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import torch
from peft import PeftModel, set_peft_model_state_dict

from yivl_core.errors import ConfigurationError
from yivl_core.model.adapters import ADAPTER_FILE, add_adapter, find_targets, save_adapter
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.nf4 import put_in_nf4
from yivl_core.model.tensors import LazyTensor, load_tensors, open_tensors, save_tensors
from yivl_core.model.weights import load_model, read_tensors, set_parameter, write_checkpoint
from yivl_core.training.configuration import TrainingConfig

TUNED_FILE = "model.safetensors"
_PARTS = {"vision": ".vision_tower.", "projector": ".mm_projector."}


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: `vision`, `projector` or `llm`; LoRA's belong where they are put on."""
    return next((part for part, module in _PARTS.items() if module in name), "llm")


class Tuning(Protocol):
    """A model that can be trained.

    Attributes:
        model: what computes, an adapter and all.
    """

    model: YiVLForConditionalGeneration

    @property
    def file_names(self) -> tuple[str, ...]:
        """The files that `save` writes."""

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""

    def save(self, folder: Path) -> None:
        """Write what is trained, in float32, into an existing folder."""

    def restore(self, folder: Path) -> None:
        """Take what `save` has written."""

    def publish(self, saved: Path, folder: Path) -> None:
        """Write the result into an existing folder, from one that `save` has written."""


class Outline(NamedTuple):
    """What would be trained, by the shapes alone.

    Attributes:
        shapes: of what is trained, by name.
        model: all of it, without any value.
    """

    shapes: dict[str, tuple[int, ...]]
    model: YiVLForConditionalGeneration


def outline_tuning(base: CheckpointFiles, config: TrainingConfig) -> Outline:
    """What would be trained, before any weight is read.

    Raises:
        ConfigurationError: the targets match nothing, or a learning rate is given for what is not trained.
    """
    model_config = read_config(base)
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(model_config)
        if config.tuner == "full":
            shapes = {
                name: tuple(value.shape) for name, value in model.named_parameters() if _is_tuned(name, config, model_config)
            }
        else:
            adapted = _add_adapter(model, config)
            shapes = {name: tuple(value.shape) for name, value in adapted.named_parameters() if value.requires_grad}
    parts = {part_of(name) for name in shapes}
    for part in _PARTS:
        if getattr(config, f"{part}_learning_rate") is not None and part not in parts:
            raise ConfigurationError(
                f"{part}_learning_rate is given, but target_modules {config.target_modules!r} matches nothing there; "
                "leave it out, or give other targets"
            )
    own_rates = {part for part in _PARTS if getattr(config, f"{part}_learning_rate") is not None}
    if config.learning_rate is not None and parts <= own_rates:
        raise ConfigurationError(
            f"learning_rate is given, but all that is trained has a rate of its own ({', '.join(sorted(parts))}); leave it out"
        )
    return Outline(shapes, model)


def prepare_tuning(base: CheckpointFiles, config: TrainingConfig, dtype: torch.dtype, device: torch.device) -> Tuning:
    """The base's model, loaded and ready to be trained."""
    tuning: Tuning = (FullTuning if config.tuner == "full" else LoraTuning)(base, config, dtype, device)
    return tuning


class LoraTuning:
    """A LoRA adapter on a frozen model; see `Tuning`."""

    file_names = ("adapter_config.json", ADAPTER_FILE)

    def __init__(self, base: CheckpointFiles, config: TrainingConfig, dtype: torch.dtype, device: torch.device) -> None:
        put = put_in_nf4 if config.quantization == "nf4" else set_parameter
        model = load_model(base, dtype=dtype, device=device, put=put)
        torch.manual_seed(config.seed)
        self._adapted = _add_adapter(model, config)
        self.model = cast(YiVLForConditionalGeneration, self._adapted.get_base_model())

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """A and B of each target, and what DoRA learns beside."""
        return {name: parameter for name, parameter in self._adapted.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        save_adapter(self._adapted, folder)

    def restore(self, folder: Path) -> None:
        """Read it back."""
        set_peft_model_state_dict(self._adapted, load_tensors(folder / ADAPTER_FILE))

    def publish(self, saved: Path, folder: Path) -> None:
        """The adapter as it was saved."""
        for name in self.file_names:
            shutil.copyfile(saved / name, folder / name)


class FullTuning:
    """The model's own weights, all of them or those of some parts; see `Tuning`."""

    file_names = (TUNED_FILE,)

    def __init__(self, base: CheckpointFiles, config: TrainingConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._base, self._max_shard_bytes = base, config.max_shard_bytes
        model_config = read_config(base)

        def is_tuned(name: str) -> bool:
            return _is_tuned(name, config, model_config)

        self.model = load_model(base, dtype=lambda name: torch.float32 if is_tuned(name) else dtype, device=device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(is_tuned(name))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The weights of the parts that are not frozen."""
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def save(self, folder: Path) -> None:
        """Write them under our names."""
        save_tensors(folder / TUNED_FILE, {name: parameter.detach() for name, parameter in self.parameters().items()})

    @torch.no_grad()
    def restore(self, folder: Path) -> None:
        """Read them back."""
        parameters = self.parameters()
        for name, tensor in open_tensors((folder / TUNED_FILE,)).items():
            parameters[name].copy_(tensor.load())

    def publish(self, saved: Path, folder: Path) -> None:
        """A checkpoint in the base's layout and dtypes: what was tuned is rounded once, the rest is the base's, bit for bit."""
        tensors = read_tensors(self._base)
        for name, tuned in open_tensors((saved / TUNED_FILE,)).items():
            tensors[name] = _rounded(tuned, tensors[name].dtype)
        write_checkpoint(folder, self._base, tensors, layout=self._base.layout, max_shard_bytes=self._max_shard_bytes)


def _rounded(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(tensor.shape, dtype, lambda: tensor.load().to(dtype))


def _add_adapter(model: YiVLForConditionalGeneration, config: TrainingConfig) -> PeftModel:
    targets = find_targets(model, config.target_modules)
    return add_adapter(
        model, targets=targets, rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout,
        use_rslora=config.use_rslora, use_dora=config.use_dora,
    )  # fmt: skip


def _is_tuned(name: str, config: TrainingConfig, model_config: YiVLConfig) -> bool:
    """Layers of the tower behind the selected hidden state are never run: they would get no gradient, and are left alone."""
    part = part_of(name)
    if part != "vision":
        return not (config.freeze_llm if part == "llm" else config.freeze_projector)
    layer = re.search(r"\.layers\.(\d+)\.", name)
    is_run = int(layer[1]) < model_config.num_vision_layers if layer else ".post_layernorm." not in name
    return is_run and not config.freeze_vision_tower
