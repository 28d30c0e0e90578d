"""`${NAME}` in an address that a user gives as a setting -> the environment variable NAME, where the address is opened.

So a secret stands in no setting, and whatever keeps or shows settings keeps and shows `${NAME}`. It counts in http and https
addresses, as user, as password and in the query. What a dataset or a server names is never put through this: a stranger's row
could have the environment sent to him.
"""

import os
import re
from collections.abc import Callable
from urllib.parse import quote

from yivl_core.errors import ConfigurationError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

_WEB_SCHEMES = ("http://", "https://")
_PARTS = re.compile(r"(https?://)((?:[^/?#]*@)?)([^?#]*)((?:\?[^#]*)?)(.*)", re.DOTALL)
_OF_USER = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*")
_OF_QUERY = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*")


def is_web(url: str) -> bool:
    """Whether an address is one of a web server, in which variables count."""
    return url.startswith(_WEB_SCHEMES)


def with_values(url: str) -> str:
    """A setting's address as it is asked for. A value that cannot stand in its place as it is is percent-encoded.

    Raises:
        ConfigurationError: a variable is not set, or stands elsewhere than in user, password and query.
    """
    if "${" not in url or (parts := _PARTS.fullmatch(url)) is None:
        return url
    scheme, user, place, query, fragment = parts.groups()
    if (misplaced := VARIABLE.search(place)) is not None:
        raise ConfigurationError(
            f"{_shown(url)}: {misplaced[0]} stands for a variable of the environment in user, password and query alone; "
            "write $%7B for ${ where a path has it"
        )
    return scheme + VARIABLE.sub(_value(url, _OF_USER), user) + place + VARIABLE.sub(_value(url, _OF_QUERY), query) + fragment


def with_user(root: str) -> str:
    """A setting's folder on a web server with user and password as they are asked with; the rest stays as it is written.

    Raises:
        ConfigurationError: a variable is not set.
    """
    if "${" not in root or (parts := _PARTS.fullmatch(root)) is None:
        return root
    scheme, user, *rest = parts.groups()
    return scheme + VARIABLE.sub(_value(root, _OF_USER), user) + "".join(rest)


def without_values(text: str, url: str) -> str:
    """A text in which the values that were put into an address are `${NAME}` again."""
    if not is_web(url):
        return text
    for name in VARIABLE.findall(url):
        for value in filter(None, (os.environ.get(name, ""), _encoded(os.environ.get(name, "")))):
            text = text.replace(value, f"${{{name}}}")
    return text


def literally(name: str) -> str:
    """A name that others gave, for use in an address: the same to a web server, and without a variable."""
    return name.replace("${", "$%7B")


def _value(url: str, as_it_is: re.Pattern[str]) -> Callable[[re.Match[str]], str]:
    def value_of(variable: re.Match[str]) -> str:
        value = os.environ.get(variable[1])
        if value is None:
            raise ConfigurationError(f"{_shown(url)}: the environment variable {variable[1]} is not set; set it where this runs")
        return value if as_it_is.fullmatch(value) else _encoded(value)

    return value_of


def _encoded(value: str) -> str:
    return quote(os.fsencode(value), safe="")


def _shown(url: str) -> str:
    """Without user, password and query, which may hold more than variables."""
    parts = _PARTS.fullmatch(url)
    return url if parts is None else parts[1] + parts[3]
