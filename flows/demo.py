"""`retrain` on model and data of the repository: the whole pipeline in minutes on a CPU."""

from pathlib import Path

from flows.checked_flow import flow
from flows.configuration import DemoConfig, RetrainConfig, RetrainSummary
from flows.retrain import run_retrain
from yivl_core.errors import CheckpointError, DatasetError
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.training.configuration import TrainingSettings

REPOSITORY_DATA = Path(__file__).resolve().parents[1] / "data"
MODEL, STRIPS = REPOSITORY_DATA / "nano", REPOSITORY_DATA / "handwritten_numbers"
_REMEDY = "clone the repository and install it with `pip install -e .`"


@flow(name="demo")
def demo(config: DemoConfig) -> RetrainSummary:
    """Teach a model that reads printed lines to read handwritten digits.

    Raises:
        DatasetError: the data of the repository is not beside the code.
        CheckpointError: its model is not there.
    """
    if not STRIPS.is_dir():
        raise DatasetError(f"{STRIPS}: the demo's data is not there; {_REMEDY}")
    if not (MODEL / "config.json").is_file():
        raise CheckpointError(f"{MODEL}: the demo's model is not there; {_REMEDY}")
    return run_retrain(
        RetrainConfig(
            model=str(MODEL),
            dataset=(str(STRIPS / "train.jsonl"),),
            val_dataset=(str(STRIPS / "val.jsonl"),),
            output=config.output,
            training=TrainingSettings(
                target_modules="all",
                learning_rate=4e-3,
                lora_dropout=0,
                batch_size=8,
                num_epochs=2,
                eval_steps=150,
                save_steps=25,  # so that a demo that is stopped goes on within a minute of where it was
                device="cpu",
            ),
            decoding=DecodingSettings(max_new_tokens=12),
        )
    )
