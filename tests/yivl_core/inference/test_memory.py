"""Sizes that are worked out before anything is allocated: what a device's memory and the user allow."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.errors import ConfigurationError
from yivl_core.inference.memory import MAX_ROWS, MemoryPlan, plan_memory
from yivl_core.model.configuration import YiVLConfig

# config.json of 01-ai/Yi-VL-6B and -34B; parameter counts follow from the sizes of the published files.
SIX, THIRTY_FOUR = (
    YiVLConfig(
        text_config=LlamaConfig(vocab_size=64000, max_position_embeddings=4096, **text),
        vision_config=CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=448, patch_size=14
        ),
    )
    for text in (
        {
            "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
        {
            "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56,
            "num_key_value_heads": 8,
        },
    )
)  # fmt: skip
CUDA = torch.device("cuda")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """An H100 of which all is free but the context."""
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (84_000_000_000, 85_000_000_000))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))


def plan(config: YiVLConfig = SIX, dtype: torch.dtype = torch.bfloat16, **settings: Any) -> MemoryPlan:
    return plan_memory(config, dtype, CUDA, **settings)


@pytest.mark.usefixtures("gpu")
def test_a_whole_gpu_has_room_for_all_rows_and_full_steps() -> None:
    found = plan()
    assert found.weight_bytes == 13_429_658_624
    assert found.settings.num_rows == MAX_ROWS
    assert found.settings.cache_tokens * 65_536 > 55e9
    assert found.settings.prefill_rows == 16
    assert found.total_bytes <= 84e9
    assert str(found).startswith("256 records at a time, ")
    assert "weights 13.4 GB" in str(found)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("gpu_memory_gb", [17, 18, 24, 40, 80])
def test_no_more_is_planned_than_the_user_allows_and_all_of_it_is_used(gpu_memory_gb: float) -> None:
    found = plan(gpu_memory_gb=gpu_memory_gb)
    assert 0.99 * gpu_memory_gb * 1e9 < found.total_bytes <= gpu_memory_gb * 1e9
    assert found.settings.cache_tokens >= 4096
    assert found.settings.num_rows % found.settings.prefill_rows == 0 or found.settings.num_rows < found.settings.prefill_rows


@pytest.mark.usefixtures("gpu")
def test_less_memory_means_fewer_rows_and_smaller_steps() -> None:
    small, large = plan(gpu_memory_gb=18), plan(gpu_memory_gb=40)
    assert small.settings.num_rows < large.settings.num_rows
    assert small.settings.prefill_tokens < large.settings.prefill_tokens
    assert small.settings.vision_images < large.settings.vision_images


@pytest.mark.usefixtures("gpu")
def test_rows_that_the_user_wants_are_kept() -> None:
    for num_rows in (1, 7, 300):
        assert plan(num_rows=num_rows).settings.num_rows == num_rows
    assert plan(num_rows=7).settings.cache_tokens == 7 * 4096


@pytest.mark.usefixtures("gpu")
def test_eight_bits_leave_half_of_the_layers_weights() -> None:
    rounded, usual = plan(is_fp8=True), plan()
    assert rounded.settings.is_fp8
    assert not usual.settings.is_fp8
    assert 0.5 < rounded.weight_bytes / usual.weight_bytes < 0.6


@pytest.mark.usefixtures("gpu")
def test_an_adapter_beside_the_weights_takes_its_share() -> None:
    without, beside = plan(gpu_memory_gb=18), plan(gpu_memory_gb=18, num_adapter_values=200_000_000)
    assert beside.weight_bytes == without.weight_bytes + 800_000_000
    assert beside.cache_bytes < without.cache_bytes
    assert beside.total_bytes <= 18e9


@pytest.mark.usefixtures("gpu")
def test_a_model_has_to_be_loaded_whole_before_it_is_rounded() -> None:
    with pytest.raises(ConfigurationError, match=r"it needs 14\.3 GB on cuda to be loaded .*13\.4 GB\), and 12\.0 GB may"):
        plan(gpu_memory_gb=12, is_fp8=True)


@pytest.mark.usefixtures("gpu")
def test_steps_that_share_their_memory_leave_more_to_keys_and_values() -> None:
    recorded, plain = plan(gpu_memory_gb=18), plan(gpu_memory_gb=18, is_plain=True)
    assert recorded.work_bytes < plain.work_bytes
    assert recorded.settings.num_rows > plain.settings.num_rows


@pytest.mark.usefixtures("gpu")
def test_a_model_that_is_loaded_already_counts_once() -> None:
    found = plan(gpu_memory_gb=40)
    assert plan(gpu_memory_gb=40, is_loaded=True).settings == found.settings


@pytest.mark.usefixtures("gpu")
def test_what_does_not_fit_is_refused_with_the_numbers() -> None:
    with pytest.raises(
        ConfigurationError, match=r"the model does not fit: it needs \d+\.\d GB on cuda .*weights 70\.2 GB\), and"
    ):
        plan(THIRTY_FOUR, gpu_memory_gb=60)
    with pytest.raises(ConfigurationError, match=r"to be loaded and to answer one record of 4096 tokens .* give a higher"):
        plan(gpu_memory_gb=14)
    with pytest.raises(ConfigurationError, match=r" in steps for 100000 .* may be used; give a batch_size below 100000$"):
        plan(num_rows=100_000)
    with pytest.raises(ConfigurationError, match=r"gpu_memory 100: cuda has 8\d\.\d GB free, in GB of 10\^9 bytes; give less"):
        plan(gpu_memory_gb=100)


@pytest.mark.usefixtures("gpu")
def test_invariant_steps_are_planned_as_such() -> None:
    assert plan(is_invariant=True).settings.is_invariant
    assert not plan().settings.is_invariant
    assert plan(is_plain=True).settings.is_plain


def test_eight_bits_are_refused_on_older_gpus(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (8, 0))
    with pytest.raises(ConfigurationError, match=r"quantization 'fp8' needs a GPU of compute capability 8\.9 or later"):
        plan(is_fp8=True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    with pytest.raises(ConfigurationError, match=r"and dtype bfloat16 \(given: cuda, float16\)"):
        plan(dtype=torch.float16, is_fp8=True)


def test_a_cpu_is_planned_by_the_memory_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        available = 40_000_000_000

    monkeypatch.setattr("yivl_core.model.gpu_memory.psutil.virtual_memory", Memory)
    found = plan_memory(SIX, torch.float32, torch.device("cpu"))
    assert found.total_bytes <= 40e9
    assert found.context_bytes == 0
    assert found.settings.num_rows < 64
    Memory.available = 20_000_000_000
    with pytest.raises(ConfigurationError, match=r"the model does not fit: it needs 2.*; use dtype bfloat16, or more memory"):
        plan_memory(SIX, torch.float32, torch.device("cpu"))
    with pytest.raises(ConfigurationError, match=r"gpu_memory 18 is for GPUs, and the device is cpu; leave it out"):
        plan_memory(SIX, torch.float32, torch.device("cpu"), gpu_memory_gb=18)
