"""Columns under the user's own names: `query=question` says that what we call `query` stands in the column `question`.

Applied before the format is detected, to rows of any format.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

from yivl_core.data.findings import Finding
from yivl_core.errors import ConfigurationError

_OURS = (
    "query", "response", "history", "images", "system", "id", "references", "cluster_id",
    "messages", "conversations", "instruction", "input", "output",
)  # fmt: skip
_ABSENT = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnMapping:
    """Which of the user's columns stands for which field.

    Attributes:
        columns: (our name, their name) pairs; dots in their name lead into objects.
    """

    columns: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of_options(cls, options: Iterable[str]) -> "ColumnMapping":
        """The mapping that options such as `query=question` or `query=data.question` make.

        Raises:
            ConfigurationError: one is not of this form, names a field that no format has, or a field twice.
        """
        columns: dict[str, str] = {}
        for option in options:
            ours, separator, theirs = option.partition("=")
            ours, theirs = ours.strip(), theirs.strip()
            if not separator or not all(theirs.split(".")):
                raise ConfigurationError(f"column mapping {option!r}: write FIELD=COLUMN, such as query=question")
            if ours not in _OURS:
                near = get_close_matches(ours, _OURS, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(_OURS)}"
                raise ConfigurationError(f"column mapping {option!r}: there is no field {ours!r}; {hint}")
            if ours in columns:
                raise ConfigurationError(
                    f"column mapping {option!r}: {ours} is mapped to {columns[ours]!r} already; name one column for it"
                )
            columns[ours] = theirs
        return cls(columns=tuple(columns.items()))

    def apply(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The row under our names.

        A mapped column is moved, so that it is not taken for an unknown field; an object that a value is taken out of stays. What
        the row has under our name gives way, also where it lacks the mapped column: then the field is missing. A name with dots
        that is a column itself is that column. One address for `images` is made a list.
        """
        mapped = dict(values)
        for ours, theirs in self.columns:
            mapped.pop(theirs, None)
            mapped.pop(ours, None)
        for ours, theirs in self.columns:
            value = values[theirs] if theirs in values else _nested(values, theirs)
            if value is not _ABSENT:
                mapped[ours] = [value] if ours == "images" and isinstance(value, str) else value
        return mapped

    def in_their_words(self, finding: Finding) -> Finding:
        """A finding whose message names the user's column beside the field."""
        message = finding.message
        for ours, theirs in self.columns:
            column = theirs.replace("\\", r"\\")  # which `re` would read as an escape
            message = re.sub(rf"`{ours}\b[^`]*`", rf"\g<0> (column `{column}`)", message)
        return finding if message == finding.message else replace(finding, message=message)


def _nested(values: Mapping[str, Any], path: str) -> Any:
    value: Any = values
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value
