"""A Prefect flow whose parameters hold no secret: what it is called with is refused before a run of it is created.

A run that a deployment starts is created without this code: its parameters are stored as they were sent.
"""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow

from flows.secrets import refuse_secrets

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class CheckedFlow(Flow[Parameters, Result]):
    """A flow that creates no run with secrets in its parameters, however it is called."""

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters as they are stored with a run.

        Raises:
            ConfigurationError: they hold a secret.
        """
        refuse_secrets(parameters)
        return super().serialize_parameters(parameters)

    def with_options(self, *args: Any, **options: Any) -> "CheckedFlow[Parameters, Result]":
        """The same flow with other options, as Prefect has it, and checked like this one."""
        changed = super().with_options(*args, **options)
        changed.__class__ = type(self)
        assert isinstance(changed, CheckedFlow)
        return changed


def flow(*, name: str) -> Callable[[Callable[Parameters, Result]], CheckedFlow[Parameters, Result]]:
    """In place of Prefect's decorator of this name, by which its tools know a flow."""
    return lambda function: CheckedFlow(fn=function, name=name)
