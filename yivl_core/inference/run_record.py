"""What decides a run of batch inference, and what is told of it: its fingerprint, its summary and its manifest."""

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from yivl_core.data.input_source import InputSource
from yivl_core.data.reading import readable_url
from yivl_core.errors import OutputError
from yivl_core.inference.configuration import DecodingSettings, EngineSettings, InferenceConfig, InferenceSummary
from yivl_core.inference.memory import MemoryPlan
from yivl_core.inference.splitting import SplitPlan
from yivl_core.model.adapters import check_base
from yivl_core.model.files import CheckpointFiles, DigestedFiles, digested_adapter
from yivl_core.outputs.manifest import MANIFEST_NAME, code, environment, read_manifest, write_manifest
from yivl_core.outputs.predictions import ContentDigest, read_columns
from yivl_core.outputs.shards import ShardPlan, missing_shards
from yivl_core.processing.prompt import PROMPT_VERSION, describe_prompt
from yivl_core.storage import join


@dataclass(slots=True, kw_only=True)
class WorkDone:
    """What one call has done.

    Attributes:
        sizes: what the engine chose, in words; empty before.
        num_by_finish_reason: how its rows ended.
        num_by_error_kind: what went wrong with those that have none.
        num_tokens: of their answers.
        num_images: that they show.
        invariance: what the probe found; None where there was none.
    """

    sizes: str = ""
    num_by_finish_reason: Counter[str] = field(default_factory=Counter)
    num_by_error_kind: Counter[str] = field(default_factory=Counter)
    num_tokens: int = 0
    num_images: int = 0
    invariance: dict[str, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestedModel:
    """What answers, by content.

    Attributes:
        base: the checkpoint.
        adapter: that is put on it; None: none.
    """

    base: DigestedFiles
    adapter: DigestedFiles | None


def digest_model(config: InferenceConfig, base: CheckpointFiles) -> DigestedModel:
    """The content of a run's model. Every file is read once, which for the larger model are 70 GB.

    Args:
        config: of the run.
        base: its checkpoint.

    Raises:
        CheckpointError: the adapter is broken, or not of this base.
    """
    digested = base.digested()
    if config.adapter:
        check_base(Path(config.adapter), base, digested.digest)
    return DigestedModel(base=digested, adapter=digested_adapter(config.adapter) if config.adapter else None)


def find_fingerprint(
    config: InferenceConfig,
    model: DigestedModel,
    source: InputSource,
    device: torch.device,
    dtype: torch.dtype,
    sizes: MemoryPlan | SplitPlan | None,
) -> dict[str, Any]:
    """What decides the rows, but for the digest of the data, which is found when the split is planned.

    Workers and shard order do not decide them, nor does the size of a batch unless all steps have one size; nor where fetched
    images are kept, and how. Runs of earlier versions are gone on with where this is the same: what is only to be told belongs
    into the manifest.

    Args:
        config: of the run.
        model: its content.
        source: the input.
        device: where it runs.
        dtype: of weights and arithmetic.
        sizes: of the engine; needed where the run is invariant.
    """
    # Only where it is given, so that runs which were begun without it can be gone on with.
    urls = {"allow_url": sorted(set(config.allow_url))} if config.allow_url else {}
    return {
        "data": {"prompt": source.question, "limit": source.limit, **urls},
        "model": {"digest": model.base.digest},
        "adapter": {"digest": model.adapter.digest} if model.adapter else None,
        "prompt": {"version": PROMPT_VERSION},
        "decoding": config.model_dump(mode="json", include=set(DecodingSettings.model_fields)),
        "numerics": {
            "dtype": dtype_name(dtype),
            "device": config.device if config.is_split else device.type,
            **config.model_dump(include={"batch_invariant", "attention", "quantization"}),
            **(_step_sizes(sizes, device) if isinstance(sizes, MemoryPlan) and config.batch_invariant else {}),
        },
    }


def _step_sizes(sizes: MemoryPlan, device: torch.device) -> dict[str, int | str | None]:
    """What moves the last bits of an invariant run: the sizes that its matrix products are filled up to, and the kind of GPU."""
    settings = sizes.settings
    return {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "batch_size": settings.num_rows,
        "prefill_rows": settings.prefill_rows,
        "prefill_tokens": settings.prefill_tokens,
        "vision_images": settings.vision_images,
    }


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


class _ImageDigest:
    """One digest of the images of many rows, in the order of rows: of the sha256 of each, or of a dash where it is not known."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._num = self._num_unknown = 0

    def update(self, images: Iterable[Mapping[str, Any]]) -> None:
        for image in images:
            self._num += 1
            self._num_unknown += image["sha256"] is None
            self._hash.update(f"{image['sha256'] or '-'}\n".encode())

    def told(self) -> dict[str, int | str]:
        """What the manifest says: how many images, how many of them could not be read, and their digest."""
        return {"num": self._num, "num_unknown": self._num_unknown, "digest": self._hash.hexdigest()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """All rows of a complete output: how they ended, what went wrong with some, their images, and the digest of their content."""

    num_by_finish_reason: Counter[str]
    num_by_error_kind: Counter[str]
    images: dict[str, int | str]
    content_digest: str


def _count_all(output: str) -> _Rows:
    reasons, kinds, images, digest = Counter[str](), Counter[str](), _ImageDigest(), ContentDigest()
    for columns in read_columns(output):
        reasons[columns["finish_reason"]] += 1
        if columns["error_kind"] is not None:
            kinds[columns["error_kind"]] += 1
        images.update(columns["images"])
        digest.update_columns(columns)
    return _Rows(num_by_finish_reason=reasons, num_by_error_kind=kinds, images=images.told(), content_digest=digest.hexdigest())


def summarise(
    config: InferenceConfig,
    model: DigestedModel,
    plan: ShardPlan,
    done: WorkDone | None,
    *,
    runtime_s: float,
    inference_s: float,
) -> InferenceSummary:
    """With the last part all rows are counted and the manifest is written; before that, the rows of this call are told.

    Args:
        config: of the run.
        model: its content.
        plan: of its shards.
        done: by this call; None: nothing.
        runtime_s: of this call.
        inference_s: of it, without loading.

    Raises:
        OutputError: the rows are not those that the manifest tells of.
        StorageError: the manifest cannot be written.
    """
    has_worked = done is not None
    num_missing = len(missing_shards(plan))
    done = done or WorkDone()
    rows = None if num_missing else _count_all(config.output)
    reasons = rows.num_by_finish_reason if rows else done.num_by_finish_reason
    kinds = rows.num_by_error_kind if rows else done.num_by_error_kind
    content_digest = rows.content_digest if rows else None
    if rows and (has_worked or not _is_told(rows.content_digest, config.output)):
        content = _manifest(config, model, plan, rows, done.invariance)
        write_manifest(join(config.output, MANIFEST_NAME), content, {"ended": time.time(), "runtime_s": runtime_s})
    return InferenceSummary(
        output=config.output,
        content_digest=content_digest,
        num_records=reasons.total(),
        num_failed=reasons["error"],
        num_by_finish_reason=dict(sorted(reasons.items())),
        num_by_error_kind=dict(sorted(kinds.items())),
        num_shards=len(plan.shards),
        num_shards_done=len(plan.shards) - num_missing,
        runtime_s=runtime_s,
        records_per_s=done.num_by_finish_reason.total() / inference_s if has_worked else 0.0,
        completion_tokens=done.num_tokens,
        sizes=done.sizes,
        invariance=done.invariance,
    )


def _manifest(
    config: InferenceConfig, model: DigestedModel, plan: ShardPlan, rows: _Rows, invariance: dict[str, int] | None
) -> dict[str, Any]:
    """What decided the rows and can be said of them: the plan's fingerprint, with what explains its digests."""
    paths = config.model_dump(include={"model", "adapter", "dataset", "images"})
    return {
        "command": "infer",
        "code": code(),
        "environment": environment(),
        "settings": config.model_dump(include={"shard_size", *EngineSettings.model_fields}),
        "paths": {name: path and readable_url(path) for name, path in paths.items()},
        **plan.fingerprint,
        "data": {**plan.fingerprint["data"], "images": rows.images},
        "model": asdict(model.base),
        "adapter": asdict(model.adapter) if model.adapter else None,
        "prompt": describe_prompt(),
        "invariance": invariance,
        "content_digest": rows.content_digest,
        "result": dict(sorted(rows.num_by_finish_reason.items())),
        "errors": dict(sorted(rows.num_by_error_kind.items())),
    }


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
