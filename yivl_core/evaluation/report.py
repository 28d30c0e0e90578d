"""Predictions -> evaluation report: a pure function of the rows and their manifest, so the same inputs give the same bytes.

Rows pass by once and are not kept, but for the few that the report shows. Neither the clock, the place of the folder nor the
machine of the evaluation enters a report; times stay in the manifest of the run that made the predictions.
"""

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yivl_core.errors import DatasetError, OutputError
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.markdown import render_markdown
from yivl_core.evaluation.metrics.edits import Score, score_answer
from yivl_core.evaluation.rows import CheckedRows, references_of
from yivl_core.evaluation.texts.normalisation import MAIN, normalise
from yivl_core.outputs.predictions import Prediction
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import is_local, join, list_files, publish_bytes, read_bytes

FORMAT = "yivl evaluation report"
REPORT_VERSION = 1
REPORT_NAME, READABLE_REPORT_NAME = "report.json", "report.md"
NUM_WORST = 10
NUM_RIGHT = 5

_PROGRESS_ROWS = 1000


def evaluate_predictions(config: EvaluationConfig, on_progress: OnProgress = ignore_progress) -> EvaluationSummary:
    """Score predictions against their references and publish `report.json` and `report.md`, in place of an earlier evaluation's.

    Raises:
        DatasetError: there is nothing to score: no row has a reference, or all references are empty.
        IncompleteError: parts of the predictions are missing.
        OutputError: the folder holds no predictions, or other ones than its manifest says; or something else than an evaluation's
            report would be overwritten, which shows before predictions are read.
        StorageError: the report cannot be written.
    """
    _refuse_foreign_reports(config.output)
    rows = CheckedRows(config.predictions)
    tally = _Tally()
    for prediction in rows:
        tally.add(prediction)
        if rows.num_rows % _PROGRESS_ROWS == 0:
            on_progress(Progress(stage="evaluate", done=rows.num_rows, total=rows.num_planned, unit="row"))
    _check_references(tally.score, config.predictions, rows.num_rows)
    report = _to_report(tally, rows)
    publish_bytes(join(config.output, REPORT_NAME), _to_json(report))  # first, since it tells whose report.md is beside it
    publish_bytes(join(config.output, READABLE_REPORT_NAME), render_markdown(report).encode())
    return _to_summary(tally, config.output)


@dataclass(slots=True)
class _Tally:
    """What is known after the rows so far: sums, and the rows to show."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    answered: Score = field(default_factory=Score)
    failed: Score = field(default_factory=Score)
    answered_raw: Score = field(default_factory=Score)
    failed_raw: Score = field(default_factory=Score)
    worst: list[tuple[int, int, dict[str, Any]]] = field(default_factory=list)
    right: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> Score:
        """Of all rows with a reference, failed ones too."""
        return self.answered + self.failed

    def add(self, prediction: Prediction) -> None:
        references = references_of(prediction)
        if not references:
            self.counts["without_reference"] += 1
            return
        normalised = [normalise(reference) for reference in references]
        if prediction.response is None:
            self.counts["failed"] += 1
            self.failed += score_answer(None, normalised)
            self.failed_raw += score_answer(None, references)
            self._note_failure(prediction)
            return
        answer = normalise(prediction.response)
        score = score_answer(answer, normalised)
        self.answered += score
        self.answered_raw += score_answer(prediction.response, references)
        self.counts["empty"] += not answer
        self.counts["cut"] += prediction.finish_reason == "length"
        self._note_example(prediction, references, score)

    def _note_failure(self, prediction: Prediction) -> None:
        failure = self.failures.setdefault(
            str(prediction.error_kind), {"num_rows": 0, "first": {"source": prediction.source, "error": prediction.error}}
        )
        failure["num_rows"] += 1

    def _note_example(self, prediction: Prediction, references: Sequence[str], score: Score) -> None:
        example = {
            "sample_id": prediction.sample_id,
            "source": prediction.source,
            "references": list(references),
            "response": prediction.response,
            "finish_reason": prediction.finish_reason,
            "edits": score.edits,
        }
        if score.num_exact and len(self.right) < NUM_RIGHT:
            self.right.append(example)
        if score.edits:
            push = heapq.heappush if len(self.worst) < NUM_WORST else heapq.heappushpop
            push(self.worst, (score.edits, -prediction.record_index, example))


def _refuse_foreign_reports(output: str) -> None:
    if is_local(output) and Path(output).is_file():
        raise OutputError(f"{output}: this is a file; name a folder for the report")
    names, url = list_files(output), join(output, REPORT_NAME)
    if REPORT_NAME in names:
        try:
            there = json.loads(read_bytes(url))
        except (ValueError, RecursionError) as cause:
            raise OutputError(
                f"{url} cannot be read as JSON, so nobody can tell whose it is; if it is a damaged evaluation report, remove it "
                f"and {READABLE_REPORT_NAME}, or choose another folder"
            ) from cause
        if not isinstance(there, dict) or there.get("format") != FORMAT:
            raise OutputError(f"{url} is no evaluation report, and would be overwritten; choose another folder")
    elif READABLE_REPORT_NAME in names:
        raise OutputError(
            f"{join(output, READABLE_REPORT_NAME)} stands without the {REPORT_NAME} of an evaluation, and would be overwritten; "
            "remove it, or choose another folder"
        )


def _check_references(score: Score, predictions: str, num_rows: int) -> None:
    if not score.num_rows:
        raise DatasetError(
            f"{predictions}: none of the {num_rows} rows has a reference to compare its answer with; "
            "give the records a `response` (or `references`) and run `yivl infer` again"
        )
    if not score.reference_characters:
        raise DatasetError(
            f"{predictions}: the references of all {score.num_rows} rows are empty, so there is no character to compare with; "
            "check `response` in the records and run `yivl infer` again"
        )


def _to_report(tally: _Tally, rows: CheckedRows) -> dict[str, Any]:
    score = tally.score
    origin = None if rows.manifest is None else {key: value for key, value in rows.manifest.items() if key != "times"}
    return {
        "format": FORMAT,
        "version": REPORT_VERSION,
        "normaliser": MAIN,
        "rows": {
            "total": rows.num_rows,
            "without_reference": tally.counts["without_reference"],
            "compared": score.num_rows,
            "answered": tally.answered.num_rows,
            "failed": tally.counts["failed"],
            "empty": tally.counts["empty"],
            "cut": tally.counts["cut"],
            "coverage": tally.answered.num_rows / score.num_rows,
        },
        "figures": {
            "all_rows": {"normalised": _to_figures(score), "as_written": _to_figures(tally.answered_raw + tally.failed_raw)},
            "answered_rows": {"normalised": _to_figures(tally.answered), "as_written": _to_figures(tally.answered_raw)},
        },
        "failures": tally.failures,
        "worst": [example for _, _, example in sorted(tally.worst, key=lambda entry: entry[:2], reverse=True)],
        "right": tally.right,
        "predictions": {"content_digest": rows.content_digest, "manifest": origin},
    }


def _to_figures(score: Score) -> dict[str, Any]:
    return {
        "num_rows": score.num_rows,
        "cer": {
            "value": score.cer,
            "edits": score.edits,
            "insertions": score.insertions,
            "deletions": score.deletions,
            "substitutions": score.substitutions,
            "reference_characters": score.reference_characters,
        },
        "exact_match": {"value": score.exact_match, "num_exact": score.num_exact},
    }


def _to_json(report: dict[str, Any]) -> bytes:
    return json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _to_summary(tally: _Tally, output: str) -> EvaluationSummary:
    score = tally.score
    assert score.cer is not None
    assert score.exact_match is not None
    return EvaluationSummary(
        output=output,
        num_samples=score.num_rows,
        num_failed=tally.counts["failed"],
        num_empty=tally.counts["empty"],
        num_cut=tally.counts["cut"],
        cer=score.cer,
        exact_match=score.exact_match,
    )
