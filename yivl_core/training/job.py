"""What a run is, worked out before anything is written or allocated."""

from functools import cached_property
from pathlib import Path

import torch

from yivl_core.errors import ConfigurationError, DatasetError
from yivl_core.model.devices import resolve_device, resolve_dtype
from yivl_core.model.files import open_checkpoint
from yivl_core.model.gpu_memory import can_multiply_in_float8, memory_budget, require_gpu
from yivl_core.model.nf4 import require_nf4
from yivl_core.progress import OnProgress
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.features import open_features
from yivl_core.training.fused import FusedModel
from yivl_core.training.memory import fixed_needs, require_memory
from yivl_core.training.planning import Planner, TrainingPlan
from yivl_core.training.run_folder import started_with
from yivl_core.training.throughput import measure_peak
from yivl_core.training.training_data import TrainingData
from yivl_core.training.tuning import outline_tuning, part_of


class Job:
    """Settings, data and base of a run, known to work.

    Args:
        config: of the training.
        output: folder of the run.
        on_progress: is told.

    Raises:
        ConfigurationError, DatasetError, CheckpointError: as `train_adapter`.

    Attributes:
        config: as given.
        on_progress: as given.
        device, dtype: that it is trained on and in.
        base: the checkpoint.
        outline: what is trained.
        is_fused: whether the fast path trains it.
        data: the records.
        row_tokens: most tokens of a row.
    """

    def __init__(self, config: TrainingConfig, output: Path, on_progress: OnProgress) -> None:
        self.config, self.on_progress = config, on_progress
        self.device = resolve_device(config.device)
        self.dtype = resolve_dtype(config.dtype, self.device)
        self.base = open_checkpoint(config.model)
        self.outline = outline_tuning(self.base, config)
        self.is_fused = FusedModel.fits(self.outline.model)
        self._require_possible()
        self.features = (
            None if config.feature_cache is None else open_features(config.feature_cache, self.base, self.dtype, self.device)
        )
        self.data = TrainingData(config, self.base, self.device, on_progress, self.features)
        self._require_images()
        self.row_tokens = self._row_tokens(output)

    @cached_property
    def peak(self) -> float:
        """Operations a second of a large matrix product on the device."""
        return measure_peak(self.device, self.dtype)

    @cached_property
    def planner(self) -> Planner:
        """Works out what fits."""
        fixed = fixed_needs(self.base, self.outline.shapes, self.config, self.dtype)
        return Planner(
            self.outline.model.config, self.outline.shapes, self.config, fixed, self.data.step_lengths(), self.dtype.itemsize,
            peak=self.peak, is_fused=self.is_fused,
        )  # fmt: skip

    @cached_property
    def plan(self) -> TrainingPlan:
        """What layers keep, so that the rows fit into memory.

        Raises:
            ConfigurationError: they do not.
        """
        return self.planner.plan(self._budget(), self.row_tokens)

    def require_memory(self) -> None:
        """Nothing, if weights and checkpoints fit.

        Raises:
            ConfigurationError: they do not.
        """
        require_memory(self.base, self.outline.shapes, self.config, self.dtype, self.device)
        if self.features is not None and self.data.num_unseen:
            self.features.require_room(self.data.num_unseen)

    def _row_tokens(self, output: Path) -> int:
        """As given; or as the run was started that is gone on with; on a GPU else what is fastest."""
        started = started_with(output).get("row_tokens") if self.config.resume else None
        if self.config.row_tokens or started or self.device.type != "cuda":
            return self.config.row_tokens or started or self.data.max_length
        self.require_memory()
        return self.planner.plan(self._budget()).row_tokens

    def _budget(self) -> int | None:
        """Bytes of a GPU that may be used; None where all is decided by hand, and is tried."""
        config = self.config
        is_by_hand = config.row_tokens is not None and config.recompute != "auto" and config.gpu_memory is None
        return None if is_by_hand or self.device.type != "cuda" else memory_budget(self.device, config.gpu_memory)

    def _require_possible(self) -> None:
        config, dtype = self.config, self.dtype
        require_gpu(self.device, config.gpu_memory)
        if dtype == torch.float16 and config.optimizer == "muon":
            raise ConfigurationError("optimizer muon does not work in float16, whose steps may overflow; use bfloat16 or float32")
        if config.quantization == "fp8" and not self.is_fused:
            raise ConfigurationError(
                "quantization 'fp8' is for plain LoRA of models like the published ones, and not for their head (given: "
                f"target_modules {config.target_modules!r}); leave it out, or give other targets"
            )
        if config.quantization == "fp8" and not can_multiply_in_float8(self.device, dtype):
            raise ConfigurationError(
                f"quantization 'fp8' needs a GPU of compute capability 8.9 or later and dtype bfloat16 (given: {self.device}, "
                f"{str(dtype).removeprefix('torch.')}); leave it out"
            )
        if config.compile and self.is_fused and not config.augmentation:
            raise ConfigurationError(
                "compile has nothing to compile: the layers of a plain LoRA are fast as they are, and no augmentation is asked "
                "for; leave it out"
            )
        if config.feature_cache is not None and any(part_of(name) == "vision" for name in self.outline.shapes):
            raise ConfigurationError(
                "feature_cache keeps what a frozen vision tower gives, and this run trains the tower; leave it out, or leave the "
                "tower as it is (freeze_vision_tower, or other target_modules)"
            )
        if config.quantization == "nf4":
            require_nf4(self.device, dtype)

    def _require_images(self) -> None:
        if not self.data.trains_images and not any(part_of(name) == "llm" for name in self.outline.shapes):
            raise DatasetError(
                f"{self.config.dataset}: no record to train on has an image, and nothing is trained that records without images "
                "pass; train the language model too, or give records with images"
            )
