"""Merging: the files hold the sum, the sum computes what base + adapter do, and nothing else is ever published."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from yivl_core.errors import BusyError, CheckpointError, ConfigurationError, OutputError, StorageError
from yivl_core.export.configuration import MergeConfig, MergeSummary
from yivl_core.export.merge import merge_adapter
from yivl_core.model.adapters import add_adapter, find_targets, load_adapter, merge_tensors, save_adapter
from yivl_core.model.files import CheckpointFiles, checkpoint_digest, open_checkpoint, read_about
from yivl_core.model.random_checkpoint import write_random_checkpoint
from yivl_core.model.tensors import LazyTensor, lazy
from yivl_core.model.weights import load_model, read_tensors, write_checkpoint
from yivl_core.progress import Progress
from yivl_core.training.configuration import TrainingSummary

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21
TOWER = "model.vision_tower.vision_tower."  # before a tensor's name in vit/


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def merged(trained: TrainingSummary, tmp_path_factory: pytest.TempPathFactory) -> MergeSummary:
    """Not to be written to."""
    return merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path_factory.mktemp("merged") / "model")))


def make_adapter(checkpoint: Path, folder: Path, target_modules: str = "all", std: float = 0.05, **kind: bool) -> Path:
    model = load_model(checkpoint)
    torch.manual_seed(0)
    adapted = add_adapter(model, targets=find_targets(model, target_modules), rank=4, alpha=8, dropout=0.1, **kind)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=std)
        elif "lora_magnitude" in name:
            parameter.data *= torch.linspace(0.7, 1.2, len(parameter))
    folder.mkdir()
    save_adapter(adapted, folder)
    return folder


@torch.no_grad()
def logits(model: nn.Module, seed: int = 3) -> torch.Tensor:
    """Of two made-up images with text around them; not the probe of the merge."""
    generator = torch.Generator().manual_seed(seed)
    pieces = [torch.randint(0, 500, (length,), generator=generator) for length in (9, 14, 30)]
    image = torch.full((36,), -200)
    input_ids = torch.cat([pieces[0], image, pieces[1], image, pieces[2]]).unsqueeze(0)
    result: torch.Tensor = model(input_ids=input_ids, pixel_values=torch.randn(2, 3, 84, 84, generator=generator)).logits
    return result


def main_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return {name: value for path in Path(folder).glob("*.safetensors") for name, value in load_file(path).items()}


def tower_tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return {name: value for path in Path(folder).glob("vit/*/*.safetensors") for name, value in load_file(path).items()}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def modified_times(folder: str | Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [Path(folder), *Path(folder).rglob("*")]}


# What is written


def test_the_files_hold_the_float32_sum_rounded_once(
    merged: MergeSummary, trained: TrainingSummary, tiny_checkpoint: Path
) -> None:
    halves = load_file(Path(trained.adapter) / "adapter_model.safetensors")
    config = json.loads((Path(trained.adapter) / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    written, base = main_tensors(merged.output) | tower_tensors(merged.output), main_tensors(tiny_checkpoint)
    base |= tower_tensors(tiny_checkpoint)
    places = {
        "model.language_model.": "model.",
        "model.vision_tower.": "vision_model.",
        "model.mm_projector.": "model.mm_projector.",
    }
    modules = {name.removeprefix("base_model.model.").split(".lora_")[0] for name in halves}
    expected = dict(base)
    for module in modules:
        prefix = next(ours for ours in places if module.startswith(ours))
        name = places[prefix] + module.removeprefix(prefix) + ".weight"
        a, b = (halves[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        expected[name] = (base[name].float() + scale * (b @ a)).to(base[name].dtype)
        assert not torch.equal(expected[name], base[name]), name
    assert written.keys() == base.keys()
    for name, value in written.items():
        if not name.startswith(TOWER):
            assert value.dtype == base[name].dtype, name
            assert torch.equal(value, expected[name]), name
    assert merged.num_merged == len(modules)


def test_both_copies_of_the_tower_are_tuned(merged: MergeSummary, tiny_checkpoint: Path) -> None:
    main, tower, before = main_tensors(merged.output), tower_tensors(merged.output), tower_tensors(tiny_checkpoint)
    assert {name for name in main if name.startswith(TOWER)} == {TOWER + name for name in tower}
    assert {value.dtype for value in tower.values()} == {torch.float32}
    for name, value in tower.items():
        assert torch.equal(main[TOWER + name], value.to(torch.bfloat16)), name
    changed = {name for name, value in tower.items() if not torch.equal(value, before[name])}
    expected = {name for name in before if re.search(r"layers\.[01]\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])\.weight", name)}
    assert changed == expected
    assert len(changed) == 12


def test_merged_and_unmerged_compute_the_same_after_reading_back(
    merged: MergeSummary, trained: TrainingSummary, tiny_checkpoint: Path
) -> None:
    base = logits(load_model(tiny_checkpoint))
    adapted = logits(PeftModel.from_pretrained(load_model(tiny_checkpoint), trained.adapter).eval())
    largest = adapted.abs().max()
    assert (adapted - base).abs().max() > 0.3 * largest, "the adapter does something"
    assert (logits(load_model(merged.output)) - adapted).abs().max() < 0.005 * largest
    assert 0 < merged.largest_logit_difference < 0.005 * largest


def test_tuned_tower_and_projector_are_part_of_that(
    merged: MergeSummary, trained: TrainingSummary, tiny_checkpoint: Path
) -> None:
    adapted = logits(load_adapter(load_model(tiny_checkpoint), Path(trained.adapter)))
    for part in ("model.vision_tower.", "model.mm_projector."):
        model, base = load_model(merged.output), load_model(tiny_checkpoint).state_dict()
        model.load_state_dict({name: base[name] for name in base if name.startswith(part)}, strict=False)
        assert (logits(model) - adapted).abs().max() > 0.02 * adapted.abs().max(), part


def test_a_float32_checkpoint_merges_without_any_rounding_to_speak_of(tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "base", dtype=torch.float32)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", ".*")
    summary = merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    expected = logits(load_adapter(load_model(tmp_path / "base"), adapter))
    torch.testing.assert_close(logits(load_model(summary.output)), expected, rtol=0, atol=2e-5 * float(expected.abs().max()))
    peft = PeftModel.from_pretrained(load_model(tmp_path / "base"), str(adapter)).merge_and_unload().state_dict()
    for name, value in load_model(summary.output).state_dict().items():
        torch.testing.assert_close(value, peft[name], rtol=0, atol=1e-6, msg=name)


def test_a_dora_merges_to_what_it_computes_beside_the_base(tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", use_dora=True, use_rslora=True)
    summary = merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    expected = logits(PeftModel.from_pretrained(load_model(tiny_checkpoint), str(adapter)).eval())
    assert (logits(load_model(tiny_checkpoint)) - expected).abs().max() > 0.3 * expected.abs().max(), "the adapter does something"
    assert (logits(load_model(summary.output)) - expected).abs().max() < 0.005 * expected.abs().max()


def test_a_dora_that_was_merged_as_a_plain_lora_is_noticed(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", use_dora=True)
    monkeypatch.setattr(torch.Tensor, "__imul__", lambda self, _: self)
    with pytest.raises(CheckpointError, match=r"the merged weight differs from that of base \+ "):
        merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    assert names(tmp_path) == ["adapter"]


def test_a_base_in_bin_files_merges_to_the_same_weights(reference: Path, tmp_path: Path) -> None:
    adapter = make_adapter(reference / "checkpoint", tmp_path / "adapter")
    outputs = []
    for name in ("checkpoint", "checkpoint_bin"):
        config = MergeConfig(adapter=str(adapter), model=str(reference / name), output=str(tmp_path / name))
        outputs.append(merge_adapter(config).output)
    for read in (main_tensors, tower_tensors):
        one, other = map(read, outputs)
        assert one.keys() == other.keys() != set()
        assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_other_files_are_those_of_the_base(merged: MergeSummary, tiny_checkpoint: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "vit/clip-vit-random/preprocessor_config.json"):
        assert (Path(merged.output) / name).read_bytes() == (tiny_checkpoint / name).read_bytes()
    one, other = (json.loads((Path(folder) / "config.json").read_text()) for folder in (merged.output, tiny_checkpoint))
    assert one == other


def test_the_checkpoint_says_what_it_was_made_of(merged: MergeSummary, trained: TrainingSummary, tiny_checkpoint: Path) -> None:
    about = read_about(Path(merged.output))
    assert about["digest"] == merged.digest == checkpoint_digest(merged.output)
    assert about["base_digest"] == merged.base_digest == checkpoint_digest(tiny_checkpoint)
    assert about["adapter_digest"] == merged.adapter_digest == trained.result_digest
    of_adapter = read_about(Path(trained.adapter))
    for key in ("prompt_version", "training_digest", "dataset_digest"):
        assert about[key] == of_adapter[key]
    assert (Path(merged.output) / "val.jsonl").read_bytes() == Path(trained.val_dataset).read_bytes()


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_the_transformers_layout_opens_through_the_auto_classes(
    dtype: torch.dtype | None, merged: MergeSummary, trained: TrainingSummary, tmp_path: Path
) -> None:
    summary = merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"), layout="transformers"))
    opened = AutoModelForImageTextToText.from_pretrained(summary.output, **({} if dtype is None else {"dtype": dtype})).eval()
    assert opened.dtype == (dtype or torch.bfloat16)
    expected = load_model(merged.output, dtype=opened.dtype)
    assert {name: value.tolist() for name, value in opened.state_dict().items()} == {
        name: value.tolist() for name, value in expected.state_dict().items()
    }
    assert torch.equal(logits(load_model(summary.output)), logits(load_model(merged.output)))


def test_large_checkpoints_are_split(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path, reference: Path) -> None:
    adapter = make_adapter(reference / "checkpoint", tmp_path / "adapter")
    config = MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged"), max_shard_bytes=1_000_000)
    merge_adapter(config.model_copy(update={"max_shard_bytes": 300_000}))
    shards = sorted(path.name for path in Path(config.output).glob("*.safetensors"))
    assert len(shards) > 2
    assert all(path.stat().st_size < 330_000 for path in Path(config.output).glob("*.safetensors"))
    index = json.loads((Path(config.output) / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == shards
    with pytest.raises(OutputError, match="holds something else than this merge"):
        merge_adapter(config)


# Doing it again


def test_the_same_merge_again_writes_nothing(
    merged: MergeSummary, trained: TrainingSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.export.merge.merge_tensors", lambda *_: pytest.fail("it was merged again"))
    before = modified_times(merged.output)
    again = merge_adapter(MergeConfig(adapter=trained.adapter, output=merged.output))
    assert again.was_there
    assert not merged.was_there
    assert {**vars_of(again), "was_there": False} == vars_of(merged)
    assert modified_times(merged.output) == before


def vars_of(summary: MergeSummary) -> dict[str, Any]:
    return {name: getattr(summary, name) for name in summary.__slots__}


def test_it_is_the_content_that_counts_not_the_place(merged: MergeSummary, trained: TrainingSummary, tmp_path: Path) -> None:
    shutil.copytree(trained.adapter, tmp_path / "adapter")
    base = json.loads((Path(trained.adapter) / "adapter_config.json").read_text())["base_model_name_or_path"]
    shutil.copytree(base, tmp_path / "base")
    config = MergeConfig(adapter=str(tmp_path / "adapter"), model=str(tmp_path / "base"), output=merged.output)
    assert merge_adapter(config).was_there
    elsewhere = merge_adapter(config.model_copy(update={"output": str(tmp_path / "merged")}))
    assert not elsewhere.was_there
    assert elsewhere.digest == merged.digest


def test_held_out_rows_that_were_lost_or_moved_are_told_again(trained: TrainingSummary, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter, adapter)
    config = MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged"))
    told = Path(merge_adapter(config).output) / "val.jsonl"
    told.unlink()
    assert merge_adapter(config).was_there
    assert told.read_bytes() == (adapter / "val.jsonl").read_bytes()
    (adapter / "val.jsonl").write_text("elsewhere")
    assert merge_adapter(config).was_there
    assert told.read_text() == "elsewhere"


def test_a_merge_whose_origin_cannot_be_read_is_refused(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path) -> None:
    shutil.copytree(merged.output, tmp_path / "merged")
    (tmp_path / "merged" / "yivl.json").write_text("")
    with pytest.raises(OutputError, match="merged: holds something else than this merge; choose another folder, or remove it"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))


def test_an_empty_folder_is_filled(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path) -> None:
    (tmp_path / "disk" / "empty").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "empty")
    assert merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "link"))).digest == merged.digest
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "empty" / "config.json").is_file()
    assert names(tmp_path / "disk") == ["empty"]


# What is refused


def test_a_folder_with_something_else_is_refused(
    trained: TrainingSummary, merged: MergeSummary, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("...")
    (tmp_path / "file").write_text("...")
    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    for name in ("notes", "checkpoint"):
        before = modified_times(tmp_path / name)
        with pytest.raises(
            OutputError, match=rf"{name}: holds something else than this merge; choose another folder, or remove it"
        ):
            merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / name)))
        assert modified_times(tmp_path / name) == before
    with pytest.raises(OutputError, match=r"file: is a file; choose a folder"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "file")))
    other = make_adapter(tiny_checkpoint, tmp_path / "other")
    with pytest.raises(OutputError, match="holds something else than this merge"):
        merge_adapter(MergeConfig(adapter=str(other), output=merged.output))


def test_a_merge_that_was_damaged_since_is_refused(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path) -> None:
    shutil.copytree(merged.output, tmp_path / "merged")
    path = tmp_path / "merged" / "tokenizer_config.json"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(
        OutputError, match=r"holds this merge, but its files have changed since; remove the folder to merge again"
    ):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))


def test_another_base_is_refused_by_its_content(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path) -> None:
    """A merged model is the likeliest mistake: the adapter would count twice."""
    write_random_checkpoint(tmp_path / "other", seed=1)
    for base in (str(tmp_path / "other"), merged.output):
        message = (
            rf"{base}: is not the base that {trained.adapter} was trained on \(content digest \w{{12}}, trained on \w{{12}}\)"
        )
        with pytest.raises(CheckpointError, match=message):
            merge_adapter(MergeConfig(adapter=trained.adapter, model=base, output=str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


def test_a_base_that_is_gone_has_to_be_named(
    trained: TrainingSummary, merged: MergeSummary, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter, adapter)
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    for base, message in (
        ("/gone/base", r"was trained on /gone/base, which is not there"),
        (None, "does not say what it was trained on"),
    ):
        path.write_text(json.dumps(config | {"base_model_name_or_path": base}))
        with pytest.raises(
            ConfigurationError, match=rf"{message}.*; give the base as --model|{message}; give the base as --model"
        ):
            merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    summary = merge_adapter(MergeConfig(adapter=str(adapter), model=str(tiny_checkpoint), output=str(tmp_path / "merged")))
    assert summary.digest == merged.digest


def test_an_adapter_that_cannot_be_merged_is_refused_before_anything_is_written(trained: TrainingSummary, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(trained.adapter, adapter)
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_bias": True}))
    with pytest.raises(CheckpointError, match=r"adapter_config.json: lora_bias True cannot be merged; train with plain LoRA"):
        merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    assert names(tmp_path) == ["adapter"]


def test_the_layout_is_the_bases_own_and_transformers_cannot_become_published(
    trained: TrainingSummary, merged: MergeSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_checkpoint(merged.output).layout == "published"
    config = MergeConfig(adapter=trained.adapter, output=str(tmp_path / "base"), layout="transformers")
    base = merge_adapter(config).output
    adapter = make_adapter(Path(base), tmp_path / "adapter")
    with monkeypatch.context() as patch:
        patch.delattr("yivl_core.export.merge.read_tensors")
        with pytest.raises(ConfigurationError, match="is in the transformers layout, from which the published one cannot be"):
            merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged"), layout="published"))
    again = merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    assert open_checkpoint(again.output).layout == "transformers"
    expected = logits(load_adapter(load_model(base), adapter))
    assert (logits(load_model(again.output)) - expected).abs().max() < 0.005 * expected.abs().max()


def without(part: str) -> Callable[..., tuple[dict[str, LazyTensor], int]]:
    """A merge that loses the changes of some modules."""

    def merge(base: Mapping[str, LazyTensor], folder: Path) -> tuple[dict[str, LazyTensor], int]:
        tensors, num_merged = merge_tensors(base, folder)
        return {name: base[name] if name.startswith(part) else tensor for name, tensor in tensors.items()}, num_merged

    return merge


@pytest.mark.parametrize("part", ["model.vision_tower.", "model.mm_projector.", "model.language_model.layers.1.", ""])
def test_a_wrong_merge_is_not_published(
    part: str, trained: TrainingSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.export.merge.merge_tensors", without(part))
    message = rf"model\..*\.weight: the merged weight differs from that of base \+ {trained.adapter} by .*; nothing was published"
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert names(tmp_path) == []


def test_a_lost_merge_is_noticed_however_little_it_would_change(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the logits of such an adapter hide in the noise."""
    adapter = make_adapter(tiny_checkpoint, tmp_path / "adapter", std=1e-3)
    expected, base = logits(load_adapter(load_model(tiny_checkpoint), adapter)), logits(load_model(tiny_checkpoint))
    assert 0 < (expected - base).abs().max() < 0.03 * expected.abs().max()
    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.export.merge.merge_tensors", without("model.language_model."))
        with pytest.raises(CheckpointError, match=r"model\.language_model\..*: the merged weight differs"):
            merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged")))
    assert names(tmp_path) == ["adapter"]
    assert merge_adapter(MergeConfig(adapter=str(adapter), output=str(tmp_path / "merged"))).num_merged > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_small_weights_of_any_dtype_can_be_merged_and_a_loss_in_them_is_noticed(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 6e-5 float16 rounds by up to 3e-8, however small the weight is."""
    write_random_checkpoint(tmp_path / "base", dtype=dtype)
    change_tensors(tmp_path / "base", lambda name, value: value.mul_(5e-4) if "self_attn" in name else None)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", "default", std=1e-4)
    config = MergeConfig(adapter=str(adapter), model=str(tmp_path / "base"), output=str(tmp_path / "merged"))
    with monkeypatch.context() as patch:
        patch.setattr("yivl_core.export.merge.merge_tensors", without("model.language_model."))
        with pytest.raises(CheckpointError, match=r"q_proj\.weight: the merged weight differs"):
            merge_adapter(config)
    assert merge_adapter(config).num_merged == 9


def change_tensors(folder: Path, change: Callable[[str, torch.Tensor], object]) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, value in tensors.items():
            change(name, value)
        save_file(tensors, path, metadata={"format": "pt"})


def test_the_message_tells_the_difference_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a larger one that rounding explains: here that of a weight of 30, where bfloat16 has steps of an eighth."""
    name = "layers.0.self_attn.q_proj.weight"

    def spoil(base: Mapping[str, LazyTensor], folder: Path) -> tuple[dict[str, LazyTensor], int]:
        tensors, num_merged = merge_tensors(base, folder)
        weight = tensors[f"model.language_model.{name}"].load()
        weight.view(-1)[weight.abs().argmin()] += 0.001
        return tensors | {f"model.language_model.{name}": lazy(weight)}, num_merged

    write_random_checkpoint(tmp_path / "base")
    change_tensors(tmp_path / "base", lambda found, value: value[0].fill_(30) if found.endswith(name) else None)
    adapter = make_adapter(tmp_path / "base", tmp_path / "adapter", "default")
    monkeypatch.setattr("yivl_core.export.merge.merge_tensors", spoil)
    with pytest.raises(CheckpointError, match=rf"{name}: .* by (0\.001\d*|0\.00099\d*); nothing was published"):
        merge_adapter(MergeConfig(adapter=str(adapter), model=str(tmp_path / "base"), output=str(tmp_path / "merged")))


def test_a_weight_that_should_not_have_changed_is_noticed_by_the_logits(
    trained: TrainingSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(base: Mapping[str, LazyTensor], folder: Path) -> tuple[dict[str, LazyTensor], int]:
        tensors, num_merged = merge_tensors(base, folder)
        name = "model.language_model.norm.weight"
        return tensors | {name: lazy(base[name].load() * 1.5)}, num_merged

    monkeypatch.setattr("yivl_core.export.merge.merge_tensors", spoil)
    with pytest.raises(CheckpointError, match=rf"{trained.adapter}: the merged model is not base \+ adapter: logits differ by"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert names(tmp_path) == []


def test_a_tower_that_is_lost_on_the_way_to_the_files_is_not_published(
    trained: TrainingSummary, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_the_tower(folder: Path, *args: Any, **kwargs: Any) -> None:
        write_checkpoint(folder, *args, **kwargs)
        [written], [untuned] = folder.glob("vit/*/model.safetensors"), tiny_checkpoint.glob("vit/*/model.safetensors")
        shutil.copyfile(untuned, written)

    monkeypatch.setattr("yivl_core.export.merge.write_checkpoint", lose_the_tower)
    with pytest.raises(CheckpointError, match=r"model\.vision_tower\..*: the merged weight differs"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert names(tmp_path) == []


# Being stopped, and machines that are too small


@pytest.mark.parametrize("step", range(3))
def test_a_merge_that_is_stopped_leaves_nothing(
    step: int, trained: TrainingSummary, merged: MergeSummary, tmp_path: Path
) -> None:
    def stop(progress: Progress) -> None:
        if progress.done == step:
            raise KeyboardInterrupt

    config = MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"))
    with pytest.raises(KeyboardInterrupt):
        merge_adapter(config, stop)
    assert names(tmp_path) == []
    assert merge_adapter(config).digest == merged.digest


def test_what_a_killed_merge_left_is_removed(trained: TrainingSummary, merged: MergeSummary, tmp_path: Path) -> None:
    (tmp_path / ".merged.tmp-0123456789ab").mkdir()
    (tmp_path / ".merged.tmp-0123456789ab" / "model.safetensors").write_bytes(b"...")
    assert merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"))).digest == merged.digest
    assert names(tmp_path) == ["merged"]


def test_two_merges_into_one_folder_do_not_meet(
    trained: TrainingSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.1)
    config = MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"))

    def start_another(progress: Progress) -> None:
        if progress.done == 2:
            with pytest.raises(BusyError, match="merged: another process works in this folder"):
                merge_adapter(config)

    assert not merge_adapter(config, start_another).was_there


def test_progress_counts_to_the_end(trained: TrainingSummary, tmp_path: Path) -> None:
    events: list[Progress] = []
    merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")), events.append)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert events[-1].done == events[-1].total == 4


def test_a_full_disk_leaves_nothing(trained: TrainingSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("yivl_core.export.merge.write_checkpoint", fill)
    with pytest.raises(StorageError, match=r"merged: the disk is full; free some space and run it again"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert names(tmp_path) == []


def available(num_bytes: float) -> Callable[[], Any]:
    return lambda: type("Memory", (), {"available": num_bytes})


def test_where_float32_does_not_fit_the_comparison_is_in_bfloat16(
    trained: TrainingSummary, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_parameters = sum(torch.Size(tensor.shape).numel() for tensor in read_tensors(open_checkpoint(tiny_checkpoint)).values())
    dtypes: list[torch.dtype] = []

    def watch(files: CheckpointFiles, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        dtypes.append(dtype)
        return load_model(files, dtype=dtype, device=device)

    monkeypatch.setattr("yivl_core.export.merge.load_model", watch)
    monkeypatch.setattr("psutil.virtual_memory", available(num_parameters * 3))
    merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert dtypes == [torch.bfloat16, torch.bfloat16]
    monkeypatch.setattr("psutil.virtual_memory", available(num_parameters))
    with pytest.raises(
        ConfigurationError, match=r"comparing the merged model needs 0.0 GB on cpu, and 0.0 GB are free; give --device cpu, or"
    ):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "other")))
    assert names(tmp_path) == ["merged"]


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(trained: TrainingSummary, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"device 'cuda:77': this machine has"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output=str(tmp_path / "merged"), device="cuda:77"))
    assert names(tmp_path) == []


def test_remote_folders_are_refused(trained: TrainingSummary, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"memory://x: the merged checkpoint has to be a folder on this machine"):
        merge_adapter(MergeConfig(adapter=trained.adapter, output="memory://x"))
    with pytest.raises(ConfigurationError, match=r"memory://x: the adapter has to be a folder on this machine"):
        merge_adapter(MergeConfig(adapter="memory://x", output=str(tmp_path)))
