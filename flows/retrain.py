"""New data -> validate -> train an adapter -> merge it -> answer the validation records -> evaluate -> promote.

Full tuning gives a whole model; there is nothing to merge then.

```
OUTPUT/datasets/KEY       validated datasets, KEY from where the data lies (written again by each run)
       adapters/KEY       training runs      \
       models/KEY         merged checkpoints  |  KEY from content, settings and code: what is
       predictions/KEY    answers             |  there and unharmed is not made again
       reports/KEY        evaluation reports /
       runs/TIME-ID       summary.json of one run: its parameters, its figures, and which folders it used
       registry           registry.json: which model is the current one, if models are to be promoted
```
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from prefect import runtime
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.logging import get_run_logger

from flows.checked_flow import flow
from flows.configuration import RetrainConfig, RetrainSummary
from flows.validate import validate_to_go_on
from tasks.caching import content_key
from tasks.evaluation import evaluate
from tasks.inference import infer_once, inference_key
from tasks.merging import merge, merge_key
from tasks.promotion import promote
from tasks.training import train, training_key
from yivl_core.data.configuration import UNDECIDING, ValidationConfig, ValidationSummary
from yivl_core.digests import digest_json
from yivl_core.errors import OutputError
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.gate_file import Gate, read_gate
from yivl_core.export.configuration import MergeConfig, MergeSummary
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.locks import move_aside
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.registry import Entry, read_registry
from yivl_core.settings import narrow
from yivl_core.storage import join, publish_bytes
from yivl_core.training.configuration import TrainingConfig, TrainingSummary

Summary = TypeVar("Summary")


@flow(name="retrain")
def retrain(config: RetrainConfig) -> RetrainSummary:
    """Train on the dataset, merge the adapter, and report what it reads; the same content is not worked on twice."""
    return run_retrain(config)


def run_retrain(config: RetrainConfig) -> RetrainSummary:
    """The steps of `retrain`, for flows that prepare its parameters."""
    current = read_registry(_registry(config)).current if config.promote else None
    gate = _read_gate(config, current)
    val_validation = _validate(config, config.val_dataset) if config.val_dataset else None
    validation = _validate(config, config.dataset, apart_from=(val_validation.output,) if val_validation else ())
    training = _train(config, validation, val_validation)
    model = _trained_model(config, training)
    records = val_validation.output if val_validation else training.val_dataset
    data = digest_json([validation.digest, val_validation.digest if val_validation else None])
    predictions = _infer(config, model, records, data)
    # Held-out records of the dataset itself were not trained on, though they stand in it.
    texts = config.scoring.training_texts or ((validation.output,) if val_validation else ())
    places = {"dataset": records, "training_texts": texts}
    base_predictions = _infer(config, config.model, records, data) if config.evaluate_base else None
    base_evaluation = _evaluate(config, base_predictions, None, places) if base_predictions else None
    current_predictions = _infer(config, current.model, records, data) if current else None
    evaluation = _evaluate(config, predictions, current_predictions or base_predictions, places, gate)
    promotion = _promote(config, model, predictions, evaluation) if config.promote else None
    summary = RetrainSummary(
        output=_run_folder(config),
        validation=validation,
        training=training,
        model=model,
        predictions=predictions.output,
        evaluation=evaluation,
        base_evaluation=base_evaluation,
        compared_with="current" if current else "base" if base_predictions else None,
        promotion=promotion,
    )
    _publish(config, summary)
    return summary


def _folder(config: RetrainConfig, stage: str, key: str) -> str:
    return join(config.output, stage, key[:12])


def _run(stage: Callable[[], Summary], folder: str) -> Summary:
    """A stage in its own folder; what somebody has changed or lost of it steps aside, and the stage is done again.

    The folder's name says what belongs into it, so a stage refuses it only where it was harmed.
    """
    try:
        return stage()
    except OutputError as error:
        if not Path(folder).exists():
            raise
        aside = f"{folder}.harmed-{_now()}"
        move_aside(Path(folder), Path(aside))
        get_run_logger().warning("%s. It was moved to %s, and is made again", error, aside)
        return stage()


def _validate(config: RetrainConfig, dataset: tuple[str, ...], apart_from: tuple[str, ...] = ()) -> ValidationSummary:
    """Validate into a folder named by where the data lies: what it holds is known only afterwards."""
    deciding = config.validation.model_dump(mode="json", exclude=set(UNDECIDING))
    place = digest_json([list(dataset), config.image_root, deciding, list(apart_from)])
    output = _folder(config, "datasets", place)
    settings = narrow(
        config.validation,
        ValidationConfig,
        dataset=dataset,
        image_root=config.image_root,
        output=output,
        model=config.model,
        max_length=config.training.max_length,
        apart_from=apart_from,
    )
    return _run(lambda: validate_to_go_on(settings), output)


def _train(config: RetrainConfig, data: ValidationSummary, val_data: ValidationSummary | None) -> TrainingSummary:
    val_dataset = val_data.output if val_data else None
    key = training_key(config.training, config.model, data.output, val_dataset)
    output = _folder(config, "adapters", key)
    places = {"model": config.model, "dataset": data.output, "val_dataset": val_dataset, "output": output}
    settings = narrow(config.training, TrainingConfig, **places, resume=True)
    return _run(lambda: train(settings, config.deadline_s), output)


def _trained_model(config: RetrainConfig, training: TrainingSummary) -> str:
    """The checkpoint that the training gives: full tuning's own, or the base with the adapter merged into it."""
    return training.model or _merge(config, str(training.adapter)).output


def _merge(config: RetrainConfig, adapter: str) -> MergeSummary:
    settings = MergeConfig(adapter=adapter, model=config.model, output=config.output, device=config.training.device)
    output = _folder(config, "models", merge_key(settings))
    return _run(lambda: merge(settings.model_copy(update={"output": output}), config.deadline_s), output)


def _infer(config: RetrainConfig, model: str, records: str, data: str) -> InferenceSummary:
    """Answer the validation records, in the dtype and on the device of the training."""
    settings = narrow(
        config.decoding,
        InferenceConfig,
        model=model,
        dataset=records,
        output=config.output,  # until its key is known
        batch_size=config.infer_batch_size,
        shard_size=config.shard_size,
        dtype=config.training.dtype,
        device=config.training.device,
        resume=True,
    )
    output = _folder(config, "predictions", inference_key(settings, data))
    return _run(lambda: infer_once(settings.model_copy(update={"output": output}), data, config.deadline_s), output)


def _evaluate(
    config: RetrainConfig,
    predictions: InferenceSummary,
    baseline: InferenceSummary | None,
    places: dict[str, Any],
    gate: Gate | None = None,
) -> EvaluationSummary:
    """The report of a model's answers, beside the baseline's if there is one, and by the gate if there is one."""
    settings = narrow(
        config.scoring,
        EvaluationConfig,
        predictions=predictions.output,
        baseline=baseline.output if baseline else None,
        gate=config.gate if gate else None,
        output=config.output,  # until its key is known
        **places,
    )
    # Two models may give equal answers; their reports differ all the same, in what they say of their origin.
    key = content_key(
        contents=[predictions.content_digest, baseline.content_digest if baseline else None],
        place=predictions.output.removeprefix(config.output),
        scoring=config.scoring.model_dump(mode="json"),
        gate=gate.digest if gate else None,
    )
    output = _folder(config, "reports", key)
    return _run(lambda: evaluate(settings.model_copy(update={"output": output})), output)


def _registry(config: RetrainConfig) -> str:
    return config.registry or join(config.output, "registry")


def _read_gate(config: RetrainConfig, current: Entry | None) -> Gate | None:
    """The gate, so that a wrong one is refused before anything is trained; it is checked against the report that will be made."""
    if config.gate is None:
        return None
    baseline = current.model if current else config.model if config.evaluate_base else None
    texts = config.scoring.training_texts or (config.dataset if config.val_dataset else ())
    places = {"predictions": config.output, "baseline": baseline, "output": config.output, "training_texts": texts}
    return read_gate(config.gate, narrow(config.scoring, EvaluationConfig, **places))


def _promote(config: RetrainConfig, model: str, predictions: InferenceSummary, evaluation: EvaluationSummary) -> PromotionSummary:
    settings = PromotionConfig(
        registry=_registry(config),
        model=model,
        report=evaluation.output,
        predictions=predictions.output,
        require=config.promotion_requires,
    )
    return promote(settings)


def _run_folder(config: RetrainConfig) -> str:
    return join(config.output, "runs", f"{_now()}-{runtime.flow_run.id[:8]}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%SZ")


def _publish(config: RetrainConfig, summary: RetrainSummary) -> None:
    content = {"config": config.model_dump(mode="json"), **asdict(summary)}
    publish_bytes(join(summary.output, "summary.json"), json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")
    evaluations = {"trained": summary.evaluation, "base": summary.base_evaluation}
    table = [{"model": name, **asdict(figures)} for name, figures in evaluations.items() if figures is not None]
    create_table_artifact(key="retrain-metrics", table=table, description="The validation records, answered by each model")
    create_markdown_artifact(_links(summary), key="retrain", description=summary.output)


def _links(summary: RetrainSummary) -> str:
    places = {
        "Summary": join(summary.output, "summary.json"),
        "Report": join(summary.evaluation.output, "report.html"),
        "Model": summary.model,
        "Training": summary.training.output,
        "Predictions": summary.predictions,
    }
    return "\n".join(f"- {name}: `{place}`" for name, place in places.items())
