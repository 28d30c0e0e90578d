r"""URLs as they may be stored and shown: without user and password, without fragment, without the values of secret parameters.

`https://ann:pw@host/a.jpg?size=2&X-Amz-Signature=5f#top` becomes `https://host/a.jpg?size=2&X-Amz-Signature=...`. A path is kept
as it is: nobody can tell a secret in it from a name.

A text may be a row of a dataset as it was written, so separators are also known percent-encoded (a URL in the query of another
one) and escaped as JSON writers do (`\/`, `\u0026`). All patterns take time that grows with the length of the text, not faster.
"""

import re
from urllib.parse import unquote

from yivl_core.url_variables import VARIABLE, is_web

_REMOVED = "..."

_SECRET_PARTS = (
    "signature", "secret", "password", "passwd", "token", "credential", "apikey", "accesskey", "authorization", "session", "jwt",
)  # fmt: skip
_SECRET_PREFIXES = ("x-amz-", "x-goog-", "x-oss-", "x-cos-", "x-ms-", "q-sign-")
_SECRET_SUFFIXES = ("key", "keyid", "key-pair-id", "-auth", "_auth", "-sig", "_sig", "hmac")
_SECRET_NAMES = frozenset(
    {
        "auth", "sig", "sign", "pass", "pwd", "pw", "policy", "expires", "expiry", "googleaccessid",
        # Shared access signatures: https://learn.microsoft.com/rest/api/storageservices/create-service-sas
        "se", "sp", "sv", "sr", "st", "ss", "srt", "spr", "sip", "si", "skoid", "sktid", "skt", "ske", "sks", "skv", "sdd",
        "saoid", "suoid", "scid",
    }
)  # fmt: skip

_ESCAPE = r"\\{1,8}"  # more than one where JSON was put into JSON
_SLASHES = rf":(?:/|{_ESCAPE}/|{_ESCAPE}u002f){{2}}"
_NEXT = rf"(?:[&;#]|%(?:25)*(?:26|3b|23)|{_ESCAPE}u00(?:26|3b|23))"  # begins another parameter; a value may hold a `?`
_SEPARATOR = rf"(?:\?|%(?:25)*3f|{_ESCAPE}u003f|{_NEXT})"
_EQUALS = rf"(?:=|%(?:25)*3d|{_ESCAPE}u003d)"
_NAME = rf"(?:(?!{_EQUALS}|{_SEPARATOR})[\w.~\[\]$%-]){{1,80}}"
_IN_TEXT = r"(?:[^\s\"<>\\]|\\(?=\\{0,8}[/u]))"  # of a URL in a text, which ends at white space, quotation marks, angle brackets

_URL_OF_TEXT = re.compile(rf"{_SLASHES}{_IN_TEXT}+", re.IGNORECASE)
_PARAMETER = re.compile(rf"{_SEPARATOR}({_NAME}){_EQUALS}", re.IGNORECASE)
_VALUE_IN_TEXT = re.compile(rf"(?:(?!{_NEXT}){_IN_TEXT})*", re.IGNORECASE)
_VALUE_IN_URL = re.compile(rf"(?:(?!{_NEXT}).)*", re.IGNORECASE | re.DOTALL)

_FRAGMENT = re.compile(rf"(?:#|{_ESCAPE}u0023).*", re.IGNORECASE | re.DOTALL)
_USERINFO = re.compile(rf"({_SLASHES})[^/?#\\]*@", re.IGNORECASE)
# `//name:word`, where a port belongs: a password with a slash in it, which ends at the last @.
_ODD_AUTHORITY = re.compile(rf"({_SLASHES})[^/?#\\:@\[\]]*:(?!\d{{0,5}}(?:[/?#\\]|$))", re.IGNORECASE)
# Also those in which a slash or the scheme was forgotten.
_ADDRESS = re.compile(r"[a-z][a-z0-9+.:-]+:/|(?:https?|s3):|//[^/@\s]+:[^/@\s]+@", re.IGNORECASE)
_NO_USER = re.compile(r"\A(https?://):?@")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:|//")


def public_url(url: str) -> str:
    """A URL as it may be stored and shown. What is no URL, as the path of a file, stays as it is."""
    scheme = _SCHEME.match(url)
    if scheme is None or url.startswith("data:"):
        return url
    if not url.startswith("//", scheme.end()):  # refused by everybody, and still shown to somebody
        url = scheme[0] + url[scheme.end() :].rpartition("@")[2]
    return _without_secrets(_without_ends(url), _VALUE_IN_URL)


def has_secret(setting: str) -> bool:
    """Whether a setting is an address with a secret in it: user, password or secret parameter, of which nothing is `${NAME}`."""
    url = setting.strip()
    if _ADDRESS.match(url) is None:
        return False
    if is_web(url):
        url = _NO_USER.sub(r"\1", VARIABLE.sub("", url))
    return public_url(url) != _FRAGMENT.sub("", url) or _without_secrets(url, _VALUE_IN_URL) != url


def redact_urls(text: str) -> str:
    """A text with every URL in it as it may be stored. One without `://` costs next to nothing."""
    if "://" not in text and ("\\" not in text or (":\\" not in text and "\\u002" not in text)):
        return text
    text = _URL_OF_TEXT.sub(lambda url: _without_ends(url[0]), text)
    return _without_secrets(text, _VALUE_IN_TEXT)


def _without_ends(url: str) -> str:
    """Without user, password and fragment."""
    url = _USERINFO.sub(r"\1", url)
    last = url.rfind("@")
    odd = _ODD_AUTHORITY.search(url, 0, last) if last >= 0 else None
    if odd is not None:
        url = url[: odd.end(1)] + url[last + 1 :]
    return _FRAGMENT.sub("", url)


def _without_secrets(text: str, value: re.Pattern[str]) -> str:
    kept, place = [], 0
    for parameter in _PARAMETER.finditer(text):
        if parameter.start() < place or not _is_secret(parameter[1]):  # the former: within a value that is removed
            continue
        end = parameter.end()
        if (value_end := value.match(text, end).end()) > end:  # type: ignore[union-attr]  # it matches nothing, too
            kept += [text[place:end], _REMOVED]
            place = value_end
    return "".join(kept) + text[place:]


def _is_secret(name: str) -> bool:
    name = unquote(name).lower()
    return (
        name in _SECRET_NAMES
        or name.startswith(_SECRET_PREFIXES)
        or name.endswith(_SECRET_SUFFIXES)
        or any(part in name for part in _SECRET_PARTS)
    )
