"""What is done about each kind of finding: stop, keep the record out, or use it and tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from yivl_core.data.findings import KINDS, WARNING_KINDS, Finding
from yivl_core.errors import ConfigurationError

Action = Literal["stop", "quarantine", "warn"]

_EXAMPLE = "write KIND=stop, KIND=quarantine or KIND=warn, such as duplicate_record=quarantine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """The actions that a user has chosen; for all other kinds an error is quarantined and a warning is told.

    Attributes:
        actions: by kind.
    """

    actions: Mapping[str, Action]

    @classmethod
    def of(cls, choices: Sequence[str]) -> "Policies":
        """The policies that a user has written as `KIND=ACTION`; of two for one kind the later counts.

        Raises:
            ConfigurationError: there is no such kind or action, or records with such a finding cannot be used at all.
        """
        actions: dict[str, Action] = {}
        for choice in choices:
            kind, _, chosen = choice.partition("=")
            action: Action | None = next((action for action in get_args(Action) if action == chosen), None)
            if action is None:
                raise ConfigurationError(f"policy {choice!r}: there is no such action; {_EXAMPLE}")
            if kind not in KINDS:
                raise ConfigurationError(f"policy {choice!r}: there is no such kind of finding; it is one of {', '.join(KINDS)}")
            if action == "warn" and kind not in WARNING_KINDS:
                raise ConfigurationError(
                    f"policy {choice!r}: a record with this finding cannot be used; choose stop or quarantine "
                    f"(warn goes with {', '.join(sorted(WARNING_KINDS))})"
                )
            actions[kind] = action
        return cls(actions=actions)

    @property
    def choices(self) -> tuple[str, ...]:
        """What `of` makes these policies of, in order, whatever order they were written in."""
        return tuple(f"{kind}={action}" for kind, action in sorted(self.actions.items()))

    def apply(self, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """The same findings, each as severe as the user takes it."""
        if not any(finding.kind in self.actions for finding in findings):
            return findings
        return tuple(self._with_severity(finding) for finding in findings)

    def stops_at(self, finding: Finding) -> bool:
        """Whether a finding ends the validation."""
        return self.actions.get(finding.kind) == "stop"

    def _with_severity(self, finding: Finding) -> Finding:
        action = self.actions.get(finding.kind)
        return finding if action is None else replace(finding, severity="warning" if action == "warn" else "error")
