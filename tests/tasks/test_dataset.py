from pathlib import Path
from typing import Any

import pytest

from tasks import dataset
from yivl_core.data.configuration import ValidationConfig
from yivl_core.progress import ignore_progress

URL = "https://ann:pw@host/train.jsonl?token=5f"


def test_what_is_shown_of_a_validation_holds_no_secret_of_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[str] = []

    def described_artifact(_: Any, *, key: str, description: str) -> None:
        described.append(description)

    def validate_another(config: ValidationConfig, _: Any) -> Any:
        (tmp_path / "data.jsonl").write_text('{"query": "a", "response": "b"}\n')
        return validate_dataset(config.model_copy(update={"dataset": (str(tmp_path / "data.jsonl"),)}))

    validate_dataset = dataset.validate_dataset
    monkeypatch.setattr(dataset, "validate_dataset", validate_another)
    monkeypatch.setattr(dataset, "ProgressRelay", lambda _: ignore_progress)
    monkeypatch.setattr(dataset, "create_table_artifact", described_artifact)
    monkeypatch.setattr(dataset, "create_markdown_artifact", described_artifact)
    dataset.validate.fn(ValidationConfig(dataset=(URL,), output=str(tmp_path / "out")))
    assert described == ["What was found in https://host/train.jsonl?token=...", str(tmp_path / "out")]
