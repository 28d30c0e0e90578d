"""LoRA through PEFT: which modules it reaches, how an adapter is saved, read and merged.

Hu et al., LoRA (arXiv 2106.09685), section 4.1: a frozen matrix W becomes V = W + (alpha / rank) B A. Liu et al., DoRA (arXiv
2402.09353), equation 5: it becomes m V / |V|, where m and the norm belong to each output.
"""

import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from yivl_core.errors import CheckpointError, ConfigurationError
from yivl_core.model.files import CheckpointFiles, read_about, read_adapter_config
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.nf4 import is_in_nf4
from yivl_core.model.tensors import LazyTensor, open_tensors, save_tensors

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_NAME = "default"  # that PEFT gives to the only one
_HALF_NAME = re.compile(r"base_model\.model\..+\.lora_[AB]\.weight")
_PART_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<kind>[AB]\.weight|magnitude_vector)")
TARGET_NAMES = ("default", "all")
_ATTENTION_OF_DECODER = r"model\.language_model\.layers\.\d+\.self_attn"
# Settings of PEFT by which an adapter is more, or something else, than products scale B A beside layers.
_MORE_THAN_PRODUCTS = (
    "use_dora", "use_bdlora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
)  # fmt: skip
_STARTS_OF_VARIANTS = ("mica",)  # of init_lora_weights, the only ones that are more than a start
# And those by which it is neither a LoRA nor a DoRA with one scale and rank.
_UNMERGEABLE = (
    *(key for key in _MORE_THAN_PRODUCTS if key != "use_dora"),
    "use_qalora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "layer_replication",
)  # fmt: skip
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # the other ways to start a LoRA change the base too


def find_targets(model: YiVLForConditionalGeneration, target_modules: str) -> str:
    """The linear layers that LoRA is put on, as a regular expression that matches their whole names and no others.

    Layers of the vision tower behind the selected hidden state are left out: they are never run, and would get no gradient.

    Args:
        model: the model.
        target_modules: `default` (q/k/v of the language model), `all` (every linear layer of language model, projector and vision
            tower), or a regular expression that has to match a module's whole name, such as `model.mm_projector.0`.

    Raises:
        ConfigurationError: not a regular expression, or it matches no linear layer.
    """
    try:
        pattern = re.compile(_named_pattern(model, target_modules))
    except re.error as error:
        raise ConfigurationError(f"target_modules {target_modules!r} is not a regular expression: {error}") from error
    matched = {name for name, _ in model.named_modules() if pattern.fullmatch(name)}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and _is_run(model, name)]
    targets = [name for name in linears if name in matched]
    if not targets:
        raise ConfigurationError(
            f"target_modules {target_modules!r} matches no linear layer; it has to match a whole name such as {linears[0]} or "
            f"{_example(linears, 'language_model')} (or give: {', '.join(TARGET_NAMES)})"
        )
    return pattern.pattern if matched == set(targets) else "|".join(re.escape(name) for name in targets)


def add_adapter(
    model: YiVLForConditionalGeneration,
    *,
    targets: str,
    rank: int,
    alpha: int,
    dropout: float,
    use_rslora: bool = False,
    use_dora: bool = False,
) -> PeftModel:
    """The model with a new LoRA adapter in float32; only the adapter can be trained. B starts at zero, so nothing changes yet.

    Args:
        model: the base, frozen by this call.
        targets: regular expression of names of linear layers, as `find_targets` gives it.
        rank: of A and B.
        alpha: scale of the product, divided by the rank.
        dropout: share of the adapter's inputs that is dropped in training.
        use_rslora: alpha is divided by the root of the rank in its place (Kalajdzievski, arXiv 2312.03732).
        use_dora: the norm of each output's weights is trained too, apart from their direction (Liu et al., arXiv 2402.09353).
    """
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, use_rslora=use_rslora, use_dora=use_dora
    )
    with _without_deprecations():
        return get_peft_model(model, config)


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors, in PEFT's own format, into an existing folder."""
    save_tensors(folder / ADAPTER_FILE, get_peft_model_state_dict(model, save_embedding_layers=False))
    config = model.peft_config[ADAPTER_NAME]
    was_training, config.inference_mode = config.inference_mode, True
    config.save_pretrained(str(folder))
    config.inference_mode = was_training


def check_base(adapter: Path, base: CheckpointFiles, base_digest: str) -> None:
    """Nothing, if the adapter was trained on this base, or does not say on which.

    Args:
        adapter: the adapter folder.
        base: the checkpoint that it is to be put on.
        base_digest: its content digest.

    Raises:
        CheckpointError: it was trained on another.
    """
    expected = read_about(adapter).get("base_digest")
    if expected not in (None, base_digest):
        raise CheckpointError(
            f"{base.folder}: is not the base that {adapter} was trained on (content digest {base_digest[:12]}, trained on "
            f"{str(expected)[:12]}); give that base as --model"
        )


def is_plain_adapter(folder: Path) -> bool:
    """Whether all that an adapter will do to a model are plain LoRA products beside linear layers, as far as its files say.

    Args:
        folder: the adapter folder, of which no tensor's values are read.

    Raises:
        CheckpointError: no adapter folder.
    """
    config, tensors = read_adapter_config(folder), _read_adapter_tensors(folder)
    if config["peft_type"] != "LORA" or config.get("init_lora_weights") in _STARTS_OF_VARIANTS:
        return False
    if any(config.get(key) for key in _MORE_THAN_PRODUCTS):
        return False
    # Halves beside an embedding have names of their own, and those beside a convolution more dimensions.
    halves = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    return all(_HALF_NAME.fullmatch(name) and len(tensor.shape) == 2 for name, tensor in halves.items())


def is_plain_lora(model: nn.Module) -> bool:
    """Whether all that an adapter does to a model are plain LoRA products beside linear layers."""
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    return all(_is_plain(module) for module in tuned)


def plain_layer(layer: nn.Module) -> nn.Linear:
    """The linear layer below a plain LoRA, or the layer itself."""
    base = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
    assert isinstance(base, nn.Linear), f"{type(layer).__name__} is no plain LoRA"
    return base


def num_adapter_values(folder: str | Path) -> int:
    """How many parameters an adapter has, by its file alone.

    Raises:
        CheckpointError: the folder holds no adapter, or a broken one.
    """
    return sum(math.prod(tensor.shape) for tensor in _read_adapter_tensors(Path(folder)).values())


def load_adapter(model: YiVLForConditionalGeneration, folder: Path) -> PeftModel:
    """The model with a saved adapter on it, in evaluation mode.

    Raises:
        CheckpointError: no adapter folder, or its tensors do not fit the model; they are listed by name.
    """
    given = _read_adapter_tensors(folder)
    try:
        with _without_deprecations():
            adapted = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, re.error) as error:
        raise CheckpointError(
            f"{folder}: this adapter does not fit the model ({error}); is it the adapter's own base?"
        ) from error
    if adapted.peft_config[ADAPTER_NAME].is_prompt_learning:
        raise CheckpointError(f"{folder}: this adapter is read before the prompt; give one that adapts layers, such as LoRA")
    expected = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lines = [f"missing: {name}" for name in expected if name not in given] + [
        f"unexpected: {name}" for name in given if name not in expected
    ]
    if lines:
        raise CheckpointError(f"{folder}: {len(lines)} tensor(s) of the adapter do not fit the model\n  " + "\n  ".join(lines))
    return adapted.eval()


def merge_tensors(base: Mapping[str, LazyTensor], folder: Path) -> tuple[dict[str, LazyTensor], int]:
    """The base's tensors with a LoRA or DoRA merged in float32 and rounded once, to each tensor's own dtype.

    Args:
        base: all parameters under our names.
        folder: the adapter folder.

    Returns:
        All parameters, the changed ones computed when they are read; and how many are changed.

    Raises:
        CheckpointError: the adapter is of a kind that cannot be merged so, or does not fit the base.
    """
    config = read_adapter_config(folder)
    _check_mergeable(folder, config)
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    kinds = {"A.weight", "B.weight"} | ({"magnitude_vector"} if config.get("use_dora") else set())
    merged = dict(base)
    layers: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in _read_adapter_tensors(folder).items():
        part = _PART_NAME.fullmatch(name)
        if part is None or part["kind"] not in kinds:
            raise CheckpointError(f"{folder}: {name} is no part of a plain LoRA and cannot be merged; train with plain LoRA")
        layers.setdefault(part["layer"], {})[part["kind"]] = tensor
    for layer, parts in sorted(layers.items()):
        weight = base.get(f"{layer}.weight")
        if weight is None or parts.keys() != kinds or not _fits(weight, parts):
            raise CheckpointError(
                f"{folder}: the adapter's tensors for {layer} do not fit the base; is it the adapter's own base?"
            )
        merged[f"{layer}.weight"] = _merged_weight(weight, parts, scale)
    return merged, len(layers)


def _is_plain(module: nn.Module) -> bool:
    layer: Any = module
    if not isinstance(layer, LoraLayer) or not isinstance(layer.get_base_layer(), nn.Linear):
        return False
    if not (isinstance(layer, LoraLinear) or is_in_nf4(layer.get_base_layer())):
        return False
    return not (layer.use_dora.get(ADAPTER_NAME) or layer.lora_bias.get(ADAPTER_NAME) or layer.lora_variant)


def _check_mergeable(folder: Path, config: Mapping[str, Any]) -> None:
    unmergeable = [f"{key} {config[key]!r}" for key in _UNMERGEABLE if config.get(key)]
    for key, plain in (("peft_type", ("LORA",)), ("bias", ("none", None)), ("init_lora_weights", (*_PLAIN_STARTS, None))):
        if config.get(key) not in plain:
            unmergeable.append(f"{key} {config.get(key)!r}")
    if unmergeable:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: {', '.join(unmergeable)} cannot be merged; train with plain LoRA"
        )


def _fits(weight: LazyTensor, parts: Mapping[str, LazyTensor]) -> bool:
    a, b, magnitude = parts["A.weight"], parts["B.weight"], parts.get("magnitude_vector")
    is_pair = a.shape[1:] == weight.shape[1:] and b.shape == (weight.shape[0], a.shape[0])
    return is_pair and (magnitude is None or magnitude.shape == weight.shape[:1])


def _merged_weight(weight: LazyTensor, parts: Mapping[str, LazyTensor], scale: float) -> LazyTensor:
    def load() -> torch.Tensor:
        loaded = {kind: part.load().float() for kind, part in parts.items()}
        merged = weight.load().float() + scale * (loaded["B.weight"] @ loaded["A.weight"])
        if (magnitude := loaded.get("magnitude_vector")) is not None:
            merged *= (magnitude / merged.norm(dim=1)).unsqueeze(1)
        return merged.to(weight.dtype)

    return LazyTensor(weight.shape, weight.dtype, load)


def _read_adapter_tensors(folder: Path) -> dict[str, LazyTensor]:
    read_adapter_config(folder)
    path = folder / ADAPTER_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing; it holds the adapter's weights")
    return open_tensors((path,))


def _named_pattern(model: YiVLForConditionalGeneration, target_modules: str) -> str:
    if target_modules == "default":
        return _ATTENTION_OF_DECODER + r"\.[qkv]_proj"
    if target_modules == "all":
        tower_layers = "|".join(str(number) for number in range(model.config.num_vision_layers))
        return (
            rf"{_ATTENTION_OF_DECODER}\.[qkvo]_proj|model\.language_model\.layers\.\d+\.mlp\.(gate|up|down)_proj|"
            r"model\.mm_projector\.[03]|"
            rf"model\.vision_tower\.encoder\.layers\.({tower_layers})\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])"
        )
    return target_modules


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5.23 for an attribute under its old name; nothing that a user could mend."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield


def _is_run(model: YiVLForConditionalGeneration, name: str) -> bool:
    layer = re.match(r"model\.vision_tower\.encoder\.layers\.(\d+)\.", name)
    return layer is None or int(layer[1]) < model.config.num_vision_layers


def _example(names: list[str], part: str) -> str:
    return next((name for name in names if part in name), names[-1])
