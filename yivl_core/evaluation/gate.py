"""Stub."""

from typing import Any


def read_gate(url: str, config: Any) -> Any:
    """Stub."""
    return None


def apply_gate(gate: Any, report: dict[str, Any]) -> dict[str, Any]:
    """Stub."""
    return {}
