"""What a content key depends on. The source's digest is held fixed, so that only the tested part varies."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tasks import caching
from tasks.inference import inference_key
from tasks.merging import merge_key
from tasks.training import training_key
from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import CheckpointError, ConfigurationError, DatasetError
from yivl_core.export.configuration import MergeConfig
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.settings import narrow
from yivl_core.training.configuration import TrainingSettings


@pytest.fixture(autouse=True)
def one_version_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "code_digest", lambda: "the source")


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    return validated(tmp_path / "first", colour="white")


def validated(folder: Path, colour: str) -> str:
    folder.mkdir()
    Image.new("RGB", (4, 4), colour).save(folder / "a.png")
    (folder / "data.jsonl").write_text(json.dumps({"query": "What?", "response": "This.", "images": ["a.png"]}) + "\n")
    return validate_dataset(ValidationConfig(dataset=(str(folder / "data.jsonl"),), output=str(folder / "validated"))).output


def changed_weights(checkpoint: Path, folder: Path) -> str:
    shutil.copytree(checkpoint, folder)
    tokenizer = folder / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    return str(folder)


def test_a_training_is_known_by_content_and_settings(tiny_checkpoint, dataset, tmp_path):
    model, settings = str(tiny_checkpoint), TrainingSettings()
    key = training_key(settings, model, dataset, None)
    same = training_key(
        TrainingSettings(), str(shutil.copytree(model, tmp_path / "copy")), validated(tmp_path / "b", "white"), None
    )
    others = [
        training_key(TrainingSettings(lora_rank=4), model, dataset, None),
        training_key(settings, changed_weights(tiny_checkpoint, tmp_path / "changed"), dataset, None),
        training_key(settings, model, validated(tmp_path / "c", "black"), None),
        training_key(settings, model, dataset, dataset),
    ]
    assert same == key
    assert len({key, *others}) == 5
    cached = {training_key(TrainingSettings(feature_cache=place), model, dataset, None) for place in ("here", "there")}
    assert len(cached) == 1
    assert cached.isdisjoint({key})


def test_the_source_of_the_core_is_part_of_every_key(monkeypatch):
    before = caching.content_key(settings=1)
    monkeypatch.setattr(caching, "code_digest", lambda: "another source")
    assert caching.content_key(settings=1) != before


def test_predictions_are_known_by_content_and_settings(tiny_checkpoint, dataset, tmp_path):
    config = InferenceConfig(model=str(tiny_checkpoint), dataset=dataset, output="here")
    key = inference_key(config)
    how = {"output": "there", "resume": True, "cache": "there", "offline": True, "fetch": {"num_tries": 1}}
    same = narrow(config, InferenceConfig, dataset=validated(tmp_path / "b", "white"), **how)
    others = [
        {"max_new_tokens": 3},
        {"limit": 1},
        {"shard_size": 7},
        {"allow_url": ("https://",)},
        {"model": changed_weights(tiny_checkpoint, tmp_path / "changed")},
        {"dataset": validated(tmp_path / "c", "black")},
    ]
    keys = {inference_key(narrow(config, InferenceConfig, **changes)) for changes in others}
    assert inference_key(same) == key
    assert len({key, *keys}) == 7
    assert inference_key(config, data="known otherwise") not in {key, *keys}


def test_of_held_out_rows_the_limit_counts_too(tiny_checkpoint, dataset, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "merged")
    (tmp_path / "merged" / "val.jsonl").write_text(2 * Path(dataset, "records.jsonl").read_text())
    config = InferenceConfig(model=str(tmp_path / "merged"), load_dataset_config=True, output="here")
    keys = {inference_key(narrow(config, InferenceConfig, **changes)) for changes in ({}, {"limit": 1})}
    assert len(keys) == 2
    (tmp_path / "merged" / "val.jsonl").unlink()
    with pytest.raises(ConfigurationError, match=r"has no val.jsonl, .*; give --dataset"):
        inference_key(config)


def test_a_merge_is_known_by_its_base_also_where_the_adapter_names_it(tiny_checkpoint, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_checkpoint, base)
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"...")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    config = MergeConfig(adapter=str(adapter), output="here")
    key = merge_key(config)
    assert merge_key(config.model_copy(update={"model": str(tiny_checkpoint), "output": "there"})) == key
    shutil.rmtree(base)
    with pytest.raises(ConfigurationError, match=r"was trained on .*base, which is not there; give the base as --model"):
        merge_key(config)
    changed_weights(tiny_checkpoint, base)
    assert merge_key(config) != key


def test_a_missing_part_is_named_before_any_work(tiny_checkpoint, dataset):
    with pytest.raises(CheckpointError, match="there is no such folder"):
        training_key(TrainingSettings(), "lost", dataset, None)
    with pytest.raises(DatasetError, match="yivl validate"):
        training_key(TrainingSettings(), str(tiny_checkpoint), "lost", None)
    with pytest.raises(CheckpointError, match="adapter_config"):
        merge_key(MergeConfig(adapter="lost", output="o"))
