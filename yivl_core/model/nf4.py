"""Frozen weights of the decoder's layers in 4 bits (NF4), through bitsandbytes, for an adapter to be trained beside them.

Dettmers et al., QLoRA (arXiv 2305.14314), section 3: each 64 values share a scale, which is itself held in 8 bits, and each 256
of these one in float32. Products are made in the dtype of the run, of weights that are unpacked on their way.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch

from yivl_core.errors import ConfigurationError
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import set_parameter

_BLOCK, _BLOCK_OF_SCALES = 64, 256
NF4_BYTES = 1 / 2 + 1 / _BLOCK + 4 / (_BLOCK * _BLOCK_OF_SCALES)  # of one weight
_HELD = re.compile(r"model\.language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")


def is_held_in_nf4(name: str) -> bool:
    """Whether a parameter of the model is one of those that are held in 4 bits."""
    return _HELD.fullmatch(name) is not None


def put_in_nf4(model: YiVLForConditionalGeneration, name: str, value: torch.Tensor) -> None:
    """Puts a parameter in its place as `set_parameter` does, those of the decoder's linear layers in 4 bits.

    Args:
        model: on which PEFT puts its LoRA for such layers from then on.
        name: of the parameter.
        value: in the dtype of the arithmetic, on the device where it stays.
    """
    if not is_held_in_nf4(name):
        set_parameter(model, name, value)
        return
    from bitsandbytes.nn import Linear4bit, Params4bit  # of the extra `quant`

    path = name.removesuffix(".weight")
    plain = model.get_submodule(path)
    assert isinstance(plain, torch.nn.Linear)
    layer = Linear4bit(
        plain.in_features, plain.out_features, bias=plain.bias is not None, compute_dtype=value.dtype, quant_type="nf4",
        device="meta",
    )  # fmt: skip
    layer.weight = Params4bit(value, quant_type="nf4", blocksize=_BLOCK, module=layer).to(value.device)
    # Else an evaluation on a CPU that has these products packs the weight in a way that has no backward pass.
    layer.support_avx512bf16_for_cpu = False
    model.set_submodule(path, layer)
    model.is_loaded_in_4bit = True


def is_in_nf4(layer: torch.nn.Module) -> bool:
    """Whether a layer's weight is held in 4 bits."""
    return hasattr(layer.weight, "quant_state")


def unpack_nf4(layers: Sequence[torch.nn.Linear]) -> torch.Tensor:
    """The weights `[N, K]` of layers that are held in 4 bits and have K inputs, one below the other, in the run's dtype."""
    from bitsandbytes.functional import dequantize_4bit

    weights: list[Any] = [layer.weight for layer in layers]
    states = [weight.quant_state for weight in weights]
    sizes = [layer.out_features for layer in layers]
    whole = torch.empty(sum(sizes), layers[0].in_features, dtype=states[0].dtype, device=weights[0].device)
    for weight, state, part in zip(weights, states, whole.split(sizes), strict=True):
        if part.is_cuda:
            dequantize_4bit(weight.data, state, out=part)
        else:  # bitsandbytes gives tensors of its own there
            part.copy_(dequantize_4bit(weight.data, state))
    return whole


def require_nf4(device: torch.device, dtype: torch.dtype) -> None:
    """Nothing, if weights can be held in 4 bits on a device and be trained beside.

    Raises:
        ConfigurationError: bitsandbytes is not installed, or cannot serve the device.
    """
    try:
        from bitsandbytes.nn import Linear4bit

        layer = Linear4bit(_BLOCK, _BLOCK, bias=False, compute_dtype=dtype, quant_type="nf4").to(device)
        inputs = torch.ones(1, 2, _BLOCK, dtype=dtype, device=device, requires_grad=True)
        layer(inputs).sum().backward()
    except ImportError as error:
        raise ConfigurationError(
            "quantization 'nf4' needs the package bitsandbytes, which is not installed; run pip install 'yivl[quant]', or leave "
            "quantization out"
        ) from error
    except (OSError, RuntimeError, AttributeError) as error:  # as its libraries fail to load, or know no such device
        raise ConfigurationError(
            f"quantization 'nf4': bitsandbytes cannot work on {device} in {str(dtype).removeprefix('torch.')} ({error}); install "
            "a version of it for this device, give another device, or leave quantization out"
        ) from error
