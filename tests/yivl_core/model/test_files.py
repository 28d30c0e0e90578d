"""What a checkpoint and an adapter hold, file by file."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from yivl_core.model.files import adapter_digest, checkpoint_digest, digested_adapter, open_checkpoint
from yivl_core.training.configuration import TrainingSummary

DECIDING = [
    "added_tokens.json", "config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json",
    "vit/clip-vit-random/config.json", "vit/clip-vit-random/model.safetensors", "vit/clip-vit-random/preprocessor_config.json",
]  # fmt: skip


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_checkpoint_tells_the_sha256_of_each_file_that_decides(tiny_checkpoint: Path) -> None:
    digested = open_checkpoint(tiny_checkpoint).digested()
    assert digested.files == {name: sha256(tiny_checkpoint / name) for name in DECIDING}
    assert digested.digest == checkpoint_digest(tiny_checkpoint)
    pairs = json.dumps([[name, digested.files[name]] for name in DECIDING], separators=(",", ":"))
    assert digested.digest == hashlib.sha256(pairs.encode()).hexdigest(), "as earlier versions gave it, which runs hold"


@pytest.mark.parametrize("name", DECIDING)
def test_any_byte_of_a_file_changes_its_digest_and_that_of_the_whole(name: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = open_checkpoint(tiny_checkpoint).digested()
    copy = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, copy)
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    now = open_checkpoint(copy).digested()
    assert now.digest != before.digest
    assert {other for other in DECIDING if now.files[other] != before.files[other]} == {name}


def test_an_adapter_tells_the_sha256_of_its_files(trained: TrainingSummary) -> None:
    folder = Path(trained.adapter)
    digested = digested_adapter(folder)
    assert digested.files == {name: sha256(folder / name) for name in ("adapter_config.json", "adapter_model.safetensors")}
    assert digested.digest == adapter_digest(folder) == trained.result_digest


def test_the_place_of_an_adapters_base_changes_a_file_and_not_what_it_computes(trained: TrainingSummary, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(trained.adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/elsewhere"}))
    before, now = digested_adapter(trained.adapter), digested_adapter(folder)
    assert now.digest == before.digest
    assert {name for name in now.files if now.files[name] != before.files[name]} == {"adapter_config.json"}
