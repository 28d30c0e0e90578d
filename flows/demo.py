"""`retrain` on the data of the repository, from a small random checkpoint: the whole pipeline in minutes on a CPU."""

from pathlib import Path

from prefect import flow
from prefect.logging import get_run_logger

from flows.configuration import DemoConfig, RetrainConfig, RetrainSummary
from flows.retrain import run_retrain
from tasks.checkpoint import write_random_checkpoint
from yivl_core.doors import RandomCheckpointConfig
from yivl_core.errors import DatasetError
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.storage import join
from yivl_core.training.configuration import TrainingSettings

DATA = Path(__file__).resolve().parents[1] / "data" / "handwritten_numbers"


@flow(name="demo")
def demo(config: DemoConfig) -> RetrainSummary:
    """Show every step of `retrain` on strips of handwritten digits.

    Raises:
        DatasetError: the data of the repository is not beside the code.
    """
    if not DATA.is_dir():
        raise DatasetError(f"{DATA}: the demo's data is not there; clone the repository and install it with `pip install -e .`")
    checkpoint = write_random_checkpoint(RandomCheckpointConfig(output=join(config.output, "checkpoint"), seed=config.seed))
    summary = run_retrain(
        RetrainConfig(
            model=checkpoint.output,
            dataset=(str(DATA / "train.jsonl"),),
            val_dataset=(str(DATA / "val.jsonl"),),
            output=config.output,
            training=TrainingSettings(target_modules="all", learning_rate=1e-3),
            decoding=DecodingSettings(max_new_tokens=12),
        )
    )
    get_run_logger().warning(
        "The demo's model is small and starts from random weights: it shows that every step works, and cannot read. "
        "Give a trained checkpoint to `yivl retrain` for figures that mean something."
    )
    return summary
