"""The single flows, one after the other, with the real core on a tiny checkpoint: each in children at least once."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flows.configuration import ExportConfig, InferConfig, InferShardConfig, SftConfig
from flows.evaluate import evaluate
from flows.finetune import export, sft
from flows.infer import infer, infer_shard
from tasks.inference import missing, plan_shards
from yivl_core.errors import DatasetError, OutputError
from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.model.files import HELD_OUT_FILE
from yivl_core.outputs.predictions import read_predictions
from yivl_core.training.configuration import TrainingSummary

pytestmark = [pytest.mark.flows, pytest.mark.slow]
QUICKLY = pytest.mark.usefixtures("core_in_this_process")


@pytest.fixture(scope="module")
def dataset_with_a_bad_record(small_dataset: Path) -> Path:
    path = small_dataset / "one_bad.jsonl"
    path.write_text(
        (small_dataset / "train.jsonl").read_text() + '{"query": "Read it.", "response": "1", "images": ["lost.png"]}\n'
    )
    return path


@pytest.fixture(scope="module")
def config(dataset_with_a_bad_record, small_dataset, tiny_checkpoint, tmp_path_factory) -> SftConfig:
    return SftConfig(
        model=str(tiny_checkpoint),
        dataset=str(dataset_with_a_bad_record),
        val_dataset=str(small_dataset / "val.jsonl"),
        output=str(tmp_path_factory.mktemp("sft") / "run"),
        batch_size=6,
        device="cpu",
    )


@pytest.fixture(scope="module")
def trained(config: SftConfig, prefect_api: str) -> TrainingSummary:
    return sft(config)


def settings(trained: TrainingSummary, config: SftConfig, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return {
        "model": config.model,
        "adapter": trained.adapter,
        "load_dataset_config": True,
        "output": str(tmp_path / "predictions"),
        "max_new_tokens": 3,
        "device": "cpu",
        **changes,
    }


def test_files_are_validated_first_and_training_goes_on_with_the_clean_records(trained, config):
    assert (trained.num_train_samples, trained.num_val_samples) == (12, 3)
    quarantine = Path(config.output, "dataset", "quarantine.jsonl").read_text()
    assert "lost.png" in quarantine
    assert Path(config.output, "val_dataset", "report.json").is_file()


@QUICKLY
def test_a_run_that_is_there_is_gone_on_with_only_on_request(trained, config):
    with pytest.raises(OutputError, match="--resume"):
        sft(config)
    assert sft(config.model_copy(update={"resume": True})) == trained


@QUICKLY
def test_a_dataset_without_a_clean_record_is_refused(config, small_dataset, tmp_path, prefect_api):
    path = small_dataset / "all_bad.jsonl"
    path.write_text('{"query": "Read it.", "images": ["lost.png"]}\n')
    with pytest.raises(DatasetError, match=r"no record can be used; .*report\.md tells why"):
        sft(config.model_copy(update={"dataset": str(path), "output": str(tmp_path / "run")}))


@QUICKLY
def test_the_records_of_the_training_are_found_and_the_report_is_written(trained, config, tmp_path, read_artifacts):
    inferred = infer(InferConfig(**settings(trained, config, tmp_path)), return_state=True)
    predictions = inferred.result()
    assert predictions.num_records == trained.num_val_samples
    evaluated = evaluate(EvaluationConfig(predictions=predictions.output, output=str(tmp_path / "report")), return_state=True)
    assert evaluated.result().num_samples == 3
    runs = [state.state_details.flow_run_id for state in (inferred, evaluated)]
    keys = [{artifact.key for artifact in read_artifacts(run)} for run in runs]
    assert keys == [{"infer-progress", "sample-predictions"}, {"metrics", "evaluation-report"}]
    again = infer(InferConfig(**settings(trained, config, tmp_path, resume=True)))
    assert again.content_digest == predictions.content_digest
    assert (again.num_records, again.completion_tokens) == (predictions.num_records, 0)


def test_a_merge_that_is_there_is_not_done_again_and_knows_the_records_of_the_training(trained, tmp_path):
    merged = export(ExportConfig(adapter=trained.adapter, output=str(tmp_path / "merged")))
    assert export(ExportConfig(adapter=trained.adapter, output=str(tmp_path / "merged"))) == merged
    assert (tmp_path / "merged" / HELD_OUT_FILE).is_file()


def test_the_deadline_of_a_flow_is_that_of_its_child(trained, config, small_dataset, tmp_path, monkeypatch):
    class StartedError(Exception):
        pass

    def start(door: str, settings: Any, on_progress: Any, deadline_s: float | None) -> None:
        raise StartedError(door, deadline_s)

    for module in ("training", "merging", "inference"):
        monkeypatch.setattr(f"tasks.{module}.run_in_child", start)
    answers = settings(trained, config, tmp_path, deadline_s=7.0)
    runs = [
        (sft, SftConfig(model=config.model, dataset=config.dataset, output=str(tmp_path / "run"), deadline_s=7.0)),
        (export, ExportConfig(adapter=trained.adapter, output=str(tmp_path / "merged"), deadline_s=7.0)),
        (infer, InferConfig(**answers)),
        (infer_shard, InferShardConfig(**answers, shard_indices=(0,))),
    ]
    doors = []
    for flow, parameters in runs:
        with pytest.raises(StartedError) as started:
            flow(parameters)
        door, deadline_s = started.value.args
        assert deadline_s == 7.0
        doors.append(door)
    assert doors == ["train", "merge", "infer", "infer"]


@QUICKLY
def test_a_worker_does_its_shard_and_leaves_the_others(trained, config, small_dataset, tmp_path):
    shared = settings(
        trained, config, tmp_path, load_dataset_config=False, dataset=str(small_dataset / "train.jsonl"), shard_size=5
    )
    assert plan_shards(InferenceConfig(**shared)) == [0, 1, 2]
    summary = infer_shard(InferShardConfig(**shared, shard_indices=(1,), resume=True))
    assert (summary.num_shards, summary.num_shards_done) == (3, 1)
    assert missing(shared["output"]) == [0, 2]
    assert [row.record_index for row in read_predictions(shared["output"])] == [5, 6, 7, 8, 9]


def test_a_folder_of_images_is_answered_and_a_bad_one_becomes_a_row(trained, config, small_dataset, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for path in islice(sorted(small_dataset.glob("*.png")), 2):
        (images / path.name).write_bytes(path.read_bytes())
    (images / "broken.png").write_bytes(b"not an image")
    changes = {"load_dataset_config": False, "adapter": None, "images": str(images), "prompt": "What is this?"}
    summary = infer(InferConfig(**settings(trained, config, tmp_path, **changes)))
    assert (summary.num_records, summary.num_failed) == (3, 1)
