import pytest

from flows import validate
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.errors import DatasetError

NOTHING = ValidationSummary(
    output="out", digest="", num_lines=1, num_records=0, num_quarantined=1, num_errors=1, num_images=0, num_warnings=0,
    findings_by_kind={"wrong_type": 1},
)  # fmt: skip


def test_a_dataset_without_a_record_is_named_without_the_secrets_of_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate.dataset, "validate", lambda _: NOTHING)
    config = ValidationConfig(dataset=("https://ann:pw@host/train.jsonl?token=5f",), output="out")
    with pytest.raises(DatasetError) as raised:
        validate.validate_to_go_on(config)
    assert str(raised.value) == "https://host/train.jsonl?token=...: no record can be used; out/report.md tells why"
