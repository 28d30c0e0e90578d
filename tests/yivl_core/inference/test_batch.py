"""Batch inference over whole inputs: one row a record whatever happens, and the same rows however the work is cut up."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from pydantic import ValidationError

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.image_folders import find_files
from yivl_core.data.images import EXTENSIONS
from yivl_core.data.network.url_settings import UrlSettings
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import CheckpointError, ConfigurationError, DatasetError, OutputError
from yivl_core.inference.configuration import DecodingSettings, EngineSettings, InferenceConfig, InferenceSummary
from yivl_core.inference.decoder import Decoder
from yivl_core.inference.engine import InferenceEngine
from yivl_core.inference.loading import plan_engine
from yivl_core.inference.memory import MemoryPlan
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.runner import ModelRunner
from yivl_core.inference.steps import RunningRequest, StepResult
from yivl_core.model.random_checkpoint import RandomShape, write_random_checkpoint
from yivl_core.model.weights import load_model
from yivl_core.outputs.manifest import read_manifest
from yivl_core.outputs.predictions import Prediction, content_digest, read_predictions
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.progress import Progress
from yivl_core.training.configuration import TrainingSummary

Infer = Callable[..., InferenceSummary]
MakeDataset = Callable[..., Path]


def rows(summary: InferenceSummary) -> list[Prediction]:
    return list(read_predictions(summary.output))


def answers(summary: InferenceSummary) -> list[str | None]:
    return [prediction.response for prediction in rows(summary)]


# One row a record


def test_every_record_has_a_row_in_order(infer: Infer, dataset: Path) -> None:
    summary = infer()
    records = [json.loads(line) for line in (dataset / "records.jsonl").read_text().splitlines()]
    predictions = rows(summary)
    assert [prediction.record_index for prediction in predictions] == list(range(12))
    assert [prediction.query for prediction in predictions] == [record["query"] for record in records]
    assert [prediction.reference for prediction in predictions] == [record["response"] for record in records]
    assert [len(prediction.images) for prediction in predictions] == [len(record.get("images", [])) for record in records]
    assert len({prediction.sample_id for prediction in predictions}) == 12
    assert len(set(answers(summary))) >= 3, "answers differ from record to record"
    for prediction in predictions:
        assert prediction.finish_reason in ("stop", "length")
        assert prediction.prompt_tokens is not None
        assert prediction.completion_tokens is not None
        assert 1 <= prediction.completion_tokens <= 8
    assert summary.num_records == sum(summary.num_by_finish_reason.values()) == 12
    assert summary.completion_tokens == sum(prediction.completion_tokens or 0 for prediction in predictions)
    assert summary.content_digest == content_digest(summary.output)


def test_bad_images_are_rows_with_the_right_error(infer: Infer, shared_data: Path) -> None:
    folder = shared_data / "data" / "awkward"
    summary = infer(images=str(folder / "files"), prompt="What is this?", max_new_tokens=2)
    expected = {entry["file"]: entry for entry in json.loads((folder / "manifest.json").read_text())["files"]}
    found = {f"files/{prediction.images[0].uri}": prediction for prediction in rows(summary)}
    assert found.keys() <= expected.keys()
    assert {name for name, entry in expected.items() if entry["expect"] != "ignore"} <= found.keys()
    for name, prediction in found.items():
        entry = expected[name]
        if entry["expect"] == "reject":
            assert prediction.error_kind == entry["kind"], name
            assert prediction.finish_reason == "error"
            assert prediction.error is not None
            assert Path(name).name in prediction.error
            assert prediction.response is None
        else:
            assert prediction.error is None, name
            assert [prediction.images[0].width, prediction.images[0].height] == entry["size"]
            assert prediction.query == "What is this?"
    assert summary.num_failed == sum(entry["expect"] == "reject" for entry in expected.values()) == 7


def test_a_large_image_that_validation_has_let_through_is_read(infer: Infer, tmp_path: Path) -> None:
    """Sixty-five million pixels: one more than are read without a word of the user."""
    Image.new("1", (8125, 8000)).save(tmp_path / "large.png")
    lines = tmp_path / "rows.jsonl"
    lines.write_text(json.dumps({"query": "<image>What?", "images": ["large.png"], "response": "Nothing."}) + "\n")
    assert rows(infer(dataset=str(lines)))[0].error_kind == "too_many_pixels"
    config = ValidationConfig(dataset=(str(lines),), output=str(tmp_path / "validated"), max_pixels=70_000_000)
    assert validate_dataset(config).num_records == 1
    assert rows(infer(dataset=config.output, output="validated-predictions"))[0].error_kind is None


def test_defective_lines_are_rows_with_the_right_error(infer: Infer, shared_data: Path) -> None:
    folder = shared_data / "data" / "bad_jsonl"
    summary = infer(dataset=str(folder / "mixed.jsonl"), image_root=str(folder), max_new_tokens=2)
    manifest = json.loads((folder / "mixed.manifest.json").read_text())
    found = {int(prediction.source.rsplit(":", 1)[1]): prediction for prediction in rows(summary)}
    assert len(found) == summary.num_records == manifest["lines"] - manifest["blank_lines"]
    errors = {entry["line"]: entry for entry in manifest["expect"] if entry["severity"] == "error"}
    for line in (13, 19, 23):
        del errors[line]  # only the response is wrong, which inference does not need
    assert {line for line, prediction in found.items() if prediction.has_failed} == set(errors)
    for line, entry in errors.items():
        kinds = {entry["kind"], *entry.get("also_ok", [])}
        if "image_unreadable" in kinds:
            kinds |= {"not_an_image", "not_a_file"}
        assert found[line].error_kind in kinds, line
        assert found[line].error
    assert summary.num_failed == len(errors) >= 40


def test_records_without_images_and_bad_ones_share_a_batch(infer: Infer, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(8)
    expected = answers(infer(dataset=str(dataset), output="whole"))
    (dataset.parent / "2-1.png").write_bytes(b"no image")
    (dataset.parent / "5-0.png").unlink()
    summary = infer(dataset=str(dataset), batch_size=8)
    predictions = rows(summary)
    assert [prediction.error_kind for prediction in predictions] == [
        None,
        None,
        "image_changed",
        None,
        None,
        "image_missing",
        None,
        None,
    ]
    assert [prediction.response for prediction in predictions if not prediction.has_failed] == [
        answer for number, answer in enumerate(expected) if number not in (2, 5)
    ]
    assert predictions[2].images[0].width is not None, "the first image was read"
    assert summary.num_by_finish_reason["error"] == summary.num_failed == 2


def test_a_prompt_that_leaves_no_room_is_an_error_row_and_one_that_leaves_little_is_cut(
    infer: Infer, tmp_path: Path, dataset: Path
) -> None:
    whole = rows(infer(max_new_tokens=1))
    lengths = sorted({prediction.prompt_tokens or 0 for prediction in whole})
    limit = lengths[-2]
    assert lengths[0] < limit - 1
    write_random_checkpoint(tmp_path / "short", shape=RandomShape(max_positions=limit))
    for before, prediction in zip(
        whole, rows(infer(output="short-run", model=str(tmp_path / "short"), max_new_tokens=500)), strict=True
    ):
        assert before.prompt_tokens is not None
        if before.prompt_tokens >= limit:
            assert prediction.error_kind == "too_long"
            assert prediction.error is not None
            assert re.fullmatch(
                rf"{before.prompt_tokens} tokens \(\d+ of them for images\), and the model reads {limit}, an answer included; "
                "shorten the text, or give fewer images",
                prediction.error,
            )
        else:
            assert prediction.prompt_tokens == before.prompt_tokens
            assert prediction.completion_tokens is not None
            assert prediction.prompt_tokens + prediction.completion_tokens <= limit
            assert prediction.finish_reason == (
                "length" if prediction.prompt_tokens + prediction.completion_tokens == limit else "stop"
            )


def test_a_long_answer_is_cut_and_says_so(infer: Infer) -> None:
    one, other = infer(max_new_tokens=3), infer(max_new_tokens=9, output="other")
    for short, long in zip(rows(one), rows(other), strict=True):
        if short.finish_reason == "length":
            assert short.completion_tokens == 3
            assert (long.response or "").startswith((short.response or "").rstrip("\N{REPLACEMENT CHARACTER}"))
    assert one.num_by_finish_reason["length"] > 0


# The same rows however the work is cut up


def test_batch_size_never_changes_a_row(infer: Infer, repository: Path) -> None:
    """Real handwriting, after an adapter that has learned something else from noise."""
    digests = set()
    for batch_size in (1, 3, 8):
        summary = infer(
            dataset=str(repository / "data" / "handwritten_numbers" / "val.jsonl"), limit=10, batch_size=batch_size,
            output=f"by-{batch_size}", max_new_tokens=16,
        )  # fmt: skip
        assert summary.num_records == 10
        assert summary.num_failed == 0
        digests.add(summary.content_digest)
    assert len(digests) == 1


def test_sampled_rows_depend_on_the_seed_alone(infer: Infer) -> None:
    sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 5}
    one = infer(batch_size=8, shard_size=100, **sampled)
    other = infer(batch_size=1, shard_size=5, output="other", **sampled)
    assert one.content_digest == other.content_digest
    assert answers(infer(output="seed", **sampled | {"seed": 6})) != answers(one)
    assert answers(infer(output="greedy")) != answers(one)


def test_sampled_rows_do_not_depend_on_other_records(infer: Infer) -> None:
    whole = rows(infer(temperature=1.0))
    part = rows(infer(temperature=1.0, limit=5, output="part"))
    assert [prediction.response for prediction in part] == [prediction.response for prediction in whole[:5]]


def test_adapter_and_merged_model_answer_alike(infer: Infer, trained: TrainingSummary, tiny_checkpoint: Path) -> None:
    merged = infer(max_new_tokens=16)
    adapted = infer(model=str(tiny_checkpoint), adapter=trained.adapter, output="adapted", max_new_tokens=16)
    base = infer(model=str(tiny_checkpoint), output="base", max_new_tokens=16)
    assert adapted.content_digest == merged.content_digest
    assert base.content_digest != merged.content_digest


def test_parts_hold_shard_size_records(infer: Infer) -> None:
    summary = infer(shard_size=5)
    parts = sorted((Path(summary.output) / "predictions").iterdir())
    assert [path.name for path in parts] == [f"part-{number:05}.parquet" for number in range(3)]
    assert (summary.num_shards, summary.num_shards_done) == (3, 3)
    assert summary.content_digest == infer(output="other", shard_size=100).content_digest


def test_shards_can_be_done_in_any_order_by_any_number_of_workers(infer: Infer) -> None:
    whole = infer(output="whole")
    assert infer(shard_indices=(), shard_size=5).num_shards_done == 0
    done = [infer(shard_indices=indices, shard_size=5, resume=True) for indices in ([2], [0, 2], [2], [1, 1])]
    assert [summary.num_shards_done for summary in done] == [1, 2, 2, 3]
    assert [summary.content_digest for summary in done] == [None, None, None, whole.content_digest]
    assert [read_manifest(f"{done[0].output}/manifest.json") is None] == [False]
    assert read_manifest(f"{whole.output}/manifest.json") is not None


def test_the_manifest_comes_with_the_last_part(infer: Infer) -> None:
    first = infer(shard_indices=[0], shard_size=6)
    assert not (Path(first.output) / "manifest.json").exists()
    last = infer(shard_indices=[1], shard_size=6, resume=True)
    manifest = read_manifest(f"{last.output}/manifest.json")
    assert manifest is not None
    assert manifest["content_digest"] == last.content_digest
    assert manifest["result"] == last.num_by_finish_reason


@pytest.mark.parametrize("index", [3, -1])
def test_a_shard_that_is_not_in_the_plan_is_refused(index: int, infer: Infer) -> None:
    with pytest.raises(ConfigurationError, match=rf"shard {index} is not in the plan; it has shards 0 to 2"):
        infer(shard_indices=[index], shard_size=5)


def test_a_remote_output_holds_the_same(infer: Infer) -> None:
    remote = infer(output="memory://yivl-test-batch")
    assert remote.content_digest == infer().content_digest
    assert remote.num_records == len(rows(remote)) == 12


# Log-probabilities


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[ModelInputs, tuple[int, ...]]]:
    """Prompts and tokens of all that engines answer from now on, by sample id; the files hold text alone."""
    found: dict[str, tuple[ModelInputs, tuple[int, ...]]] = {}
    whole = InferenceEngine.generate

    def watch(self: InferenceEngine, requests: Iterable[Request]) -> Iterator[tuple[int, Completion | None]]:
        taken: list[Request] = []

        def take() -> Iterator[Request]:
            for request in requests:
                taken.append(request)
                yield request

        for number, completion in whole(self, take()):
            assert completion is not None
            found[taken[number].sample_id] = taken[number].inputs, completion.token_ids
            yield number, completion

    monkeypatch.setattr(InferenceEngine, "generate", watch)
    return found


@pytest.mark.parametrize("decoding", [{}, {"temperature": 1.5, "repetition_penalty": 1.3, "seed": 4}], ids=["greedy", "sampled"])
def test_logprobs_are_those_of_the_model_of_record_for_the_same_tokens(
    decoding: dict[str, Any],
    infer: Infer,
    answered: dict[str, tuple[ModelInputs, tuple[int, ...]]],
    nano: Path,
    repository: Path,
    forced_logprobs: Callable[..., torch.Tensor],
) -> None:
    dataset = repository / "data" / "handwritten_numbers" / "val.jsonl"
    summary = infer(model=str(nano), dataset=str(dataset), limit=6, batch_size=4, max_new_tokens=16, logprobs=True, **decoding)
    model, processor = load_model(nano), Processor.from_checkpoint(nano)
    least = 0.0
    for prediction in rows(summary):
        assert prediction.completion_logprobs is not None
        inputs, token_ids = answered[prediction.sample_id]
        found, expected = torch.tensor(prediction.completion_logprobs), forced_logprobs(model, processor, inputs, token_ids)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        least = min(least, *prediction.completion_logprobs)
    assert len(answered) == 6
    assert least < -0.5, "the model was not always sure"
    assert summary.num_by_finish_reason.get("stop", 0) > 0


def test_logprobs_are_null_for_an_error_and_where_nobody_asked(infer: Infer, make_dataset: MakeDataset) -> None:
    dataset = make_dataset(4)
    (dataset.parent / "1-0.png").write_bytes(b"no image")
    asked, unasked = (infer(dataset=str(dataset), output=str(name), logprobs=name) for name in (True, False))
    lengths = [each.completion_logprobs and len(each.completion_logprobs) for each in rows(asked)]
    assert lengths == [each.completion_tokens for each in rows(asked)]
    assert [length is None for length in lengths] == [False, True, False, False]
    assert [each.completion_logprobs for each in rows(unasked)] == [None] * 4
    assert asked.content_digest == unasked.content_digest


# Stopping and going on


def test_a_run_with_logprobs_goes_on_in_other_batches_to_the_same_content(infer: Infer) -> None:
    settings = {"shard_size": 6, "logprobs": True}
    whole = infer(output="whole", batch_size=6, **settings)
    infer(shard_indices=[0], batch_size=6, **settings)
    resumed = infer(batch_size=1, resume=True, **settings)
    assert resumed.content_digest == whole.content_digest
    for one, other in zip(rows(resumed), rows(whole), strict=True):
        assert one.completion_logprobs == pytest.approx(other.completion_logprobs, abs=1e-4)


@pytest.mark.parametrize("records_before", [0, 2, 4, 8, 10])
def test_a_run_that_is_stopped_goes_on_to_the_same_rows(records_before: int, infer: Infer) -> None:
    def stop(progress: Progress) -> None:
        if progress.stage == "infer" and progress.done == records_before:
            raise KeyboardInterrupt

    settings = {"shard_size": 4, "batch_size": 2}
    with pytest.raises(KeyboardInterrupt):
        infer(on_progress=stop, **settings)
    output = Path(infer(shard_indices=(), resume=True, **settings).output)
    parts = {path: path.stat().st_mtime_ns for path in (output / "predictions").glob("part-*")}
    assert len(parts) == max(0, records_before - 1) // 4
    summary = infer(resume=True, **settings)
    assert summary.content_digest == infer(output="whole").content_digest
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    assert summary.num_records == 12


def test_a_finished_run_is_not_made_again(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = infer()
    before = {path: path.stat().st_mtime_ns for path in Path(summary.output).rglob("*")}
    monkeypatch.setattr("yivl_core.inference.batch.load_engine", lambda *_, **__: pytest.fail("the model was loaded again"))
    again = infer(resume=True)
    assert (again.content_digest, again.num_by_finish_reason) == (summary.content_digest, summary.num_by_finish_reason)
    assert {path: path.stat().st_mtime_ns for path in Path(summary.output).rglob("*")} == before


def test_a_lost_part_is_made_again(infer: Infer) -> None:
    summary = infer(shard_size=4)
    (Path(summary.output) / "predictions" / "part-00001.parquet").unlink()
    assert infer(shard_size=4, resume=True).content_digest == summary.content_digest


def part(summary: InferenceSummary, index: int) -> Path:
    return Path(summary.output) / "predictions" / f"part-{index:05d}.parquet"


PART_HARMS: dict[str, Callable[[InferenceSummary], Any]] = {
    "cut": lambda summary: part(summary, 1).write_bytes(part(summary, 1).read_bytes()[:-100]),
    "no parquet": lambda summary: part(summary, 1).write_text("..."),
    "empty": lambda summary: part(summary, 1).write_bytes(b""),
    "another part": lambda summary: shutil.copyfile(part(summary, 0), part(summary, 1)),
    "a byte": lambda summary: flip(part(summary, 1)),
}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("harm", PART_HARMS)
def test_a_harmed_part_is_made_again_and_the_others_are_not(harm: str, infer: Infer) -> None:
    summary = infer(shard_size=4)
    before = {index: part(summary, index).stat().st_mtime_ns for index in (0, 2)}
    PART_HARMS[harm](summary)
    again = infer(shard_size=4, resume=True)
    assert again.content_digest == summary.content_digest
    assert again.num_shards_done == 3
    assert {index: part(summary, index).stat().st_mtime_ns for index in (0, 2)} == before


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("{"), lambda path: path.write_text("[]")])
def test_a_harmed_manifest_is_written_again(harm: Callable[[Path], Any], infer: Infer) -> None:
    summary = infer()
    path = Path(summary.output) / "manifest.json"
    told = read_manifest(str(path))
    assert told is not None
    harm(path)
    infer(resume=True)
    assert (read_manifest(str(path)) or {})["content_digest"] == summary.content_digest
    assert (read_manifest(str(path)) or {}).keys() == told.keys()


def test_rows_that_were_changed_are_refused(infer: Infer) -> None:
    summary = infer(shard_size=4)
    shutil.copyfile(part(infer(output="other", shard_size=4, max_new_tokens=1), 1), part(summary, 1))
    with pytest.raises(OutputError, match=r"the rows are not those that manifest.json tells of, .*; choose another folder, or"):
        infer(shard_size=4, resume=True)


def test_an_answer_that_overflows_is_an_error_row(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = InferenceEngine.generate

    def lose_one(self: InferenceEngine, requests: Iterable[Request]) -> Iterator[tuple[int, Completion | None]]:
        return ((number, None if number == 1 else completion) for number, completion in whole(self, requests))

    monkeypatch.setattr(InferenceEngine, "generate", lose_one)
    summary = infer(batch_size=12)
    assert summary.num_failed == 1
    failed = rows(summary)[1]
    assert (failed.finish_reason, failed.error_kind, failed.response) == ("error", "not_finite", None)
    assert failed.error == "the model's logits are no finite numbers in float32; use --dtype bfloat16 or float32"


def test_an_output_that_is_not_empty_is_refused(infer: Infer, tmp_path: Path) -> None:
    infer(shard_indices=())
    with pytest.raises(
        OutputError, match=r"predictions is not empty \(plan.json\); add --resume to go on with that run, or choose"
    ):
        infer()


DECIDING: dict[str, Any] = {
    "max_new_tokens": 9, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "repetition_penalty": 1.5, "seed": 3,
    "stop": ["a"], "stop_token_ids": [7], "logprobs": True,
}  # fmt: skip


@pytest.mark.parametrize("name", DECIDING)
def test_going_on_with_other_decoding_is_refused_by_name(name: str, infer: Infer) -> None:
    assert set(DECIDING) == set(DecodingSettings.model_fields)
    infer(shard_indices=())
    before = {"max_new_tokens": 8}.get(name, DecodingSettings.model_fields[name].default)
    was, now = (re.escape(json.dumps(value)) for value in (before, DECIDING[name]))
    message = rf"decoding.{name} was {was} and is {now}\. Set them as they were to go on"
    with pytest.raises(OutputError, match=message):
        infer(resume=True, **{name: DECIDING[name]})


def test_going_on_with_another_model_input_or_dtype_is_refused_by_name(
    infer: Infer, trained: TrainingSummary, tiny_checkpoint: Path, make_dataset: MakeDataset
) -> None:
    infer(shard_indices=(), model=str(tiny_checkpoint))
    settings: dict[str, Any] = {"model": str(tiny_checkpoint), "resume": True}
    for changes, message in (
        ({"model": trained.adapter.replace("adapter", "none")}, None),
        ({"adapter": trained.adapter}, r"adapter(\.digest)? was (null|not set)"),
        ({"dataset": str(make_dataset(12, responses={0: "Else."}))}, r"data.digest was"),
        ({"limit": 3}, r"data.digest was"),
        ({"dtype": "bfloat16"}, r'numerics.dtype was "float32" and is "bfloat16"'),
        ({"shard_size": 3}, r"shard_size was 1000 and is 3"),
    ):
        with pytest.raises(CheckpointError if message is None else OutputError, match=message):
            infer(**settings | changes)


def test_batch_size_and_device_may_change_on_the_way(infer: Infer) -> None:
    infer(shard_indices=[0], shard_size=6, batch_size=2)
    assert infer(resume=True, shard_size=6, batch_size=5, device="cpu").num_shards_done == 2


FreeMemory = Callable[[int], None]


@pytest.fixture
def free_memory(monkeypatch: pytest.MonkeyPatch) -> FreeMemory:
    """Sets the bytes that are free on this machine, as engines see it."""

    def set_free(num_bytes: int) -> None:
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=num_bytes))

    return set_free


def test_going_on_invariantly_with_steps_of_other_sizes_is_refused_by_name(infer: Infer, free_memory: FreeMemory) -> None:
    settings = {"shard_size": 6, "batch_invariant": True}
    first = infer(shard_indices=[0], batch_size=2, **settings)
    with pytest.raises(OutputError, match=r"settings: numerics\.batch_size was 2 and is 5\. Set them as they were to go on"):
        infer(resume=True, batch_size=5, **settings)
    free_memory(50_000_000)
    resumed = infer(resume=True, batch_size=2, **settings)
    assert resumed.content_digest == infer(output="whole", batch_size=2, **settings).content_digest
    manifest = read_manifest(f"{first.output}/manifest.json")
    assert manifest is not None
    assert manifest["numerics"]["batch_size"] == 2


def test_less_free_memory_is_noticed_by_an_invariant_run_alone(infer: Infer, free_memory: FreeMemory) -> None:
    for is_invariant, output in ((True, "invariant"), (False, "usual")):
        settings = {"shard_size": 6, "batch_invariant": is_invariant, "output": output}
        free_memory(1_000_000_000)
        infer(shard_indices=[0], **settings)
        free_memory(50_000_000)
        if is_invariant:
            with pytest.raises(OutputError, match=r"settings: numerics\.batch_size was 64 and is 26\. Set"):
                infer(resume=True, **settings)
        else:
            assert infer(resume=True, **settings).num_shards_done == 2


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("num_rows", "batch_size"), ("prefill_rows", "prefill_rows"), ("prefill_tokens", "prefill_tokens"),
        ("vision_images", "vision_images"), ("cache_tokens", None),
    ],
)  # fmt: skip
def test_the_sizes_of_an_invariant_run_are_those_of_its_matrix_products(
    field: str, name: str | None, infer: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer(shard_indices=(), batch_invariant=True)

    def plan_other(*given: Any) -> MemoryPlan:
        plan = plan_engine(*given)
        changed: dict[str, Any] = {field: getattr(plan.settings, field) + 1}
        return replace(plan, settings=replace(plan.settings, **changed))

    monkeypatch.setattr("yivl_core.inference.batch.plan_engine", plan_other)
    if name is None:
        assert infer(shard_indices=(), batch_invariant=True, resume=True).num_shards_done == 0
        return
    with pytest.raises(OutputError, match=rf"settings: numerics\.{name} was \d+ and is \d+\. Set them"):
        infer(shard_indices=(), batch_invariant=True, resume=True)


@pytest.mark.parametrize("settings", [{}, {"resume": True}, {"batch_invariant": True}], ids=str)
def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(
    settings: dict[str, Any], infer: Infer, free_memory: FreeMemory, tmp_path: Path
) -> None:
    free_memory(10_000_000)
    with pytest.raises(ConfigurationError, match=r"the model does not fit: it needs .* on cpu to be loaded and to answer one"):
        infer(**settings)
    assert not (tmp_path / "predictions").exists()


def test_to_plan_and_to_count_takes_no_memory(infer: Infer, free_memory: FreeMemory) -> None:
    """Whoever has workers do the shards does just that, perhaps beside them."""
    summary = infer(output="done")
    free_memory(10_000_000)
    assert infer(shard_indices=()).num_shards_done == 0
    assert infer(output="done", resume=True).content_digest == summary.content_digest
    with pytest.raises(ConfigurationError, match=r"the model does not fit"):
        infer(resume=True)


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_sizes_are_those_of_the_memory_before_the_weights_are_loaded(
    batch_invariant: bool, infer: Infer, free_memory: FreeMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*given: Any, **named: Any) -> Any:
        free_memory(0)
        return load_model(*given, **named)

    monkeypatch.setattr("yivl_core.inference.loading.load_model", load)
    free_memory(50_000_000)
    assert infer(batch_invariant=batch_invariant).sizes.startswith("26 records at a time, ")
    free_memory(50_000_000)
    infer(shard_indices=(), output="planned")
    assert infer(output="planned", resume=True).sizes.startswith("26 records at a time, ")


def test_a_batch_that_does_not_fit_into_memory_says_what_to_lower_and_loses_nothing(
    infer: Infer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    infer(shard_indices=[0], shard_size=6)
    message = r"the memory of cpu has run out, beside other processes or at a setting of yours; lower batch_size \(now 5\)"
    with monkeypatch.context() as patch:
        patch.setattr(ModelRunner, "prefill", run_out)
        with pytest.raises(ConfigurationError, match=message):
            infer(shard_size=6, batch_size=5, resume=True)
    assert infer(shard_size=6, batch_size=2, resume=True).content_digest == infer(output="whole").content_digest


# What is read


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_records_that_training_held_out_are_found_again(
    kind: str, infer: Infer, trained: TrainingSummary, tiny_checkpoint: Path
) -> None:
    settings = {"model": str(tiny_checkpoint), "adapter": trained.adapter} if kind == "adapter" else {}
    summary = infer(load_dataset_config=True, **settings)
    held_out = [json.loads(line) for line in Path(trained.val_dataset).read_text().splitlines()]
    assert [prediction.query for prediction in rows(summary)] == [record["query"] for record in held_out]
    assert summary.num_records == trained.num_val_samples == 5
    assert summary.num_failed == 0


def test_without_held_out_records_a_dataset_has_to_be_named(infer: Infer, tiny_checkpoint: Path) -> None:
    message = rf"{tiny_checkpoint}: has no val.jsonl, .*; give --dataset"
    with pytest.raises(ConfigurationError, match=message):
        infer(model=str(tiny_checkpoint), load_dataset_config=True)


def test_an_adapter_on_another_base_is_refused_before_anything_is_written(
    infer: Infer, merged: str, trained: TrainingSummary, tmp_path: Path
) -> None:
    """On the merged model it would count twice."""
    with pytest.raises(CheckpointError, match=rf"{merged}: is not the base that {trained.adapter} was trained on"):
        infer(model=merged, adapter=trained.adapter)
    assert not (tmp_path / "predictions").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # of plain PEFT 0.21
@pytest.mark.parametrize("settings", [{"batch_invariant": True}, {"batch_invariant": True, "resume": True}], ids=str)
def test_an_adapter_that_the_engine_cannot_serve_is_refused_before_anything_is_written(
    settings: dict[str, Any], infer: Infer, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adapter = load_model(tiny_checkpoint), str(tmp_path / "adapter")
    get_peft_model(model, LoraConfig(target_modules=["v_proj"], use_dora=True)).save_pretrained(adapter)
    summary = infer(model=str(tiny_checkpoint), adapter=adapter, output="of-record", max_new_tokens=2)
    assert summary.sizes == "8 records at a time with the model of record"
    monkeypatch.setattr("yivl_core.inference.loading.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    message = (
        rf"{adapter}: this adapter is no plain LoRA, so the model of record answers, which does not know batch_invariant; "
        "leave that out, or merge the adapter where that is possible"
    )
    with pytest.raises(ConfigurationError, match=message):
        infer(model=str(tiny_checkpoint), adapter=adapter, **settings)
    assert not (tmp_path / "predictions").exists()


def test_an_input_that_is_not_there_is_refused_before_anything_is_written(infer: Infer, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone.jsonl: there is no such file; check the path"):
        infer(dataset=str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DatasetError):
        infer(dataset=str(tmp_path / "empty.jsonl"))
    assert not (tmp_path / "predictions").exists()


def test_an_input_that_shrinks_during_the_run_is_noticed(infer: Infer, dataset: Path, tmp_path: Path) -> None:
    """Only another process can do so; the first shard stays."""
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"query": f"What is {number}?"}) + "\n" for number in range(6)]
    path.write_text("".join(lines))

    def shrink(progress: Progress) -> None:
        if progress.stage == "infer":
            path.write_text("".join(lines[:3]))

    with pytest.raises(DatasetError, match=r"the input ends at record 3, and the plan counts 6; it was changed during the run"):
        infer(dataset=str(path), shard_size=2, on_progress=shrink)


# Every setting has an effect


def test_progress_counts_records_to_the_end(infer: Infer) -> None:
    events: list[Progress] = []
    infer(on_progress=events.append, batch_size=5)
    done = [event.done for event in events if event.stage == "infer"]
    assert done == sorted(done)
    assert set(done) == set(range(13))
    assert {event.total for event in events if event.stage == "infer"} == {12}


def test_what_the_engine_chose_is_told(infer: Infer) -> None:
    events: list[Progress] = []
    summary = infer(on_progress=events.append, batch_size=5)
    assert re.fullmatch(r"5 records at a time, \d+ tokens of keys and values, .* of memory \(weights .*\)", summary.sizes)
    assert summary.sizes in {event.message for event in events}


def test_batch_size_is_what_is_answered_at_a_time(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = ModelRunner.decode

    def watch(self: ModelRunner, running: Sequence[RunningRequest]) -> StepResult:
        sizes.append(len(running))
        return whole(self, running)

    monkeypatch.setattr(ModelRunner, "decode", watch)
    infer(batch_size=5)
    assert max(sizes) == 5
    sizes.clear()
    infer(output="other")
    assert max(sizes) > 5


def test_where_nothing_is_left_the_probe_says_that_it_tried_nothing(infer: Infer) -> None:
    infer()
    told: list[str] = []
    assert infer(resume=True, verify_invariance=3, on_progress=lambda progress: told.append(progress.message)).invariance is None
    assert "no shard is left to be done, so verify_invariance has tried nothing" in told
    told.clear()
    infer(output="planned", shard_indices=(), verify_invariance=3, on_progress=lambda progress: told.append(progress.message))
    assert not any("verify_invariance" in message for message in told), "who only plans has tried nothing either way"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 1e-46}, r"temperature\n.* give 0 for the likeliest token each time, or 0\.0001 or more"),
        ({"temperature": 1e6}, "less than or equal to 100"),
        ({"repetition_penalty": 1e-38}, r"greater than or equal to 0\.01"),
        ({"verify_invariance": 10**19}, "less than or equal to 10000"),
    ],
)
def test_settings_beyond_what_float32_holds_are_refused(settings: dict[str, Any], message: str, infer: Infer) -> None:
    with pytest.raises(ValidationError, match=message):
        infer(**settings)


def test_the_least_temperature_is_as_good_as_none(infer: Infer) -> None:
    assert answers(infer(temperature=1e-4, output="cold")) == answers(infer(output="greedy"))


def test_invariant_steps_have_one_size_and_give_the_same_rows(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: set[tuple[str, int]] = set()
    prefill, decode = Decoder.prefill, Decoder.decode

    def watch_prefill(self: Decoder, embeds: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.add(("prefill", len(embeds)))
        return prefill(self, embeds, *rest)

    def watch_decode(self: Decoder, token_ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.add(("decode", len(token_ids)))
        return decode(self, token_ids, *rest)

    monkeypatch.setattr(Decoder, "prefill", watch_prefill)
    monkeypatch.setattr(Decoder, "decode", watch_decode)
    usual = infer(batch_size=5)
    assert len(sizes) > 2
    sizes.clear()
    invariant = infer(batch_size=5, batch_invariant=True, output="invariant")
    assert sizes == {("prefill", 4096), ("decode", 5)}
    assert answers(invariant) == answers(usual)
    manifest = read_manifest(f"{invariant.output}/manifest.json")
    assert manifest is not None
    assert manifest["numerics"]["batch_invariant"] is True
    assert manifest["settings"]["batch_invariant"] is True


def test_the_probe_tells_how_many_records_come_out_differently(infer: Infer, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Progress] = []
    summary = infer(verify_invariance=5, on_progress=events.append)
    assert summary.invariance == {"num_records": 5, "num_differing": 0}
    manifest = read_manifest(f"{summary.output}/manifest.json")
    assert manifest is not None
    assert manifest["invariance"] == summary.invariance
    assert infer(output="unasked").invariance is None

    whole = InferenceEngine.generate

    def depend_on_company(self: InferenceEngine, requests: Iterable[Request]) -> Iterator[tuple[int, Completion | None]]:
        listed = list(requests)
        for number, completion in whole(self, listed):
            assert completion is not None
            is_changed = len(listed) > 1 and number == 2
            yield number, replace(completion, token_ids=(7,)) if is_changed else completion

    monkeypatch.setattr(InferenceEngine, "generate", depend_on_company)
    told = infer(verify_invariance=5, output="variant", on_progress=events.append)
    assert told.invariance == {"num_records": 5, "num_differing": 1}
    assert "1 of 5 records came out differently alone, together and in reverse" in {event.message for event in events}
    with pytest.raises(ConfigurationError, match=r"1 of 5 records came out differently .* in spite of batch_invariant"):
        infer(verify_invariance=5, batch_invariant=True, output="refused")


def test_eight_bits_are_refused_where_there_are_none(infer: Infer) -> None:
    with pytest.raises(
        ConfigurationError, match=r"quantization 'fp8' needs a GPU of compute capability 8.9 or later .*cpu, float32"
    ):
        infer(quantization="fp8", device="cpu")
    with pytest.raises(ConfigurationError, match=r"quantization 'fp8' needs the engine's kernels; leave out attention 'sdpa'"):
        infer(quantization="fp8", attention="sdpa", output="other")
    with pytest.raises(ConfigurationError, match=r"gpu_memory 18 is for GPUs, and the device is cpu; leave it out"):
        infer(gpu_memory="18GB", device="cpu")
    infer(device="cpu")  # nothing has been written that would be in the way


def test_gpu_memory_is_read_with_and_without_its_unit() -> None:
    for value in ("18GB", " 18 gb", "18", 18, 18.0):
        assert EngineSettings(gpu_memory=value).gpu_memory == 18
    for value in ("18GiB", "much", 0, -1):
        with pytest.raises(ValidationError):
            EngineSettings(gpu_memory=value)


@pytest.mark.parametrize(
    ("name", "value", "more"),
    [
        ("max_new_tokens", 2, {}),
        ("temperature", 1.5, {}),
        ("top_k", 2, {"temperature": 2.0}),
        ("top_p", 0.1, {"temperature": 2.0}),
        ("repetition_penalty", 5.0, {}),
        ("seed", 9, {"temperature": 1.0}),
        ("stop", ("(",), {}),
        ("stop_token_ids", tuple(range(10, 300)), {}),
        ("limit", 3, {}),
    ],
)
def test_a_setting_changes_the_rows(name: str, value: Any, more: dict[str, Any], infer: Infer) -> None:
    assert answers(infer(**more)) != answers(infer(output="other", **more, **{name: value}))


def test_prompt_and_image_root_change_the_rows(infer: Infer, dataset: Path) -> None:
    folder = dataset.parent
    names = [file.name for file in find_files(str(folder), frozenset(EXTENSIONS)).files]
    one = infer(images=str(folder), prompt="What is it?")
    other = infer(images=str(folder / "*-0.png"), prompt="How many?", output="other")
    assert [prediction.images[0].uri for prediction in rows(one)] == list(names)
    assert len(names) > other.num_records > 0
    assert {prediction.query for prediction in rows(other)} == {"How many?"}
    moved = folder.parent / "moved.jsonl"
    shutil.copy(folder / "rows.jsonl", moved)
    lost = infer(dataset=str(moved), output="lost")
    found = infer(dataset=str(moved), image_root=str(folder), output="found")
    assert (lost.num_failed, found.num_failed) == (9, 0)
    assert {prediction.error_kind for prediction in rows(lost)} == {None, "image_missing"}


def test_dtype_and_device_are_those_asked_for(infer: Infer) -> None:
    summary = infer(dtype="bfloat16", device="cpu")
    manifest = read_manifest(f"{summary.output}/manifest.json")
    assert manifest is not None
    assert manifest["numerics"] == {
        "dtype": "bfloat16", "device": "cpu", "batch_invariant": False, "attention": "auto", "quantization": "none",
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match=r"device 'cuda:77': this machine has"):
        infer(device="cuda:77", output="other")
    with pytest.raises(ConfigurationError, match=r"dtype float16 does not work on the CPU"):
        infer(dtype="float16", device="cpu", output="other")


def test_no_setting_is_forgotten_here() -> None:
    tested = {
        *DECIDING, "model", "adapter", "load_dataset_config", "output", "batch_size", "shard_size", "dtype", "device", "resume",
        "dataset", "image_root", "images", "prompt", "limit", "gpu_memory", "batch_invariant", "verify_invariance",
        "quantization", "attention", "task", "language", "subject", "shard", "as_planned", "max_failures", "contact_sheet",
        *UrlSettings.model_fields,
    }  # fmt: skip
    assert tested == set(InferenceConfig.model_fields)
