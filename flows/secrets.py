"""Settings with secrets in them are refused before they become parameters of a run, which Prefect stores. No Prefect here."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from yivl_core.data.public_urls import has_secret, public_url
from yivl_core.errors import ConfigurationError
from yivl_core.settings import Location, dotted
from yivl_core.url_variables import is_web

_OF_WEB = "write ${NAME} for user, password and each secret value, and set the environment variable NAME where this runs"
_OF_OTHERS = "leave it out, and give it as the environment variables that the client of such addresses reads"


def refuse_secrets(settings: Any, name_setting: Callable[[Location], str] = dotted) -> None:
    """Nothing, if no address in settings has a user, a password or a secret parameter that is written out.

    Args:
        settings: what becomes the parameters of a run: models, or what JSON holds.
        name_setting: the name that the user knows a setting by, given its place.

    Raises:
        ConfigurationError: one has; the message does not tell it.
    """
    for location, setting in _texts(settings):
        if has_secret(setting):
            remedy = _OF_WEB if is_web(setting.strip()) else _OF_OTHERS
            raise ConfigurationError(
                f"{name_setting(location)} {public_url(setting.strip())}: a secret in this address would be stored with the run; "
                f"{remedy}"
            )


def _texts(settings: Any, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Every text in settings with its place; entries of a list have that of the list."""
    if isinstance(settings, BaseModel):
        settings = dict(settings)
    if isinstance(settings, str):
        yield location, settings
    elif isinstance(settings, Mapping):
        for name, value in settings.items():
            yield from _texts(value, (*location, str(name)))
    elif isinstance(settings, list | tuple | set | frozenset):
        for value in settings:
            yield from _texts(value, location)
