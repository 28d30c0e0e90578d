"""train_adapter(): supervised fine-tuning of a LoRA adapter on packed samples, resumable to an equal result."""

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel

from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord, digest_records, record_line, write_records
from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.model.adapters import add_adapter, find_targets
from yivl_core.model.configuration import read_config
from yivl_core.model.devices import resolve_device, resolve_dtype
from yivl_core.model.files import ABOUT_FILE, HELD_OUT_FILE, CheckpointFiles, adapter_digest, open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import load_model
from yivl_core.outputs.manifest import code, environment
from yivl_core.processing.processor import Processor
from yivl_core.processing.prompt import PROMPT_VERSION
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import local_path, publish_bytes, publish_folder
from yivl_core.training.checkpoint import TrainingState, load_training, save_training, step_folder
from yivl_core.training.configuration import TrainingConfig, TrainingSettings, TrainingSummary
from yivl_core.training.held_out import split_held_out
from yivl_core.training.loss import row_loss, use_packed_attention
from yivl_core.training.packing import PackedBatch
from yivl_core.training.result import is_result_whole
from yivl_core.training.run_folder import Metrics, RunFolder, logged_steps
from yivl_core.training.samples import Samples
from yivl_core.training.schedule import count_steps, learning_rate, samples_of_step, step_seed

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def train_adapter(config: TrainingConfig, on_progress: OnProgress = ignore_progress) -> TrainingSummary:
    """Train a LoRA adapter on a validated dataset.

    Nothing is written before settings, data and base are known to work. A run that was killed goes on with `resume` from its
    newest checkpoint; on the CPU the adapter is then bit for bit that of an uninterrupted run.

    Raises:
        ConfigurationError: a setting cannot work, or the loss is no longer a number.
        DatasetError: no validated dataset, nothing to train on, or an image that has changed since validation.
        CheckpointError: the base is not what it should be.
        OutputError: the output folder holds something else.
        BusyError: another process trains in it.
        StorageError: a file cannot be written.
    """
    device = resolve_device(config.device)
    dtype = resolve_dtype(config.dtype, device)
    base = open_checkpoint(config.model)
    targets = _find_targets(base, config.target_modules)
    data = _Data(config, base, on_progress)
    folder = RunFolder(local_path(config.output, "a training run"), _manifest(config, data, device, dtype), resume=config.resume)
    if folder.result and is_result_whole(folder.path, folder.result["adapter_digest"]):
        _renew_held_out(folder, data)
        return _summary(folder, folder.result)
    with torch.random.fork_rng():
        trainer = _Trainer(config, base, targets, data, folder, device, dtype, on_progress)
        with folder.taken():
            if folder.result and is_result_whole(folder.path, folder.result["adapter_digest"]):
                return _summary(folder, folder.result)  # another process has finished it meanwhile
            data.write(folder.path)
            try:
                trainer.run()
            except torch.OutOfMemoryError as error:
                raise ConfigurationError(
                    f"rows of {data.row_tokens} tokens do not fit into the memory of {device}; lower row_tokens or max_length"
                ) from error
            return trainer.publish()


class _Data:
    """Training and held-out records, and how long a sample may be."""

    def __init__(self, config: TrainingConfig, base: CheckpointFiles, on_progress: OnProgress) -> None:
        dataset = ValidatedDataset.open(config.dataset)
        self.processor = Processor.from_checkpoint(base)
        self.max_length = min(config.max_length or base.max_positions, base.max_positions)
        self.row_tokens = config.row_tokens or self.max_length
        self.train = Samples(dataset, self.processor, config, self.max_length, on_progress)
        self.digests = {"digest": dataset.digest}
        self.base_digest = base.digest()
        if config.val_dataset is None:
            self.val = self.train
            train, held_out = split_held_out(self.train.keys, config.val_fraction, config.seed)
            self.train_indices = [self.train.indices[number] for number in train]
            self.val_indices = [self.train.indices[number] for number in held_out]
        else:
            val_dataset = ValidatedDataset.open(config.val_dataset)
            self.val = Samples(val_dataset, self.processor, config, self.max_length, on_progress)
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

    def step_rows(self, steps: Iterable[int], settings: TrainingSettings) -> Iterable[list[PackedBatch]]:
        """The packed rows of each step."""
        num_samples = len(self.train_indices)
        groups = ([self.train_indices[number] for number in samples_of_step(step, num_samples, settings)] for step in steps)
        return self.train.rows(groups, self.row_tokens)

    def val_rows(self, batch_size: int) -> Iterable[list[PackedBatch]]:
        """The packed rows of the held-out records."""
        indices = self.val_indices
        return self.val.rows([indices[i : i + batch_size] for i in range(0, len(indices), batch_size)], self.row_tokens)


class _Trainer:
    """The model, its optimizer, and the loop over steps."""

    def __init__(
        self,
        config: TrainingConfig,
        base: CheckpointFiles,
        targets: str,
        data: _Data,
        folder: RunFolder,
        device: torch.device,
        dtype: torch.dtype,
        on_progress: OnProgress,
    ) -> None:
        self.config, self.data, self.folder, self.base, self._on_progress = config, data, folder, base, on_progress
        self.total_steps = count_steps(len(data.train_indices), config)
        self._report(0, message=f"loading {base.folder.name} on {device} in {str(dtype).removeprefix('torch.')}")
        model = load_model(base, dtype=dtype, device=device)
        torch.manual_seed(config.seed)
        self.adapted: PeftModel = add_adapter(
            model,
            targets=targets,
            rank=config.lora_rank,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
        )
        self.model = cast(YiVLForConditionalGeneration, self.adapted.get_base_model())
        use_packed_attention(self.model)
        self.parameters = [parameter for parameter in self.adapted.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=(config.adam_beta1, config.adam_beta2), weight_decay=config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.state = TrainingState()
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)

    def run(self) -> None:
        """All steps that are left."""
        self.state = load_training(self.folder.checkpoints, self.adapted, self.optimizer, logged_steps(self.folder.path))
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        self.metrics = Metrics(self.folder.path, self.state.step)
        steps = range(self.state.step, self.total_steps)
        save_steps = self.config.save_steps or self.config.eval_steps
        for step, rows in zip(steps, self.data.step_rows(steps, self.config), strict=True):
            self._step(step, rows)
            self.state = self.state.at(step + 1)
            is_last = self.state.step == self.total_steps
            if is_last or self.state.step % self.config.eval_steps == 0:
                self._evaluate()
            if is_last or self.state.step % save_steps == 0 or self.state.best_step == self.state.step:
                self._require_finite(self.state.step)
                state = replace(self.state, scaler=self.scaler.state_dict(), num_figures=self.metrics.flush())
                save_training(self.folder.checkpoints, self.adapted, self.optimizer, state)
        self.metrics.close()

    def publish(self) -> TrainingSummary:
        """Write the adapter folder and the result."""
        config, folder, state = self.config, self.folder, self.state
        kept_step = state.best_step if config.keep == "best" and state.best_step else state.step
        about = {
            "kind": "adapter",
            "base_digest": self.data.base_digest,
            "dataset_digest": self.data.digests["digest"],
            "prompt_version": PROMPT_VERSION,
            "step": kept_step,
            "training_digest": folder.digest,
        }
        with publish_folder(folder.adapter) as temporary:
            for name in _ADAPTER_FILES:
                shutil.copyfile(step_folder(folder.checkpoints, kept_step) / name, temporary / name)
            shutil.copyfile(folder.path / HELD_OUT_FILE, temporary / HELD_OUT_FILE)
            (temporary / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        evaluation = self.metrics.evaluation_at(kept_step)
        result = {
            "adapter_digest": adapter_digest(folder.adapter),
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
        return _summary(folder, result)

    def _step(self, step: int, rows: list[PackedBatch]) -> None:
        started = time.perf_counter()
        torch.manual_seed(step_seed(step, self.config.seed))
        rate = learning_rate(step, self.total_steps, self.config)
        num_learned = sum(row.num_learned for row in rows)
        total = torch.zeros((), device=self.parameters[0].device)
        self.adapted.train()
        for row in rows:
            loss = row_loss(self.model, row, self.data.processor.preprocessor).total / num_learned
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        # Where the loss is scaled, a gradient that overflows lowers the scale, and its step is left out.
        self.is_finite &= torch.isfinite(total if self.scaler.is_enabled() else total + grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if (step + 1) % self.config.log_steps == 0 or step + 1 == self.total_steps:
            self._require_finite(step + 1)
            figures = {"loss": total.item(), "learning_rate": rate}
            if math.isfinite(norm := grad_norm.item()):
                figures["grad_norm"] = norm
            self._log(step + 1, rows, figures, time.perf_counter() - started)

    def _log(self, step: int, rows: list[PackedBatch], figures: dict[str, float], seconds: float) -> None:
        num_samples = sum(row.num_samples for row in rows)
        num_tokens = sum(len(row.input_ids) for row in rows)
        figures |= {"samples_per_s": num_samples / seconds, "tokens_per_s": num_tokens / seconds}
        self.metrics.log(step, figures)
        self._report(step, figures)

    @torch.no_grad()
    def _evaluate(self) -> None:
        """Loss and token accuracy on the held-out records; the metrics of a run without any stay without them."""
        if not self.data.val_indices:
            return
        self.adapted.eval()
        rows = (row for group in self.data.val_rows(self.config.batch_size) for row in group)
        losses = [row_loss(self.model, row, self.data.processor.preprocessor) for row in rows]
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
                f"{self.config.learning_rate:g}), or use bfloat16 or float32 in place of float16. Earlier checkpoints are kept"
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
            for place in (folder.adapter, folder.path):
                write_records(place / HELD_OUT_FILE, data.held_out)


def _find_targets(base: CheckpointFiles, target_modules: str) -> str:
    """The targets by the shapes alone, before any weight is read."""
    with torch.device("meta"):
        return find_targets(YiVLForConditionalGeneration(read_config(base)), target_modules)


def _settings(config: TrainingConfig) -> dict[str, Any]:
    """Every setting that decides the adapter; places of files count by their content, see the manifest's other blocks."""
    return config.model_dump(exclude={"model", "dataset", "val_dataset", "output", "resume", "device", "dtype", "log_steps"})


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


def _summary(folder: RunFolder, result: dict[str, Any]) -> TrainingSummary:
    places = {"output": folder.path, "adapter": folder.adapter, "val_dataset": folder.path / HELD_OUT_FILE}
    return TrainingSummary(**result | {key: str(path) for key, path in places.items()})
