"""merge_adapter(): base + adapter -> a checkpoint folder that loads wherever the base does.

Each weight is added up in float32 and rounded once; tensors pass from file to file one at a time. Before the folder is published
it is read back: each merged weight is compared with what PEFT makes of base and adapter, and the logits with those of the two.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear

from yivl_core.errors import CheckpointError, ConfigurationError, OutputError
from yivl_core.export.configuration import MergeConfig, MergeSummary, find_base
from yivl_core.locks import sole_publisher
from yivl_core.model.adapters import check_base, load_adapter, merge_tensors
from yivl_core.model.devices import resolve_device
from yivl_core.model.files import (
    ABOUT_FILE,
    HELD_OUT_FILE,
    CheckpointFiles,
    adapter_digest,
    checkpoint_digest,
    has_held_out_rows_of,
    open_checkpoint,
    read_about,
)
from yivl_core.model.tensors import LazyTensor
from yivl_core.model.weights import load_model, read_tensors, write_checkpoint
from yivl_core.processing.processor import Processor
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import local_path, publish_bytes, publish_folder

_STEPS = ("read", "merge", "compare", "publish")
# Largest difference of a logit, as a share of the largest logit: what rounding the merged weights to each dtype can do, and what
# arithmetic in each dtype can. Measured on 32 layers with every linear layer tuned: 0.006 and 0.03 for bfloat16.
_STORAGE_TOLERANCES = {torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.03}
_ARITHMETIC_TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 0.1}
_SUM_NOISE = 1e-6  # of float32 sums in another order, as a share of the largest value
_PROBE_TEXT_TOKENS = 24


def merge_adapter(config: MergeConfig, on_progress: OnProgress = ignore_progress) -> MergeSummary:
    """Write the checkpoint of base + adapter, unless exactly this merge is there already.

    Raises:
        CheckpointError: adapter or base is not what it should be, or the merged model does not compute what base + adapter do.
        OutputError: the output folder holds something else.
        BusyError: another process writes to it.
        ConfigurationError: neither dtype of the comparison fits into memory.
    """
    output, adapter = local_path(config.output, "the merged checkpoint"), local_path(config.adapter, "the adapter")
    device = resolve_device(config.device)
    _report(on_progress, 0)
    base = open_checkpoint(find_base(config))
    Processor.from_checkpoint(base)  # its files are copied, so they have to be right
    layout = _find_layout(config, base)
    about: dict[str, Any] = {
        "kind": "merged",
        "layout": layout,
        "max_shard_bytes": config.max_shard_bytes,
        "base_digest": base.digest(),
        "adapter_digest": adapter_digest(adapter),
    }
    check_base(adapter, base, about["base_digest"])
    if summary := _published_before(output, adapter, about):
        return summary
    with sole_publisher(output):
        if summary := _published_before(output, adapter, about):
            return summary
        _report(on_progress, 1)
        tensors, num_merged = merge_tensors(read_tensors(base), adapter)
        probe_dtype = _probe_dtype(base, device)
        with publish_folder(output) as temporary:
            write_checkpoint(temporary, base, tensors, layout=layout, max_shard_bytes=config.max_shard_bytes)
            _report(on_progress, 2)
            difference = _compare(base, adapter, temporary, probe_dtype, device)
            digest = checkpoint_digest(temporary)
            about |= {"digest": digest, "num_merged": num_merged, "largest_logit_difference": difference}
            _write_about(temporary, adapter, about)
    _report(on_progress, 4)
    return _summary(output, about, was_there=False)


def _find_layout(config: MergeConfig, base: CheckpointFiles) -> str:
    if config.layout == "published" and base.layout == "transformers":
        raise ConfigurationError(
            f"{base.folder}: is in the transformers layout, from which the published one cannot be made; "
            "leave `layout` out, or give transformers"
        )
    return config.layout or base.layout


def _published_before(output: Path, adapter: Path, about: dict[str, Any]) -> MergeSummary | None:
    """The summary of an equal earlier merge, if its files are still what they were; None for an empty or incomplete folder."""
    if not output.exists():
        return None
    if not output.is_dir():
        raise OutputError(f"{output}: is a file; choose a folder to write the checkpoint to")
    if not any(output.iterdir()):
        return None
    try:
        found = read_about(output)
    except CheckpointError:  # nobody can tell what it is
        found = {}
    if not about.items() <= found.items():
        raise OutputError(f"{output}: holds something else than this merge; choose another folder, or remove it first")
    try:
        digest = checkpoint_digest(output)
    except CheckpointError:
        return None  # a part of it is gone, so it is made again
    if digest != found.get("digest"):
        raise OutputError(f"{output}: holds this merge, but its files have changed since; remove the folder to merge again")
    if not has_held_out_rows_of(adapter, output):
        _copy_held_out_rows(adapter, output)
    return _summary(output, found, was_there=True)


def _summary(output: Path, about: dict[str, Any], *, was_there: bool) -> MergeSummary:
    return MergeSummary(
        output=str(output),
        digest=about["digest"],
        base_digest=about["base_digest"],
        adapter_digest=about["adapter_digest"],
        num_merged=about["num_merged"],
        largest_logit_difference=about["largest_logit_difference"],
        was_there=was_there,
    )


def _write_about(folder: Path, adapter: Path, about: dict[str, Any]) -> None:
    """What the merge was made of, and the rows that its training held out."""
    of_adapter = read_about(adapter)
    kept = {key: of_adapter[key] for key in ("prompt_version", "training_digest", "dataset_digest") if key in of_adapter}
    (folder / ABOUT_FILE).write_text(json.dumps(about | kept, indent=2) + "\n", encoding="utf-8")
    _copy_held_out_rows(adapter, folder)


def _copy_held_out_rows(adapter: Path, folder: Path) -> None:
    if (adapter / HELD_OUT_FILE).is_file():
        publish_bytes(str(folder / HELD_OUT_FILE), (adapter / HELD_OUT_FILE).read_bytes())
    else:
        (folder / HELD_OUT_FILE).unlink(missing_ok=True)


def _compare(base: CheckpointFiles, adapter: Path, merged: Path, dtype: torch.dtype, device: torch.device) -> float:
    """The largest difference of a logit between base + adapter and the merged checkpoint, on a probe with an image.

    Raises:
        CheckpointError: it is larger than rounding can explain, or a merged weight is not what PEFT would make of it.
    """
    files = open_checkpoint(merged)
    tensors = read_tensors(files)
    stored = tensors["lm_head.weight"].dtype
    adapted = load_adapter(load_model(base, dtype=dtype, device=device), adapter)
    _compare_weights(adapter, adapted, read_tensors(base), tensors)
    expected = _probe_logits(adapted, dtype, device)
    del adapted  # both at once might not fit
    actual = _probe_logits(load_model(files, dtype=dtype, device=device), dtype, device)
    difference = float((expected - actual).abs().max())
    largest = float(expected.abs().max())
    tolerance = max(_STORAGE_TOLERANCES[stored], _ARITHMETIC_TOLERANCES[dtype])
    if not difference <= tolerance * largest:
        raise CheckpointError(
            f"{adapter}: the merged model is not base + adapter: logits differ by {difference:.3g} (the largest is "
            f"{largest:.3g}, {tolerance:g} of it is allowed); nothing was published. Are all the adapter's targets in the base?"
        )
    return difference


def _probe_dtype(files: CheckpointFiles, device: torch.device) -> torch.dtype:
    """float32 where a model of that size fits into the memory that is free, else bfloat16."""
    num_parameters = sum(torch.Size(tensor.shape).numel() for tensor in read_tensors(files).values())
    free_bytes = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    for dtype in (torch.float32, torch.bfloat16):
        if num_parameters * dtype.itemsize * 1.1 < free_bytes:
            return dtype
    raise ConfigurationError(
        f"{files.folder}: comparing the merged model needs {num_parameters * 2.2e-9:.1f} GB on {device}, and "
        f"{free_bytes / 1e9:.1f} GB are free; give --device cpu, or a machine with more memory"
    )


@torch.inference_mode()
def _compare_weights(adapter: Path, adapted: PeftModel, base: Mapping[str, LazyTensor], merged: Mapping[str, LazyTensor]) -> None:
    """Nothing, if each merged weight is the base's plus the change that PEFT computes, up to one rounding.

    The logits alone would not show that a small change was lost.
    """
    for name, layer in adapted.get_base_model().named_modules():
        if not isinstance(layer, LoraLinear):
            continue
        change = layer.get_delta_weight("default").float()
        expected = base[f"{name}.weight"].load().to(change.device).float()
        if "default" in layer.lora_magnitude_vector:  # DoRA
            magnitude: Any = layer.lora_magnitude_vector["default"]
            norm = magnitude.get_weight_norm(expected, change, scaling=1)
            expected = (magnitude.weight / norm).unsqueeze(1).float() * (expected + change)
        else:
            expected += change
        stored = merged[f"{name}.weight"].load()
        noise = _SUM_NOISE * (expected.abs().max() + change.abs().max())
        limits = torch.finfo(stored.dtype)
        smallest_step = limits.smallest_normal * limits.eps  # below the normal numbers rounding is absolute
        difference = (stored.to(change.device).float() - expected).abs()
        excess = difference - (limits.eps * expected.abs() + noise + smallest_step)
        worst = excess.argmax()
        if not excess.flatten()[worst] <= 0:
            raise CheckpointError(
                f"{name}.weight: the merged weight differs from that of base + {adapter} by "
                f"{float(difference.flatten()[worst]):.3g}; "
                "nothing was published. Are all the adapter's targets in the base?"
            )


@torch.inference_mode()
def _probe_logits(model: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Logits `[S, V]`, float32, for a made-up image and a few made-up tokens behind it."""
    config = model.config
    size = config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, size, size, generator=generator).to(device, dtype)
    text_ids = torch.randint(0, config.text_config.vocab_size, (1, _PROBE_TEXT_TOKENS), generator=generator)
    image_ids = torch.full((1, config.num_image_tokens), config.image_token_index)
    input_ids = torch.cat([image_ids, text_ids], dim=1).to(device)
    logits: torch.Tensor = model(input_ids=input_ids, pixel_values=pixel_values).logits
    return logits[0].float().cpu()


def _report(on_progress: OnProgress, done: int) -> None:
    message = _STEPS[done] if done < len(_STEPS) else "done"
    on_progress(Progress(stage="export", done=done, total=len(_STEPS), unit="step", message=message))
