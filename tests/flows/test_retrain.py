import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.configuration import RetrainConfig, RetrainSummary
from flows.retrain import retrain
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.model.files import adapter_digest, checkpoint_digest
from yivl_core.training.configuration import TrainingSettings

pytestmark = [pytest.mark.flows, pytest.mark.slow, pytest.mark.usefixtures("core_in_this_process_for_module")]
CACHED_STAGES = ["train", "merge", "infer"]


@pytest.fixture(scope="module")
def config(small_dataset: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrainConfig:
    return RetrainConfig(
        model=str(tiny_checkpoint),
        dataset=(str(small_dataset / "train.jsonl"),),
        output=str(tmp_path_factory.mktemp("work")),
        training=TrainingSettings(val_fraction=0.2, batch_size=4, device="cpu"),
        decoding=DecodingSettings(max_new_tokens=3),
    )


@pytest.fixture(scope="module")
def first_state(config: RetrainConfig, prefect_api: str, core_in_this_process_for_module: None) -> Any:
    return retrain(config, return_state=True)


@pytest.fixture(scope="module")
def first(first_state: Any) -> RetrainSummary:
    summary = first_state.result()
    assert isinstance(summary, RetrainSummary)
    return summary


def run_and_watch(config: RetrainConfig) -> tuple[RetrainSummary, Counter[tuple[str, str]]]:
    """A run, and how often each task ended in which state."""
    state = retrain(config, return_state=True)
    summary = state.result()
    return summary, states_of(state.state_details.flow_run_id)


def states_of(flow_run_id: Any) -> Counter[tuple[str, str]]:
    """The server hears of the states of task runs a little later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with get_client(sync_client=True) as client:
        for _ in range(100):
            runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
            if runs and all(run.state is not None and run.state.is_final() for run in runs):
                break
            time.sleep(0.1)
    return Counter((run.task_key.rpartition(".")[2].partition("-")[0].strip("_"), run.state_name) for run in runs)


def stage_folders(summary: RetrainSummary) -> list[str]:
    base = [summary.base_evaluation.output] if summary.base_evaluation else []
    return [summary.training.output, summary.model, summary.predictions, summary.evaluation.output, *base]


def test_the_run_folder_tells_parameters_figures_and_folders(first, config):
    told = json.loads(Path(first.output, "summary.json").read_text())
    assert told["config"] == config.model_dump(mode="json")
    assert told["training"]["adapter"] == first.training.adapter
    assert told["evaluation"]["cer"] == first.evaluation.cer
    assert all(Path(folder).is_dir() and folder.startswith(config.output) for folder in stage_folders(first))


def test_the_records_held_out_of_training_are_those_evaluated_on(first):
    assert first.training.num_train_samples == 10
    assert first.training.num_val_samples == first.evaluation.num_samples == first.base_evaluation.num_samples == 2


def test_the_report_of_the_base_model_is_another_one(first):
    assert first.base_evaluation.output != first.evaluation.output
    manifests = [
        json.loads(Path(folder, "report.json").read_text())["predictions"]["manifest"] for folder in stage_folders(first)[3:]
    ]
    digests = [manifest["model"]["digest"] for manifest in manifests]
    assert digests[0] != first.training.base_digest == digests[1]


def test_the_answers_of_both_models_stand_side_by_side_in_the_report(first):
    html = Path(first.evaluation.output, "report.html").read_text("utf-8")
    assert html.count("<article") == first.evaluation.num_samples
    assert html.count('src="data:image/') == 2
    report = json.loads(Path(first.evaluation.output, "report.json").read_text())
    assert report["comparison"]["baseline"]["content_digest"] != report["predictions"]["content_digest"]
    assert report["comparison"]["figures"]["cer"]["baseline"] == first.base_evaluation.cer
    assert first.evaluation.verdict == "not distinguishable"
    assert first.base_evaluation.verdict is None


def test_each_stage_leaves_its_artifacts(first, first_state, read_artifacts: Callable[[Any], list[Any]]):
    artifacts = {artifact.key: artifact for artifact in read_artifacts(first_state.state_details.flow_run_id)}
    assert {"train-progress", "merge-progress", "infer-progress"} <= artifacts.keys()
    assert artifacts["train-progress"].data == 100
    assert json.loads(artifacts["metrics"].data)[0]["num_samples"] == 2
    samples = json.loads(artifacts["sample-predictions"].data)
    assert 0 < len(samples) <= 20
    assert samples[0]["question"] == "Read the number."
    assert first.evaluation.output in artifacts["retrain"].data
    assert f"{first.evaluation.output}/report.html" in artifacts["retrain"].data
    assert [row["model"] for row in json.loads(artifacts["retrain-metrics"].data)] == ["trained", "base"]
    assert all(len(str(artifact.data).encode()) <= 100_000 for artifact in artifacts.values())


def test_the_same_data_and_settings_are_not_worked_on_twice(first, config):
    retrain(config)  # whatever other tests have lost
    second, states = run_and_watch(config)
    assert stage_folders(second) == stage_folders(first)
    assert second.output != first.output
    assert [states[stage, "Cached"] for stage in CACHED_STAGES] == [1, 1, 2]
    assert not any(states[stage, "Completed"] for stage in CACHED_STAGES)


def test_a_lost_adapter_is_noticed_and_trained_again(first, config):
    shutil.rmtree(first.training.output)
    second, states = run_and_watch(config)
    assert states["train", "Completed"] == 1
    assert adapter_digest(second.training.adapter) == first.training.result_digest
    assert states["merge", "Cached"] == 1


def test_stages_are_found_again_when_the_cache_of_prefect_is_lost(first, config, prefect_home):
    shutil.rmtree(prefect_home / "storage")
    metrics = Path(first.training.output, "metrics.jsonl")
    written_at = metrics.stat().st_mtime_ns
    second, states = run_and_watch(config.model_copy(update={"evaluate_base": False}))
    assert [states[stage, "Completed"] for stage in CACHED_STAGES] == [1, 1, 1]
    assert metrics.stat().st_mtime_ns == written_at
    assert second.training == first.training
    assert stage_folders(second)[:3] == stage_folders(first)[:3]
    assert second.evaluation.output not in stage_folders(first)  # nothing stands beside its figures
    assert second.base_evaluation is None
    assert second.evaluation.verdict is None


def test_weights_that_are_tuned_themselves_are_answered_with_as_they_are(config):
    full = config.model_copy(
        update={"training": TrainingSettings(tuner="full", val_fraction=0.2, batch_size=4, device="cpu"), "evaluate_base": False}
    )
    first, states = run_and_watch(full)
    assert [states[stage, "Completed"] for stage in CACHED_STAGES] == [1, 0, 1]
    assert first.model == first.training.model
    assert first.training.adapter is None
    manifest = json.loads(Path(first.evaluation.output, "report.json").read_text())["predictions"]["manifest"]
    assert manifest["model"]["digest"] == checkpoint_digest(first.model) == first.training.result_digest
    second, states = run_and_watch(full)
    assert [states[stage, "Cached"] for stage in CACHED_STAGES] == [1, 0, 1]
    assert stage_folders(second) == stage_folders(first)
    next(Path(first.model).glob("*.safetensors")).unlink()
    third, states = run_and_watch(full)
    assert [states[stage, "Completed"] for stage in CACHED_STAGES] == [1, 0, 0]
    assert third.training == first.training
    assert checkpoint_digest(third.model) == first.training.result_digest


def test_a_run_without_anything_to_evaluate_on_is_refused(config):
    with pytest.raises(ValidationError, match="nothing to evaluate on"):
        RetrainConfig(model="m", dataset=("d",), output="o", training=TrainingSettings(val_fraction=0))
