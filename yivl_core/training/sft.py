"""train_adapter(): supervised fine-tuning of a LoRA adapter or the weights, on packed samples, resumable to an equal result."""

import json
import math
import shutil
import time
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord, digest_records, record_line, write_records
from yivl_core.data.row_workers import count_cores
from yivl_core.errors import ChildFailedError, ConfigurationError, DatasetError
from yivl_core.model.devices import resolve_device, resolve_dtype
from yivl_core.model.files import ABOUT_FILE, HELD_OUT_FILE, CheckpointFiles, open_checkpoint
from yivl_core.outputs.manifest import code, environment
from yivl_core.processing.processor import Processor
from yivl_core.processing.prompt import PROMPT_VERSION
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import local_path, publish_bytes, publish_folder
from yivl_core.training.augmentation import augment
from yivl_core.training.checkpoint import TrainingState, load_training, save_training, step_folder
from yivl_core.training.configuration import TrainingConfig, TrainingSummary
from yivl_core.training.held_out import split_held_out
from yivl_core.training.loss import ChangeImages, RowLoss, compile_layers, recompute_layers, row_loss, use_packed_attention
from yivl_core.training.memory import require_memory
from yivl_core.training.optimization import Optimizers
from yivl_core.training.packing import PackedBatch
from yivl_core.training.result import is_result_whole, result_digest
from yivl_core.training.run_folder import Metrics, RunFolder, logged_steps
from yivl_core.training.samples import Group, Samples, load_rows
from yivl_core.training.schedule import count_steps, group_of_step, rate_share, samples_of_step, step_seed
from yivl_core.training.tuning import part_of, prepare_tuning, trained_shapes

_MAX_DEFAULT_WORKERS = 8


def train_adapter(config: TrainingConfig, on_progress: OnProgress = ignore_progress) -> TrainingSummary:
    """Train a LoRA adapter, or the weights themselves, on a validated dataset.

    Nothing is written before settings, data and base are known to work. A run that was killed goes on with `resume` from its
    newest checkpoint; on the CPU the result is then bit for bit that of an uninterrupted run.

    Raises:
        ConfigurationError: a setting cannot work, memory or disk is too small, or the loss is no longer a number.
        DatasetError: no validated dataset, nothing to train on, or an image that has changed since validation.
        CheckpointError: the base is not what it should be.
        OutputError: the output folder holds something else.
        BusyError: another process trains in it.
        StorageError: a file cannot be written.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    base = open_checkpoint(config.model)
    output = local_path(config.output, "a training run")
    if dtype == torch.float16 and config.optimizer == "muon":
        raise ConfigurationError("optimizer muon does not work in float16, whose steps may overflow; use bfloat16 or float32")
    shapes = trained_shapes(base, config)
    data = _Data(config, base, device, on_progress)
    _require_images(shapes, data, config)
    folder = RunFolder(output, _manifest(config, data, device, dtype), resume=config.resume)
    if _is_finished(folder):
        _renew_held_out(folder, data)
        return _summary(folder)
    require_memory(base, shapes, config, dtype, device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        trainer = _Trainer(config, base, data, folder, device, dtype, on_progress)
        with folder.taken():
            if _is_finished(folder):
                return _summary(folder)  # another process has finished it meanwhile
            data.write(folder.path)
            try:
                trainer.run()
            except RuntimeError as error:
                if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                    raise ConfigurationError(
                        f"rows of {data.row_tokens} tokens do not fit into the memory of {device}; lower row_tokens or max_length"
                        + ("" if config.gradient_checkpointing else ", or set gradient_checkpointing")
                    ) from error
                if "DataLoader worker" not in str(error):  # of torch's loader, at whatever place the news arrives
                    raise
                raise ChildFailedError(
                    f"a process that prepares samples has died ({str(error).strip()}); resume the run, with fewer num_workers "
                    'or with 0; a script of your own has to start it below `if __name__ == "__main__":`'
                ) from error
            return trainer.publish()


class _Data:
    """Training and held-out records, and how long a sample may be."""

    def __init__(self, config: TrainingConfig, base: CheckpointFiles, device: torch.device, on_progress: OnProgress) -> None:
        dataset = ValidatedDataset.open(config.dataset)
        self.preprocessor = Processor.from_checkpoint(base).preprocessor
        self.max_length = min(config.max_length or base.max_positions, base.max_positions)
        self.row_tokens = config.row_tokens or self.max_length
        self._config, self._device, self._num_workers = config, device, _resolve_num_workers(config, device)
        measure = (base.folder, config, self.max_length, self._num_workers, on_progress)
        self.train = Samples(dataset, *measure)
        self.digests = {"digest": dataset.digest}
        self.base_digest = base.digest()
        if config.val_dataset is None:
            self.val = self.train
            train, held_out = split_held_out(self.train.keys, config.val_fraction, config.seed)
            self.trains_images = any(self.train.have_images[number] for number in train)
            self.train_indices = [self.train.indices[number] for number in train]
            self.val_indices = [self.train.indices[number] for number in held_out]
        else:
            val_dataset = ValidatedDataset.open(config.val_dataset)
            self.val = Samples(val_dataset, *measure)
            self.trains_images = any(self.train.have_images)
            self.train_indices, self.val_indices = self.train.indices, self.val.indices
            self.digests["val_digest"] = val_dataset.digest
        self.dropped = self.train.dropped + (self.val.dropped if self.val is not self.train else [])
        if not self.train_indices:
            raise DatasetError(
                f"{config.dataset}: no record to train on ({dataset.num_records} in it, {len(self.train.dropped)} of them longer "
                f"than {self.max_length} tokens); raise max_length, or look at the dataset's report.md"
            )
        if config.val_dataset is None and config.val_fraction and not self.val_indices:
            raise DatasetError(
                f"{config.dataset}: no record can be held out, since all {len(self.train_indices)} that fit are one, or share an "
                "image; give a `val_dataset`, or (to train without an evaluation) `val_fraction` 0"
            )
        if config.val_dataset is not None and not self.val_indices:
            raise DatasetError(
                f"{config.val_dataset}: no record to evaluate on ({len(self.val.dropped)} in it are longer than "
                f"{self.max_length} tokens); raise max_length, or give another val_dataset"
            )
        self.digests["held_out_digest"] = digest_records(self.held_out)

    @property
    def held_out(self) -> Iterator[ValidatedRecord]:
        """The held-out records, with the places where they and their images lie now."""
        return (self.val.validated(index) for index in self.val_indices)

    def write(self, folder: Path) -> None:
        """Write the held-out and the dropped records."""
        write_records(folder / HELD_OUT_FILE, self.held_out)
        dropped = "".join(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in self.dropped)
        publish_bytes(str(folder / "dropped.jsonl"), dropped.encode())

    def rows(self, start: int, total_steps: int) -> Iterator[list[PackedBatch]]:
        """The packed rows of each step from `start` on; behind those of an evaluated step, those of each held-out group."""
        groups = self._groups(start, total_steps)
        load = partial(
            load_rows, [self.train.reader, self.val.reader], row_tokens=self.row_tokens, num_workers=self._num_workers,
            gpu=self._device if self._device.type == "cuda" else None,
        )  # fmt: skip
        if not self._config.cache_samples:
            return load(samples for _, samples in groups)
        first_wanted = dict(self._groups(start, total_steps))
        return self._cached(groups, load(first_wanted.values()))

    def is_evaluated(self, step: int, total_steps: int) -> bool:
        """Whether the held-out records are evaluated when so many steps are made."""
        return bool(self.val_indices) and (step == total_steps or step % self._config.eval_steps == 0)

    @property
    def num_val_groups(self) -> int:
        """How many groups an evaluation takes."""
        return math.ceil(len(self.val_indices) / self._config.batch_size)

    def _groups(self, start: int, total_steps: int) -> Iterator[tuple[Hashable, Group]]:
        """What is read for each step and its evaluation; groups of one key hold the same."""
        size, num_samples = self._config.batch_size, len(self.train_indices)
        for step in range(start, total_steps):
            numbers = samples_of_step(step, num_samples, self._config)
            yield group_of_step(step, num_samples, self._config), (0, [self.train_indices[number] for number in numbers])
            if self.is_evaluated(step + 1, total_steps):
                for number in range(self.num_val_groups):
                    yield ("val", number), (1, self.val_indices[number * size : (number + 1) * size])

    def _cached(
        self, groups: Iterator[tuple[Hashable, Group]], loaded: Iterator[list[PackedBatch]]
    ) -> Iterator[list[PackedBatch]]:
        """The rows of each group; `loaded` gives those of each key once, in the order in which they are first wanted."""
        cache: dict[Hashable, list[PackedBatch]] = {}
        for key, _ in groups:
            if key not in cache:
                cache[key] = [row.to(self._device, copy=True) for row in next(loaded)]
            yield cache[key]


class _Trainer:
    """The model, its optimizer, and the loop over steps."""

    def __init__(
        self,
        config: TrainingConfig,
        base: CheckpointFiles,
        data: _Data,
        folder: RunFolder,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: OnProgress,
    ) -> None:
        self.config, self.data, self.folder, self._on_progress = config, data, folder, on_progress
        self.device, self.dtype = device, dtype
        self.total_steps = count_steps(len(data.train_indices), config)
        self._report(0, message=f"loading {base.folder.name} on {device} in {str(dtype).removeprefix('torch.')}")
        self.tuning = prepare_tuning(base, config, dtype, device)
        self.model = self.tuning.model
        use_packed_attention(self.model)
        if config.gradient_checkpointing:
            recompute_layers(self.model)
        if config.compile:
            compile_layers(self.model)
        parameters = self.tuning.parameters()
        self.parameters = list(parameters.values())
        self.optimizers = Optimizers(parameters, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.state = TrainingState()
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)

    def run(self) -> None:
        """All steps that are left."""
        self.state = load_training(self.folder.checkpoints, self.tuning, self.optimizers, logged_steps(self.folder.path))
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        self.metrics = Metrics(self.folder.path, self.state.step)
        save_steps = self.config.save_steps or self.config.eval_steps
        rows = self.data.rows(self.state.step, self.total_steps)
        for step in range(self.state.step, self.total_steps):
            self._step(step, next(rows))
            self.state = self.state.at(step + 1)
            if self.data.is_evaluated(self.state.step, self.total_steps):
                self._evaluate(rows)
            is_last = self.state.step == self.total_steps
            if is_last or self.state.step % save_steps == 0 or self.state.best_step == self.state.step:
                self._require_finite(self.state.step)
                state = replace(self.state, scaler=self.scaler.state_dict(), num_figures=self.metrics.flush())
                save_training(self.folder.checkpoints, self.tuning, self.optimizers, state)
        self.metrics.close()

    def publish(self) -> TrainingSummary:
        """Write the result: the folder of adapter or model, and what the manifest tells of it."""
        config, folder, state = self.config, self.folder, self.state
        kept_step = state.best_step if config.keep == "best" and state.best_step else state.step
        about = {
            "kind": "adapter" if config.tuner == "lora" else "tuned",
            "base_digest": self.data.base_digest,
            "dataset_digest": self.data.digests["digest"],
            "prompt_version": PROMPT_VERSION,
            "step": kept_step,
            "training_digest": folder.digest,
        }
        with publish_folder(folder.result_folder) as temporary:
            self.tuning.publish(step_folder(folder.checkpoints, kept_step), temporary)
            shutil.copyfile(folder.path / HELD_OUT_FILE, temporary / HELD_OUT_FILE)
            (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        evaluation = self.metrics.evaluation_at(kept_step)
        result = {
            "result_digest": result_digest(folder.path, config.tuner),
            "base_digest": about["base_digest"],
            "num_steps": state.step,
            "num_train_samples": len(self.data.train_indices),
            "num_val_samples": len(self.data.val_indices),
            "num_dropped": len(self.data.dropped),
            "train_loss": self.metrics.mean_of_last("loss", 0.1),
            "val_loss": evaluation.get("val_loss"),
            "val_token_accuracy": evaluation.get("val_token_accuracy"),
            "best_step": kept_step,
        }
        folder.finish(result)
        return _summary(folder)

    def _step(self, step: int, rows: list[PackedBatch]) -> None:
        started = time.perf_counter()
        torch.manual_seed(step_seed(step, self.config.seed))
        share = rate_share(step, self.total_steps, self.config)
        num_learned = sum(row.num_learned for row in rows)
        total = torch.zeros((), device=self.device)
        self.model.train()
        for number, row in enumerate(rows):
            loss = self._loss(row, self._change_images(step, number)).total / num_learned
            if loss.requires_grad:  # nothing is trained that a row without images passes, where only the tower is
                self.scaler.scale(loss).backward()
            total += loss.detach()
        self.optimizers.unscale(self.scaler)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        # Where the loss is scaled, a gradient that overflows lowers the scale, and its step is left out.
        self.is_finite &= torch.isfinite(total if self.scaler.is_enabled() else total + grad_norm)
        self.optimizers.set_rate(share)
        self.optimizers.step(self.scaler)
        if (step + 1) % self.config.log_steps == 0 or step + 1 == self.total_steps:
            self._require_finite(step + 1)
            figures = {"loss": total.item(), "learning_rate": share * self.optimizers.highest_rate}
            if math.isfinite(norm := grad_norm.item()):
                figures["grad_norm"] = norm
            self._log(step + 1, rows, figures, time.perf_counter() - started)

    def _log(self, step: int, rows: list[PackedBatch], figures: dict[str, float], seconds: float) -> None:
        num_samples = sum(row.num_samples for row in rows)
        num_tokens = sum(len(row.input_ids) for row in rows)
        figures |= {"samples_per_s": num_samples / seconds, "tokens_per_s": num_tokens / seconds}
        self.metrics.log(step, figures)
        self._report(step, figures)

    def _change_images(self, step: int, row_number: int) -> ChangeImages | None:
        seed = step_seed(step, self.config.seed) + row_number
        if not self.config.augmentation:
            return None
        return partial(augment, strength=self.config.augmentation, seed=seed, compiled=self.config.compile)

    def _loss(self, row: PackedBatch, change_images: ChangeImages | None = None) -> RowLoss:
        # LoRA's frozen weights have the dtype of the arithmetic already; weights that are tuned are float32.
        is_mixed = self.config.tuner == "full" and self.dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=is_mixed):
            return row_loss(self.model, row, self.data.preprocessor, change_images)

    @torch.no_grad()
    def _evaluate(self, rows: Iterator[list[PackedBatch]]) -> None:
        """Loss and token accuracy on the held-out records, whose rows come next."""
        self.model.eval()
        losses = [self._loss(row) for _ in range(self.data.num_val_groups) for row in next(rows)]
        num_learned = sum(loss.num_learned for loss in losses)
        val_loss = sum(loss.total.item() for loss in losses) / num_learned
        accuracy = sum(loss.num_correct.item() for loss in losses) / num_learned
        self.is_finite &= math.isfinite(val_loss)
        self._require_finite(self.state.step)
        self.state = self.state.evaluated(val_loss)
        figures = {"val_loss": val_loss, "val_token_accuracy": accuracy}
        self.metrics.log(self.state.step, figures)
        self._report(self.state.step, figures)

    def _require_finite(self, step: int) -> None:
        """No checkpoint and no figure comes of a step from which there is no way back."""
        is_learning = self.scaler.get_scale() >= 1  # below, gradients overflow however little they are scaled
        if not (is_learning and self.is_finite.item()):  # waits for the GPU
            raise ConfigurationError(
                f"step {step}: the loss or its gradient is no longer a finite number; lower the learning rate (now "
                f"{self.optimizers.highest_rate:g}), or use bfloat16 or float32 in place of float16. Earlier checkpoints "
                "are kept"
            )

    def _report(self, step: int, figures: dict[str, float] | None = None, message: str = "") -> None:
        self._on_progress(
            Progress(stage="train", done=step, total=self.total_steps, unit="step", figures=figures or {}, message=message)
        )


def _renew_held_out(folder: RunFolder, data: _Data) -> None:
    """Let a finished run tell where its held-out records lie now, if that is elsewhere."""
    with (folder.path / HELD_OUT_FILE).open("rb") as file:
        is_up_to_date = all(line == record_line(record).encode() for line, record in zip(file, data.held_out, strict=True))
    if not is_up_to_date:
        with folder.taken():
            for place in (folder.result_folder, folder.path):
                write_records(place / HELD_OUT_FILE, data.held_out)


def _require_images(shapes: Iterable[str], data: _Data, config: TrainingConfig) -> None:
    if not data.trains_images and not any(part_of(name) == "llm" for name in shapes):
        raise DatasetError(
            f"{config.dataset}: no record to train on has an image, and nothing is trained that records without images pass; "
            "train the language model too, or give records with images"
        )


def _is_finished(folder: RunFolder) -> bool:
    return folder.result is not None and is_result_whole(folder.path, folder.result["result_digest"])


def _resolve_num_workers(config: TrainingConfig, device: torch.device) -> int:
    if config.num_workers is not None:
        return config.num_workers
    return min(_MAX_DEFAULT_WORKERS, count_cores()) if device.type == "cuda" else 0


def _settings(config: TrainingConfig) -> dict[str, Any]:
    """Every setting that decides the result; places of files count by their content, see the manifest's other blocks."""
    places = {"model", "dataset", "val_dataset", "output", "resume", "device", "dtype", "log_steps", "num_workers"}
    return config.model_dump(exclude=places) | {"learning_rate": config.highest_learning_rate}


def _manifest(config: TrainingConfig, data: _Data, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "command": "sft",
        "code": code(),
        "environment": environment(),
        "settings": _settings(config),
        "paths": {"model": config.model, "dataset": config.dataset, "val_dataset": config.val_dataset},
        "data": data.digests | {"num_train": len(data.train_indices), "num_val": len(data.val_indices)},
        "model": {"digest": data.base_digest},
        "prompt": {"version": PROMPT_VERSION},
        "numerics": {"dtype": str(dtype).removeprefix("torch."), "device": device.type},
    }


def _summary(folder: RunFolder) -> TrainingSummary:
    assert folder.result is not None
    places: dict[str, Any] = {"adapter": None, "model": None}
    places |= {folder.result_folder.name: str(folder.result_folder)}
    places |= {"output": str(folder.path), "val_dataset": str(folder.path / HELD_OUT_FILE)}
    return TrainingSummary(**folder.result | places)
