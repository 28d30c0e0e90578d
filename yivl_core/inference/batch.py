"""infer_shards(): records -> processor -> model -> predictions, shard by shard, one row a record whatever happens.

A part is published when all its records are answered; a run that was killed goes on with the parts that are missing.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import cast

import torch

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.configuration import MAX_PIXELS_LIMIT
from yivl_core.data.dataset import is_validated_dataset
from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import Input, open_input, stated_digest
from yivl_core.data.network.url_access import cache_folder, open_fetcher
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.errors import ConfigurationError
from yivl_core.inference.configuration import (
    InferenceConfig,
    InferenceSummary,
    find_input,
)
from yivl_core.inference.failures import FailureLimit, Peekable, VanishedInput
from yivl_core.inference.fetching_rows import fetch_rows, find_url_policy
from yivl_core.inference.invariance import find_variant
from yivl_core.inference.loading import load_engine, plan_engine, require_engine
from yivl_core.inference.memory import MemoryPlan
from yivl_core.inference.planned_rows import planned_rows
from yivl_core.inference.preparation import PreparedRow, RowPreparer, preparing, start_early
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.run_record import WorkDone, digest_model, dtype_name, find_fingerprint, summarise
from yivl_core.inference.sampling import SamplingParams
from yivl_core.inference.sheet import make_contact_sheet
from yivl_core.inference.splitting import SplitPlan, first_gpu, plan_split, require_split
from yivl_core.model.devices import resolve_device, resolve_dtype
from yivl_core.model.files import CheckpointFiles, open_checkpoint
from yivl_core.outputs.predictions import Prediction, record_columns
from yivl_core.outputs.shards import PLAN_NAME, Shard, ShardPlan, plan_shards, publish_shard, shards_to_do
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import exists, join


def infer_shards(
    config: InferenceConfig, shard_indices: Sequence[int] | None = None, on_progress: OnProgress = ignore_progress
) -> InferenceSummary:
    """Answer the records of some shards, and publish their parts.

    Args:
        config: settings.
        shard_indices: which shards of the plan; None: all that are missing. Shards that are published already are left alone.
        on_progress: hears of records done, and of their number a second.

    Raises:
        ConfigurationError, CheckpointError, DatasetError: settings, model or input cannot work; nothing has been written.
        OutputError: the output folder belongs to something else, or to a run with other settings.
        StorageError: a part cannot be written; parts published before stay.
    """
    started = time.perf_counter()
    device = first_gpu() if config.is_split else resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    if _is_to_work(shard_indices):
        start_early(device)
    base, source, store, urls = open_checkpoint(config.model), find_input(config), _image_store(config), find_url_policy(config)
    if config.is_split:
        require_split(config)
    else:
        require_engine(config, config.adapter, device, dtype)
    sizes = _plan_sizes(config, base, device, dtype) if _needs_sizes_first(config, shard_indices) else None
    rows = open_input(source, on_progress)
    model = digest_model(config, base)
    plan = plan_shards(
        config.output,
        source=rows,
        store=store,
        shard_size=config.shard_size,
        fingerprint=find_fingerprint(config, model, source, device, dtype, sizes),
        resume=config.resume,
        as_planned=config.as_planned,
        joins=config.shard is not None,
        data_digest=stated_digest(source),
        on_progress=on_progress,
    )
    shards, num_failed = _wanted_shards(plan, config, shard_indices)
    failures = FailureLimit(config.max_failures)
    failures.count_earlier(num_failed)
    worker = None
    if shards:
        sizes = sizes or _plan_sizes(config, base, device, dtype)
        worker = _Worker(config, base, sizes, plan, rows, shards, failures, store, urls, device, dtype, on_progress)
    if worker and config.verify_invariance:
        worker.probe()
    elif config.verify_invariance and shard_indices is None:
        message = "no shard is left to be done, so verify_invariance has tried nothing"
        on_progress(Progress(stage="infer", done=0, total=0, unit="record", message=message))
    loaded = time.perf_counter()
    if worker:
        worker.run()
    ended = time.perf_counter()
    done = worker.done if worker else None
    summary = summarise(config, model, plan, done, runtime_s=ended - started, inference_s=ended - loaded)
    if config.contact_sheet is None or summary.content_digest is None:
        return summary
    return replace(summary, contact_sheet=make_contact_sheet(config, plan, rows, store, summary.content_digest))


class _Worker:
    """Holds the model between shards."""

    def __init__(
        self,
        config: InferenceConfig,
        base: CheckpointFiles,
        sizes: MemoryPlan | SplitPlan,
        plan: ShardPlan,
        source: Input,
        shards: Sequence[Shard],
        failures: FailureLimit,
        store: ImageStore,
        urls: UrlPolicy,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: OnProgress,
    ) -> None:
        self._config, self._plan, self._source, self._shards, self._on_progress = config, plan, source, shards, on_progress
        self._urls = urls
        self._num_records = sum(shard.num_records for shard in shards)
        self._failures, self._vanished = failures, VanishedInput()
        self._started = time.perf_counter()
        self.done = WorkDone()
        self._device, self._dtype = device, dtype
        self._report(f"loading {base.folder.name} on {device} in {dtype_name(dtype)}")
        self._processor = Processor.from_checkpoint(base)
        self._preparer = RowPreparer(store, self._processor, base.max_positions)
        self._engine, self.done.sizes = load_engine(
            config, base, self._processor, sizes, adapter=config.adapter, device=device, dtype=dtype
        )
        self._report(self.done.sizes)
        self._params = SamplingParams.from_settings(config)

    def probe(self) -> None:
        """Answer the first records in several ways.

        Raises:
            ConfigurationError: some came out differently although the engine should be invariant.
        """
        with open_fetcher(self._config, self._urls) as fetcher:
            rows = fetch_rows(planned_rows(self._plan, self._plan.shards, self._source), fetcher)
            prepared = (self._preparer.prepare(row) for row in rows)
            items = list(islice((item for item in prepared if item.inputs is not None), self._config.verify_invariance))
        requests = [self._request(item.sample_id, item.inputs) for item in items if item.inputs is not None]
        with self._memory_explained():
            differing = find_variant(self._engine, requests)
        self.done.invariance = {"num_records": len(items), "num_differing": len(differing)}
        told = f"{len(differing)} of {len(items)} records came out differently alone, together and in reverse"
        self._report(told)
        if differing and self._config.batch_invariant:
            raise ConfigurationError(
                f"{told} in spite of batch_invariant, the first of them {items[differing[0]].sample_id}; this GPU or version of "
                "torch has kernels that do not keep to one order: use dtype float32, or leave batch_invariant out, and choose "
                "another output folder"
            )

    def run(self) -> None:
        """Answer and publish the shards. Rows are made ready across their bounds, so that the model waits for none of them."""
        self._started = time.perf_counter()
        rows = planned_rows(self._plan, self._shards, self._source)
        fetch = self._preparer.fetch if self._source.is_remote else None
        with (
            open_fetcher(self._config, self._urls) as fetcher,
            preparing(self._preparer.prepare, self._device, fetch=fetch) as prepare,
        ):
            ready = Peekable(prepare(fetch_rows(rows, fetcher)))
            for shard in self._shards:
                publish_shard(self._plan, shard, self._answer_all(ready, shard.num_records))

    def _answer_all(self, ready: Peekable, num_rows: int) -> list[Prediction]:
        """Predictions of the next rows in their order; images are decoded ahead, while the model answers."""
        predictions: list[Prediction | None] = [None] * num_rows
        waiting: list[tuple[int, PreparedRow | None, float]] = []  # by number: place, row while it is answered, and since when

        def requests() -> Iterator[Request]:
            for place, item in enumerate(islice(ready, num_rows)):
                self._vanished.see(item)
                if item.inputs is None:
                    predictions[place] = self._finish(item, None, 0.0)
                    continue
                waiting.append((place, item, time.perf_counter()))
                yield self._request(item.sample_id, item.inputs)

        with self._memory_explained():
            for number, completion in self._engine.generate(requests()):
                place, item, started = waiting[number]
                assert item is not None
                waiting[number] = place, None, started  # its pixels are not needed any more
                predictions[place] = self._finish(
                    _answered(item, completion, self._dtype), completion, time.perf_counter() - started
                )
        self._vanished.look_ahead(ready.coming())
        assert None not in predictions
        return cast(list[Prediction], predictions)

    @contextmanager
    def _memory_explained(self) -> Iterator[None]:
        """Says what can be done where memory runs out in this block."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise ConfigurationError(
                f"the memory of {self._device} has run out, beside other processes or at a setting of yours; lower batch_size "
                f"(now {self._config.batch_size or 'automatic'})"
            ) from error

    def _request(self, sample_id: str, inputs: ModelInputs) -> Request:
        config = self._config
        return Request(
            sample_id=sample_id,
            inputs=inputs,
            params=self._params,
            max_new_tokens=config.max_new_tokens,
            stop_strings=config.stop,
            stop_token_ids=config.stop_token_ids,
            with_logprobs=config.logprobs,
        )

    def _finish(self, item: PreparedRow, completion: Completion | None, generate_s: float) -> Prediction:
        self.done.num_tokens += completion.num_tokens if completion else 0
        self.done.num_images += len(item.images)
        self.done.num_by_finish_reason[completion.finish_reason if completion else "error"] += 1
        self._report()
        if item.error_kind is not None:
            self.done.num_by_error_kind[item.error_kind] += 1
            self._failures.count(item.error_kind, f"{item.row.source}: {item.error}")
        return _prediction(item, completion, generate_s)

    def _report(self, message: str = "") -> None:
        figures, remaining_s = dict[str, float](), None
        if done := self.done.num_by_finish_reason.total():
            seconds = time.perf_counter() - self._started
            if self.done.num_images != done:
                figures["records_per_s"] = done / seconds
            if self.done.num_images:
                figures["images_per_s"] = self.done.num_images / seconds
            figures |= {"tokens_per_s": self.done.num_tokens / seconds, "failed": self.done.num_by_finish_reason["error"]}
            remaining_s = (self._num_records - done) * seconds / done
        self._on_progress(
            Progress(
                stage="infer",
                done=done,
                total=self._num_records,
                unit="record",
                figures=figures,
                remaining_s=remaining_s,
                message=message,
            )
        )


def _answered(item: PreparedRow, completion: Completion | None, dtype: torch.dtype) -> PreparedRow:
    """A row that should have an answer; it becomes an error where it has none."""
    if completion is not None:
        return item
    error = f"the model's logits are no finite numbers in {dtype_name(dtype)}; use --dtype bfloat16 or float32"
    return replace(item, inputs=None, error_kind="not_finite", error=error)


def _prediction(item: PreparedRow, completion: Completion | None, generate_s: float) -> Prediction:
    return Prediction(
        **record_columns(item.row),
        sample_id=item.sample_id,
        record_index=item.record_index,
        images=item.images,
        response=completion.text if completion else None,
        finish_reason=completion.finish_reason if completion else "error",
        error_kind=item.error_kind,
        error=item.error,
        prompt_tokens=len(item.inputs.input_ids) if item.inputs is not None else None,
        completion_tokens=completion.num_tokens if completion else None,
        completion_logprobs=completion.logprobs if completion else None,
        preprocess_s=item.preprocess_s,
        generate_s=generate_s if completion else None,
    )


def _image_store(config: InferenceConfig) -> ImageStore:
    """With the cache, and the usual limit on pixels; what validation has let through under one of its own is read in any case."""
    is_validated = config.load_dataset_config or (config.dataset is not None and is_validated_dataset(config.dataset))
    cache = ImageCache(cache_folder(config))
    return ImageStore(MAX_PIXELS_LIMIT, cache=cache) if is_validated else ImageStore(cache=cache)


def _is_to_work(shard_indices: Sequence[int] | None) -> bool:
    """Whether records are to be answered, and not only planned or counted."""
    return shard_indices is None or len(shard_indices) > 0


def _needs_sizes_first(config: InferenceConfig, shard_indices: Sequence[int] | None) -> bool:
    """Whether the engine's sizes have to be known before a plan is written.

    They belong to that of an invariant run, and a model that does not fit must not leave one behind. Who only plans, or counts
    what is there, needs no memory.
    """
    return config.batch_invariant or (_is_to_work(shard_indices) and not exists(join(config.output, PLAN_NAME)))


def _plan_sizes(
    config: InferenceConfig, base: CheckpointFiles, device: torch.device, dtype: torch.dtype
) -> MemoryPlan | SplitPlan:
    if config.is_split:
        return plan_split(config, base, config.adapter, dtype)
    return plan_engine(config, base, config.adapter, device, dtype)


def _wanted_shards(plan: ShardPlan, config: InferenceConfig, shard_indices: Sequence[int] | None) -> tuple[list[Shard], int]:
    """The shards to do among those asked for, and the number of failed rows in those that are done."""
    if shard_indices is None:
        shard_indices = config.own_shards(len(plan.shards))
    if unknown := [index for index in shard_indices if not 0 <= index < len(plan.shards)]:
        raise ConfigurationError(f"shard {unknown[0]} is not in the plan; it has shards 0 to {len(plan.shards) - 1}")
    return shards_to_do(plan, shard_indices)
