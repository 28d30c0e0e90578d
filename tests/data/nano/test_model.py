"""yi-vl-nano itself: that it is laid out as Yi-VL is, that it reads, and that the pipeline's promises hold on a real model."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.evaluation.metrics.edits import Score, score_answer
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.export.configuration import MergeConfig
from yivl_core.export.merge import merge_adapter
from yivl_core.inference.batch import infer_shards
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.model.files import open_checkpoint
from yivl_core.model.weights import load_model
from yivl_core.outputs.predictions import Prediction, read_predictions
from yivl_core.processing.processor import Processor
from yivl_core.processing.tokenization import Tokenizer
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.training.configuration import TrainingConfig, TrainingSummary
from yivl_core.training.sft import train_adapter

NUM_LINES = 40
Answer = Callable[..., list[Prediction]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lines(fonts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Records about rendered lines that nothing was trained on: in all wordings, from nearly clean to hardly readable."""
    from render import LineMaker

    folder, maker = tmp_path_factory.mktemp("lines"), LineMaker(fonts_folder, seed=0)
    records = []
    for number in range(NUM_LINES):
        jpeg, question, text = maker.make(number)[0]
        path = folder / f"{number}.jpg"
        path.write_bytes(jpeg or b"")
        records.append({"query": question, "response": text, "images": [str(path)]})
    return records


@pytest.fixture
def answer(nano: Path, tmp_path: Path) -> Answer:
    """What the model says to records, by which settings ever."""

    def ask(
        records: list[dict[str, Any]], output: str = "answers", on_progress: OnProgress = ignore_progress, **settings: Any
    ) -> list[Prediction]:
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        places = {"model": str(nano), "dataset": str(path), "image_root": "/", "output": str(tmp_path / output)}
        summary = infer_shards(InferenceConfig(**{"max_new_tokens": 40} | places | settings), on_progress=on_progress)
        assert summary.num_failed == 0
        return list(read_predictions(summary.output))

    return ask


def character_error_rate(predictions: list[Prediction], read: Callable[[str], str] = str) -> float:
    """Of all answers together, as `read` makes them and their references comparable."""
    rows = [(read(prediction.response or ""), read(prediction.reference or "")) for prediction in predictions]
    cer = sum((score_answer(response, [reference]) for response, reference in rows), Score()).cer
    assert cer is not None
    return cer


# What it is made of


def test_it_is_small_in_shards_that_any_host_of_repositories_takes(nano: Path) -> None:
    sizes = [path.stat().st_size for path in nano.rglob("*.safetensors")]
    assert sum(sizes) <= 32_000_000
    assert max(sizes) <= 15_000_000
    assert sum(parameter.numel() for parameter in load_model(nano).parameters()) == pytest.approx(9_870_000, rel=1e-3)


def test_the_tower_is_in_both_places_and_everything_is_bfloat16(nano: Path) -> None:
    files = open_checkpoint(nano)
    assert files.layout == "published"
    stored: list[dict[str, torch.Tensor]] = []
    for paths in (files.weight_paths, files.vision_weight_paths):
        stored.append({})
        for path in paths:
            with safe_open(path, framework="pt") as file:
                stored[-1] |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    main, tower = stored
    prefix = "model.vision_tower.vision_tower."
    inside = {name.removeprefix(prefix): tensor for name, tensor in main.items() if name.startswith(prefix)}
    assert inside.keys() == tower.keys()
    assert all(torch.equal(inside[name], tower[name]) for name in tower)
    assert {tensor.dtype for tensor in [*main.values(), *tower.values()]} == {torch.bfloat16}


def test_its_special_tokens_are_yis(nano: Path) -> None:
    tokenizer = Tokenizer.from_folder(nano)
    places = {"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7, "<|im_sep|>": 8}
    assert json.loads((nano / "added_tokens.json").read_text()) == places
    assert {text: tokenizer.encode(text, parse_special=True) for text in places} == {
        text: [place] for text, place in places.items()
    }
    assert len(tokenizer.encode("###")) == 1
    assert all(len(tokenizer.encode(text)) > 1 for text in places), "in a user's text they stay text"


def test_it_is_loaded_on_the_cpu_in_less_than_two_seconds(nano: Path) -> None:
    """Of this process's own time, at the best of three tries: a busy machine counts for nothing."""

    def load() -> float:
        started = time.process_time()
        load_model(nano)
        Processor.from_checkpoint(nano)
        return time.process_time() - started

    assert min(load() for _ in range(3)) < 2


# It reads


@pytest.mark.slow
def test_it_reads_rendered_lines_and_writes_capitals_where_asked(lines: list[dict[str, Any]], answer: Answer) -> None:
    predictions = answer(lines)
    assert {prediction.finish_reason for prediction in predictions} == {"stop"}
    assert character_error_rate(predictions) < 0.05


@pytest.mark.slow
def test_it_reads_lines_of_real_receipts(shared_data: Path, answer: Answer) -> None:
    folder = shared_data / "data" / "sroie_lines" / "sample"
    records = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    predictions = answer([record | {"images": [str(folder / name) for name in record["images"]]} for record in records])
    assert len(predictions) == 60
    assert character_error_rate(predictions, normalise) < 0.1


@pytest.mark.slow
def test_it_holds_a_conversation_about_two_images(lines: list[dict[str, Any]], answer: Answer) -> None:
    """What it says to the first question is the history of the second, which is about another image."""
    first = answer(lines[:8], output="first")
    second_rounds = [
        {**line, "history": [(said.query, said.response)], "images": [said.images[0].uri, *line["images"]]}
        for said, line in zip(first, lines[8:16], strict=True)
    ]
    second = answer(second_rounds, output="second")
    assert [len(prediction.images) for prediction in second] == [2] * 8
    assert character_error_rate(first) < 0.1
    assert character_error_rate(second) < 0.1


# What the pipeline promises


@pytest.mark.slow
def test_answers_do_not_depend_on_the_batch(lines: list[dict[str, Any]], answer: Answer) -> None:
    greeting = {"history": [["Hello.", "Hello! Show me a line."]]}
    records = [*lines[:16], *({**line, **greeting, "images": [None, *line["images"]]} for line in lines[:4])]
    by_batch = [answer(records, output=f"by-{size}", batch_size=size) for size in (1, 3, 8)]
    texts = [[prediction.response for prediction in predictions] for predictions in by_batch]
    assert texts[0] == texts[1] == texts[2]
    assert len({prediction.prompt_tokens for prediction in by_batch[0]}) > 3, "the prompts are padded"
    assert len(set(texts[0])) > 12


class StopError(Exception):
    """Something that ends the work in the middle."""


def stop_after(stage: str, done: int) -> OnProgress:
    def stop(progress: Progress) -> None:
        if progress.stage == stage and progress.done >= done:
            raise StopError

    return stop


@pytest.mark.slow
def test_an_inference_that_is_stopped_goes_on_to_equal_answers(lines: list[dict[str, Any]], answer: Answer) -> None:
    records = lines[:12]
    settings = {"shard_size": 4, "batch_size": 2}
    with pytest.raises(StopError):
        answer(records, "stopped", stop_after("infer", 6), **settings)
    untimed = {"preprocess_s": None, "generate_s": None}
    whole = [replace(prediction, **untimed) for prediction in answer(records, "whole", **settings)]
    assert [replace(prediction, **untimed) for prediction in answer(records, "stopped", resume=True, **settings)] == whole


def train_on(dataset: str, nano: Path, output: Path, on_progress: OnProgress = ignore_progress) -> TrainingSummary:
    """Four steps of the demo's training, with what a resumed run could get wrong: dropout, and a checkpoint in mid-epoch."""
    config = TrainingConfig(
        model=str(nano), dataset=dataset, output=str(output), target_modules="all", learning_rate=4e-3, batch_size=3,
        val_fraction=0.2, num_epochs=1, eval_steps=2, resume=True,
    )  # fmt: skip
    return train_adapter(config, on_progress)


@pytest.fixture(scope="module")
def strips(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The first strips of handwritten numbers, validated."""
    folder = tmp_path_factory.mktemp("strips")
    source = repository / "data" / "handwritten_numbers"
    (folder / "train.jsonl").write_text("".join((source / "train.jsonl").read_text().splitlines(keepends=True)[:15]))
    config = ValidationConfig(dataset=(str(folder / "train.jsonl"),), image_root=str(source), output=str(folder / "validated"))
    assert validate_dataset(config).num_records == 15
    return config.output


@pytest.fixture(scope="module")
def trained(nano: Path, strips: str, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    return train_on(strips, nano, tmp_path_factory.mktemp("training") / "run")


@pytest.mark.slow
def test_a_training_that_is_stopped_goes_on_to_the_same_adapter(
    trained: TrainingSummary, strips: str, nano: Path, tmp_path: Path
) -> None:
    with pytest.raises(StopError):
        train_on(strips, nano, tmp_path / "run", stop_after("train", 3))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000002"]
    resumed = train_on(strips, nano, tmp_path / "run")
    places = {"output": "", "adapter": "", "val_dataset": ""}
    assert resumed.num_steps == 4
    assert replace(resumed, **places) == replace(trained, **places)


@pytest.mark.slow
def test_the_same_training_gives_the_same_bytes_and_so_does_its_merge(
    trained: TrainingSummary, strips: str, nano: Path, tmp_path: Path
) -> None:
    again = train_on(strips, nano, tmp_path / "run")
    merged = [
        merge_adapter(MergeConfig(adapter=str(summary.adapter), output=str(tmp_path / f"merged-{number}")))
        for number, summary in enumerate((trained, again))
    ]
    assert again.result_digest == trained.result_digest
    assert merged[0].digest == merged[1].digest != trained.base_digest


@pytest.mark.slow
def test_the_auto_classes_open_it_after_an_export(trained: TrainingSummary, tmp_path: Path) -> None:
    config = MergeConfig(adapter=str(trained.adapter), output=str(tmp_path / "exported"), layout="transformers")
    opened = AutoModelForImageTextToText.from_pretrained(merge_adapter(config).output, dtype=torch.float32).eval()
    ours = load_model(config.output)
    assert opened.state_dict().keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in opened.state_dict().items())
    image = torch.full((1, ours.config.num_image_tokens), ours.config.image_token_index)
    inputs = {"input_ids": torch.cat([image, torch.arange(9, 30)[None]], dim=1), "pixel_values": torch.rand(1, 3, 280, 280)}
    with torch.no_grad():
        torch.testing.assert_close(opened(**inputs).logits, ours(**inputs).logits)
