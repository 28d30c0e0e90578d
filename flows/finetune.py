"""Training data -> adapter (`sft`), adapter -> merged checkpoint (`export`)."""

from flows.checked_flow import flow
from flows.configuration import ExportConfig, SftConfig
from flows.validate import validate_to_go_on
from tasks import merging, training
from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import is_validated_dataset
from yivl_core.export.configuration import MergeConfig, MergeSummary
from yivl_core.settings import narrow
from yivl_core.storage import join
from yivl_core.training.configuration import TrainingConfig, TrainingSummary


@flow(name="sft")
def sft(config: SftConfig) -> TrainingSummary:
    """Train a LoRA adapter, or the model's own weights; datasets that are files are validated first."""
    val_dataset = _validated(config, config.val_dataset, "val_dataset") if config.val_dataset else None
    dataset = _validated(config, config.dataset, "dataset", apart_from=(val_dataset,) if val_dataset else ())
    return training.train(narrow(config, TrainingConfig, dataset=dataset, val_dataset=val_dataset), config.deadline_s)


@flow(name="export")
def export(config: ExportConfig) -> MergeSummary:
    """Merge an adapter into its base model and write the result as a checkpoint."""
    return merging.merge(narrow(config, MergeConfig), config.deadline_s)


def _validated(config: SftConfig, dataset: str, name: str, apart_from: tuple[str, ...] = ()) -> str:
    if is_validated_dataset(dataset):
        return dataset
    settings = narrow(
        config.validation,
        ValidationConfig,
        dataset=(dataset,),
        image_root=config.image_root,
        output=join(config.output, name),
        model=config.model,
        max_length=config.max_length,
        apart_from=apart_from,
    )
    return validate_to_go_on(settings).output
