"""Which layers LoRA reaches, and adapters against plain PEFT."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from yivl_core.errors import CheckpointError, ConfigurationError
from yivl_core.model.adapters import (
    add_adapter,
    check_base,
    find_targets,
    is_plain_adapter,
    load_adapter,
    merge_tensors,
    save_adapter,
)
from yivl_core.model.files import open_checkpoint, read_adapter_config
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.random_checkpoint import RandomShape, write_random_checkpoint
from yivl_core.model.weights import load_model, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21

NUM_LAYERS = 3
LAST_TOWER_LAYER = "model.vision_tower.encoder.layers.2."


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> YiVLForConditionalGeneration:
    """Not to be changed."""
    return load_model(tiny_checkpoint)


def linears(model: nn.Module) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def adapted_layers(checkpoint: Path, target_modules: str) -> set[str]:
    """The layers that have LoRA matrices after PEFT has read our pattern."""
    model = load_model(checkpoint)
    adapted = add_adapter(model, targets=find_targets(model, target_modules), rank=2, alpha=4, dropout=0.0)
    names = {name for name, _ in adapted.named_parameters() if ".lora_" in name}
    return {name.removeprefix("base_model.model.").split(".lora_")[0] for name in names}


def make_adapter(checkpoint: Path, folder: Path, target_modules: str = "all", **settings: Any) -> Path:
    """A saved adapter with a B that is no longer nought."""
    model = load_model(checkpoint)
    torch.manual_seed(0)
    if settings:
        config = LoraConfig(r=4, lora_alpha=6, target_modules=find_targets(model, target_modules), **settings)
        adapted = get_peft_model(model, config)
    else:
        adapted = add_adapter(model, targets=find_targets(model, target_modules), rank=4, alpha=6, dropout=0.1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
        elif "lora_magnitude" in name:
            parameter.data *= torch.linspace(0.7, 1.2, len(parameter))
    folder.mkdir(parents=True)
    if settings:
        adapted.save_pretrained(str(folder))
    else:
        save_adapter(adapted, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On every linear layer of decoder, projector and tower; not to be written to."""
    return make_adapter(tiny_checkpoint, tmp_path_factory.mktemp("adapters") / "all")


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    """Of a made-up image and text."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.cat([torch.full((36,), -200), torch.randint(0, 500, (20,), generator=generator)]).unsqueeze(0)
    result: torch.Tensor = model(input_ids=input_ids, pixel_values=torch.randn(1, 3, 84, 84, generator=generator)).logits
    return result


# Targets


def test_the_default_is_query_key_and_value_of_the_language_model(tiny_checkpoint: Path) -> None:
    expected = {
        f"model.language_model.layers.{layer}.self_attn.{name}_proj" for layer in range(NUM_LAYERS) for name in ("q", "k", "v")
    }
    assert adapted_layers(tiny_checkpoint, "default") == expected


def test_no_module_of_the_tower_is_hit_though_it_has_the_same_names(tiny_checkpoint: Path) -> None:
    assert not [name for name in adapted_layers(tiny_checkpoint, "default") if "vision_tower" in name]
    bare = get_peft_model(load_model(tiny_checkpoint), LoraConfig(target_modules=["q_proj", "k_proj", "v_proj"]))
    assert [name for name, _ in bare.named_parameters() if "lora_" in name and "vision_tower" in name], "the trap is there"


def test_all_is_every_linear_layer_that_is_run_but_the_head(model: nn.Module, tiny_checkpoint: Path) -> None:
    expected = {name for name in linears(model) if not name.startswith(LAST_TOWER_LAYER)} - {"lm_head"}
    assert len(expected) == NUM_LAYERS * 7 + 2 + (NUM_LAYERS - 1) * 6
    assert adapted_layers(tiny_checkpoint, "all") == expected


@pytest.mark.parametrize("target_modules", ["all", ".*", r"model\.vision_tower\..*"])
def test_the_last_layer_of_the_tower_is_never_touched(target_modules: str, tiny_checkpoint: Path) -> None:
    names = adapted_layers(tiny_checkpoint, target_modules)
    assert any(name.startswith("model.vision_tower.encoder.layers.1.") for name in names)
    assert not any(name.startswith(LAST_TOWER_LAYER) for name in names)


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        (r"model\.mm_projector\.0", {"model.mm_projector.0"}),
        (r"lm_head|model\.mm_projector\.[0-9]", {"lm_head", "model.mm_projector.0", "model.mm_projector.3"}),
        (
            r"model\.language_model\.layers\.1\.mlp.*",
            {f"model.language_model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")},
        ),
    ],
)
def test_a_regular_expression_matches_whole_names_of_linear_layers(
    target_modules: str, expected: set[str], tiny_checkpoint: Path
) -> None:
    assert adapted_layers(tiny_checkpoint, target_modules) == expected


@pytest.mark.parametrize(
    "target_modules",
    ["q_proj", "default ", "ALL", r"model\.mm_projector\.1", r"model\.vision_tower\.encoder\.layers\.2\..*", "x"],
)
def test_targets_that_match_nothing_are_an_error_that_shows_names(
    target_modules: str, model: YiVLForConditionalGeneration
) -> None:
    message = (
        rf"target_modules {re.escape(repr(target_modules))} matches no linear layer; it has to match a whole name such as "
        r"model\.\S+ or model\.language_model\.\S+ \(or give: default, all\)"
    )
    with pytest.raises(ConfigurationError, match=message):
        find_targets(model, target_modules)


def test_what_is_no_regular_expression_is_an_error(model: YiVLForConditionalGeneration) -> None:
    with pytest.raises(ConfigurationError, match=r"target_modules '\(' is not a regular expression: missing \)"):
        find_targets(model, "(")


# A new adapter


def test_a_new_adapter_changes_nothing_and_only_it_is_trained(model: nn.Module, tiny_checkpoint: Path) -> None:
    base = load_model(tiny_checkpoint)
    adapted = add_adapter(base, targets=find_targets(base, "all"), rank=2, alpha=4, dropout=0.5)
    assert torch.equal(logits(adapted.eval()), logits(model))
    for name, parameter in adapted.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name


def test_the_adapter_of_a_bfloat16_base_is_float32(tiny_checkpoint: Path) -> None:
    base = load_model(tiny_checkpoint, dtype=torch.bfloat16)
    adapted = add_adapter(base, targets=find_targets(base, "all"), rank=2, alpha=4, dropout=0.0)
    dtypes = {name: parameter.dtype for name, parameter in adapted.named_parameters()}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in dtypes.items() if ".lora_" not in name} == {torch.bfloat16}


# Saving and reading


def test_the_folder_opens_with_plain_peft_and_gives_equal_logits(adapter: Path, model: nn.Module, tiny_checkpoint: Path) -> None:
    plain = PeftModel.from_pretrained(load_model(tiny_checkpoint), str(adapter)).eval()
    ours = load_adapter(load_model(tiny_checkpoint), adapter)
    assert torch.equal(logits(plain), logits(ours))
    assert (logits(ours) - logits(model)).abs().max() > 0.1
    assert not ours.training


def test_saving_leaves_the_model_trainable_and_writes_what_was_trained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_model(tiny_checkpoint)
    adapted = add_adapter(base, targets=find_targets(base, "default"), rank=2, alpha=4, dropout=0.25)
    save_adapter(adapted, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    expected = {"r": 2, "lora_alpha": 4, "lora_dropout": 0.25, "inference_mode": True, "peft_type": "LORA", "bias": "none"}
    assert {key: config[key] for key in expected} == expected
    assert config["base_model_name_or_path"] == str(tiny_checkpoint)
    assert isinstance(config["target_modules"], str), "a list would be in the order of a set"
    assert adapted.peft_config["default"].inference_mode is False
    parameters = {name: value for name, value in adapted.named_parameters() if value.requires_grad}
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert len(saved) == len(parameters) == NUM_LAYERS * 3 * 2
    assert all(torch.equal(value, saved[name.replace(".default", "")]) for name, value in parameters.items())


def edited(adapter: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


NAME = "base_model.model.model.mm_projector.0.lora_A.weight"


@pytest.mark.filterwarnings("ignore:Found missing adapter keys")
def test_missing_and_unexpected_tensors_are_listed(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["base_model.model.model.mm_projector.9.lora_A.weight"] = tensors.pop(NAME)

    folder = edited(adapter, tmp_path / "edited", change)
    with pytest.raises(CheckpointError) as error:
        load_adapter(load_model(tiny_checkpoint), folder)
    assert str(error.value).splitlines() == [
        f"{folder}: 2 tensor(s) of the adapter do not fit the model",
        f"  missing: {NAME}",
        "  unexpected: base_model.model.model.mm_projector.9.lora_A.weight",
    ]


def test_an_adapter_of_another_base_does_not_fit(adapter: Path, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "wider", shape=RandomShape(hidden_size=128))
    with pytest.raises(
        CheckpointError, match=r"this adapter does not fit the model \((.|\n)*size mismatch.*is it the adapter's own base\?"
    ):
        load_adapter(load_model(tmp_path / "wider"), adapter)
    with pytest.raises(
        CheckpointError, match=r"the adapter's tensors for \S+ do not fit the base; is it the adapter's own base\?"
    ):
        merge_tensors(read_tensors(open_checkpoint(tmp_path / "wider")), adapter)


@pytest.mark.parametrize("of_run", [True, False])
def test_a_tuned_model_is_no_adapter_and_its_run_folder_no_model(of_run: bool, tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(tiny_checkpoint)
    folder = tmp_path / "run" if of_run else tmp_path / "run" / "model"
    with pytest.raises(CheckpointError, match=r"there is no adapter here, but a model, .*: give \S+/run/model as --model"):
        read_adapter_config(folder)
    if of_run:
        with pytest.raises(CheckpointError, match=r"run/config.json: file is missing; .*; give \S+/run/model$"):
            open_checkpoint(folder)


def test_a_folder_without_an_adapter_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"adapter_config.json: file is missing; give the folder `adapter` of a training run"
    ):
        load_adapter(load_model(tiny_checkpoint), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 8}')
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: file is missing; it holds the adapter's weights"):
        load_adapter(load_model(tiny_checkpoint), tmp_path)


def test_a_configuration_that_peft_cannot_read_is_refused(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(adapter, tmp_path / "edited", lambda tensors: None)
    change_config(folder, peft_type="NO_SUCH")
    with pytest.raises(CheckpointError, match=r"this adapter does not fit the model"):
        load_adapter(load_model(tiny_checkpoint), folder)


def test_an_adapter_says_on_which_base_it_belongs(adapter: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base, folder = open_checkpoint(tiny_checkpoint), tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    check_base(folder, base, base.digest())  # one of somebody else, which does not say
    (folder / "yivl.json").write_text(json.dumps({"base_digest": base.digest()}))
    check_base(folder, base, base.digest())
    (folder / "yivl.json").write_text(json.dumps({"base_digest": "f" * 64}))
    message = rf"is not the base that {folder} was trained on \(content digest {base.digest()[:12]}, trained on f{{12}}\)"
    with pytest.raises(CheckpointError, match=message):
        check_base(folder, base, base.digest())


# Merging


def merged_weights(checkpoint: Path, adapter: Path) -> dict[str, torch.Tensor]:
    tensors, _ = merge_tensors(read_tensors(open_checkpoint(checkpoint)), adapter)
    return {name: tensor.load() for name, tensor in tensors.items()}


def test_each_weight_is_the_float32_sum_rounded_once(adapter: Path, tiny_checkpoint: Path) -> None:
    """The projector and decoder are stored in bfloat16, the tower in float32."""
    base = {name: tensor.load() for name, tensor in read_tensors(open_checkpoint(tiny_checkpoint)).items()}
    halves, merged = load_file(adapter / "adapter_model.safetensors"), merged_weights(tiny_checkpoint, adapter)
    touched = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in halves}
    dtypes = set()
    for name, weight in base.items():
        module, expected = name.removesuffix(".weight"), weight
        if module in touched:
            a, b = (halves[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
            expected = (weight.float() + (6 / 4) * (b @ a)).to(weight.dtype)
            dtypes.add(weight.dtype)
            assert not torch.equal(merged[name], weight)
        assert merged[name].dtype == weight.dtype
        assert torch.equal(merged[name], expected), name
    assert merged.keys() == base.keys()
    assert dtypes == {torch.bfloat16, torch.float32}
    assert merge_tensors(read_tensors(open_checkpoint(tiny_checkpoint)), adapter)[1] == len(touched) == len(halves) / 2


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_rslora": True}, {"init_lora_weights": "gaussian"}, {"use_dora": True}, {"use_dora": True, "use_rslora": True}],
)
def test_in_float32_peft_merges_to_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = tmp_path / "float32"
    write_random_checkpoint(checkpoint, dtype=torch.float32)
    adapter = make_adapter(checkpoint, tmp_path / "adapter", **settings)
    theirs = PeftModel.from_pretrained(load_model(checkpoint), str(adapter)).merge_and_unload().state_dict()
    ours = merged_weights(checkpoint, adapter)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=1e-6, msg=name)


def test_nothing_is_computed_before_it_is_read(adapter: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda *_: pytest.fail("a weight was merged"))
    tensors, _ = merge_tensors(read_tensors(open_checkpoint(tiny_checkpoint)), adapter)
    tensors["lm_head.weight"].load()


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_bdlora", True), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 4}), ("alpha_pattern", {"q_proj": 4}),
        ("fan_in_fan_out", True), ("layer_replication", [[0, 2]]), ("target_parameters", ["x"]), ("lora_bias", True),
        ("bias", "all"), ("peft_type", "IA3"), ("init_lora_weights", "pissa"), ("init_lora_weights", "olora"),
        ("trainable_token_indices", [1, 2]), ("alora_invocation_tokens", [1]), ("use_qalora", True),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_name(
    name: str, value: Any, adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = edited(adapter, tmp_path / "edited", lambda tensors: None)
    change_config(folder, **{name: value})
    with pytest.raises(
        CheckpointError, match=rf"adapter_config.json: {name} {re.escape(repr(value))} cannot be merged; train with plain"
    ):
        merge_tensors(read_tensors(open_checkpoint(tiny_checkpoint)), folder)


@pytest.mark.filterwarnings("ignore::peft.utils.warning.PeftWarning")
@pytest.mark.parametrize("settings", [{"lora_bias": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_such_adapters_of_peft_are_refused(settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_checkpoint, tmp_path / "adapter", r"model\.mm_projector\.[03]", **settings)
    with pytest.raises(CheckpointError, match=rf"{next(iter(settings))} .* cannot be merged"):
        merge_tensors(read_tensors(open_checkpoint(tiny_checkpoint)), folder)


def test_a_tensor_that_belongs_to_no_pair_is_never_left_out_silently(
    adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = read_tensors(open_checkpoint(tiny_checkpoint))
    alone = edited(adapter, tmp_path / "alone", lambda tensors: tensors.pop(NAME))
    with pytest.raises(CheckpointError, match=r"the adapter's tensors for model.mm_projector.0 do not fit the base"):
        merge_tensors(base, alone)
    bias = NAME.replace("lora_A.weight", "lora_B.bias")
    more = edited(adapter, tmp_path / "more", lambda tensors: tensors.update({bias: torch.ones(64)}))
    with pytest.raises(CheckpointError, match=rf"{bias} is no part of a plain LoRA and cannot be merged"):
        merge_tensors(base, more)


def test_a_dora_without_the_lengths_of_a_layer_is_refused_and_lengths_without_dora(
    adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base = read_tensors(open_checkpoint(tiny_checkpoint))
    dora = make_adapter(tiny_checkpoint, tmp_path / "dora", use_dora=True)
    length = NAME.replace("lora_A.weight", "lora_magnitude_vector")
    changes: list[Callable[[dict[str, torch.Tensor]], object]] = [
        lambda tensors: tensors.pop(length),
        lambda tensors: tensors.update({length: torch.ones(63)}),
        lambda tensors: [tensors.pop(NAME), tensors.pop(NAME.replace("lora_A", "lora_B"))],
    ]
    for number, change in enumerate(changes):
        with pytest.raises(CheckpointError, match=r"the adapter's tensors for model.mm_projector.0 do not fit the base"):
            merge_tensors(base, edited(dora, tmp_path / str(number), change))
    more = edited(adapter, tmp_path / "more", lambda tensors: tensors.update({length: torch.ones(64)}))
    with pytest.raises(CheckpointError, match=rf"{length} is no part of a plain LoRA and cannot be merged"):
        merge_tensors(base, more)


@pytest.mark.parametrize("kind", ["use_rslora", "use_dora"])
def test_the_kind_of_an_adapter_is_in_its_folder(kind: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    base = load_model(tiny_checkpoint)
    save_adapter(add_adapter(base, targets=find_targets(base, "default"), rank=2, alpha=4, dropout=0.0, **{kind: True}), tmp_path)
    config = read_adapter_config(tmp_path)
    assert [config[name] for name in ("use_rslora", "use_dora")] == [kind == "use_rslora", kind == "use_dora"]
    assert is_plain_adapter(tmp_path) == (kind == "use_rslora")
    assert torch.equal(logits(load_adapter(load_model(tiny_checkpoint), tmp_path)), logits(base))
