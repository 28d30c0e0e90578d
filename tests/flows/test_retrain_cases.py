"""Retrain with output that was harmed, on another base, and on other data: new, in other formats, real."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import pytest

from flows.configuration import RetrainConfig, RetrainSummary
from flows.retrain import retrain
from yivl_core.errors import DatasetError
from yivl_core.export.configuration import MergeConfig
from yivl_core.export.merge import merge_adapter
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.model.files import open_checkpoint
from yivl_core.outputs.predictions import read_predictions
from yivl_core.training.configuration import TrainingSettings

pytestmark = [pytest.mark.flows, pytest.mark.slow, pytest.mark.usefixtures("core_in_this_process_for_module")]


@pytest.fixture(scope="module")
def config(small_dataset: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrainConfig:
    return RetrainConfig(
        model=str(tiny_checkpoint),
        dataset=(str(small_dataset / "train.jsonl"),),
        output=str(tmp_path_factory.mktemp("harmed")),
        training=TrainingSettings(val_fraction=0.2, batch_size=4, device="cpu"),
        decoding=DecodingSettings(max_new_tokens=3),
        shard_size=1,
        evaluate_base=False,
    )


@pytest.fixture(scope="module")
def first(config: RetrainConfig, prefect_api: str, core_in_this_process_for_module: None) -> RetrainSummary:
    return retrain(config)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


Harm = Callable[[Path], Any]
# By stage what is harmed there, and whether it can be mended in place; else the folder steps aside.
HARMS: dict[str, dict[str, tuple[Harm, bool]]] = {
    "files that are lost": {
        "adapters": (lambda folder: (folder / "manifest.json").unlink(), False),
        "models": (lambda folder: (folder / "yivl.json").unlink(), False),
        "predictions": (lambda folder: (folder / "plan.json").unlink(), False),
    },
    "files that are changed": {
        "adapters": (lambda folder: append(folder / "val.jsonl"), True),
        "models": (lambda folder: append(folder / "tokenizer_config.json"), False),
        "predictions": (lambda folder: append(folder / "predictions" / "part-00001.parquet"), True),
    },
    "files that are emptied": {
        "adapters": (lambda folder: (folder / "adapter" / "yivl.json").write_text(""), True),
        "models": (lambda folder: (folder / "yivl.json").write_text(""), False),
        "datasets": (lambda folder: (folder / "report.json").write_text(""), False),
        "reports": (lambda folder: (folder / "report.json").write_text(""), False),
    },
    "rows that are lost": {
        "adapters": (lambda folder: [path.write_text("") for path in folder.rglob("val.jsonl")], True),
        "models": (lambda folder: (folder / "val.jsonl").unlink(), True),
        "datasets": (lambda folder: (folder / "records.jsonl").unlink(), False),
        "reports": (lambda folder: (folder / "report.json").unlink(), False),
    },
    "content that is mixed up": {
        "adapters": (lambda folder: append(folder / "adapter" / "adapter_config.json"), True),
        "models": (lambda folder: (folder / "model.safetensors").unlink(), True),
        "predictions": (lambda folder: (folder / "manifest.json").write_text("{"), True),
    },
}


@pytest.mark.parametrize("what", HARMS)
def test_what_was_harmed_is_made_again(what: str, config: RetrainConfig, first: RetrainSummary) -> None:
    places = (first.validation.output, first.training.output, first.model, first.predictions, first.evaluation.output)
    folders = {Path(folder).parent.name: Path(folder) for folder in places}
    for folder in Path(config.output).glob("*/*.harmed-*"):
        shutil.rmtree(folder)
    for stage, (harm, _) in HARMS[what].items():
        harm(folders[stage])
    second = retrain(config)
    assert replace(second, output="", predictions="") == replace(first, output="", predictions="")
    assert second.predictions == first.predictions
    aside = {folder.parent.name for folder in Path(config.output).glob("*/*.harmed-*")}
    assert aside == {stage for stage, (_, is_mended) in HARMS[what].items() if not is_mended}
    for folder in folders.values():
        assert not [path for path in folder.rglob("*") if ".tmp-" in path.name]


def test_data_that_was_moved_is_found_where_it_lies_now(
    config: RetrainConfig, first: RetrainSummary, small_dataset: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(small_dataset, old)
    moving = config.model_copy(update={"dataset": (str(old / "train.jsonl"),), "output": str(tmp_path / "work")})
    before = retrain(moving)
    old.rename(tmp_path / "new")
    now = moving.model_copy(update={"dataset": (str(tmp_path / "new" / "train.jsonl"),)})
    after = retrain(now)
    assert after.training == before.training
    assert after.evaluation.num_failed == 0
    assert after.evaluation.cer == before.evaluation.cer == first.evaluation.cer
    for folder in (after.training.output, after.training.adapter, after.model):
        assert str(tmp_path / "new") in Path(folder, "val.jsonl").read_text()
        assert str(old) not in Path(folder, "val.jsonl").read_text()


def test_a_base_in_the_transformers_layout_stays_in_it(config: RetrainConfig, first: RetrainSummary, tmp_path: Path) -> None:
    base = merge_adapter(MergeConfig(adapter=first.training.adapter, output=str(tmp_path / "base"), layout="transformers"))
    summary = retrain(config.model_copy(update={"model": base.output, "output": str(tmp_path / "work")}))
    assert open_checkpoint(summary.model).layout == "transformers"
    assert summary.evaluation.num_samples == first.evaluation.num_samples


def test_new_data_is_trained_on_and_the_old_is_kept(config: RetrainConfig, first: RetrainSummary, small_dataset: Path) -> None:
    """As csv and as a list, which are the same data."""
    rows = [json.loads(line) for line in (small_dataset / "train.jsonl").read_text().splitlines()]
    (small_dataset / "train.json").write_text(json.dumps(rows))
    with (small_dataset / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["query", "response", "images"])
        writer.writeheader()
        writer.writerows({**row, "images": json.dumps(row["images"])} for row in rows)
    for name in ("train.json", "train.csv"):
        same = retrain(config.model_copy(update={"dataset": (str(small_dataset / name),)}))
        assert same.validation.digest == first.validation.digest
        assert same.training == first.training
        assert same.evaluation == first.evaluation
    (small_dataset / "more.jsonl").write_text(json.dumps({**rows[0], "query": "Once more."}) + "\n")
    more = retrain(config.model_copy(update={"dataset": (*config.dataset, str(small_dataset / "more.jsonl"))}))
    assert more.training.num_train_samples + more.training.num_val_samples == len(rows) + 1
    assert more.training.result_digest != first.training.result_digest
    assert more.model != first.model
    assert Path(first.model, "yivl.json").is_file()


def test_real_receipts_pass_through_the_whole_flow(config: RetrainConfig, shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "data" / "sroie_lines" / "sample"
    places = {"dataset": (str(folder / "train.jsonl"),), "val_dataset": (str(folder / "val.jsonl"),), "output": str(tmp_path)}
    summary = retrain(config.model_copy(update={**places, "shard_size": 25}))
    assert (summary.validation.num_records, summary.validation.num_images, summary.validation.num_errors) == (300, 300, 0)
    assert (summary.training.num_steps, summary.training.num_dropped, summary.training.num_val_samples) == (75, 0, 60)
    assert (summary.evaluation.num_samples, summary.evaluation.num_failed) == (60, 0)
    records = [json.loads(line) for line in (folder / "val.jsonl").read_text().splitlines()]
    predictions = list(read_predictions(summary.predictions))
    assert [prediction.reference for prediction in predictions] == [record["response"] for record in records]
    answers = [prediction.response for prediction in predictions]
    normalised = [[" ".join(text.casefold().split()) for text in texts] for texts in ([r["response"] for r in records], answers)]
    assert summary.evaluation.cer == pytest.approx(jiwer.cer(*normalised), abs=1e-9)


def test_data_of_which_nothing_can_be_held_out_is_refused_before_training(
    config: RetrainConfig, small_dataset: Path, tmp_path: Path
) -> None:
    lines = (small_dataset / "train.jsonl").read_text().splitlines(keepends=True)
    dataset = small_dataset / "one.jsonl"
    dataset.write_text(lines[0])
    alone = config.model_copy(update={"dataset": (str(dataset),), "output": str(tmp_path)})
    with pytest.raises(DatasetError, match="no record can be held out"):
        retrain(alone)
    assert not (tmp_path / "adapters").exists()
