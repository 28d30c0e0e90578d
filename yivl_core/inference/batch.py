"""infer_shards(): records -> processor -> model -> predictions, shard by shard, one row a record whatever happens.

A part is published when all its records are answered; a run that was killed goes on with the parts that are missing.
"""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from yivl_core.data.configuration import MAX_PIXELS_LIMIT
from yivl_core.data.dataset import is_validated_dataset
from yivl_core.data.images import ImageError, ImageStore, LoadedImage
from yivl_core.data.reading import InputRow, InputSource, input_digest, read_inputs
from yivl_core.errors import ConfigurationError, DatasetError, OutputError
from yivl_core.inference.configuration import DecodingSettings, InferenceConfig, InferenceSummary, find_input
from yivl_core.inference.generation import Completion, Request, generate
from yivl_core.inference.sampling import SamplingParams
from yivl_core.model.adapters import check_base, load_adapter
from yivl_core.model.devices import resolve_device, resolve_dtype
from yivl_core.model.files import CheckpointFiles, adapter_digest, open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.outputs.manifest import MANIFEST_NAME, code, environment, read_manifest, write_manifest
from yivl_core.outputs.predictions import ContentDigest, Prediction, PredictionImage, read_predictions, record_columns
from yivl_core.outputs.sample_ids import base_sample_id, image_digest
from yivl_core.outputs.shards import Shard, ShardPlan, missing_shards, plan_shards, publish_shard, shards_to_do
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.processing.prompt import PROMPT_VERSION
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import join

_NUM_WORKERS = 4


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
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    base, source, store = open_checkpoint(config.model), find_input(config), _image_store(config)
    fingerprint = _fingerprint(config, base, source, device, dtype)
    plan = plan_shards(
        config.output,
        read_rows=lambda: read_inputs(source),
        store=store,
        shard_size=config.shard_size,
        fingerprint=fingerprint,
        resume=config.resume,
        on_progress=on_progress,
    )
    shards = _wanted_shards(plan, shard_indices)
    num_records = sum(shard.num_records for shard in shards)
    worker = _Worker(config, base, plan, num_records, store, device, dtype, on_progress) if shards else None
    loaded = time.perf_counter()
    if worker:
        worker.run(shards, read_inputs(source))
    ended = time.perf_counter()
    return _summarise(config, plan, fingerprint, worker, runtime_s=ended - started, inference_s=ended - loaded)


class _Worker:
    """Holds the model between shards."""

    def __init__(
        self,
        config: InferenceConfig,
        base: CheckpointFiles,
        plan: ShardPlan,
        num_records: int,
        store: ImageStore,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: OnProgress,
    ) -> None:
        self._config, self._plan, self._store, self._on_progress = config, plan, store, on_progress
        self._num_records = num_records
        self._started = time.perf_counter()
        self.num_by_finish_reason = Counter[str]()
        self.num_tokens = 0
        self._dtype = dtype
        self._report(f"loading {base.folder.name} on {device} in {_name(dtype)}")
        self._processor = Processor.from_checkpoint(base)
        self._max_positions = base.max_positions
        self._model = load_model(base, dtype=dtype, device=device)
        if config.adapter:
            self._model = cast(YiVLForConditionalGeneration, load_adapter(self._model, Path(config.adapter)).get_base_model())
        self._params = SamplingParams.from_settings(config)

    def run(self, shards: Sequence[Shard], rows: Iterable[InputRow]) -> None:
        """Answer and publish the shards, which are in record order."""
        self._started = time.perf_counter()
        numbered = enumerate(rows)
        place = 0
        with ThreadPoolExecutor(_NUM_WORKERS) as pool:
            for shard in shards:
                shard_rows = list(islice(numbered, shard.first_record - place, shard.first_record - place + shard.num_records))
                place = shard.first_record + shard.num_records
                if len(shard_rows) < shard.num_records:
                    raise DatasetError(
                        f"the input ends at record {place - shard.num_records + len(shard_rows)}, and the plan counts "
                        f"{self._plan.num_records}; it was changed during the run: start again with an empty output folder"
                    )
                publish_shard(self._plan, shard, self._answer_all(shard_rows, pool))

    def _answer_all(self, rows: Sequence[tuple[int, InputRow]], pool: ThreadPoolExecutor) -> list[Prediction]:
        """Rows of predictions, batch by batch; the images of the next batch are decoded while one is answered."""
        size = self._config.batch_size
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        predictions: list[Prediction] = []
        ahead = [pool.submit(self._prepare, *row) for row in batches[0]]
        for number in range(len(batches)):
            prepared = [future.result() for future in ahead]
            ahead = [pool.submit(self._prepare, *row) for row in batches[number + 1]] if number + 1 < len(batches) else []
            predictions += self._answer(prepared)
            self._report()
        return predictions

    def _answer(self, batch: Sequence["_Prepared"]) -> list[Prediction]:
        started = time.perf_counter()
        requests = [Request(sample_id=item.sample_id, inputs=item.inputs) for item in batch if item.inputs is not None]
        completions = iter(self._generate(requests) if requests else ())
        answers = [_answered(item, next(completions) if item.inputs is not None else None, self._dtype) for item in batch]
        generate_s = (time.perf_counter() - started) / max(1, len(requests))
        self.num_tokens += sum(completion.num_tokens for _, completion in answers if completion)
        self.num_by_finish_reason.update(completion.finish_reason if completion else "error" for _, completion in answers)
        return [_prediction(item, completion, generate_s) for item, completion in answers]

    def _generate(self, requests: Sequence[Request]) -> list[Completion | None]:
        try:
            return generate(self._model, self._processor, requests, self._params, self._config.max_new_tokens)
        except torch.OutOfMemoryError as error:
            raise ConfigurationError(
                f"{len(requests)} records at a time do not fit into the memory of {self._model.device}; lower batch_size (now "
                f"{self._config.batch_size}) or max_new_tokens (now {self._config.max_new_tokens})"
            ) from error

    def _prepare(self, record_index: int, row: InputRow) -> "_Prepared":
        """Everything about a row that needs no model; what is wrong with it becomes its error."""
        started = time.perf_counter()
        images: list[LoadedImage] = []
        kind, error, inputs = row.error_kind, row.error, None
        if row.record is not None:
            try:
                for reference in row.images:
                    images.append(self._store.load(reference))  # noqa: PERF401  (those before one that fails stay known)
                inputs = self._processor.process(row.record, [image.image for image in images], with_response=False)
                if len(inputs.input_ids) >= self._max_positions:
                    kind = "too_long"
                    error = f"{len(inputs.input_ids)} tokens, and the model reads {self._max_positions}; shorten the text"
            except ImageError as problem:
                kind, error = problem.kind, str(problem)
            except DatasetError as problem:
                kind, error = "unusable_record", str(problem)
        known = [image.info.sha256 for image in images]
        digests = known + [image_digest(reference, self._store) for reference in row.images[len(known) :]]
        return _Prepared(
            record_index=record_index,
            row=row,
            sample_id=self._plan.sample_id(record_index, base_sample_id(row, digests)),
            images=_prediction_images(row, images),
            inputs=inputs if kind is None else None,
            error_kind=kind,
            error=error,
            preprocess_s=time.perf_counter() - started,
        )

    def _report(self, message: str = "") -> None:
        figures = {}
        if done := self.num_by_finish_reason.total():
            seconds = time.perf_counter() - self._started
            figures = {"records_per_s": done / seconds, "tokens_per_s": self.num_tokens / seconds}
            figures["failed"] = self.num_by_finish_reason["error"]
        self._on_progress(
            Progress(stage="infer", done=done, total=self._num_records, unit="record", figures=figures, message=message)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A row that is ready for the model, or that has failed already."""

    record_index: int
    row: InputRow
    sample_id: str
    images: tuple[PredictionImage, ...]
    inputs: ModelInputs | None
    error_kind: str | None
    error: str | None
    preprocess_s: float


def _answered(item: _Prepared, completion: Completion | None, dtype: torch.dtype) -> tuple[_Prepared, Completion | None]:
    """A row with its answer; one that should have had one and has none becomes an error."""
    if item.inputs is None or completion is not None:
        return item, completion
    error = f"the model's logits are no finite numbers in {_name(dtype)}; use --dtype bfloat16 or float32"
    return replace(item, inputs=None, error_kind="not_finite", error=error), None


def _prediction(item: _Prepared, completion: Completion | None, generate_s: float) -> Prediction:
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
        preprocess_s=item.preprocess_s,
        generate_s=generate_s if completion else None,
    )


def _prediction_images(row: InputRow, images: Sequence[LoadedImage]) -> tuple[PredictionImage, ...]:
    """What is known of each image of a row; of those behind the first that failed, only their address."""
    known = [
        PredictionImage(uri=reference.uri, sha256=image.info.sha256, width=image.info.width, height=image.info.height)
        for reference, image in zip(row.images, images, strict=False)
    ]
    return (*known, *(PredictionImage(uri=reference.uri, sha256=reference.sha256) for reference in row.images[len(known) :]))


def _image_store(config: InferenceConfig) -> ImageStore:
    """With the usual limit on pixels; what validation has let through under a limit of its own is read in any case."""
    is_validated = config.load_dataset_config or (config.dataset is not None and is_validated_dataset(config.dataset))
    return ImageStore(MAX_PIXELS_LIMIT) if is_validated else ImageStore()


def _fingerprint(
    config: InferenceConfig, base: CheckpointFiles, source: InputSource, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """What decides the rows; batch size, workers and shard order do not."""
    base_digest = base.digest()
    if config.adapter:
        check_base(Path(config.adapter), base, base_digest)
    return {
        "data": {"digest": input_digest(source)},
        "model": {"digest": base_digest},
        "adapter": {"digest": adapter_digest(config.adapter)} if config.adapter else None,
        "prompt": {"version": PROMPT_VERSION},
        "decoding": {name: getattr(config, name) for name in DecodingSettings.model_fields},
        "numerics": {"dtype": _name(dtype), "device": device.type},
    }


def _wanted_shards(plan: ShardPlan, shard_indices: Sequence[int] | None) -> list[Shard]:
    if shard_indices is not None and (unknown := [index for index in shard_indices if not 0 <= index < len(plan.shards)]):
        raise ConfigurationError(f"shard {unknown[0]} is not in the plan; it has shards 0 to {len(plan.shards) - 1}")
    return list(shards_to_do(plan, shard_indices))


def _is_told(content_digest: str, output: str) -> bool:
    """Whether the manifest of a complete output is there.

    Raises:
        OutputError: it tells of other rows.
    """
    try:
        manifest = read_manifest(join(output, MANIFEST_NAME))
    except OutputError:  # damaged, so it is written again
        return False
    if manifest is None:
        return False
    if manifest.get("content_digest") != content_digest:
        raise OutputError(
            f"{output}: the rows are not those that {MANIFEST_NAME} tells of, so they were changed after they were written; "
            "choose another folder, or remove this one to answer all records again"
        )
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _count_all(output: str) -> tuple[Counter[str], str]:
    """How the rows of a complete output ended, and the digest of their content."""
    reasons, digest = Counter[str](), ContentDigest()
    for prediction in read_predictions(output):
        reasons[prediction.finish_reason] += 1
        digest.update(prediction)
    return reasons, digest.hexdigest()


def _summarise(
    config: InferenceConfig,
    plan: ShardPlan,
    fingerprint: dict[str, Any],
    worker: _Worker | None,
    *,
    runtime_s: float,
    inference_s: float,
) -> InferenceSummary:
    """With the last part all rows are counted and the manifest is written; before that, the rows of this call are told."""
    num_missing = len(missing_shards(plan))
    reasons = worker.num_by_finish_reason if worker else Counter[str]()
    content_digest = None
    if not num_missing:
        reasons, content_digest = _count_all(config.output)
    if content_digest and (worker or not _is_told(content_digest, config.output)):
        content = {
            "command": "infer",
            "code": code(),
            "environment": environment(),
            "settings": {"shard_size": config.shard_size, "batch_size": config.batch_size},
            "paths": config.model_dump(include={"model", "adapter", "dataset", "images"}),
            **fingerprint,
            "content_digest": content_digest,
            "result": dict(sorted(reasons.items())),
        }
        write_manifest(join(config.output, MANIFEST_NAME), content, {"ended": time.time(), "runtime_s": runtime_s})
    return InferenceSummary(
        output=config.output,
        content_digest=content_digest,
        num_records=reasons.total(),
        num_failed=reasons["error"],
        num_by_finish_reason=dict(sorted(reasons.items())),
        num_shards=len(plan.shards),
        num_shards_done=len(plan.shards) - num_missing,
        runtime_s=runtime_s,
        records_per_s=worker.num_by_finish_reason.total() / inference_s if worker else 0.0,
        completion_tokens=worker.num_tokens if worker else 0,
    )
