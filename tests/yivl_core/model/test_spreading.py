"""Places of the parts of a model on several devices, and weights that are only there while they are used."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.spreading import Places, find_places, home, spread
from yivl_core.model.weights import expected_shapes, load_model

# The tower is a seventh, each of eight layers a tenth of it all.
SMALL = YiVLConfig(
    text_config=LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=96, num_hidden_layers=8, num_attention_heads=4, num_key_value_heads=2
    ),
    vision_config=CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    ),
)
SIZES = {name: torch.Size(shape).numel() * 4 for name, shape in expected_shapes(SMALL).items()}
WHOLE = sum(SIZES.values())
LAYERS = [f"model.language_model.layers.{number}" for number in range(8)]
BACK = [*LAYERS, "model.language_model.norm", "lm_head"]
FIRST, SECOND, CPU = torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cpu")


def places_for(gpu_bytes: Sequence[int], cpu_bytes: int, cache_bytes: int = 0) -> Places | None:
    return find_places(SMALL, torch.float32, gpu_bytes=gpu_bytes, cpu_bytes=cpu_bytes, cache_bytes=cache_bytes)


def part_bytes(part: str) -> int:
    return sum(size for name, size in SIZES.items() if name.startswith(f"{part}."))


def assert_complete_and_in_order(places: Places) -> None:
    """Every parameter has one place, no layer is divided, the front is on the first GPU, and devices follow each other once."""
    for name in SIZES:
        assert len([part for part in places if name.startswith(f"{part}.")]) == 1, name
    assert [part for part in places if part in BACK] == BACK
    assert {device for part, device in places.items() if part not in BACK} == {FIRST}
    numbers = [99 if (device := places[part]) is None else device.index for part in BACK]
    assert numbers == sorted(numbers)


def assert_within(places: Places, gpu_bytes: Sequence[int], cpu_bytes: int, cache_bytes: int) -> None:
    """Weights where they stand, keys and values where their layer runs, and the largest copy of what stands in CPU memory."""
    taken = Counter[torch.device]()
    for part, device in places.items():
        taken[CPU if device is None else device] += part_bytes(part)
        taken[FIRST if device is None else device] += cache_bytes if part in LAYERS else 0
    taken[FIRST] += max((part_bytes(part) for part, device in places.items() if device is None), default=0)
    assert taken[CPU] <= cpu_bytes
    assert all(taken[torch.device("cuda", number)] <= size for number, size in enumerate(gpu_bytes))


def test_two_gpus_share_the_model_evenly() -> None:
    places = places_for([10 * WHOLE, 10 * WHOLE], 0)
    assert places is not None
    assert_complete_and_in_order(places)
    shares = Counter[torch.device | None]()
    for part, device in places.items():
        shares[device] += part_bytes(part)
    assert shares.keys() == {FIRST, SECOND}
    assert 0.7 < shares[FIRST] / shares[SECOND] < 1.4
    assert places["lm_head"] == SECOND


def test_what_the_gpus_have_no_room_for_is_in_cpu_memory() -> None:
    places = places_for([WHOLE // 2, WHOLE // 4], WHOLE)
    assert places is not None
    assert_complete_and_in_order(places)
    assert places[LAYERS[0]] == FIRST
    assert SECOND in places.values()
    assert places["lm_head"] is None


def test_a_model_that_one_gpu_has_room_for_stays_there() -> None:
    places = places_for([2 * WHOLE], WHOLE)
    assert places is not None
    assert set(places.values()) == {FIRST}


def test_places_are_within_memory_or_there_are_none() -> None:
    met = Counter[str]()

    @settings(max_examples=150)
    @given(
        gpu_shares=st.lists(st.floats(0, 1.2), min_size=1, max_size=3),
        cpu_share=st.floats(0, 1.2),
        cache_bytes=st.sampled_from([0, WHOLE // 100, WHOLE // 10]),
    )
    def check(gpu_shares: list[float], cpu_share: float, cache_bytes: int) -> None:
        gpu_bytes, cpu_bytes = [int(share * WHOLE) for share in gpu_shares], int(cpu_share * WHOLE)
        places = places_for(gpu_bytes, cpu_bytes, cache_bytes)
        if places is None:
            met["none"] += 1
            assert sum(gpu_bytes) + cpu_bytes < 5 * WHOLE
            return
        met["in part on the CPU" if None in places.values() else "on GPUs"] += 1
        assert_complete_and_in_order(places)
        assert_within(places, gpu_bytes, cpu_bytes, cache_bytes)

    check()
    assert min(met[case] for case in ("none", "in part on the CPU", "on GPUs")) >= 5, met


@pytest.mark.parametrize(
    ("gpu_share", "cpu_share", "cache_share"), [(0.1, 9, 0), (0.5, 0.2, 0), (0.5, 9, 0.1)], ids=["front", "weights", "cache"]
)
def test_too_little_memory_gives_no_places(gpu_share: float, cpu_share: float, cache_share: float) -> None:
    assert places_for([int(gpu_share * WHOLE)], int(cpu_share * WHOLE), int(cache_share * WHOLE)) is None


def test_a_parameter_is_at_home_where_its_part_is() -> None:
    places: Places = {"model.language_model.layers.1": SECOND, "model.language_model.layers.11": FIRST, "lm_head": None}
    assert home(places, "model.language_model.layers.1.mlp.up_proj.weight") == SECOND
    assert home(places, "model.language_model.layers.11.mlp.up_proj.weight") == FIRST
    assert home(places, "lm_head.weight") == CPU


def test_weights_in_cpu_memory_are_in_the_model_only_while_they_are_used(
    tight_places: Callable[[YiVLConfig], Places],
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the CPU in the place of the GPU: what stands in CPU memory is taken out of the model and brought back all the same."""
    plain = load_model(tiny_checkpoint)
    places = {part: None if device is None else CPU for part, device in tight_places(plain.config).items()}
    model = spread(load_model(tiny_checkpoint, device=partial(home, places)), places)
    assert not any("meta device" in message for message in caplog.messages), "users have been told in better words"
    kept = {part for part, device in places.items() if device is None}
    layer_names = sorted(part for part in kept if part in LAYERS)

    def missing() -> set[str]:
        names = [name for name, parameter in model.named_parameters() if parameter.is_meta]
        return {part for part in places if any(name.startswith(f"{part}.") for name in names)}

    seen: list[set[str]] = []
    for name in layer_names:
        attention = model.get_submodule(name).self_attn

        def attend(*args: Any, forward: Callable[..., Any] = attention.forward, **kwargs: Any) -> Any:
            seen.append(kept - missing())
            return forward(*args, **kwargs)

        monkeypatch.setattr(attention, "forward", attend)
    input_ids = torch.arange(7)[None]
    with torch.inference_mode():
        assert model(input_ids).logits.equal(plain(input_ids).logits)
    assert seen == [{name} for name in layer_names]
    assert missing() == kept > set(layer_names)
    assert model.device == CPU
