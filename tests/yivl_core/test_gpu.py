"""The same properties on a GPU: kernels, dtypes and the whole chain. Skipped where there is none."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ConfigurationError
from yivl_core.export.configuration import MergeConfig
from yivl_core.export.merge import merge_adapter
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.model.attention import packed_attention
from yivl_core.model.weights import load_model
from yivl_core.progress import Progress
from yivl_core.training import sft
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.packing import PackedBatch
from yivl_core.training.sft import train_adapter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")]
needs_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_key_value_heads", [8, 2])
def test_the_attention_kernel_agrees_with_the_cpu(dtype: torch.dtype, num_key_value_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    ends = [0, 100, 101, 400, 1024]
    query = torch.randn(1024, 8, 64, generator=generator)
    key, value = torch.randn(2, 1024, num_key_value_heads, 64, generator=generator)
    weights = torch.randn(1024, 8, 64, generator=generator)
    results = []
    for device, used in (("cpu", torch.float32), ("cuda", dtype)):
        inputs = [tensor.to(dtype).to(device, used).requires_grad_() for tensor in (query, key, value)]
        output = packed_attention(*inputs, torch.tensor(ends, dtype=torch.int32, device=device), 624, 0.125)
        (output.float() * weights.to(device)).sum().backward()
        results.append([tensor.float().cpu() for tensor in (output.detach(), *(tensor.grad for tensor in inputs))])
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).norm() / expected.norm() < 1e-2


def test_float32_gives_the_logits_and_ids_of_the_original(golden_cases: dict[str, Any], reference: Path) -> None:
    cases = golden_cases["cases"]
    golden = load_file(reference / "golden.safetensors", device="cuda")
    model = load_model(reference / "checkpoint", device="cuda")
    for name, case in cases.items():
        input_ids = torch.tensor([[token for token in case["input_ids"] for _ in range(36 if token == -200 else 1)]]).cuda()
        pixels = torch.stack([golden[f"pixel_values.{image}"] for image in case["images"]]) if case["images"] else None
        with torch.no_grad():
            logits = model(input_ids, pixel_values=pixels).logits
        torch.testing.assert_close(logits[0, -1], golden[f"{name}.logits_last"], atol=2e-4, rtol=0)
        ids = model.generate(
            input_ids, pixel_values=pixels, attention_mask=torch.ones_like(input_ids),
            max_new_tokens=32, do_sample=False, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        assert ids[0, input_ids.shape[1] :].tolist() == case["greedy"]["new_ids_without_stop_string"], name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_chain_runs_in_every_dtype(dtype: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = []
    for number in range(24):
        Image.new("RGB", (40 + number, 30), (10 * number, 255 - 10 * number, 128)).save(tmp_path / f"{number}.png")
        lines.append(json.dumps({"query": "Which number?", "response": str(number), "images": [f"{number}.png"]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines) + "\n")
    data = validate_dataset(ValidationConfig(dataset=(str(tmp_path / "data.jsonl"),), output=str(tmp_path / "data")))
    trained = train_adapter(
        TrainingConfig(
            model=str(tiny_checkpoint), dataset=data.output, output=str(tmp_path / "run"), target_modules="all",
            num_epochs=8, learning_rate=5e-3, batch_size=8, row_tokens=1000, dtype=dtype, device="cuda",
        )
    )  # fmt: skip
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert losses[-1] < losses[0] - 0.3
    merged = merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"), device="cuda"))
    answered = infer_shards(
        InferenceConfig(
            model=merged.output, dataset=data.output, output=str(tmp_path / "predictions"), max_new_tokens=8, dtype=dtype,
            device="cuda",
        )
    )  # fmt: skip
    assert answered.num_records == 24
    assert answered.num_failed == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("use_dora", [False, True])
@needs_bitsandbytes
@pytest.mark.filterwarnings("ignore:inner dimension .* is not aligned for fast kernel")  # of so small a model
def test_qlora_learns_in_every_dtype(dtype: str, use_dora: bool, tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        model=str(tiny_checkpoint), dataset=str(dataset), output=str(tmp_path / "run"), num_epochs=4, batch_size=4, log_steps=1,
        target_modules="all", learning_rate=0.01, quantization="nf4", use_dora=use_dora, dtype=dtype, device="cuda",
    )  # fmt: skip
    train_adapter(config)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) / 3 < losses[0] - 0.2


def test_a_float16_run_goes_on_with_the_scale_of_its_loss(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    config = TrainingConfig(
        model=str(tiny_checkpoint), dataset=str(dataset), output=str(tmp_path / "run"), num_epochs=4, batch_size=4, save_steps=3,
        dtype="float16", device="cuda", resume=True,
    )  # fmt: skip

    def stop_after(step: int) -> Callable[[Progress], None]:
        def stop(progress: Progress) -> None:
            if "loss" in progress.figures and progress.done == step:
                raise KeyboardInterrupt

        return stop

    for step in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train_adapter(config, stop_after(step))
    [checkpoint] = (tmp_path / "run" / "checkpoints").iterdir()
    kept = json.loads((checkpoint / "state.json").read_text())
    assert checkpoint.name == "step-000003"
    assert kept["scaler"]["scale"] >= 1
    assert kept["scaler"]["_growth_tracker"] <= 3
    train_adapter(config)
    state = json.loads(max((tmp_path / "run" / "checkpoints").iterdir()).joinpath("state.json").read_text())
    assert state["scaler"]["scale"] <= kept["scaler"]["scale"], "it grows after 2000 steps"
    if state["scaler"]["scale"] == kept["scaler"]["scale"]:
        assert state["scaler"]["_growth_tracker"] == kept["scaler"]["_growth_tracker"] + state["step"] - 3


def full_tuning(checkpoint: Path, dataset: Path, output: Path, **settings: Any) -> TrainingConfig:
    values: dict[str, Any] = {"tuner": "full", "num_epochs": 6, "batch_size": 4, "learning_rate": 2e-3, "val_fraction": 0.3}
    places = {"model": str(checkpoint), "dataset": str(dataset), "output": str(output)}
    return TrainingConfig(**values | settings | places, device="cuda")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_full_tuning_keeps_float32_weights_and_learns(dtype: str, tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    summary = train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "run", dtype=dtype))
    saved = load_file(tmp_path / "run" / "checkpoints" / f"step-{summary.num_steps:06}" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0] - 1
    answered = infer_shards(
        InferenceConfig(
            model=summary.model, load_dataset_config=True, output=str(tmp_path / "answers"), max_new_tokens=4, dtype=dtype,
            device="cuda",
        )
    )  # fmt: skip
    assert (answered.num_records, answered.num_failed) == (summary.num_val_samples, 0)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")  # within torch's compiler, as is the next
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "settings",
    [
        {"compile": True},
        {"recompute": "full"},
        {"recompute": "selective"},
        {"num_workers": 2},
        {"num_workers": 2, "cache_samples": True},
    ],
)
def test_what_makes_training_faster_or_smaller_does_not_change_what_is_learned(
    settings: dict[str, Any], tiny_checkpoint: Path, dataset: Path, tmp_path: Path
) -> None:
    common = {"num_epochs": 1, "num_workers": 0, "learning_rate": 1e-3, "optimizer": "muon"}
    plain = train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "plain", **common))
    changed = train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "changed", **common | settings))
    assert changed.train_loss == pytest.approx(plain.train_loss, rel=0.01)
    assert changed.val_loss == pytest.approx(plain.val_loss, rel=0.01)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize(
    "tuner",
    [
        {"tuner": "full", "optimizer": "muon", "augmentation": 0.5},
        {"tuner": "lora", "target_modules": "all"},
        pytest.param({"tuner": "lora", "quantization": "nf4"}, marks=needs_bitsandbytes),
    ],
)
def test_a_step_never_waits_for_the_gpu(
    tuner: dict[str, Any], tiny_checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, watched = sft._Trainer._step, []

    def watch(trainer: sft._Trainer, number: int, rows: list[PackedBatch]) -> None:
        is_logged = number + 1 == trainer.total_steps
        torch.cuda.set_sync_debug_mode("default" if is_logged else "error")
        try:
            step(trainer, number, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        watched.append(is_logged)

    monkeypatch.setattr(sft._Trainer, "_step", watch)
    settings = {"log_steps": 1000, "eval_steps": 1000, "num_epochs": 3, "num_workers": 2, "cache_samples": True}
    train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "run", **tuner | settings))
    assert watched.count(False) > 3


def test_muon_is_refused_where_steps_can_overflow(tiny_checkpoint: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="optimizer muon does not work in float16"):
        train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "run", dtype="float16", optimizer="muon"))


def test_a_training_that_does_not_fit_the_gpu_is_refused_with_its_numbers(
    tiny_checkpoint: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (1_000_000, 2_000_000))
    with pytest.raises(ConfigurationError, match=r"which needs .* MB on cuda before the first row"):
        train_adapter(full_tuning(tiny_checkpoint, dataset, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
