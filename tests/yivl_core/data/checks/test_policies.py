import pytest

from yivl_core.data.checks.policies import Policies
from yivl_core.data.findings import KINDS, WARNING_KINDS, error, warning
from yivl_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("duplicate_record", "there is no such action; write KIND=stop"),
        ("duplicate_record=ignore", "there is no such action"),
        ("duplicate=warn", "there is no such kind of finding; it is one of invalid_json, "),
        ("invalid_json=warn", "a record with this finding cannot be used; choose stop or quarantine"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(choice: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^policy '{choice}': {message}"):
        Policies.of([choice])


def test_findings_become_as_severe_as_the_user_takes_them() -> None:
    findings = (warning("bom", "a", "b"), warning("tiny", "a", "b"), error("wrong_type", "a", "b"))
    policies = Policies.of(["bom=warn", "tiny=stop", "bom=quarantine", "wrong_type=quarantine"])
    assert [finding.severity for finding in policies.apply(findings)] == ["error", "error", "error"]
    assert [policies.stops_at(finding) for finding in findings] == [False, True, False]
    assert Policies.of([]).apply(findings) is findings


def test_what_is_written_in_another_order_is_the_same_policy() -> None:
    choices = ("tiny=warn", "bom=stop")
    assert Policies.of(choices).choices == Policies.of(choices[::-1]).choices == tuple(sorted(choices))
    assert Policies.of(Policies.of(choices).choices) == Policies.of(choices)


def test_every_kind_of_warning_is_a_kind() -> None:
    assert KINDS.keys() >= WARNING_KINDS
