import hashlib
import json
import shutil
import uuid
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from yivl_core.errors import BusyError, CheckpointError, ConfigurationError, OutputError, StorageError
from yivl_core.locks import sole_user
from yivl_core.model.files import checkpoint_digest
from yivl_core.outputs.manifest import write_manifest
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary
from yivl_core.promotion.promote import check_promotion, promote_model
from yivl_core.promotion.registry import Registry, read_registry, write_registry
from yivl_core.storage import publish_bytes

GATE_PASSED = {"result": "passed", "reasons": []}


@pytest.fixture
def models(tiny_checkpoint: Path, tmp_path: Path) -> list[Path]:
    """Three checkpoints that differ in a file that decides their digest."""
    folders = []
    for number in range(3):
        folder = tmp_path / f"model {number}"
        shutil.copytree(tiny_checkpoint, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"max_position_embeddings": config["max_position_embeddings"] + number}))
        folders.append(folder)
    assert len({checkpoint_digest(folder) for folder in folders}) == 3
    return folders


def origin(model: Path | None, adapter: dict[str, str] | None = None) -> dict[str, Any]:
    manifest = None if model is None else {"model": {"digest": checkpoint_digest(model)}, "adapter": adapter}
    return {"content_digest": "rows", "manifest": manifest}


def report_of(folder: Path, model: Path | None, baseline: Path | None = None, *, verdict: str = "better", **changes: Any) -> str:
    """A folder with what a promotion reads of a report.json."""
    comparison = None
    if baseline is not None:
        figures = {} if verdict == "not comparable" else {"cer": {"difference": -0.01}}
        comparison = {"verdict": verdict, "baseline": origin(baseline), "figures": figures}
    report = {
        "format": "yivl evaluation report",
        "version": 2,
        "scoring": {"primary": "cer"},
        "figures": {"cer": {"value": 0.05}},
        "gate": GATE_PASSED,
        "comparison": comparison,
        "predictions": origin(model),
    }
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report | changes))
    return str(folder)


Promote = Callable[..., PromotionSummary]


@pytest.fixture
def promote(tmp_path: Path) -> Promote:
    """Promote a model by the report that is made for it; `registry` is common to all."""

    def run(model: Path, baseline: Path | None = None, require: str = "better", **changes: Any) -> PromotionSummary:
        report = report_of(tmp_path / "report", model, baseline, **changes)
        registry = str(tmp_path / "registry")
        return promote_model(
            PromotionConfig.model_validate({"registry": registry, "model": str(model), "report": report, "require": require})
        )

    return run


def registry(tmp_path: Path) -> Registry:
    return read_registry(str(tmp_path / "registry"))


def test_the_first_model_needs_the_gate_alone(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    summary = promote(models[0])
    assert summary == PromotionSummary(
        registry=str(tmp_path / "registry" / "registry.json"),
        result="passed",
        model=str(models[0]),
        digest=checkpoint_digest(models[0]),
    )
    found = registry(tmp_path)
    assert found.current is not None
    assert found.current.report == str(tmp_path / "report")
    assert found.current.report_sha256 == hashlib.sha256((tmp_path / "report" / "report.json").read_bytes()).hexdigest()
    assert [(event.action, event.reason) for event in found.history] == [
        ("promote", "the gate passed with cer 0.05; there was no current model")
    ]
    assert sorted(path.name for path in (tmp_path / "registry").iterdir()) == ["registry.json"]


@pytest.mark.parametrize(
    ("verdict", "require", "result"),
    [
        ("better", "better", "passed"),
        ("better", "not_worse", "passed"),
        ("not distinguishable", "better", "regression"),
        ("not distinguishable", "not_worse", "passed"),
        ("worse", "better", "regression"),
        ("worse", "not_worse", "regression"),
        ("not comparable", "not_worse", "not comparable"),
    ],
)
def test_a_later_model_has_to_be_better_than_the_current_one(
    verdict: str, require: str, result: str, models: list[Path], promote: Promote, tmp_path: Path
) -> None:
    promote(models[0])
    before = (tmp_path / "registry" / "registry.json").read_bytes()
    summary = promote(models[1], models[0], require, verdict=verdict)
    assert summary.result == result
    if result == "passed":
        assert (summary.model, summary.previous) == (str(models[1]), str(models[0]))
        assert registry(tmp_path).history[-1].reason == (
            f"the gate passed; cer 0.05 is {verdict} beside the current model's (-0.01)"
        )
    else:
        words = require.replace("_", " ")
        assert summary.reasons == (f"cer is {verdict} beside the current model, and it has to be {words}",)
        assert (summary.model, summary.previous) == (str(models[0]), None)
        assert (tmp_path / "registry" / "registry.json").read_bytes() == before


@pytest.mark.parametrize("result", ["regression", "not comparable", "incomplete"])
def test_what_the_gate_has_refused_is_not_promoted(result: str, models: list[Path], promote: Promote, tmp_path: Path) -> None:
    summary = promote(models[0], gate={"result": result, "reasons": ["cer is too high"]})
    assert (summary.result, summary.reasons, summary.model) == (result, ("cer is too high",), None)
    assert not (tmp_path / "registry" / "registry.json").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (lambda models: {"predictions": origin(models[1])}, "the report is about another model: "),
        (lambda models: {"predictions": origin(None)}, "a model that no manifest tells answered, and the digest here is"),
        (
            lambda models: {"predictions": origin(models[2], {"digest": "a"})},
            "a base with an adapter that is not merged",
        ),
        (lambda models: {"baseline": None}, "the report has no baseline; evaluate with answers of the current model"),
        (lambda models: {"baseline": models[1]}, "and not the current model, "),
    ],
)
def test_a_report_about_other_models_is_not_comparable(
    changes: Callable[[list[Path]], dict[str, Any]], reason: str, models: list[Path], promote: Promote, tmp_path: Path
) -> None:
    promote(models[0])
    summary = promote(**{"model": models[2], "baseline": models[0], **changes(models)})
    assert summary.result == "not comparable"
    assert reason in summary.reasons[0]
    assert len(registry(tmp_path).history) == 1


def test_looking_whether_a_model_would_be_promoted_changes_nothing(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    def check(model: Path, baseline: Path | None, verdict: str = "better") -> PromotionSummary:
        report = report_of(tmp_path / "report", model, baseline, verdict=verdict)
        return check_promotion(PromotionConfig(registry=str(tmp_path / "registry"), model=str(model), report=report))

    assert (check(models[0], None).result, check(models[0], None).model) == ("passed", None)
    assert not (tmp_path / "registry").exists()
    promote(models[0])
    before = (tmp_path / "registry" / "registry.json").read_bytes()
    assert check(models[0], None).was_current
    assert (check(models[1], models[0]).result, check(models[1], models[0]).model) == ("passed", str(models[0]))
    assert check(models[1], models[0], verdict="worse").result == "regression"
    assert (tmp_path / "registry" / "registry.json").read_bytes() == before


def test_a_note_is_kept_with_the_reason(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    report = report_of(tmp_path / "report", models[0])
    registry_folder = str(tmp_path / "registry")
    promote_model(PromotionConfig(registry=registry_folder, model=str(models[0]), report=report, note="for the fair"))
    assert registry(tmp_path).history[0].reason.endswith("there was no current model; for the fair")
    promote(models[1], models[0])
    promote_model(PromotionConfig(registry=registry_folder, rollback=True, note="it stutters"))
    assert registry(tmp_path).history[-1].reason == f"back from {models[1]}; it stutters"


def test_the_current_model_is_not_promoted_twice(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    promote(models[0])
    promote(models[1], models[0])
    before = (tmp_path / "registry" / "registry.json").read_bytes()
    again = promote(models[1], models[0])
    assert (again.result, again.was_current, again.model) == ("passed", True, str(models[1]))
    assert (tmp_path / "registry" / "registry.json").read_bytes() == before


def roll_back(tmp_path: Path) -> PromotionSummary:
    return promote_model(PromotionConfig(registry=str(tmp_path / "registry"), rollback=True))


def test_rollback_goes_back_step_by_step(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"registry\.json: there is no model before the current one to go back to"):
        roll_back(tmp_path)
    promote(models[0])
    promote(models[1], models[0])
    promote(models[2], models[1])
    summary = roll_back(tmp_path)
    assert (summary.result, summary.model, summary.previous) == ("passed", str(models[1]), str(models[2]))
    assert roll_back(tmp_path).model == str(models[0])
    with pytest.raises(ConfigurationError, match="no model before"):
        roll_back(tmp_path)
    assert [(event.action, event.model) for event in registry(tmp_path).history] == [
        ("promote", str(models[0])),
        ("promote", str(models[1])),
        ("promote", str(models[2])),
        ("rollback", str(models[1])),
        ("rollback", str(models[0])),
    ]
    assert promote(models[2], models[0]).model == str(models[2])
    assert roll_back(tmp_path).model == str(models[0])


def test_rollback_refuses_a_model_that_was_changed(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    promote(models[0])
    promote(models[1], models[0])
    path = models[0] / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": 99}))
    with pytest.raises(CheckpointError, match=r"model 0 is not what it was when it was promoted"):
        roll_back(tmp_path)
    assert len(registry(tmp_path).history) == 2


def test_a_registry_may_lie_on_an_object_store(models: list[Path], tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}/registry"
    report = report_of(tmp_path / "report", models[0])
    assert promote_model(PromotionConfig(registry=url, model=str(models[0]), report=report)).result == "passed"
    current = read_registry(url).current
    assert current is not None
    assert current.model == str(models[0])


def test_predictions_are_kept_if_they_are_the_report_s(models: list[Path], tmp_path: Path) -> None:
    report = report_of(tmp_path / "report", models[0])
    places = {"registry": str(tmp_path / "registry"), "model": str(models[0]), "report": report}
    write_manifest(str(tmp_path / "other" / "manifest.json"), {"content_digest": "other rows"}, {})
    for name in ("other", "nowhere"):
        with pytest.raises(OutputError, match=rf"{name} does not hold the predictions of .*report, whose digest is rows"):
            promote_model(PromotionConfig(**places, predictions=str(tmp_path / name)))
    write_manifest(str(tmp_path / "rows" / "manifest.json"), {"content_digest": "rows"}, {})
    promote_model(PromotionConfig(**places, predictions=str(tmp_path / "rows")))
    current = registry(tmp_path).current
    assert current is not None
    assert (current.predictions, current.predictions_digest) == (str(tmp_path / "rows"), "rows")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, StorageError, r"report\.json: there is no such file"),
        (b"{", OutputError, r"report\.json cannot be read as JSON"),
        (b"[]", OutputError, r"report\.json is no evaluation report of version 2; run `yivl evaluate` again"),
        (b'{"format": "yivl evaluation report", "version": 1}', OutputError, r"is no evaluation report of version 2"),
        (b'{"format": "yivl evaluation report", "version": 2, "gate": null}', ConfigurationError, r"was made without a gate"),
    ],
)
def test_what_is_no_report_with_a_gate_is_refused(
    content: bytes | None, kind: type[Exception], message: str, models: list[Path], tmp_path: Path
) -> None:
    if content is not None:
        publish_bytes(str(tmp_path / "report" / "report.json"), content)
    with pytest.raises(kind, match=message):
        promote_model(PromotionConfig(registry=str(tmp_path / "registry"), model=str(models[0]), report=str(tmp_path / "report")))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": "x"}', b'{"current": {"model": "m"}}', b'{"more": 1}'])
def test_what_is_no_registry_is_left_alone(content: bytes, models: list[Path], promote: Promote, tmp_path: Path) -> None:
    path = tmp_path / "registry" / "registry.json"
    publish_bytes(str(path), content)
    with pytest.raises(OutputError, match=r"registry\.json is no registry of models \(.*\); restore it, or choose another"):
        promote(models[0])
    assert path.read_bytes() == content


def _hold(folder: str, is_held: Any, may_end: Any) -> None:
    with sole_user(Path(folder), Path(folder) / ".lock"):
        is_held.set()
        may_end.wait(60)


def test_one_process_at_a_time_changes_a_registry(
    models: list[Path], promote: Promote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yivl_core.locks._LOCK_TIMEOUT_S", 0.1)
    context = get_context("spawn")
    is_held, may_end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "registry"), is_held, may_end))
    process.start()
    try:
        assert is_held.wait(60)
        with pytest.raises(BusyError, match="another process works in this folder"):
            promote(models[0])
    finally:
        may_end.set()
        process.join()
    assert promote(models[0]).result == "passed"


def test_a_registry_is_read_as_it_was_written(models: list[Path], promote: Promote, tmp_path: Path) -> None:
    promote(models[0])
    promote(models[1], models[0])
    write_registry(str(tmp_path / "copy"), registry(tmp_path))
    assert read_registry(str(tmp_path / "copy")) == registry(tmp_path)
    assert read_registry(str(tmp_path / "nowhere")) == Registry()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "a promotion needs `model` and `report`; or give `rollback`"),
        ({"model": "m"}, "a promotion needs `model` and `report`"),
        ({"rollback": True, "model": "m"}, "`rollback` takes the model from the registry; leave out"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromotionConfig(registry="r", **settings)
