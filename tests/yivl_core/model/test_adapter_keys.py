"""Broken adapter_config.json files: named with key and value, or harmless; and those of plain PEFT go on being read."""

import contextlib
import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
from peft import LoraConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

from yivl_core.errors import CheckpointError
from yivl_core.model.adapters import add_adapter, find_targets, load_adapter, merge_tensors, save_adapter
from yivl_core.model.files import adapter_digest, open_checkpoint, read_adapter_config
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model, read_tensors

pytestmark = pytest.mark.filterwarnings("ignore")  # what PEFT thinks of broken settings
KEYS = [field.name for field in dataclasses.fields(LoraConfig)]
VALUES = [None, True, -1, 1.5, "[", [1.5], {"[": 4}]
GONE = object()


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> YiVLForConditionalGeneration:
    """Not to be changed."""
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def adapter(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On one layer; not to be written to."""
    folder = tmp_path_factory.mktemp("adapters") / "one"
    model = load_model(tiny_checkpoint)
    adapted = add_adapter(model, targets=find_targets(model, r"model\.mm_projector\.0"), rank=4, alpha=8, dropout=0.0)
    folder.mkdir()
    save_adapter(adapted, folder)
    return folder


def broken(adapter: Path, folder: Path, key: str, value: Any) -> Path:
    if not folder.exists():
        shutil.copytree(adapter, folder)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config[key] = value
    if value is GONE:
        del config[key]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("r", GONE, "lacks r; correct it"),
        ("lora_alpha", GONE, "lacks lora_alpha; correct it"),
        ("peft_type", GONE, "lacks peft_type; correct it"),
        ("peft_type", None, "peft_type is None; it should be a valid string"),
        ("r", 0, "r is 0; it should be greater than or equal to 1"),
        ("r", "8", "r is '8'; it should be a valid integer"),
        ("r", True, "r is True; it should be a valid integer"),
        ("lora_alpha", None, "lora_alpha is None; it should be a valid number"),
        ("lora_alpha", 10**400, "lora_alpha is 1000000000"),
        ("lora_alpha", float("inf"), "lora_alpha is inf; it should be"),
        ("loftq_config", {"x": float("nan")}, "loftq_config is {'x': nan}; it should hold finite numbers"),
        ("base_model_name_or_path", 5, "base_model_name_or_path is 5; it should be a valid string"),
        ("base_model_name_or_path", "\ud800", "base_model_name_or_path is '\\ud800'; it should"),
        ("target_modules", "[", "target_modules.* is '['; it should be a regular expression (unterminated character set"),
        ("target_modules", {"a": 1}, "target_modules.* is {'a': 1}; it should be a valid string"),
        ("target_modules", "a{99999999999999}", "target_modules.* is 'a{99999999999999}'; it should be a regular expression"),
        ("megatron_config", {}, "megatron_config is {}; it should be None"),
        ("rank_pattern", [1], "rank_pattern is [1]; it should be a valid dictionary"),
        ("init_lora_weights", [1], "init_lora_weights.* is [1]; it should be"),
        ("bias", [1], "bias is [1]; it should be a valid string"),
        ("use_rslora", "no", "use_rslora is 'no'; it should be a valid boolean"),
    ],
)
def test_a_broken_setting_is_named_with_file_key_and_value(
    key: str, value: Any, message: str, adapter: Path, tmp_path: Path
) -> None:
    folder = broken(adapter, tmp_path / "adapter", key, value)
    expected = re.escape(f"{folder / 'adapter_config.json'}: {message}").replace(r"\.\*", ".*")
    with pytest.raises(CheckpointError, match=expected):
        adapter_digest(folder)
    with pytest.raises(CheckpointError, match=expected):
        read_adapter_config(folder)


@pytest.mark.parametrize("key", KEYS)
def test_no_value_of_any_setting_ends_in_another_error(
    key: str, adapter: Path, model: YiVLForConditionalGeneration, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tensors = read_tensors(open_checkpoint(tiny_checkpoint))
    for value in (GONE, *VALUES):
        folder = broken(adapter, tmp_path / "adapter", key, value)
        try:
            adapter_digest(folder)
        except CheckpointError:
            continue  # read in the same way by the others
        with contextlib.suppress(CheckpointError):
            merged, _ = merge_tensors(tensors, folder)
            merged["model.mm_projector.0.weight"].load()
        with contextlib.suppress(CheckpointError):
            assert isinstance(load_adapter(copy.deepcopy(model), folder), PeftModel)


def other_kinds() -> list[str]:
    return sorted(kind.value for kind in PEFT_TYPE_TO_CONFIG_MAPPING if kind is not PeftType.LORA)


@pytest.mark.parametrize("kind", other_kinds())
def test_adapters_of_another_kind_are_refused_by_its_name(
    kind: str, adapter: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """With the settings that the kind's own configuration class writes where it can be made without any."""
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    with contextlib.suppress(TypeError, ValueError, AssertionError):
        PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]().save_pretrained(str(folder))
    if read_adapter_config(folder)["peft_type"] == "LORA":
        broken(adapter, folder, "peft_type", kind)
    assert len(adapter_digest(folder)) == 64
    with pytest.raises(CheckpointError, match=rf"adapter_config.json: .*peft_type '{kind}'.* cannot be merged"):
        merge_tensors(read_tensors(open_checkpoint(tiny_checkpoint)), folder)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": ["mm_projector.0", "q_proj"], "exclude_modules": ["k_proj"]},
        {"rank_pattern": {r"q_proj": 2}, "alpha_pattern": {r"q_proj": 3}},
        {"modules_to_save": ["lm_head"]},
        {"init_lora_weights": "gaussian", "use_rslora": True, "lora_dropout": 1.0},
    ],
)
def test_what_plain_peft_writes_is_read(settings: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain: dict[str, Any] = {"r": 4, "target_modules": r"model\.mm_projector\.0"}
    config = LoraConfig(**(plain | settings))
    adapted = peft.get_peft_model(load_model(tiny_checkpoint), config)
    adapted.save_pretrained(str(tmp_path))
    assert len(adapter_digest(tmp_path)) == 64
    assert read_adapter_config(tmp_path)["r"] == 4
    assert isinstance(load_adapter(load_model(tiny_checkpoint), tmp_path), PeftModel)
