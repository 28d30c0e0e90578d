import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yivl_core.errors import CheckpointError
from yivl_core.model.files import checkpoint_digest, open_checkpoint
from yivl_core.model.random_checkpoint import RandomShape, write_random_checkpoint
from yivl_core.model.weights import load_model, main_name, our_name, read_tensors, write_checkpoint


def copy(source: Path, target: Path) -> Path:
    """A copy that may be written to."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in [target, *target.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    paths = [*folder.glob("*.safetensors"), *folder.glob("vit/*/*.safetensors")]
    return {
        f"{path.parent.name if path.parent != folder else 'main'}:{name}": value
        for path in paths
        for name, value in load_file(path).items()
    }


def edit(path: Path, change: object) -> None:
    tensors = load_file(path)
    change(tensors)  # type: ignore[operator]
    save_file(tensors, path, metadata={"format": "pt"})


def test_both_published_forms_give_the_same_model(reference: Path) -> None:
    one, other = (load_model(reference / name).state_dict() for name in ("checkpoint", "checkpoint_bin"))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_every_name_goes_both_ways(reference: Path) -> None:
    index = json.loads((reference / "checkpoint" / "model.safetensors.index.json").read_text())
    published = set(index["weight_map"])
    ours = {our_name(name) for name in published}
    assert ours == set(load_model(reference / "checkpoint").state_dict())
    assert {main_name(name) for name in ours if name} == published


def test_the_tower_of_the_vit_folder_wins(reference: Path) -> None:
    vit = load_file(next((reference / "checkpoint" / "vit").glob("*/model.safetensors")))
    loaded = load_model(reference / "checkpoint").model.vision_tower.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("vision_model.")], value) for name, value in vit.items())


def test_without_weights_in_the_vit_folder_the_main_copy_is_used(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")
    next(folder.glob("vit/*/model.safetensors")).unlink()
    main = {name: value for path in folder.glob("*.safetensors") for name, value in load_file(path).items()}
    loaded = load_model(folder).state_dict()
    name = "model.vision_tower.embeddings.position_embedding.weight"
    assert torch.equal(loaded[name], main[main_name(name)].float())


def test_tensors_go_where_their_names_say(reference: Path) -> None:
    def place(name: str) -> torch.device:
        return torch.device("meta" if ".layers.1." in name else "cpu")

    expected = load_model(reference / "checkpoint").state_dict()
    model = load_model(reference / "checkpoint", device=place)
    elsewhere = [name for name, value in model.state_dict().items() if value.is_meta]
    assert elsewhere == [name for name in expected if ".layers.1." in name]
    assert all(value.is_meta or value.equal(expected[name]) for name, value in model.state_dict().items())


def test_written_checkpoints_hold_the_same_tensors_and_files(reference: Path, tmp_path: Path) -> None:
    source = open_checkpoint(reference / "checkpoint")
    folder = tmp_path / "written"
    folder.mkdir()
    write_checkpoint(folder, source, read_tensors(source), max_shard_bytes=300_000)
    before, after = all_tensors(source.folder), all_tensors(folder)
    assert len(list(folder.glob("model-0000?-of-0000?.safetensors"))) > 2
    assert before.keys() == after.keys()
    for name, value in after.items():
        # The main copy of the tower is what rounding the tower of vit/ gives; the fixture's own copy is another one.
        if "vision_tower" not in name:
            assert torch.equal(value, before[name]), name
        assert value.dtype == before[name].dtype, name
    assert torch.equal(
        after["main:" + main_name("model.vision_tower.pre_layrnorm.weight")],
        next(value for name, value in before.items() if name.endswith(":vision_model.pre_layrnorm.weight")).bfloat16(),
    )
    for name in (
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "generation_config.json",
    ):
        assert (folder / name).read_text(errors="replace").strip() == (source.folder / name).read_text(
            errors="replace"
        ).strip(), name
    assert (folder / "vit" / source.vision_folder.name / "preprocessor_config.json").is_file()
    one, other = (load_model(checkpoint).state_dict() for checkpoint in (source, folder))
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_missing_unexpected_and_misshapen_tensors_are_all_listed(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    names = [name for name in load_file(shard) if "layers" in name and "vision" not in name][:2]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[names[0]]
        tensors[names[1]] = torch.zeros(3, 5)
        tensors["model.extra.weight"] = torch.zeros(1)

    edit(shard, spoil)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    message = str(caught.value)
    assert f"missing: {our_name(names[0])}" in message
    assert f"misshapen: {names[1]} is [3, 5]" in message
    assert "unexpected: model.extra.weight" in message
    assert "3 tensor(s)" in message


def test_a_misshapen_tower_is_an_error_and_not_initialised_anew(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")

    def shrink(tensors: dict[str, torch.Tensor]) -> None:
        name = "vision_model.embeddings.position_embedding.weight"
        tensors[name] = tensors[name][:-1].clone()

    edit(next(folder.glob("vit/*/model.safetensors")), shrink)
    with pytest.raises(CheckpointError, match=r"misshapen: vision_model.embeddings.position_embedding.weight is \[36, 48\]"):
        load_model(folder)


def test_a_pickle_is_never_executed(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint_bin", tmp_path / "copy")
    trace = tmp_path / "executed"

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {trace}",)

    shard = sorted(folder.glob("pytorch_model-*.bin"))[0]
    torch.save({"model.norm.weight": Evil()}, shard, pickle_module=pickle)
    with pytest.raises(CheckpointError, match="cannot be read as plain tensors"):
        load_model(folder)
    assert not trace.exists()


@pytest.mark.parametrize("cut", [10, 1000, 400_000])
def test_a_cut_off_weight_file_is_named(cut: int, reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=rf"{shard.name}: damaged weight file"):
        load_model(folder)


def test_a_hub_cache_folder_is_resolved_to_its_snapshot(reference: Path, tmp_path: Path) -> None:
    """The hub's cache keeps files as blobs, and snapshots as links to them."""
    cache = tmp_path / "models--01-ai--Yi-VL-6B"
    snapshot = cache / "snapshots" / "abc123"
    for path in (reference / "checkpoint").rglob("*"):
        if path.is_file():
            blob = cache / "blobs" / path.name
            blob = blob if not blob.exists() else blob.with_suffix(".2")
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, blob)
            link = snapshot / path.relative_to(reference / "checkpoint")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc123\n")
    assert checkpoint_digest(cache) == checkpoint_digest(reference / "checkpoint") == checkpoint_digest(snapshot)
    assert load_model(cache).lm_head.weight.shape == (1280, 64)


@pytest.mark.parametrize("commit", ["../../base", "..", ".", "", "/", "a/b", "abc123\n../../base", "abc\0"])
def test_a_hub_cache_leads_to_none_but_its_own_snapshots(commit: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--01-ai--Yi-VL-6B"
    (cache / "snapshots" / "abc123").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    with pytest.raises(CheckpointError, match=r"refs/main: holds '.*' where the name of a commit belongs; correct it, or give"):
        checkpoint_digest(cache)


def test_a_home_folder_of_nobody_is_no_folder() -> None:
    with pytest.raises(CheckpointError, match=r"^~nobodyx/y: there is no such folder; give the folder that holds config.json"):
        checkpoint_digest("~nobodyx/y")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder / "vit"),
            "vision tower './vit/clip-vit-H-14-laion2B-s32B-b79K-yi-vl-6B-448' of config.json is missing",
        ),
        (lambda folder: (folder / "config.json").unlink(), "config.json: file is missing"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a JSON list where an object belongs"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "no Yi-VL checkpoint"),
        (
            lambda folder: (folder / "model-00002-of-00002.safetensors").unlink(),
            "model-00002-of-00002.safetensors: file is missing",
        ),
        (lambda folder: next(folder.glob("vit/*/preprocessor_config.json")).unlink(), "it says how images are prepared"),
    ],
)
def test_what_is_missing_in_a_folder_is_named(spoil: object, message: str, reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert message in str(caught.value)


def test_a_tower_path_of_another_machine_counts_by_its_name(reference: Path, tmp_path: Path) -> None:
    folder = copy(reference / "checkpoint", tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config["mm_vision_tower"] = "/mnt/somewhere" + config["mm_vision_tower"].removeprefix(".")
    (folder / "config.json").write_text(json.dumps(config))
    assert open_checkpoint(folder).vision_folder == folder / "vit" / Path(config["mm_vision_tower"]).name


def test_the_digest_is_of_the_content(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = copy(tiny_checkpoint, tmp_path / "copy")
    assert checkpoint_digest(folder) == checkpoint_digest(tiny_checkpoint)
    edit(next(folder.glob("vit/*/model.safetensors")), lambda tensors: tensors["vision_model.pre_layrnorm.bias"].add_(1))
    assert checkpoint_digest(folder) != checkpoint_digest(tiny_checkpoint)


def test_a_random_checkpoint_is_the_same_again(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        write_random_checkpoint(tmp_path / name, seed=seed)
    one, two, three = (checkpoint_digest(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two != three


@pytest.mark.slow
def test_loading_needs_little_more_memory_than_the_model(tmp_path: Path) -> None:
    shape = RandomShape(
        hidden_size=1024, intermediate_size=4096, num_layers=6, num_heads=64, num_key_value_heads=8, vocab_size=512
    )
    write_random_checkpoint(tmp_path / "large", shape=shape, dtype=torch.float32)
    script = """
        import sys, threading, time
        from pathlib import Path
        from yivl_core.model.weights import load_model

        def anonymous_bytes():
            line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
            return int(line.split()[1]) * 1024

        peak, done, before = 0, False, anonymous_bytes()
        def watch():
            global peak
            while not done:
                peak = max(peak, anonymous_bytes())
                time.sleep(0.001)
        thread = threading.Thread(target=watch)
        thread.start()
        model = load_model(sys.argv[1])
        done = True
        thread.join()
        print(peak - before, sum(parameter.numel() * 4 for parameter in model.parameters()))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "large")], capture_output=True, text=True, check=True
    )
    peak_bytes, model_bytes = map(int, done.stdout.split())
    assert model_bytes > 300_000_000
    assert peak_bytes < 1.3 * model_bytes
