"""A model and its evaluation report -> the current model, if gate and comparison say so; and back again.

The report has to be about this very model, and its baseline has to be the current one: both by the digests of their checkpoints,
which stand in the manifests of the predictions.
"""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from yivl_core.errors import CheckpointError, ConfigurationError, OutputError
from yivl_core.evaluation.configuration import GateResult
from yivl_core.evaluation.report_files import FORMAT, REPORT_NAME, REPORT_VERSION
from yivl_core.model.files import checkpoint_digest
from yivl_core.object_stores import without_secrets
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest
from yivl_core.promotion.configuration import PromotionConfig, PromotionSummary, Requirement
from yivl_core.promotion.registry import REGISTRY_NAME, Entry, Event, Registry, changing, read_registry, write_registry
from yivl_core.storage import is_local, join, read_bytes

_Refusal = tuple[GateResult, tuple[str, ...]]


def promote_model(config: PromotionConfig) -> PromotionSummary:
    """Make a model the current one, or the one before it; or say why not.

    Raises:
        BusyError: another process changes the registry.
        CheckpointError: the model is no checkpoint, or is not what it was when it was promoted.
        ConfigurationError: the report was made without a gate, or there is nothing to go back to.
        OutputError: a file is no report, no registry, or about other predictions.
        StorageError: something cannot be read or written.
    """
    if config.rollback:
        return _roll_back(config.registry, config.note)
    report, entry = _read_candidate(config)
    with changing(config.registry):
        registry = read_registry(config.registry)
        found = _judge(config, registry, report, entry)
        if found.result != "passed" or found.was_current:
            return found
        replaced = registry.current
        previous = registry.previous if replaced is None else (*registry.previous, replaced)
        changed = _changed(registry, "promote", entry, previous, _with_note(_reason(report, replaced), config.note))
        write_registry(config.registry, changed)
    return _summary(config.registry, changed, replaced=replaced)


def check_promotion(config: PromotionConfig) -> PromotionSummary:
    """What `promote_model` would say of a promotion, with the current model as it is; nothing is changed.

    Raises:
        CheckpointError, ConfigurationError, OutputError, StorageError: as `promote_model`.
    """
    assert not config.rollback
    report, entry = _read_candidate(config)
    return _judge(config, read_registry(config.registry), report, entry)


def _read_candidate(config: PromotionConfig) -> tuple[dict[str, Any], Entry]:
    assert config.model is not None
    assert config.report is not None
    report, report_sha256 = _read_report(config.report)
    entry = Entry(
        model=_lasting(config.model),
        digest=checkpoint_digest(config.model),  # takes a minute for a large one, so before the lock
        report=_lasting(config.report),
        report_sha256=report_sha256,
        predictions=None if config.predictions is None else _lasting(config.predictions),
        predictions_digest=report["predictions"]["content_digest"],
    )
    _check_predictions(entry)
    return report, entry


def _judge(config: PromotionConfig, registry: Registry, report: dict[str, Any], entry: Entry) -> PromotionSummary:
    if registry.current is not None and registry.current.digest == entry.digest:
        return _summary(config.registry, registry, was_current=True)
    return _summary(config.registry, registry, refusal=_refusal(report, entry.digest, registry.current, config.require))


def _roll_back(folder: str, note: str | None) -> PromotionSummary:
    with changing(folder):
        registry = read_registry(folder)
        if registry.current is None or not registry.previous:
            raise ConfigurationError(
                f"{without_secrets(join(folder, REGISTRY_NAME))}: there is no model before the current one to go back to"
            )
        *previous, entry = registry.previous
        if checkpoint_digest(entry.model) != entry.digest:
            raise CheckpointError(
                f"{entry.model} is not what it was when it was promoted (digest {entry.digest}), so it does not become current "
                "again; restore it, or promote another model"
            )
        reason = _with_note(f"back from {registry.current.model}", note)
        changed = _changed(registry, "rollback", entry, tuple(previous), reason)
        write_registry(folder, changed)
    return _summary(folder, changed, replaced=registry.current)


def _changed(
    registry: Registry, action: Literal["promote", "rollback"], entry: Entry, previous: tuple[Entry, ...], reason: str
) -> Registry:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    event = Event(action=action, time=time, model=entry.model, digest=entry.digest, reason=reason)
    return registry.model_copy(update={"current": entry, "previous": previous, "history": (*registry.history, event)})


def _read_report(folder: str) -> tuple[dict[str, Any], str]:
    """The report that has a gate's result, and the sha256 of its file."""
    url = join(folder, REPORT_NAME)
    place, data = without_secrets(url), read_bytes(url)
    try:
        report = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise OutputError(f"{place} cannot be read as JSON; run `yivl evaluate` again") from error
    if not isinstance(report, dict) or (report.get("format"), report.get("version")) != (FORMAT, REPORT_VERSION):
        raise OutputError(f"{place} is no evaluation report of version {REPORT_VERSION}; run `yivl evaluate` again")
    if report["gate"] is None:
        raise ConfigurationError(
            f"{place} was made without a gate, so nothing says that the model is good enough; evaluate again, with `gate`"
        )
    return report, hashlib.sha256(data).hexdigest()


def _check_predictions(entry: Entry) -> None:
    if entry.predictions is None:
        return
    manifest = read_manifest(join(entry.predictions, MANIFEST_NAME)) or {}
    if manifest.get("content_digest") != entry.predictions_digest:
        raise OutputError(
            f"{without_secrets(entry.predictions)} does not hold the predictions of {without_secrets(entry.report)}, "
            f"whose digest is {entry.predictions_digest}; name those"
        )


def _refusal(report: dict[str, Any], digest: str, current: Entry | None, require: Requirement) -> _Refusal | None:
    """Why a model does not become the current one."""
    answered_by = _model_of(report["predictions"])
    if answered_by != digest:
        return "not comparable", (f"the report is about another model: {answered_by} answered, and the digest here is {digest}",)
    gate = report["gate"]
    if gate["result"] != "passed":
        return gate["result"], tuple(gate["reasons"])
    if current is None:
        return None
    comparison = report["comparison"]
    if comparison is None:
        return "not comparable", (f"the report has no baseline; evaluate with answers of the current model, {current.model}",)
    beside = _model_of(comparison["baseline"])
    if beside != current.digest:
        reason = f"the baseline of the report is {beside}, and not the current model, {current.model} ({current.digest})"
        return "not comparable", (reason,)
    verdict, primary = comparison["verdict"], report["scoring"]["primary"]
    if verdict == "better" or (verdict == "not distinguishable" and require == "not_worse"):
        return None
    reason = f"{primary} is {verdict} beside the current model, and it has to be {require.replace('_', ' ')}"
    return ("not comparable" if verdict == "not comparable" else "regression"), (reason,)


def _model_of(origin: dict[str, Any]) -> str:
    """The digest of the checkpoint that answered alone; a text that is no digest where nobody can tell it."""
    manifest = origin["manifest"]
    if manifest is None or not isinstance(manifest.get("model"), dict):
        return "a model that no manifest tells"
    if manifest.get("adapter") is not None:
        return "a base with an adapter that is not merged"
    return str(manifest["model"].get("digest"))


def _reason(report: dict[str, Any], current: Entry | None) -> str:
    primary = report["scoring"]["primary"]
    value = report["figures"][primary]["value"]
    figure = f"{primary} not defined" if value is None else f"{primary} {value:.6g}"
    if current is None:
        return f"the gate passed with {figure}; there was no current model"
    difference = report["comparison"]["figures"][primary]["difference"]
    change = "" if difference is None else f" ({difference:+.6g})"
    return f"the gate passed; {figure} is {report['comparison']['verdict']} beside the current model's{change}"


def _with_note(reason: str, note: str | None) -> str:
    return f"{reason}; {note}" if note else reason


def _lasting(url: str) -> str:
    return str(Path(url).expanduser().resolve()) if is_local(url) else url


def _summary(
    folder: str,
    registry: Registry,
    *,
    refusal: _Refusal | None = None,
    was_current: bool = False,
    replaced: Entry | None = None,
) -> PromotionSummary:
    result, reasons = refusal or ("passed", ())
    current = registry.current
    return PromotionSummary(
        registry=join(folder, REGISTRY_NAME),
        result=result,
        reasons=reasons,
        model=current.model if current else None,
        digest=current.digest if current else None,
        was_current=was_current,
        previous=replaced.model if replaced else None,
    )
