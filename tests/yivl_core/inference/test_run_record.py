"""What the manifest of predictions holds: anything that decides an answer, so that any change of it shows."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.model.files import adapter_digest, checkpoint_digest
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest, write_manifest
from yivl_core.outputs.shards import read_plan
from yivl_core.processing import prompt
from yivl_core.processing.prompt import PROMPT_VERSION, describe_prompt
from yivl_core.training.configuration import TrainingSummary

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Inputs:
    """Copies of all that a run reads, which may be changed."""

    model: Path
    adapter: Path
    data: Path

    def infer(self, output: str, **settings: Any) -> Manifest:
        config = InferenceConfig(
            model=str(self.model), adapter=str(self.adapter), dataset=str(self.data / "rows.jsonl"), limit=3, max_new_tokens=2,
            output=str(self.data.parent / output), **settings,
        )  # fmt: skip
        infer_shards(config)
        manifest = read_manifest(f"{config.output}/{MANIFEST_NAME}")
        assert manifest is not None
        return manifest


@pytest.fixture
def inputs(tiny_checkpoint: Path, trained: TrainingSummary, dataset: Path, tmp_path: Path) -> Inputs:
    made = Inputs(model=tmp_path / "model", adapter=tmp_path / "adapter", data=tmp_path / "data")
    shutil.copytree(tiny_checkpoint, made.model)
    shutil.copytree(trained.adapter, made.adapter)
    (made.adapter / "yivl.json").unlink()  # it says on which base it belongs, which these tests change
    shutil.copytree(dataset.parent, made.data)
    return made


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def other_letter(path: Path) -> None:
    path.write_text(path.read_text().replace("What is it? (2)", "What is at? (2)"))


CHANGES: dict[str, tuple[Callable[[Inputs], Any], str]] = {
    "data": (lambda inputs: other_letter(inputs.data / "rows.jsonl"), "data.digest"),
    "image": (lambda inputs: append(inputs.data / "2-1.png"), "data.images.digest"),
    "weight": (lambda inputs: flip_last_bit(inputs.model / "model.safetensors"), "model.files.model.safetensors"),
    "weight of the tower": (
        lambda inputs: flip_last_bit(inputs.model / "vit/clip-vit-random/model.safetensors"),
        "model.files.vit/clip-vit-random/model.safetensors",
    ),
    "config": (lambda inputs: append(inputs.model / "config.json"), "model.files.config.json"),
    "tokenizer": (lambda inputs: append(inputs.model / "tokenizer_config.json"), "model.files.tokenizer_config.json"),
    "processor": (
        lambda inputs: append(inputs.model / "vit/clip-vit-random/preprocessor_config.json"),
        "model.files.vit/clip-vit-random/preprocessor_config.json",
    ),
    "adapter": (lambda inputs: flip_last_bit(inputs.adapter / "adapter_model.safetensors"), "adapter.digest"),
    "adapter's config": (lambda inputs: append(inputs.adapter / "adapter_config.json"), "adapter.files.adapter_config.json"),
}


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key in value:
        found |= leaves(value[key], f"{name}.{key}" if name else key)
    return found


@pytest.mark.parametrize("what", CHANGES)
def test_any_other_byte_of_what_decides_changes_the_manifest(what: str, inputs: Inputs) -> None:
    before = inputs.infer("before")
    assert inputs.infer("again")["digest"] == before["digest"]
    change, leaf = CHANGES[what]
    change(inputs)
    now = inputs.infer("now")
    assert now["digest"] != before["digest"]
    assert leaves(now)[leaf] != leaves(before)[leaf]


def test_any_other_character_of_the_prompt_changes_the_manifest(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs.infer("before")
    assert before["prompt"] == describe_prompt()
    monkeypatch.setattr(prompt, "SYSTEM_PROMPT", prompt.SYSTEM_PROMPT.replace("polite", "palite"))
    now = inputs.infer("now")
    assert now["digest"] != before["digest"]
    assert now["prompt"]["system_sha256"] == sha256(prompt.SYSTEM_PROMPT.encode()) != before["prompt"]["system_sha256"]


def test_digests_are_explained_by_the_files_and_images_behind_them(inputs: Inputs) -> None:
    (inputs.data / "1-0.png").unlink()
    manifest = inputs.infer("told")
    assert manifest["model"]["digest"] == checkpoint_digest(inputs.model)
    assert manifest["model"]["files"]["tokenizer.model"] == sha256((inputs.model / "tokenizer.model").read_bytes())
    assert manifest["adapter"]["digest"] == adapter_digest(inputs.adapter)
    weights = (inputs.adapter / "adapter_model.safetensors").read_bytes()
    assert manifest["adapter"]["files"]["adapter_model.safetensors"] == sha256(weights)
    images = [sha256((inputs.data / name).read_bytes()) for name in ("0-0.png", "2-0.png", "2-1.png")]
    listed = "\n".join([images[0], "-", *images[1:], ""])
    assert manifest["data"]["images"] == {"num": 4, "num_unknown": 1, "digest": sha256(listed.encode())}
    assert {"gpu", "num_gpus", "cuda", "driver", "image_libraries", "packages", "python", "platform"} == set(
        manifest["environment"]
    )
    assert {"digest", "version", "git_commit", "is_changed"} == set(manifest["code"])


def test_every_file_of_the_model_is_read_once(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr("yivl_core.digests.digest_file", lambda path: read.append(path) or sha256(path.read_bytes()))
    inputs.infer("told")
    of_model = [path for path in read if path.is_relative_to(inputs.model) or path.is_relative_to(inputs.adapter)]
    assert len(of_model) == len(set(of_model)) == 10


def test_the_plan_holds_no_more_than_it_did_so_that_earlier_runs_are_gone_on_with(inputs: Inputs) -> None:
    manifest = inputs.infer("told")
    fingerprint = read_plan(str(inputs.data.parent / "told")).fingerprint
    assert fingerprint == {
        "data": {"prompt": None, "limit": 3, "digest": manifest["data"]["digest"]},
        "model": {"digest": checkpoint_digest(inputs.model)},
        "adapter": {"digest": adapter_digest(inputs.adapter)},
        "prompt": {"version": PROMPT_VERSION},
        "decoding": manifest["decoding"],
        "numerics": manifest["numerics"],
    }


def test_a_manifest_of_an_earlier_version_is_left_as_it_is(inputs: Inputs) -> None:
    manifest = inputs.infer("told")
    path = inputs.data.parent / "told" / MANIFEST_NAME
    earlier = {key: manifest[key] for key in manifest if key not in ("digest", "times")}
    earlier |= {"model": {"digest": manifest["model"]["digest"]}, "prompt": {"version": PROMPT_VERSION}}
    write_manifest(str(path), earlier, manifest["times"])
    written = path.read_bytes()
    assert inputs.infer("told", resume=True)["model"] == {"digest": manifest["model"]["digest"]}
    assert path.read_bytes() == written
    assert json.loads(written)["prompt"] == {"version": PROMPT_VERSION}
