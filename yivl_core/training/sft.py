"""train_adapter(): supervised fine-tuning of a LoRA adapter or the weights, on packed samples, resumable to an equal result."""

import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

from yivl_core.data.dataset import record_line, write_records
from yivl_core.errors import ConfigurationError
from yivl_core.model.files import ABOUT_FILE, HELD_OUT_FILE
from yivl_core.model.gpu_memory import limited_memory
from yivl_core.outputs.manifest import code, environment
from yivl_core.processing.prompt import PROMPT_VERSION, describe_prompt
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import local_path, publish_folder
from yivl_core.training.answers import score_answers
from yivl_core.training.augmentation import augment
from yivl_core.training.checkpoint import TrainingState, load_training, save_training, saved_steps, step_folder
from yivl_core.training.configuration import TrainingConfig, TrainingSummary
from yivl_core.training.features import write_features
from yivl_core.training.fused import FusedModel
from yivl_core.training.health import Divergence, Finiteness
from yivl_core.training.job import Job
from yivl_core.training.loss import ChangeImages, RowLoss, compile_layers, recompute_layers, row_loss, use_packed_attention
from yivl_core.training.optimization import Optimizers
from yivl_core.training.packing import PackedBatch
from yivl_core.training.result import is_result_whole, result_digest
from yivl_core.training.run_folder import Metrics, RunFolder, logged_steps
from yivl_core.training.samples import death_of_worker
from yivl_core.training.schedule import count_steps, rate_share, step_seed
from yivl_core.training.throughput import OperationCount, Stopwatch
from yivl_core.training.training_data import TrainingData
from yivl_core.training.tuning import prepare_tuning

_MAX_SOURCES = 16  # in a message


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
    output = local_path(config.output, "a training run")
    job = Job(config, output, on_progress)
    folder = RunFolder(output, _manifest(job), resume=config.resume)
    if _is_finished(folder):
        _renew_held_out(folder, job.data)
        return _summary(folder)
    job.require_memory()
    device = job.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []), limited_memory(device, config.gpu_memory):
        trainer = _Trainer(job, folder)
        with folder.taken():
            if _is_finished(folder):
                return _summary(folder)  # another process has finished it meanwhile
            job.data.write(folder.path)
            with _explained(job):
                trainer.run()
            return trainer.publish()


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    """What torch says of a lack of memory, or of a worker that has died, in our words."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise ConfigurationError(
                f"rows of {job.row_tokens} tokens do not fit into the memory of {job.device}; lower row_tokens or max_length"
                + ("" if job.config.recompute in ("auto", "full") else ", or set recompute full")
            ) from error
        if "DataLoader worker" not in str(error):  # of torch's loader, at whatever place the news arrives
            raise
        raise death_of_worker(str(error).strip()) from error


class _Trainer:
    """The model, its optimizer, and the loop over steps."""

    def __init__(self, job: Job, folder: RunFolder) -> None:
        config, base, device, dtype = job.config, job.base, job.device, job.dtype
        self.planner, self.plan = job.planner, job.plan
        self.config, self.data, self.folder, self._on_progress = config, job.data, folder, job.on_progress
        self.features = job.features
        self.device, self.dtype, self.row_tokens = device, dtype, job.row_tokens
        self.total_steps = count_steps(len(self.data.train_indices), config)
        self.stopwatch = Stopwatch(device, job.peak, OperationCount(job.outline.model.config, job.outline.shapes))
        self._report(0, message=f"loading {base.folder.name} on {device} in {str(dtype).removeprefix('torch.')}")
        self.tuning = prepare_tuning(base, config, dtype, device)
        self.model = self.tuning.model
        self.fused = None
        if job.is_fused:
            self.fused = FusedModel(self.model, self.plan.kept, self.plan.tower_kept, is_fp8=config.quantization == "fp8")
        else:
            use_packed_attention(self.model)
            recompute_layers(self.model, self.plan.recompute)
            if config.compile:
                compile_layers(self.model)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._report(0, message=str(self.plan))
        parameters = self.tuning.parameters()
        self.parameters = list(parameters.values())
        self.optimizers = Optimizers(parameters, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.state = TrainingState()
        self.finiteness, self.divergence = Finiteness(device), Divergence()

    def run(self) -> None:
        """All steps that are left."""
        self.state = load_training(self.folder.checkpoints, self.tuning, self.optimizers, logged_steps(self.folder.path))
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)
        if self.features is not None and self.state.step < self.total_steps and (num_unseen := self.data.num_unseen):
            self.model.eval()
            write_features(self.features, self.model, self.data.preprocessor, self.data.unseen(), num_unseen, self._on_progress)
        self.metrics = Metrics(self.folder.path, self.state.step)
        for loss in self.metrics.losses:
            self.divergence.note(loss)
        self.started, self.first_step = time.perf_counter(), self.state.step
        save_steps = self.config.save_steps or self.config.eval_steps
        rows = self.data.rows(self.state.step, self.total_steps, self.row_tokens)
        for step in range(self.state.step, self.total_steps):
            if self.is_stopped_early:
                break
            with self.stopwatch.waiting():
                of_step = next(rows)
            self._step(step, of_step)
            self.state = self.state.at(step + 1)
            if self.data.is_evaluated(self.state.step, self.total_steps):
                self._evaluate(rows)
            is_last = self.state.step == self.total_steps or self.is_stopped_early
            if is_last or self.state.step % save_steps == 0 or self.state.best_step == self.state.step:
                self._require_finite(self.state.step)
                state = replace(self.state, scaler=self.scaler.state_dict(), num_figures=self.metrics.flush())
                save_training(self.folder.checkpoints, self.tuning, self.optimizers, state)
                self.metrics.plot_now_and_then()
        self.metrics.close()

    @property
    def is_stopped_early(self) -> bool:
        """Whether evaluations have not got better for as long as the user has patience."""
        patience = self.config.early_stopping_patience
        return patience is not None and self.state.num_worse >= patience and self.state.step < self.total_steps

    def publish(self) -> TrainingSummary:
        """Write the result: the folder of adapter or model, and what the manifest tells of it."""
        config, folder, state = self.config, self.folder, self.state
        kept_step = state.best_step if config.keep == "best" and state.best_step else state.step
        about = {
            "kind": "adapter" if config.tuner == "lora" else "tuned",
            "base_digest": self.data.base.digest,
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
            "val_cer": evaluation.get("val_cer"),
            "stopped_early": self.is_stopped_early,
            "best_step": kept_step,
        }
        folder.finish(result)
        return _summary(folder)

    def _step(self, step: int, rows: list[PackedBatch]) -> None:
        is_logged = (step + 1) % self.config.log_steps == 0 or step + 1 == self.total_steps
        with self.stopwatch.step(rows):
            figures = self._learn(step, rows, is_logged=is_logged)
        if is_logged:
            loss = {"loss": figures.pop("loss")}  # a terminal shows the first few
            self._log(step + 1, loss | self.stopwatch.figures() | figures)

    def _learn(self, step: int, rows: list[PackedBatch], *, is_logged: bool) -> dict[str, float]:
        """Make a step; its figures, if they are logged, which waits for the GPU."""
        share = rate_share(step, self.total_steps, self.config)
        total = self._gradients(step, rows)
        self.optimizers.unscale(self.scaler)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        # Where the loss is scaled, a gradient that overflows lowers the scale, and its step is left out.
        self.finiteness.note(step + 1, total if self.scaler.is_enabled() else total + grad_norm)
        self.optimizers.set_rate(share)
        self.optimizers.step(self.scaler)
        if not is_logged:
            return {}
        self._require_finite(step + 1)
        if problem := self.divergence.note(loss := total.item()):
            raise ConfigurationError(self._stopped(step + 1, problem))
        figures = {"loss": loss, "learning_rate": share * self.optimizers.highest_rate}
        return figures | ({"grad_norm": norm} if math.isfinite(norm := grad_norm.item()) else {})

    def _gradients(self, step: int, rows: list[PackedBatch]) -> torch.Tensor:
        """The loss of a step, whose gradients are left at the parameters; where memory runs out, more is computed again."""
        while True:
            try:
                return self._backward(step, rows)
            except torch.OutOfMemoryError:
                smaller = self.planner.smaller(self.plan)
                if smaller is None or (self.fused is None and self.config.compile):
                    raise
            for parameter in self.parameters:
                parameter.grad = None
            torch.cuda.empty_cache()
            self.plan = smaller
            if self.fused is not None:
                self.fused.keep(smaller.kept, smaller.tower_kept)
            else:
                recompute_layers(self.model, smaller.recompute)
            self._report(step, message=f"memory ran out; the step is made again, now {smaller}")

    def _backward(self, step: int, rows: list[PackedBatch]) -> torch.Tensor:
        torch.manual_seed(step_seed(step, self.config.seed))
        num_learned = sum(row.num_learned for row in rows)
        total = torch.zeros((), device=self.device)
        self.model.train()
        for number, row in enumerate(rows):
            loss = self._loss(row, self._change_images(step, number)).total / num_learned
            if loss.requires_grad:  # nothing is trained that a row without images passes, where only the tower is
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def _log(self, step: int, figures: dict[str, float]) -> None:
        self.metrics.log(step, figures)
        seconds_a_step = (time.perf_counter() - self.started) / (step - self.first_step)
        self._report(step, figures, remaining_s=seconds_a_step * (self.total_steps - step))

    def _change_images(self, step: int, row_number: int) -> ChangeImages | None:
        seed = step_seed(step, self.config.seed) + row_number
        if not self.config.augmentation:
            return None
        return partial(augment, strength=self.config.augmentation, seed=seed, compiled=self.config.compile)

    def _loss(self, row: PackedBatch, change_images: ChangeImages | None = None) -> RowLoss:
        with self._arithmetic():
            return row_loss(self.model, row, self.data.preprocessor, change_images, self.fused)

    def _arithmetic(self) -> torch.autocast:
        """LoRA's frozen weights have the dtype of the arithmetic already; weights that are tuned are float32."""
        is_mixed = self.config.tuner == "full" and self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=is_mixed)

    @torch.no_grad()
    def _evaluate(self, rows: Iterator[list[PackedBatch]]) -> None:
        """Loss and token accuracy on the held-out records, whose rows come next, and CER on some that are answered."""
        self.model.eval()
        losses = [self._loss(row) for _ in range(self.data.num_val_groups) for row in next(rows)]
        num_learned = sum(loss.num_learned for loss in losses)
        val_loss = sum(loss.total.item() for loss in losses) / num_learned
        accuracy = sum(loss.num_correct.item() for loss in losses) / num_learned
        self._require_finite(self.state.step)
        if not math.isfinite(val_loss):
            problem = (
                f"the loss of {sum(not loss.total.isfinite() for loss in losses)} of {len(losses)} held-out rows is no number"
            )
            held_out = f"the held-out samples ({self.folder.path / HELD_OUT_FILE})"
            raise ConfigurationError(self._stopped(self.state.step, problem, held_out))
        figures = {"val_loss": val_loss, "val_token_accuracy": accuracy}
        if answered := self.data.answered_indices:
            self._report(self.state.step, message=f"answering {len(answered)} held-out records")
            with self._arithmetic():
                cer = score_answers(self.model, self.data.val.reader, answered).cer
            figures |= {} if cer is None else {"val_cer": cer}
        # Where right answers have no characters there is no rate: no step is better than the first.
        self.state = self.state.evaluated(figures.get(self.config.best_metric, 0.0))
        self.metrics.log(self.state.step, figures)
        self._report(self.state.step, figures)

    def _require_finite(self, step: int) -> None:
        """No checkpoint and no figure comes of a step from which there is no way back."""
        is_learning = self.scaler.get_scale() >= 1  # below, gradients overflow however little they are scaled
        bad_step = self.finiteness.first_bad_step if is_learning else step
        if bad_step is not None:
            raise ConfigurationError(self._stopped(bad_step, "the loss or its gradient is no longer a finite number"))

    def _stopped(self, step: int, problem: str, samples: str = "") -> str:
        """Why the run cannot go on, what to look at (by default what was learned then), and what is left."""
        sources, checkpoints = self.data.sources(step), self.folder.checkpoints
        more = f" and {len(sources) - _MAX_SOURCES} more" if sources[_MAX_SOURCES:] else ""
        samples = samples or f"the samples of that step ({', '.join(sources[:_MAX_SOURCES])}{more})"
        saved = [each for each in saved_steps(checkpoints) if each < step]
        left = f"the last good checkpoint is {step_folder(checkpoints, saved[-1])}" if saved else "no checkpoint was made before"
        return (
            f"step {step}: {problem}; lower the learning rate (now {self.optimizers.highest_rate:g}), use bfloat16 or float32 in "
            f"place of float16, or look at {samples}; {left}"
        )

    def _report(
        self, step: int, figures: dict[str, float] | None = None, message: str = "", remaining_s: float | None = None
    ) -> None:
        self._on_progress(
            Progress(
                stage="train", done=step, total=self.total_steps, unit="step", figures=figures or {}, message=message,
                remaining_s=remaining_s,
            )
        )  # fmt: skip


def _renew_held_out(folder: RunFolder, data: TrainingData) -> None:
    """Let a finished run tell where its held-out records lie now, if that is elsewhere."""
    with (folder.path / HELD_OUT_FILE).open("rb") as file:
        is_up_to_date = all(line == record_line(record).encode() for line, record in zip(file, data.held_out, strict=True))
    if not is_up_to_date:
        with folder.taken():
            for place in (folder.result_folder, folder.path):
                write_records(place / HELD_OUT_FILE, data.held_out)


def _is_finished(folder: RunFolder) -> bool:
    return folder.result is not None and is_result_whole(folder.path, folder.result["result_digest"])


def _settings(config: TrainingConfig, row_tokens: int) -> dict[str, Any]:
    """Every setting that decides the result; places of files count by their content, see the manifest's other blocks."""
    settings = {name: value for name, value in config.deciding.items() if name not in ("device", "dtype")}
    return settings | {"learning_rate": config.highest_learning_rate, "row_tokens": row_tokens}


def _manifest(job: Job) -> dict[str, Any]:
    config, data = job.config, job.data
    return {
        "command": "sft",
        "code": code(),
        "environment": environment(),
        "settings": _settings(config, job.row_tokens),
        "paths": {"model": config.model, "dataset": config.dataset, "val_dataset": config.val_dataset},
        "data": data.digests | {"num_train": len(data.train_indices), "num_val": len(data.val_indices)},
        "model": asdict(data.base),
        "prompt": describe_prompt(),
        "numerics": {"dtype": str(job.dtype).removeprefix("torch."), "device": job.device.type},
    }


def _summary(folder: RunFolder) -> TrainingSummary:
    assert folder.result is not None
    places: dict[str, Any] = {"adapter": None, "model": None}
    places |= {folder.result_folder.name: str(folder.result_folder)}
    places |= {"output": str(folder.path), "val_dataset": str(folder.path / HELD_OUT_FILE)}
    return TrainingSummary(**folder.result | places)
