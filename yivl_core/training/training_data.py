"""The records of a run: which are trained on and which held out, and their packed rows, step by step."""

import json
import math
from collections.abc import Hashable, Iterator
from dataclasses import asdict
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

import torch

from yivl_core.data.checks.row_workers import count_cores
from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord, digest_records, write_records
from yivl_core.errors import DatasetError
from yivl_core.model.files import HELD_OUT_FILE, CheckpointFiles
from yivl_core.processing.processor import Processor
from yivl_core.progress import OnProgress
from yivl_core.storage import publish_bytes
from yivl_core.training.configuration import TrainingConfig
from yivl_core.training.features import FeatureFiles, UnseenImages
from yivl_core.training.held_out import split_held_out
from yivl_core.training.packing import PackedBatch
from yivl_core.training.samples import Group, SampleReader, Samples, load_rows, load_unseen
from yivl_core.training.schedule import count_steps, group_of_step, samples_of_step

_MAX_DEFAULT_WORKERS = 8
_RECORDS_SEEN_AT_A_TIME = 16


class TrainingData:
    """Training and held-out records, and how long a sample may be.

    Args:
        config: of the training.
        base: the checkpoint.
        device: that is trained on.
        on_progress: is told.
        features: of images, as `SampleReader`.

    Raises:
        DatasetError: no validated dataset, or nothing in it to train on or to evaluate.

    Attributes:
        preprocessor: of the checkpoint.
        max_length: longest sample in tokens.
        train, val: the records that fit.
        train_indices, val_indices: which of them are trained on and held out.
        trains_images: whether a record that is trained on has an image.
        dropped: the records that do not fit.
        digests: of the datasets and of what is held out.
        base: the content of the checkpoint.
    """

    def __init__(
        self,
        config: TrainingConfig,
        base: CheckpointFiles,
        device: torch.device,
        on_progress: OnProgress,
        features: FeatureFiles | None = None,
    ) -> None:
        dataset = ValidatedDataset.open(config.dataset)
        self.preprocessor = Processor.from_checkpoint(base).preprocessor
        self.max_length = min(config.max_length or base.max_positions, base.max_positions)
        self._config, self._device, self._num_workers = config, device, _resolve_num_workers(config, device)
        self._features = features
        measure = (base.folder, config, self.max_length, self._num_workers, on_progress, features)
        self.train = Samples(dataset, *measure)
        self.digests = {"digest": dataset.digest}
        self.base = base.digested()
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

    def rows(self, start: int, total_steps: int, row_tokens: int) -> Iterator[list[PackedBatch]]:
        """The packed rows of each step from `start` on; behind those of an evaluated step, those of each held-out group.

        Args:
            start: the step, from 0.
            total_steps: of the run.
            row_tokens: most tokens of a row.
        """
        groups = self._groups(start, total_steps)
        load = partial(
            load_rows, self._readers, row_tokens=row_tokens, num_workers=self._num_workers, has_slots=self._gpu is not None,
            gpu=self._gpu,
        )  # fmt: skip
        if not self._config.cache_samples:
            return load(samples for _, samples in groups)
        first_wanted = dict(self._groups(start, total_steps))
        return self._cached(groups, load(first_wanted.values()))

    @cached_property
    def num_unseen(self) -> int:
        """How many images are wanted whose features are not stored."""
        return sum(num_images for num_images, _ in self._unseen)

    def unseen(self) -> Iterator[UnseenImages]:
        """These images, a few at a time."""
        return load_unseen(self._readers, (group for _, group in self._unseen), self._num_workers, gpu=self._gpu)

    def step_lengths(self) -> list[list[int]]:
        """Tokens of the samples of each step of the first epoch."""
        lengths = dict(zip(self.train.indices, self.train.lengths, strict=True))
        own = [lengths[index] for index in self.train_indices]
        num_steps = math.ceil(len(own) / self._config.batch_size)
        return [
            [own[number] for number in samples_of_step(step, len(own), self._config)]
            for step in range(min(num_steps, count_steps(len(own), self._config)))
        ]

    def sources(self, step: int) -> list[str]:
        """Where the samples of a step (from 1) were written."""
        numbers = samples_of_step(step - 1, len(self.train_indices), self._config)
        return [str(self.train.validated(self.train_indices[number]).source) for number in numbers]

    @property
    def answered_indices(self) -> list[int]:
        """The held-out records that are answered, spread over all of them."""
        count = min(self._config.eval_answers, len(self.val_indices))
        return [self.val_indices[number * len(self.val_indices) // count] for number in range(count)]

    def is_evaluated(self, step: int, total_steps: int) -> bool:
        """Whether the held-out records are evaluated when so many steps are made."""
        return bool(self.val_indices) and (step == total_steps or step % self._config.eval_steps == 0)

    @property
    def num_val_groups(self) -> int:
        """How many groups an evaluation takes."""
        return math.ceil(len(self.val_indices) / self._config.batch_size)

    @cached_property
    def _readers(self) -> list[SampleReader]:
        return [self.train.reader, self.val.reader]

    @cached_property
    def _gpu(self) -> torch.device | None:
        return self._device if self._device.type == "cuda" else None

    @cached_property
    def _unseen(self) -> list[tuple[int, Group]]:
        """Groups of records with images that are wanted and whose features are not stored, and how many these are."""
        if self._features is None:
            return []
        num_samples = len(self.train_indices)
        steps = range(min(count_steps(num_samples, self._config), math.ceil(num_samples / self._config.batch_size)))
        learned = {number for step in steps for number in samples_of_step(step, num_samples, self._config)}
        wanted = [(self.train, [self.train_indices[number] for number in sorted(learned)]), (self.val, self.val_indices)]
        found: set[str] = set()
        groups: list[tuple[int, Group]] = []
        for number, (samples, indices) in enumerate(wanted):
            keys = {index: own for index, own, has in zip(samples.indices, samples.keys, samples.have_images, strict=True) if has}
            new: dict[int, int] = {}
            for index in indices:
                unseen = {key for key in keys.get(index, ()) if key not in found and not self._features.has(key)}
                found |= unseen
                if unseen:
                    new[index] = len(unseen)
            remaining = iter(new)
            while records := list(islice(remaining, _RECORDS_SEEN_AT_A_TIME)):
                groups.append((sum(new[index] for index in records), (number, records)))
        return groups

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


def _resolve_num_workers(config: TrainingConfig, device: torch.device) -> int:
    if config.num_workers is not None:
        return config.num_workers
    return min(_MAX_DEFAULT_WORKERS, count_cores()) if device.type == "cuda" else 0
