"""The commands of `yivl`: what each runs, with which parameters, and what it says at the end. No Prefect here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from flows.configuration import DemoConfig, ExportConfig, InferConfig, PromoteConfig, RetrainConfig, RetrainSummary, SftConfig
from flows.options import Spelling
from yivl_core.data.cache.cache_configuration import CacheCheck, CacheConfig, CachePruned, CacheUsage, PruneConfig
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.evaluation.benchmarks.configuration import VLMEvalKitConfig, VLMEvalKitSummary
from yivl_core.evaluation.configuration import EvaluationConfig, EvaluationSummary
from yivl_core.export.configuration import MergeSummary
from yivl_core.inference.configuration import InferenceSummary
from yivl_core.promotion.configuration import PromotionResult, PromotionSummary
from yivl_core.training.configuration import TrainingSummary

EXIT_CODES: Mapping[PromotionResult, int] = {"passed": 0, "regression": 1, "declined": 1, "not comparable": 3, "incomplete": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        help: one line for the list of commands.
        flow: where the flow is, as `module:name`; empty for a command that needs no record of its runs.
        function: then, where the function of the core is; it takes the parameters, and `on_progress`.
        config: its parameters, which are the command's options.
        describe: the flow's summary for a person.
        example: how it is called.
        spelling: options that are spelt differently.
        required_flags: options without a value that have to be given, with their help.
        exit_code: of a run that was done, from its summary.
    """

    help: str
    flow: str = ""
    function: str = ""
    config: type[BaseModel]
    describe: Callable[[Any], str]
    example: str
    spelling: Spelling = field(default_factory=Spelling)
    required_flags: Mapping[str, str] = field(default_factory=dict)
    exit_code: Callable[[Any], int] = lambda _: 0


def _describe_validation(summary: ValidationSummary) -> str:
    kinds = "".join(f"\n  {number:6} {kind}" for kind, number in sorted(summary.findings_by_kind.items()))
    was_there = " (was there already)" if summary.was_there else ""
    return (
        f"{summary.num_records} of {summary.num_lines} records are clean, with {summary.num_images} images; "
        f"{summary.num_quarantined} in quarantine, {summary.num_warnings} warnings{kinds}\n"
        f"dataset {summary.output}{was_there}\ndigest  {summary.digest}\nreport  {summary.output}/report.md"
    )


def _describe_training(summary: TrainingSummary) -> str:
    result = f"adapter {summary.adapter}" if summary.adapter else f"model   {summary.model}"
    validation = ""
    if summary.val_loss is not None and summary.val_token_accuracy is not None:
        validation = f", validation loss {summary.val_loss:.4f}, token accuracy {summary.val_token_accuracy:.1%}"
    if summary.val_cer is not None:
        validation += f", CER {summary.val_cer:.1%}"
    early = ", stopped early" if summary.stopped_early else ""
    return (
        f"{summary.num_steps} steps{early} on {summary.num_train_samples} samples ({summary.num_val_samples} held out, "
        f"{summary.num_dropped} dropped as too long)\n"
        f"training loss {summary.train_loss:.4f}{validation}; kept step {summary.best_step}\n"
        f"{result}\nplots   {summary.output}/plots"
    )


def _describe_merge(summary: MergeSummary) -> str:
    was_there = " (was there already)" if summary.was_there else ""
    return (
        f"{summary.num_merged} weight matrices merged; logits differ by at most {summary.largest_logit_difference:.2g} "
        f"from base + adapter\nmodel  {summary.output}{was_there}\ndigest {summary.digest}"
    )


def _describe_inference(summary: InferenceSummary) -> str:
    reasons = ", ".join(f"{number} by {reason}" for reason, number in sorted(summary.num_by_finish_reason.items()))
    kinds = "".join(f"\n  {number:6} {kind}" for kind, number in sorted(summary.num_by_error_kind.items()))
    work = "nothing was left to be done"
    if summary.sizes:
        work = f"{summary.records_per_s:.2f} records/s, {summary.completion_tokens} tokens in {summary.runtime_s:.1f} s"
        work += f"\n{summary.sizes}"
    sheet = f"\nsheet       {summary.contact_sheet}" if summary.contact_sheet else ""
    return (
        f"{summary.num_records} records in {summary.num_shards_done} of {summary.num_shards} parts: ended {reasons}{kinds}\n"
        f"{work}\npredictions {summary.output}{sheet}"
    )


def _describe_evaluation(summary: EvaluationSummary) -> str:
    change = f"\n{_difference(summary)}" if summary.verdict else ""
    gate = f"\ngate   {summary.gate}" if summary.gate else ""
    reasons = "".join(f"\n       {reason}" for reason in summary.gate_reasons)
    return f"{_figures(summary)}{change}{gate}{reasons}\nreport {summary.output}/report.html"


def _evaluation_exit_code(summary: EvaluationSummary) -> int:
    """Only a gate decides whether figures are good enough; without one, models that do not compare are the one thing amiss."""
    if summary.gate is not None:
        return EXIT_CODES[summary.gate]
    return EXIT_CODES["not comparable"] if summary.verdict == "not comparable" else 0


def _figures(summary: EvaluationSummary) -> str:
    interval = "" if summary.low is None else f" (95 % interval {summary.low:.4f} to {summary.high:.4f})"
    main = "not defined" if summary.value is None else f"{summary.value:.4f}{interval}"
    cer = "" if summary.primary == "cer" or summary.cer is None else f", CER {summary.cer:.4f}"
    return (
        f"{_title(summary.primary)} {main}{cer}, exact match {summary.exact_match:.1%} over {summary.num_samples} records "
        f"({summary.num_failed} failed, {summary.num_empty} empty, {summary.num_cut} cut)"
    )


def _difference(summary: EvaluationSummary) -> str:
    difference = "" if summary.difference is None else f", {_title(summary.primary)} {summary.difference:+.4f}"
    reason = f": {summary.reason}" if summary.reason else ""
    return f"{summary.verdict} beside the baseline{difference}{reason}"


def _title(metric: str) -> str:
    return "CER" if metric == "cer" else metric


def _change(before: EvaluationSummary, after: EvaluationSummary) -> str:
    """What was gained or lost; both answered the same records."""
    was, now = (round(summary.exact_match * summary.num_samples) for summary in (before, after))
    number = f"{abs(now - was) or 'no'} {'fewer' if now < was else 'more'} of {after.num_samples} records"
    verdict = f"; {after.verdict}" if after.verdict else ""
    if before.value is None or after.value is None:
        return f"{number} exact ({was} -> {now}){verdict}"
    return f"{number} exact ({was} -> {now}), {_title(after.primary)} {before.value:.4f} -> {after.value:.4f}{verdict}"


def _describe_benchmark_export(summary: VLMEvalKitSummary) -> str:
    told = {
        "rows have no image and were left out, as VLMEvalKit does": summary.num_without_image,
        "rows were asked something else than their question: are these predictions about this benchmark?": (
            summary.num_asked_otherwise
        ),
        "predictions are about other records": summary.num_unused,
        "cells were cut at the 32,767 characters that xlsx holds; --file-format tsv keeps them whole": summary.num_cut,
        "cells lost control characters or carriage returns; --file-format tsv keeps them": summary.num_cleaned,
    }
    notes = "".join(f"\n  {number:6} {what}" for what, number in told.items() if number)
    return f"{summary.num_rows} rows, {summary.num_failed} of them failed and without a prediction{notes}\nresult {summary.file}"


def _describe_retrain(summary: RetrainSummary) -> str:
    base = change = ""
    if summary.base_evaluation:
        base = f"base    {_figures(summary.base_evaluation)}\n"
        after = summary.evaluation if summary.compared_with == "base" else replace(summary.evaluation, verdict=None)
        change = f"change  {_change(summary.base_evaluation, after)}\n"
    current = f"current {_difference(summary.evaluation)}\n" if summary.compared_with == "current" else ""
    gate = f"gate    {summary.evaluation.gate}\n" if summary.evaluation.gate else ""
    gate += "".join(f"        {reason}\n" for reason in summary.evaluation.gate_reasons)
    promotion = f"\n{_describe_promotion(summary.promotion)}" if summary.promotion else ""
    return (
        f"{_describe_training(summary.training)}\n\n{base}trained {_figures(summary.evaluation)}\n{change}{current}{gate}\n"
        f"model   {summary.model}\nreport  {summary.evaluation.output}/report.html\n"
        f"summary {summary.output}/summary.json{promotion}"
    )


def _retrain_exit_code(summary: RetrainSummary) -> int:
    promotion = summary.promotion
    return EXIT_CODES[promotion.result] if promotion else _evaluation_exit_code(summary.evaluation)


def _describe_promotion(summary: PromotionSummary) -> str:
    reasons = "".join(f"\n       {reason}" for reason in summary.reasons)
    said = f"not promoted: {summary.result}{reasons}"
    if summary.result == "passed":
        said = "it is the current model already" if summary.was_current else f"it takes the place of {summary.previous or 'none'}"
    return f"promotion {said}\ncurrent model {summary.model or 'none'}\nregistry {summary.registry}"


def _describe_cache(usage: CacheUsage) -> str:
    hosts = "".join(f"\n  {_size(host.num_bytes):>9} {host.num_urls:8,} {host.host}" for host in usage.hosts)
    unfinished = f", {usage.num_unfinished:,} unfinished" if usage.num_unfinished else ""
    remembered = f"\nwhat validation found is remembered of {usage.num_verdicts:,} images" if usage.num_verdicts else ""
    return (
        f"{usage.num_images:,} images of {_size(usage.num_bytes)}, from {usage.num_urls:,} URLs{unfinished}{hosts}{remembered}\n"
        f"cache {usage.folder}"
    )


def _describe_cache_check(check: CacheCheck) -> str:
    damage = "none is damaged"
    if check.num_damaged:
        damage = f"{check.num_damaged:,} damaged, which are removed and will be fetched again"
    return (
        f"{check.num_images:,} images of {_size(check.num_bytes)} are whole, {damage}\n"
        f"{check.num_urls_lost:,} URLs without content and {check.num_left_over:,} unfinished files removed\ncache {check.folder}"
    )


def _describe_pruning(pruned: CachePruned) -> str:
    in_use = f", {pruned.num_in_use:,} of them only since they were used within the last hour" if pruned.num_in_use else ""
    return (
        f"{pruned.num_removed:,} images of {_size(pruned.bytes_removed)} removed, "
        f"{pruned.num_kept:,} of {_size(pruned.bytes_kept)} kept{in_use}\n"
        f"{pruned.num_urls_removed:,} URLs without content and {pruned.num_left_over:,} unfinished files removed, "
        f"{pruned.num_forgotten:,} images will be looked at again\ncache {pruned.folder}"
    )


def _size(num_bytes: int) -> str:
    """A number of bytes for a person: `1.5 GB`."""
    unit, name = next((one for one in _UNITS if one[0] <= num_bytes), _UNITS[-1])
    return f"{num_bytes / unit:,.{0 if unit == 1 else 1}f} {name}"


_UNITS = ((10**9, "GB"), (10**6, "MB"), (1000, "kB"), (1, "bytes"))

GROUPS = {
    "benchmark": "benchmarks of other programs: hand predictions to their evaluation",
    "cache": "images that were fetched from the network: show, verify or prune what is kept of them",
}

COMMANDS = {
    "demo": Command(
        help="show the whole pipeline on the data of the repository, on a CPU",
        flow="flows.demo:demo",
        config=DemoConfig,
        describe=_describe_retrain,
        example="yivl demo",
    ),
    "validate": Command(
        help="check records and images, and write the clean ones as a dataset",
        flow="flows.validate:validate",
        config=ValidationConfig,
        describe=_describe_validation,
        example="yivl validate train.jsonl --output datasets/train",
        spelling=Spelling(names={"purpose": "--for"}, positional="dataset"),
        exit_code=lambda summary: int(summary.num_errors > 0),
    ),
    "sft": Command(
        help="train a LoRA adapter, or the weights themselves",
        flow="flows.finetune:sft",
        config=SftConfig,
        describe=_describe_training,
        example="yivl sft --model Yi-VL-6B --dataset train.jsonl --output runs/first --lora-rank 16",
    ),
    "export": Command(
        help="merge an adapter into its base model",
        flow="flows.finetune:export",
        config=ExportConfig,
        describe=_describe_merge,
        example="yivl export --adapter runs/first/adapter --merge-lora --output models/first",
        required_flags={"--merge-lora": "merge the adapter's matrices into the weights"},
    ),
    "infer": Command(
        help="answer every record of a dataset, or one question about every image of a folder",
        flow="flows.infer:infer",
        config=InferConfig,
        describe=_describe_inference,
        example="yivl infer --model models/first --images scans/ --task ocr --output predictions/scans --contact-sheet 100",
    ),
    "evaluate": Command(
        help="compare predictions with their references",
        flow="flows.evaluate:evaluate",
        config=EvaluationConfig,
        describe=_describe_evaluation,
        example="yivl evaluate --predictions predictions/new --baseline predictions/old --gate gate.yaml --output reports/new",
        exit_code=_evaluation_exit_code,
    ),
    "retrain": Command(
        help="validate, train, merge, infer and evaluate in one go; what was done before is not done again",
        flow="flows.retrain:retrain",
        config=RetrainConfig,
        describe=_describe_retrain,
        example="yivl retrain --model Yi-VL-6B --dataset train.jsonl --output work --training.lora-rank 16",
        exit_code=_retrain_exit_code,
    ),
    "promote": Command(
        help="make a model the current one, if gate and comparison of its evaluation say so; or go back to the one before",
        flow="flows.promote:promote",
        config=PromoteConfig,
        describe=_describe_promotion,
        example="yivl promote --report reports/new --model models/new --registry registry",
        exit_code=lambda summary: EXIT_CODES[summary.result],
    ),
    "benchmark export": Command(
        help="write predictions as the result file that VLMEvalKit evaluates",
        function="yivl_core.evaluation.benchmarks.vlmevalkit:write_vlmevalkit",
        config=VLMEvalKitConfig,
        describe=_describe_benchmark_export,
        example="yivl benchmark export --predictions predictions/ocrbench --dataset OCRBench.tsv --model-name Yi-VL-6B "
        "--output outputs/Yi-VL-6B/T20260131-120000",
    ),
    "cache show": Command(
        help="what is kept, and where it came from",
        function="yivl_core.data.cache.cache_upkeep:show_cache",
        config=CacheConfig,
        describe=_describe_cache,
        example="yivl cache show",
    ),
    "cache verify": Command(
        help="read every image that is kept, and remove damaged ones",
        function="yivl_core.data.cache.cache_upkeep:verify_cache",
        config=CacheConfig,
        describe=_describe_cache_check,
        example="yivl cache verify --cache /data/yivl-cache",
        exit_code=lambda check: int(check.num_damaged > 0),
    ),
    "cache prune": Command(
        help="remove the images that nobody used for long; without a limit, only what killed runs have left",
        function="yivl_core.data.cache.cache_upkeep:prune_cache",
        config=PruneConfig,
        describe=_describe_pruning,
        example="yivl cache prune --max-bytes 50000000000 --unused-days 90",
    ),
}
