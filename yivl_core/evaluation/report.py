"""Predictions -> evaluation report: a pure function of rows, manifests and named inputs, so equal inputs give equal bytes.

Neither the clock, the place of the folder nor the machine of the evaluation enters a report; times stay in the manifest of the
run that made the predictions. `report.json` holds everything; the page and the Markdown are made of it, and of pictures.
"""

from importlib.metadata import version
from typing import Any

from yivl_core.evaluation.comparability import RowIdentities, compare_manifests
from yivl_core.evaluation.comparison import MatchedRows, comparison_json, differences_json, match_rows
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.evaluation.figures import Resampling, figures_json, histogram_json, slices_json
from yivl_core.evaluation.gate import apply_gate
from yivl_core.evaluation.gate_file import read_gate
from yivl_core.evaluation.markdown import render_markdown
from yivl_core.evaluation.measures import Measures, prepare_measures
from yivl_core.evaluation.metrics.names import ALWAYS
from yivl_core.evaluation.page import render_page
from yivl_core.evaluation.pictures import load_pictures
from yivl_core.evaluation.report_files import FORMAT, FREQUENCIES_NAME, REPORT_VERSION, publish_report, refuse_foreign_reports
from yivl_core.evaluation.rows import CheckedRows, FailureTally
from yivl_core.evaluation.samples import Baseline, choose_rows, samples_json
from yivl_core.evaluation.scoring import ScoredRows, score_rows
from yivl_core.evaluation.statistics.bootstrap import Bootstrap
from yivl_core.evaluation.statistics.clusters import group_clusters
from yivl_core.outputs.predictions import to_prediction
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import join

VERSIONED_PACKAGES = ("numpy", "rapidfuzz", "sacrebleu")

_PROGRESS_ROWS = 1000


def evaluate_predictions(config: EvaluationConfig, on_progress: OnProgress = ignore_progress) -> EvaluationSummary:
    """Score predictions, compare them with a baseline's, and publish the report in place of an earlier evaluation's.

    Raises:
        ConfigurationError: the gate asks for what is not measured, or for a baseline where there is none.
        ChildFailedError: a process that measured rows died.
        DatasetError: no row has a reference, or training texts cannot be read.
        IncompleteError: parts of the predictions are missing.
        OutputError: a folder holds no predictions, or other ones than its manifest says; or something else than an evaluation's
            report would be overwritten, which shows before predictions are read.
        StorageError: something cannot be read or written.
    """
    refuse_foreign_reports(config.output)
    gate = None if config.gate is None else read_gate(config.gate, config)
    measures = prepare_measures(config)
    evaluation = _Evaluation(config, measures, on_progress)
    report = evaluation.report()
    report["gate"] = None if gate is None else apply_gate(gate, report)
    pictures = load_pictures(config.dataset, report["samples"]) if config.dataset else None
    publish_report(config.output, report, markdown=render_markdown(report), page=render_page(report, pictures))
    if measures.frequencies is not None and config.document_frequencies is None:
        measures.frequencies.write(join(config.output, FREQUENCIES_NAME))
    return _to_summary(report, config.output)


class _Evaluation:
    """One evaluation, from rows to figures.

    Args:
        config: of it.
        measures: what is counted in each row.
        on_progress: is told of the rows that were read.
    """

    def __init__(self, config: EvaluationConfig, measures: Measures, on_progress: OnProgress) -> None:
        self._config, self._measures, self._on_progress = config, measures, on_progress
        self._checked = CheckedRows(config.predictions)
        self._failures = FailureTally()
        self._identities = RowIdentities()

    def report(self) -> dict[str, Any]:
        """All but the gate."""
        config, measures = self._config, self._measures
        there = None if config.baseline is None else CheckedRows(config.baseline)
        baseline_rows = None
        if config.baseline is not None and there is not None:
            baseline_rows = score_rows(config.baseline, measures.measuring, lambda: self._read_baseline(there))
        rows = score_rows(config.predictions, measures.measuring, self._read)
        clusters = group_clusters(rows.cluster_ids, rows.sample_ids)
        bootstrap = Bootstrap(clusters.num_groups, config.num_resamples, config.seed)
        resampling = Resampling(clusters=clusters, bootstrap=bootstrap)
        baseline = comparison = None
        if config.baseline is not None and there is not None and baseline_rows is not None:
            matched = match_rows(rows, baseline_rows)
            comparison = self._comparison_json(rows, baseline_rows, matched, there)
            is_comparable = comparison["is_comparable"]
            baseline = Baseline(predictions=config.baseline, rows=baseline_rows, matched=matched, is_comparable=is_comparable)
        primary = rows.metrics[measures.names.index(measures.primary)]
        choice = choose_rows(rows, primary, {} if baseline is None else baseline.groups_of(rows), config.max_samples)
        return {
            "format": FORMAT,
            "version": REPORT_VERSION,
            "scoring": measures.described | {"packages": {name: version(name) for name in VERSIONED_PACKAGES}},
            "rows": self._rows_json(rows, clusters.num_clusters),
            "figures": figures_json(rows, resampling),
            "slices": slices_json(rows, resampling, tuple(dict.fromkeys((measures.primary, *ALWAYS)))),
            "histogram": histogram_json(primary, rows.counts_of(measures.primary)),
            "failures": self._failures.by_kind,
            "samples": samples_json(config.predictions, rows, choice, extractor=config.extractor, baseline=baseline),
            "num_samples_left_out": len(rows) - len(choice.places),
            "comparison": comparison,
            "predictions": _origin(self._checked),
        }

    def _read(self) -> None:
        for columns in self._checked.columns():
            self._failures.add(columns)
            if self._config.baseline is not None:
                self._identities.add(to_prediction(columns))
            self._tell(self._checked)

    def _read_baseline(self, there: CheckedRows) -> None:
        for prediction in there:
            self._identities.add_baseline(prediction)
            self._tell(there)

    def _tell(self, checked: CheckedRows) -> None:
        if checked.num_rows % _PROGRESS_ROWS == 0:
            stage = "evaluate" if checked is self._checked else "baseline"
            self._on_progress(Progress(stage=stage, done=checked.num_rows, total=checked.num_planned, unit="row"))

    def _rows_json(self, rows: ScoredRows, num_clusters: int) -> dict[str, Any]:
        num_failed = int(rows.has_failed.sum())
        return {
            "total": self._checked.num_rows,
            "without_reference": rows.num_without_reference,
            "compared": len(rows),
            "answered": len(rows) - num_failed,
            "failed": num_failed,
            **{name: int(rows.counts_of(name)[:, 1].sum()) for name in ("empty", "cut", "looping", "refused")},
            "coverage": (len(rows) - num_failed) / len(rows),
            "clusters": num_clusters,
        }

    def _comparison_json(
        self, rows: ScoredRows, baseline: ScoredRows, matched: MatchedRows, there: CheckedRows
    ) -> dict[str, Any]:
        config = self._config
        manifests = compare_manifests(self._checked.manifest, there.manifest)
        differences = differences_json(manifests, self._identities.finish(), config.allow_difference)
        compared = comparison_json(
            rows,
            baseline,
            matched,
            differences,
            primary=self._measures.primary,
            num_resamples=config.num_resamples,
            seed=config.seed,
        )
        return compared | {"baseline": _origin(there)}


def _origin(checked: CheckedRows) -> dict[str, Any]:
    manifest = checked.manifest
    shown = None if manifest is None else {key: value for key, value in manifest.items() if key not in ("times", "paths")}
    return {"content_digest": checked.content_digest, "manifest": shown}


def _to_summary(report: dict[str, Any], output: str) -> EvaluationSummary:
    rows, figures, primary = report["rows"], report["figures"], report["scoring"]["primary"]
    comparison, gate = report["comparison"] or {}, report["gate"] or {}
    main = figures[primary]
    return EvaluationSummary(
        output=output,
        num_samples=rows["compared"],
        num_failed=rows["failed"],
        num_empty=rows["empty"],
        num_cut=rows["cut"],
        cer=figures["cer"]["value"],
        exact_match=figures["exact_match"]["value"],
        primary=primary,
        value=main["value"],
        low=main["interval"]["low"],
        high=main["interval"]["high"],
        difference=comparison.get("figures", {}).get(primary, {}).get("difference"),
        verdict=comparison.get("verdict"),
        reason=comparison.get("reason"),
        gate=gate.get("result"),
        gate_reasons=tuple(gate.get("reasons", ())),
    )
