"""Tuning the weights themselves: which of them change, how they are stored, and that the result loads wherever the base does."""

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.decoding import ImageError
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ChildFailedError, ConfigurationError, DatasetError
from yivl_core.export.configuration import MergeConfig
from yivl_core.export.merge import merge_adapter
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.model.files import checkpoint_digest, open_checkpoint, read_about
from yivl_core.model.random_checkpoint import write_random_checkpoint
from yivl_core.model.weights import load_model, read_tensors
from yivl_core.processing.processor import ModelInputs
from yivl_core.progress import Progress
from yivl_core.training import sft
from yivl_core.training.configuration import TrainingSettings, TrainingSummary
from yivl_core.training.loss import RowLoss, row_loss
from yivl_core.training.packing import PackedBatch
from yivl_core.training.samples import SampleReader
from yivl_core.training.tuning import Tuning

pytestmark = pytest.mark.slow

MakeDataset = Callable[..., Path]
Train = Callable[..., TrainingSummary]
FULL: dict[str, Any] = {"tuner": "full", "learning_rate": 5e-3, "batch_size": 4, "num_epochs": 2}
SHARDS = {"whole": 5_000_000, "split": 1_000_000}  # bytes; the random base has 1.2 MB in its main file
PARTS = {"llm": ("model.language_model.", "lm_head."), "projector": ("model.mm_projector.",), "vision": ("model.vision_tower.",)}
# Behind the selected hidden state: never run. The tiny checkpoint's tower has three layers.
DEAD = ("model.vision_tower.encoder.layers.2.", "model.vision_tower.post_layernorm.")


def tensors(folder: str | Path) -> dict[str, torch.Tensor]:
    return {name: tensor.load() for name, tensor in read_tensors(open_checkpoint(folder)).items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    assert all(after[name].dtype == tensor.dtype for name, tensor in before.items())
    return {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}


def parts_of(names: set[str]) -> set[str]:
    return {part for part, starts in PARTS.items() if any(name.startswith(starts) for name in names)}


def test_every_weight_that_is_run_is_tuned_and_no_other(train: Train, tiny_checkpoint: Path) -> None:
    summary = train(**FULL)
    assert (summary.adapter, summary.model) == (None, f"{summary.output}/model")
    before = tensors(tiny_checkpoint)
    untouched = before.keys() - changed(before, tensors(summary.model))
    assert {name for name in untouched if name.startswith(DEAD)} == untouched
    assert {name for name in before if name.startswith(DEAD)} == untouched


@pytest.mark.parametrize("frozen", [("llm",), ("projector",), ("vision_tower",), ("llm", "projector"), ("llm", "vision_tower")])
def test_frozen_parts_stay_as_they_are(frozen: tuple[str, ...], train: Train, tiny_checkpoint: Path) -> None:
    summary = train(**FULL, **{f"freeze_{part}": True for part in frozen}, dtype="bfloat16")
    tuned = parts_of(changed(tensors(tiny_checkpoint), tensors(summary.model)))
    assert tuned == PARTS.keys() - {part.removesuffix("_tower") for part in frozen}


def test_the_loss_falls_below_what_a_small_adapter_reaches(train: Train) -> None:
    settings = {"num_epochs": 10, "learning_rate": 5e-3, "val_fraction": 0}
    full, lora = train(tuner="full", output="full", **settings), train(lora_dropout=0.0, output="lora", **settings)
    assert full.train_loss < lora.train_loss / 2


def test_the_tuned_tower_is_in_both_places_and_survives_adapter_and_merge(
    train: Train, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    full = train(**FULL, output="full")
    tower = load_file(Path(full.model) / "vit" / next(Path(full.model, "vit").iterdir()).name / "model.safetensors")
    main = load_file(Path(full.model) / "model.safetensors")
    for name, tensor in tower.items():
        copy = main[f"model.vision_tower.vision_tower.{name}"]
        assert torch.equal(copy, tensor.to(copy.dtype)), name
    expected = tensors(full.model)
    assert "vision" in parts_of(changed(tensors(tiny_checkpoint), expected))
    adapter = train(model=full.model, output="lora")
    merged = merge_adapter(MergeConfig(adapter=adapter.adapter, output=str(tmp_path / "merged"), device="cpu"))
    different = changed(expected, tensors(merged.output))
    assert different
    assert all("self_attn" in name and name.startswith("model.language_model.") for name in different)


def test_weights_are_kept_in_float32_while_the_arithmetic_is_bfloat16(train: Train, tiny_checkpoint: Path) -> None:
    """Steps of 1e-6 of a weight are lost in bfloat16 one by one, and together change it."""
    summary = train(**FULL | {"learning_rate": 2e-6, "num_epochs": 8}, dtype="bfloat16", lr_schedule="constant", keep="last")
    saved = load_file(Path(summary.output) / "checkpoints" / f"step-{summary.num_steps:06}" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
    before = tensors(tiny_checkpoint)
    moved = [
        (saved[name] - before[name].float()).abs().mean() / 2e-6
        for name in saved
        if saved[name].ndim == 2 and "embed" not in name
    ]
    assert min(moved) > 0.3 * summary.num_steps, "AdamW's steps add up, each about as long as the rate"


def test_the_run_says_what_came_out(train: Train, tiny_checkpoint: Path) -> None:
    summary = train(**FULL)
    assert summary.result_digest == checkpoint_digest(summary.model)
    about = read_about(Path(summary.model))
    assert (about["kind"], about["base_digest"]) == ("tuned", checkpoint_digest(tiny_checkpoint))
    assert (Path(summary.model) / "val.jsonl").read_bytes() == Path(summary.val_dataset).read_bytes() != b""
    manifest = json.loads((Path(summary.output) / "manifest.json").read_text())
    assert manifest["settings"]["learning_rate"] == 5e-3
    assert manifest["result"]["result_digest"] == summary.result_digest


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


HARMS: dict[str, Callable[[Path], object]] = {
    "no folder": shutil.rmtree,
    "no weights": lambda model: (model / "model.safetensors").unlink(),
    "a bit of the tower": lambda model: flip_a_bit(next(model.glob("vit/*/model.safetensors"))),
    "no tokenizer": lambda model: (model / "tokenizer.model").unlink(),
    "no held-out rows": lambda model: (model / "val.jsonl").unlink(),
    "nothing about it": lambda model: (model / "yivl.json").unlink(),
}


@pytest.mark.parametrize("harm", HARMS)
def test_what_a_finished_run_has_lost_is_made_again(harm: str, train: Train) -> None:
    first = train(**FULL)
    HARMS[harm](Path(first.model))
    again = train(**FULL, resume=True)
    assert again == first
    assert checkpoint_digest(again.model) == first.result_digest
    assert (Path(again.model) / "val.jsonl").read_bytes() == Path(again.val_dataset).read_bytes()
    assert read_about(Path(again.model))["kind"] == "tuned"


def test_a_tuned_model_answers_its_own_held_out_rows(train: Train, tmp_path: Path) -> None:
    summary = train(**FULL, val_fraction=0.3)
    result = infer_shards(
        InferenceConfig(model=summary.model, load_dataset_config=True, output=str(tmp_path / "answers"), max_new_tokens=4)
    )
    assert (result.num_records, result.num_failed) == (summary.num_val_samples, 0)


def test_the_default_rate_is_that_of_the_tuner() -> None:
    assert TrainingSettings().highest_learning_rate == 1e-4
    assert TrainingSettings(tuner="full").highest_learning_rate == 1e-5
    assert TrainingSettings(tuner="full", learning_rate=3e-4).highest_learning_rate == 3e-4


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_computing_layers_again_changes_nothing_but_the_memory(
    recompute: str, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_calls = Counter[str]()
    prepare = sft.prepare_tuning

    def count(name: str) -> Callable[..., Tuning]:
        def watch(*arguments: Any) -> Tuning:
            tuning = prepare(*arguments)
            for module in (
                tuning.model.model.language_model.layers[0].mlp,
                tuning.model.model.vision_tower.encoder.layers[0].mlp,
            ):
                module.register_forward_pre_hook(lambda *_: num_calls.update([name]))
            return tuning

        return watch

    digests = []
    for name in ("none", recompute):
        monkeypatch.setattr(sft, "prepare_tuning", count(name))
        digests.append(train(**FULL, recompute=name, output=name, val_fraction=0).result_digest)
    assert digests[0] == digests[1]
    assert num_calls[recompute] == 2 * num_calls["none"] > 0


def test_processes_that_prepare_samples_change_nothing(train: Train) -> None:
    alone, helped = (train(**FULL, num_workers=number, output=str(number), val_fraction=0.3) for number in (0, 2))
    assert alone.result_digest == helped.result_digest
    assert alone.val_loss == helped.val_loss


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cached_samples_are_read_once_and_learned_as_often(
    num_workers: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[list[int]] = []

    def watch(model: Any, row: PackedBatch, *rest: Any) -> RowLoss:
        loss = row_loss(model, row, *rest)
        if loss.total.requires_grad:
            learned.append(row.input_ids.tolist())
        return loss

    monkeypatch.setattr(sft, "row_loss", watch)
    loaded: list[int] = []
    load = SampleReader.load

    def count(self: SampleReader, index: int) -> ModelInputs:
        loaded.append(index)
        return load(self, index)

    monkeypatch.setattr(SampleReader, "load", count)
    settings: dict[str, Any] = {
        "batch_size": 2,
        "num_epochs": 3,
        "val_fraction": 0.3,
        "num_workers": num_workers,
        "eval_steps": 3,
    }
    train(**settings, cache_samples=True)
    if not num_workers:
        assert sorted(loaded) == list(range(12)), "each once, held-out ones too"
    epoch = len(learned) // 3
    steps = [learned[:epoch], learned[epoch : 2 * epoch], learned[2 * epoch :]]
    assert sorted(steps[0]) == sorted(steps[1]) == sorted(steps[2])
    assert steps[0] != steps[1] != steps[2]


@pytest.mark.parametrize(
    "settings", [{}, {"optimizer": "muon", "augmentation": 0.5, "cache_samples": True, "freeze_projector": True}]
)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(settings: dict[str, Any], train: Train) -> None:
    settings = FULL | {"num_epochs": 3, "eval_steps": 2, "save_steps": 1, "val_fraction": 0.3} | settings
    uninterrupted = train(**settings, output="uninterrupted")
    for stop in (2, 5):

        def interrupt(progress: Progress, stop: int = stop) -> None:
            if "loss" in progress.figures and progress.done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(**settings, resume=True, on_progress=interrupt)
    resumed = train(**settings, resume=True)
    assert uninterrupted.num_steps > 5
    assert resumed.result_digest == uninterrupted.result_digest
    assert (resumed.val_loss, resumed.best_step) == (uninterrupted.val_loss, uninterrupted.best_step)


def test_weight_files_keep_their_limit(train: Train, tmp_path: Path) -> None:
    write_random_checkpoint(tmp_path / "base", dtype=torch.float32)
    whole, split = (
        train(**FULL, model=str(tmp_path / "base"), output=name, max_shard_bytes=size) for name, size in SHARDS.items()
    )
    assert [path.name for path in Path(whole.model).glob("*.safetensors")] == ["model.safetensors"]
    shards = sorted(Path(split.model).glob("*.safetensors"))
    assert len(shards) == 2
    assert all(path.stat().st_size < 1_010_000 for path in shards), "a limit of tensors, and a header"
    one, other = (load_model(summary.model).state_dict() for summary in (whole, split))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tuner": "full", "lora_rank": 4}, r"`lora_rank` is a setting of the tuner 'lora', and `tuner` is 'full'; leave it out"),
        ({"tuner": "full", "target_modules": "all"}, "`target_modules` is a setting of the tuner 'lora'"),
        ({"freeze_llm": True}, "`freeze_llm` is a setting of the tuner 'full', and `tuner` is 'lora'"),
        ({"optimizer": "muon"}, "`optimizer` is a setting of the tuner 'full'"),
        (
            {"tuner": "full", "freeze_llm": True, "freeze_projector": True, "freeze_vision_tower": True},
            "nothing is left to train",
        ),
        (
            {"tuner": "full", "freeze_vision_tower": True, "vision_learning_rate": 1e-4},
            "`vision_learning_rate` is given for what `freeze_vision_tower` leaves as it is",
        ),
    ],
)
def test_settings_that_make_no_sense_together_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingSettings(**settings)


def test_a_rate_for_a_part_without_targets_is_refused(train: Train, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="vision_learning_rate is given, but target_modules 'default' matches no"):
        train(vision_learning_rate=1e-4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (FULL | {"freeze_llm": True, "projector_learning_rate": 1e-3, "vision_learning_rate": 1e-4}, "projector, vision"),
        (FULL | {"freeze_llm": True, "freeze_vision_tower": True, "projector_learning_rate": 1e-3}, "projector"),
        ({"target_modules": ".*vision_tower.*q_proj", "vision_learning_rate": 1e-4}, "vision"),
    ],
)
def test_a_rate_that_nothing_has_is_refused_and_not_logged(
    settings: dict[str, Any], parts: str, train: Train, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=rf"learning_rate is given, but all .* has a rate of its own \({parts}\); leave"):
        train(**settings | {"learning_rate": 0.5})
    assert not list(tmp_path.iterdir())
    summary = train(**settings | {"learning_rate": None, "lr_schedule": "constant", "warmup_ratio": 0})
    lines = [json.loads(line) for line in Path(summary.output, "metrics.jsonl").read_text().splitlines()]
    own_rates = {settings.get("projector_learning_rate", 0), settings.get("vision_learning_rate", 0)}
    assert {line["learning_rate"] for line in lines if "learning_rate" in line} == {max(own_rates)}


@pytest.mark.parametrize(("settings", "remedy"), [(FULL, "use tuner lora, leave a part as it is"), ({}, "more memory")])
def test_what_cannot_fit_into_memory_is_refused_with_its_numbers(
    settings: dict[str, Any], remedy: str, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    with pytest.raises(ConfigurationError, match=r"trains .* billion parameters, which needs .* MB on cpu .*frozen") as caught:
        train(**settings)
    assert remedy in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused_with_its_numbers(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(ConfigurationError, match=r"the training writes up to .* MB \(3 checkpoints .* MB, the result .* MB\)"):
        train(**FULL)
    assert not list(tmp_path.iterdir())


def test_what_full_tuning_of_the_published_model_needs(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """16 bytes a parameter: 6.69 of the 6.71 billion parameters are trained, the tower's last layer is not."""
    from yivl_core.training.configuration import TrainingConfig
    from yivl_core.training.memory import require_memory

    shapes = {"model.language_model.one": (6_695_000_000,)}
    config = TrainingConfig(model="m", dataset="d", output=str(tmp_path), tuner="full")
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Memory", (), {"available": 80_000_000_000}))
    with pytest.raises(ConfigurationError) as caught:
        require_memory(open_checkpoint(tiny_checkpoint), shapes, config, torch.bfloat16, torch.device("cpu"))
    assert "6.7 billion parameters, which needs 107.1 GB" in str(caught.value)
    assert "trained weights 26.8 GB, their gradients 26.8 GB, what adamw remembers 53.6 GB), and 80.0 GB are free" in str(
        caught.value
    )


def test_a_run_needs_no_room_for_the_checkpoints_that_it_will_replace(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: Progress) -> None:
        if "loss" in progress.figures and progress.done == 4:
            raise KeyboardInterrupt

    settings = FULL | {"save_steps": 1, "val_fraction": 0}
    with pytest.raises(KeyboardInterrupt):
        train(**settings, on_progress=interrupt)
    needed = 3 * 3 * 4 * 298_000  # three checkpoints of weights and two means
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": needed}))
    train(**settings, resume=True)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_that_is_gone_is_named_whoever_reads_it(num_workers: int, train: Train, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(4)
    (dataset.parent / "1-0.png").unlink()
    with pytest.raises(ImageError, match=r"rows.jsonl:2: image .*1-0.png.* is not there") as caught:
        train(**FULL, dataset=str(dataset), val_fraction=0, num_workers=num_workers)
    assert caught.value.kind == "image_missing"


def test_a_process_that_dies_is_told_in_one_line(
    train: Train, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*arguments: Any) -> RowLoss:
        for worker in multiprocessing.active_children():
            worker.kill()
        return row_loss(*arguments)

    monkeypatch.setattr(sft, "row_loss", kill)
    with pytest.raises(ChildFailedError, match=r"a process that prepares samples has died .*; resume the run, with fewer"):
        train(**FULL | {"num_epochs": 20}, dataset=str(make_dataset(24)), num_workers=1)


@pytest.mark.parametrize("settings", [FULL | {"freeze_llm": True}, {"target_modules": ".*vision_tower.*q_proj"}])
@pytest.mark.parametrize("num_tokens", [1, 5000])
def test_rows_without_images_teach_the_tower_nothing_and_stop_nothing(
    settings: dict[str, Any], num_tokens: int, train: Train, make_dataset: MakeDataset
) -> None:
    summary = train(**settings | {"batch_size": 1, "row_tokens": num_tokens, "val_fraction": 0, "keep": "last"})
    assert summary.num_steps >= 12


def test_images_are_needed_where_only_their_parts_are_trained(train: Train, tmp_path: Path) -> None:
    rows = [json.dumps({"query": f"What? ({number})", "response": "That."}) for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    dataset = validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "data"))).output
    with pytest.raises(DatasetError, match="no record to train on has an image, and nothing is trained that records"):
        train(**FULL, dataset=dataset, freeze_llm=True)
    assert not (tmp_path / "run").exists()


def test_images_of_held_out_records_teach_nothing(train: Train, tmp_path: Path) -> None:
    Image.new("RGB", (20, 10), "white").save(tmp_path / "a.png")
    rows = [{"query": f"What? ({number})", "response": "That."} for number in range(9)]
    rows.append({"query": "What is this?", "response": "White.", "images": ["a.png"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "data"))).output
    outcomes = set()
    for seed in range(20):
        try:
            train(**FULL, dataset=dataset, freeze_llm=True, val_fraction=0.1, seed=seed, output=str(seed))
        except DatasetError as error:
            outcomes.add(str(error).partition(": ")[2].partition(",")[0])
        else:
            outcomes.add("trained")
            held_out = (tmp_path / str(seed) / "val.jsonl").read_text()
            assert "a.png" not in held_out
    assert outcomes == {"trained", "no record to train on has an image"}
