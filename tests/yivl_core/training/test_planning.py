"""What is worked out before a training starts: rows and what layers keep, by the memory that may be used."""

from collections.abc import Sequence
from itertools import pairwise, product
from typing import Any

import pytest
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.errors import ConfigurationError
from yivl_core.model.configuration import YiVLConfig
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.layers import Kept
from yivl_core.training.planning import Planner, TrainingPlan

LAYERS = ["q_proj", "k_proj", "v_proj"]
FIXED = {"frozen weights": 13_400_000_000, "trained weights": 71_000_000}
GB = 1_000_000_000


def make_config(**text: int) -> YiVLConfig:
    """Of Yi-VL-6B, or with another decoder."""
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    return YiVLConfig(
        text_config=LlamaConfig(vocab_size=64000, num_key_value_heads=4, **sizes | text),
        vision_config=CLIPVisionConfig(
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, image_size=448, patch_size=14
        ),
    )


def make_planner(
    lengths: Sequence[Sequence[int]] = ((1105,) * 16,) * 3,
    *,
    has_tower: bool = False,
    is_fused: bool = True,
    has_dora: bool = False,
    **settings: Any,
) -> Planner:
    name = "base_model.model.model.language_model.layers.{}.self_attn.{}.lora_A.default.weight"
    trained: dict[str, tuple[int, ...]] = {}
    for number, (layer, width) in product(range(32), zip(LAYERS, (4096, 512, 512), strict=True)):
        half = name.format(number, layer)
        trained |= {half: (8, 4096), half.replace("lora_A", "lora_B"): (width, 8)}
        if has_dora:
            trained[half.replace("lora_A", "lora_magnitude_vector")] = (width,)
    if has_tower:
        name = "base_model.model.model.vision_tower.encoder.layers.{}.mlp.fc1.lora_A.default.weight"
        for number in range(31):
            trained |= {name.format(number): (8, 1280), name.format(number).replace("lora_A", "lora_B"): (5120, 8)}
    return Planner(
        make_config(), trained, TrainingSettings(**settings), FIXED, lengths, 2, peak=7.8e14, is_fused=is_fused
    )  # fmt: skip


def share_kept(plan: TrainingPlan, kind: str) -> float:
    return sum(getattr(kept, kind) for kept in plan.kept) / len(plan.kept)


def test_with_enough_memory_a_step_is_one_row_and_nothing_is_computed_again() -> None:
    plan = make_planner().plan(80 * GB)
    assert (plan.row_tokens, plan.num_rows, plan.extra_share) == (16 * 1105, 1, 0)
    assert set(plan.kept) == {Kept()}
    assert str(plan).startswith("a step is 1 row of at most 17680 tokens, nothing computed again; 6")


@pytest.mark.parametrize("budget", [15.5, 16, 19, 24, 40, 60])
def test_the_budget_is_kept_and_used(budget: float) -> None:
    plan = make_planner().plan(int(budget * GB))
    assert 0.9 * budget * GB < plan.total_bytes <= budget * GB
    assert plan.total_bytes == sum(plan.needs.values())


def test_less_memory_never_makes_a_step_faster() -> None:
    planner = make_planner()
    costs = [planner.cost(planner.plan(budget * GB)) for budget in (16, 19, 24, 32, 48, 80)]
    assert costs == sorted(costs, reverse=True)


def test_rows_are_no_shorter_than_the_longest_sample_and_hold_whole_samples() -> None:
    lengths = [[300, 1105, 4000, 90], [800] * 4]
    assert make_planner(lengths).plan(17 * GB).row_tokens >= 4000
    plan = make_planner([[1000] * 6] * 2).plan(16 * GB)
    assert plan.row_tokens % 1000 == 0


def test_what_saves_most_for_its_work_goes_first() -> None:
    planner = make_planner()
    plan = planner.plan(55 * GB, 16 * 1105)
    assert 0 < share_kept(plan, "attention") < 1
    assert share_kept(plan, "middle") == share_kept(plan, "mlp") == 1
    plan = planner.plan(30 * GB, 16 * 1105)
    assert share_kept(plan, "attention") == share_kept(plan, "middle") == 0 < share_kept(plan, "mlp") < 1


def test_a_tower_that_is_trained_takes_memory_too() -> None:
    without, with_tower = (make_planner(has_tower=has_tower).plan(100 * GB) for has_tower in (False, True))
    # 31 layers of 1,025 tokens of 17 images, the most that such a row may have: 12,800 values each in 16 bits
    assert with_tower.needs["layers"] - without.needs["layers"] == pytest.approx(31 * 1025 * 17 * 25_600, rel=0.05)
    assert not any(kept.attention for kept in make_planner(has_tower=True).plan(50 * GB, 16 * 1105).tower_kept)


@pytest.mark.parametrize(("recompute", "kept"), [("none", Kept()), ("selective", Kept(attention=False))])
def test_by_hand_all_layers_keep_the_same(recompute: str, kept: Kept) -> None:
    planner = make_planner(recompute=recompute)
    assert set(planner.plan(80 * GB).kept) == {kept}
    assert set(planner.plan(None, 100_000).kept) == {kept}
    assert planner.plan(None, 100_000).total_bytes > 40 * GB
    with pytest.raises(ConfigurationError, match=rf"recompute auto in place of {recompute}, a higher gpu_memory"):
        planner.plan(20 * GB, 16 * 1105)


def test_what_cannot_fit_is_said_with_its_numbers() -> None:
    message = r"does not fit into 14\.0 GB, since at the least a step is 16 rows of at most 1105 tokens, .* done twice to save "
    with pytest.raises(ConfigurationError, match=message + r"memory; 15\.\d GB of memory \(frozen weights 13\.4 GB, "):
        make_planner().plan(14 * GB)


def test_where_memory_runs_out_after_all_more_is_computed_again_in_the_same_rows() -> None:
    planner = make_planner()
    plans = [planner.plan(80 * GB)]
    while smaller := planner.smaller(plans[-1]):
        plans.append(smaller)
    assert {plan.row_tokens for plan in plans} == {16 * 1105}
    sizes = [plan.total_bytes for plan in plans]
    assert all(later < 0.96 * earlier for earlier, later in pairwise(sizes[:-1]))
    assert set(plans[-1].kept) == {Kept(attention=False, middle=False, mlp=False)}
    by_hand = make_planner(recompute="none")
    assert by_hand.smaller(by_hand.plan(80 * GB)) is None


def test_autograd_keeps_more_and_is_told_what_to_compute_again() -> None:
    planner = make_planner(is_fused=False)
    plans = [planner.plan(budget * GB, 4 * 1105) for budget in (80, 36, 20)]
    assert [plan.recompute for plan in plans] == ["none", "selective", "full"]
    assert plans[0].needs["layers"] > 1.5 * make_planner().plan(80 * GB, 4 * 1105).needs["layers"]


def test_dora_takes_what_scaling_and_copies_of_its_weights_take() -> None:
    plain, dora = (make_planner(is_fused=False, has_dora=has_dora).plan(200 * GB, 4 * 1105) for has_dora in (False, True))
    # Of q, k and v two values in 32 bits a token and output, and the weights themselves in 32 bits.
    expected = 32 * (8 * 5120 * 4 * 1105 + 4 * 5120 * 4096)
    assert dora.needs["layers"] - plain.needs["layers"] == pytest.approx(1.02 * expected, rel=1e-6)
    assert dora.needs["the largest step"] > plain.needs["the largest step"]


def test_autograd_keeps_products_of_adapters_too() -> None:
    fused, plain, dora = (
        make_planner(**kind, recompute="selective").plan(200 * GB, 4 * 1105).needs["layers"]
        for kind in ({"is_fused": True}, {"is_fused": False}, {"is_fused": False, "has_dora": True})
    )
    assert dora - plain == pytest.approx(1.02 * 32 * (4 * 5120 * 4 * 1105 + 4 * 5120 * 4096), rel=1e-6)
    assert plain > fused + 32 * 4 * 5120 * 4 * 1105


def test_the_largest_step_counts_not_the_limit_of_a_row() -> None:
    assert make_planner().plan(80 * GB, 200_000).total_bytes == make_planner().plan(80 * GB, 16 * 1105).total_bytes


def test_steps_of_many_lengths_are_planned_by_their_fullest() -> None:
    lengths = [[1100 + (step * 7 + number * 13) % 60 for number in range(16)] for step in range(500)]
    plan = make_planner(lengths).plan(80 * GB)
    assert plan.row_tokens >= max(map(sum, lengths[::3]))
    assert plan.num_rows == 1
