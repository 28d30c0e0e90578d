"""The model of record over several devices: which part of it stands where, and what moves numbers between them.

    first GPU            further GPUs             CPU memory
    front  layers . . .  layers . . . norm  head  layers . . .

The front makes embeddings of token ids and images. What stands in CPU memory is run on the first GPU, to which it is copied for
each call and dropped again. Places are chosen, and moves are made, by accelerate (`infer_auto_device_map`, `dispatch_model`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import compute_module_sizes, get_balanced_memory
from torch import nn

from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.modeling import YiVLForConditionalGeneration

Places = Mapping[str, torch.device | None]
"""The device by name of a part of the model, None for CPU memory; together the parts hold all parameters, each of them once."""

# They call each other's parts, and read parameters, past the hooks; inputs are needed where they are.
_FRONT = ("model.vision_tower", "model.mm_projector", "model.language_model.embed_tokens", "model.language_model.rotary_emb")


def find_places(
    config: YiVLConfig, dtype: torch.dtype, *, gpu_bytes: Sequence[int], cpu_bytes: int, cache_bytes: int
) -> Places | None:
    """Where each part of a model goes: evenly over the GPUs, and the rest into CPU memory; None where there is no room.

    Args:
        config: of the model.
        dtype: of its weights.
        gpu_bytes: what weights, keys and values may take of each GPU.
        cpu_bytes: what weights may take of the CPU's memory.
        cache_bytes: of the keys and values of one layer, which are where the layer runs.
    """
    model = _model_with_cache(config, dtype, cache_bytes)
    front, back = ({name: model.get_submodule(name) for name in names} for names in (_FRONT, _back(config)))
    undivided = sorted(model._no_split_modules)
    front_bytes = compute_module_sizes(nn.ModuleList(front.values()))[""]
    memory: dict[int | str, int] = {**dict(enumerate(gpu_bytes)), "cpu": cpu_bytes}
    balanced = get_balanced_memory(nn.ModuleList([*front.values(), *back.values()]), memory, undivided)
    num_layers = 0  # in CPU memory; their keys and values are on the first GPU all the same, which leaves less room there
    while True:
        kept_bytes = num_layers * cache_bytes
        first_bytes = max(0, min(balanced[0], gpu_bytes[0] - kept_bytes) - front_bytes)
        found = infer_auto_device_map(
            nn.ModuleList(back.values()),
            {**balanced, 0: first_bytes, "cpu": cpu_bytes + kept_bytes},
            no_split_module_classes=undivided,
            clean_result=False,
            offload_buffers=True,
        )
        devices = dict(zip(back, (found[str(number)] for number in range(len(back))), strict=True))
        if "disk" in devices.values():
            return None
        offloaded = [back[name] for name, device in devices.items() if device == "cpu"]
        if num_layers == sum(hasattr(module, "cache") for module in offloaded):
            break
        num_layers = sum(hasattr(module, "cache") for module in offloaded)
    copied_bytes = max((_weight_bytes(module) for module in offloaded), default=0)
    if front_bytes + kept_bytes + copied_bytes > gpu_bytes[0]:
        return None
    return {name: torch.device("cuda", 0) for name in front} | {
        name: None if device == "cpu" else torch.device("cuda", device) for name, device in devices.items()
    }


def home(places: Places, name: str) -> torch.device:
    """Where a parameter or buffer of this name is stored."""
    device = next(device for part, device in places.items() if name.startswith(f"{part}."))
    return torch.device("cpu") if device is None else device


def spread(model: YiVLForConditionalGeneration, places: Places) -> YiVLForConditionalGeneration:
    """The model, with hooks that bring the numbers to where the next part runs, and weights from CPU memory.

    A layer gets all its weights before it is called, so that an adapter may read them past the modules that hold them.

    Args:
        model: with its parameters in these places, and with or without an adapter; changed in place.
        places: from `find_places`.
    """
    first = places[_FRONT[0]]
    assert first is not None
    kept_classes = {type(model.get_submodule(name)).__name__ for name, device in places.items() if device is None}
    with _expected("accelerate.big_modeling", "Some parameters are on the meta device"):
        dispatched: YiVLForConditionalGeneration = dispatch_model(
            model,
            {name: "cpu" if device is None else device for name, device in places.items()},
            main_device=first,
            skip_keys=sorted(model._skip_keys_device_placement),
            preload_module_classes=sorted(kept_classes),
            force_hooks=True,
        )
    return dispatched


@contextmanager
def _expected(logger_name: str, start: str) -> Iterator[None]:
    """Keeps a library's warning, known by how it starts, from users who have been told of the same in better words."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(start)

    logger = logging.getLogger(logger_name)
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _back(config: YiVLConfig) -> list[str]:
    """What runs behind the front, in order."""
    layers = [f"model.language_model.layers.{number}" for number in range(config.text_config.num_hidden_layers)]
    return [*layers, "model.language_model.norm", "lm_head"]


def _model_with_cache(config: YiVLConfig, dtype: torch.dtype, cache_bytes: int) -> YiVLForConditionalGeneration:
    """A model without content whose layers are as large as with their keys and values."""
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(config).to(dtype)
        for layer in model.model.language_model.layers:
            layer.register_buffer("cache", torch.empty(cache_bytes, dtype=torch.uint8), persistent=False)
    return model


def _weight_bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())
