"""Models that retraining makes become current ones, one after the other, if gate and comparison say so."""

from pathlib import Path

import pytest

from flows.commands import COMMANDS
from flows.configuration import PromoteConfig, RetrainConfig, RetrainSummary
from flows.promote import promote
from flows.retrain import retrain
from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.report_files import REPORT_NAME
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.promotion.registry import read_registry
from yivl_core.storage import read_bytes
from yivl_core.training.configuration import TrainingSettings

pytestmark = [pytest.mark.flows, pytest.mark.slow, pytest.mark.usefixtures("core_in_this_process_for_module")]

GATE = "rules: [{metric: coverage, min: 1}]\nrequire: {same: [data, prompt, decoding], primary: not_worse}\n"


@pytest.fixture(scope="module")
def config(small_dataset: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RetrainConfig:
    folder = tmp_path_factory.mktemp("promoted")
    (folder / "gate.yaml").write_text(GATE)
    return RetrainConfig(
        model=str(tiny_checkpoint),
        dataset=(str(small_dataset / "train.jsonl"),),
        output=str(folder / "work"),
        training=TrainingSettings(val_fraction=0.2, batch_size=4, device="cpu"),
        decoding=DecodingSettings(max_new_tokens=3),
        evaluate_base=False,
        gate=str(folder / "gate.yaml"),
        promote=True,
        promotion_requires="not_worse",
    )


@pytest.fixture(scope="module")
def first(config: RetrainConfig, prefect_api: str, core_in_this_process_for_module: None) -> RetrainSummary:
    return retrain(config)


def exit_code(summary: RetrainSummary) -> int:
    return COMMANDS["retrain"].exit_code(summary)


def other_model(config: RetrainConfig, **changes: object) -> RetrainConfig:
    training = config.training.model_copy(update={"learning_rate": 2e-4})
    return config.model_copy(update={"training": training, **changes})


def test_the_first_model_is_promoted_by_the_gate_alone(config: RetrainConfig, first: RetrainSummary) -> None:
    assert first.promotion is not None
    assert (first.evaluation.gate, first.promotion.result, first.compared_with) == ("passed", "passed", None)
    assert exit_code(first) == 0
    current = read_registry(f"{config.output}/registry").current
    assert current is not None
    assert (current.model, current.report, current.predictions) == (first.model, first.evaluation.output, first.predictions)
    assert f"current model {first.model}" in COMMANDS["retrain"].describe(first)


def test_a_later_model_is_compared_with_the_current_one_and_rolled_back(config: RetrainConfig, first: RetrainSummary) -> None:
    again = retrain(config)
    assert again.promotion is not None
    assert (again.promotion.was_current, again.compared_with) == (True, "current")
    assert (again.evaluation.verdict, again.evaluation.difference) == ("not distinguishable", 0.0)

    strict = retrain(other_model(config, promotion_requires="better"))
    assert strict.promotion is not None
    assert strict.evaluation.verdict == "not distinguishable"
    assert (strict.promotion.result, strict.promotion.model, exit_code(strict)) == ("regression", first.model, 1)
    assert strict.promotion.reasons[0] in COMMANDS["retrain"].describe(strict)

    second = retrain(other_model(config))
    assert second.promotion is not None
    assert (second.promotion.result, second.promotion.previous, exit_code(second)) == ("passed", first.model, 0)
    registry = second.promotion.registry.removesuffix("/registry.json")
    back = promote(PromoteConfig(registry=registry, rollback=True))
    assert (back.model, back.previous) == (first.model, second.model)
    forward = PromoteConfig(registry=registry, model=second.model, report=second.evaluation.output, require="not_worse")
    assert promote(forward).model == second.model
    assert promote(PromoteConfig(registry=registry, rollback=True)).model == first.model


def test_a_model_that_the_gate_refuses_is_kept_and_not_promoted(
    config: RetrainConfig, first: RetrainSummary, tmp_path: Path
) -> None:
    (tmp_path / "gate.yaml").write_text("rules: [{metric: cer, max: 0.01}]")
    changes = {"gate": str(tmp_path / "gate.yaml"), "registry": str(tmp_path / "registry")}
    summary = retrain(config.model_copy(update=changes))
    assert summary.promotion is not None
    assert (summary.evaluation.gate, summary.promotion.result, exit_code(summary)) == ("regression", "regression", 1)
    assert summary.promotion.reasons == summary.evaluation.gate_reasons
    assert summary.promotion.model is None
    assert summary.model == first.model
    assert not (tmp_path / "registry").exists() or not list((tmp_path / "registry").iterdir())
    assert summary.evaluation.output != first.evaluation.output, "another gate, another report"
    alone = retrain(config.model_copy(update={"gate": changes["gate"], "promote": False}))
    assert (alone.promotion, alone.evaluation.gate, exit_code(alone)) == (None, "regression", 1)
    assert b'"regression"' in read_bytes(f"{alone.evaluation.output}/{REPORT_NAME}")


def test_only_a_run_of_the_deployment_can_ask(prefect_api: str, tmp_path: Path) -> None:
    config = PromoteConfig(registry=str(tmp_path), model="m", report="r", approval=True)
    with pytest.raises(ConfigurationError, match="`approval` is for runs of the promote deployment"):
        promote(config)


def test_a_gate_that_does_not_fit_is_refused_before_anything_is_done(config: RetrainConfig, tmp_path: Path) -> None:
    (tmp_path / "gate.yaml").write_text("rules: [{metric: bleu4, min: 0.01}]")
    with pytest.raises(ConfigurationError, match=r"gate\.yaml: rule 1: the metric 'bleu4' is not measured"):
        retrain(config.model_copy(update={"gate": str(tmp_path / "gate.yaml"), "output": str(tmp_path / "work")}))
    assert not (tmp_path / "work").exists()
