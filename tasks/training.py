"""The task around `train_adapter`."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from tasks.caching import CACHED_TASK, content_key, run_cached
from tasks.process import run_in_child
from tasks.relay import ProgressRelay
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.model.files import checkpoint_digest
from yivl_core.training.configuration import TrainingConfig, TrainingSettings, TrainingSummary
from yivl_core.training.result import are_held_out_images_there, is_result_whole


def training_key(settings: TrainingSettings, model: str, dataset: str, val_dataset: str | None) -> str:
    """The content key of an adapter.

    Args:
        settings: how to train.
        model: checkpoint folder of the base model.
        dataset: validated-dataset folder.
        val_dataset: the same for evaluation, or None.

    Raises:
        CheckpointError, DatasetError: a folder is not what it should be.
    """
    return content_key(
        settings=settings.deciding,
        model=checkpoint_digest(model),
        dataset=ValidatedDataset.open(dataset).digest,
        val_dataset=ValidatedDataset.open(val_dataset).digest if val_dataset else None,
    )


def train(config: TrainingConfig, deadline_s: float | None = None) -> TrainingSummary:
    """Train, unless `config.resume` allows to take the result that is there for the same content and settings."""
    key = training_key(config, config.model, config.dataset, config.val_dataset)
    run = _train if config.resume else _train.with_options(refresh_cache=True)
    summary = run_cached(run, config, key=key, output=config.output, is_intact=_is_intact, deadline_s=deadline_s)
    create_table_artifact(key="training", table=_table(summary), description=f"Result in {summary.adapter or summary.model}")
    return summary


@task(name="train", **CACHED_TASK)
def _train(config: TrainingConfig, deadline_s: float | None, cache_key: str) -> TrainingSummary:
    summary: TrainingSummary = run_in_child("train", config, ProgressRelay("train"), deadline_s)
    return summary


def _is_intact(summary: TrainingSummary) -> bool:
    """Where the held-out rows' images have moved, the training tells where they lie in the dataset that it is given now."""
    folder = Path(summary.output)
    return is_result_whole(folder, summary.result_digest) and are_held_out_images_there(folder)


def _table(summary: TrainingSummary) -> list[dict[str, float | None]]:
    return [
        {
            "steps": summary.num_steps,
            "training samples": summary.num_train_samples,
            "validation samples": summary.num_val_samples,
            "dropped samples": summary.num_dropped,
            "training loss": summary.train_loss,
            "validation loss": summary.val_loss,
            "validation token accuracy": summary.val_token_accuracy,
            "validation CER": summary.val_cer,
            "kept step": summary.best_step,
        }
    ]
