"""A URL -> its parts, read strictly and once: what was read here is what is asked for later.

What two programs could read differently is refused: backslashes, control characters, a second `@`, odd ports, and numbers that
some take for an address. Nothing is looked up.
"""

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from urllib.parse import quote, unquote

from yivl_core.data.decoding import ImageError
from yivl_core.data.findings import shown
from yivl_core.data.public_urls import public_url

SCHEMES = ("https", "http", "s3")
DEFAULT_PORTS = {"https": 443, "http": 80, "s3": 0}

_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<userinfo>[^/?#@]*)@)?(?P<host>\[[^\]/?#@]*\]|[^/?#@:\[\]]*)"
    r"(?::(?P<port>[0-9]{0,5}))?(?P<target>(?:[/?][^#]*)?)(?P<fragment>(?:#.*)?)"
)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")  # as the last part of a host: an IPv4 address, for some programs
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_SENT_AS_IT_IS = "!#$%&'()*+,-./:;=?@[]_~"  # all else of a path or query is percent-encoded


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlParts:
    """What a URL says.

    Attributes:
        scheme: `http`, `https` or `s3`.
        host: in lower case, international names encoded (`xn--`); an IPv6 address without brackets; of `s3` the bucket.
        port: of `s3` 0, since its endpoint is a setting of the client.
        target: path and query as they are sent; of `s3` the key after a slash.
        userinfo: user and password; None where the URL has none.
    """

    scheme: str
    host: str
    port: int
    target: str
    userinfo: tuple[str, str] | None = field(default=None, repr=False)

    @property
    def place(self) -> tuple[str, str, int]:
        """Where a request goes: scheme, host and port."""
        return self.scheme, self.host, self.port

    @property
    def is_address(self) -> bool:
        """Whether the host is an address, not a name."""
        return self.scheme != "s3" and (":" in self.host or _IPV4.fullmatch(self.host) is not None)

    @property
    def url(self) -> str:
        """What is asked for, without user and password."""
        return origin(*self.place) + self.target


def origin(scheme: str, host: str, port: int, *, with_port: bool = False) -> str:
    """Scheme, host and port as they are written; the port where it is not that of the scheme, or always."""
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{port}" if with_port or port != DEFAULT_PORTS[scheme] else f"{scheme}://{host}"


def read_url(url: str) -> UrlParts:
    """The parts of a URL.

    Raises:
        ImageError: of kind `url_not_allowed`: it is of a scheme that is never fetched, or not written in the usual way.
    """
    url = url.strip(" ")
    if _UNSAFE.search(url):
        raise refused(url, "is a URL with a backslash or a control character", "write it percent-encoded")
    match = _URL.fullmatch(url)
    if match is None:
        raise refused(url, "is no URL that can be read in one way only", "write SCHEME://HOST[:PORT]/PATH, percent-encoded")
    scheme = match["scheme"].lower()
    if scheme not in SCHEMES:
        raise refused(url, f"is a URL of scheme {scheme}, which is never fetched", "give an https:// or s3:// URL, or a path")
    return _object_parts(url, match) if scheme == "s3" else _web_parts(url, scheme, match)


def refused(url: str, reason: str, remedy: str) -> ImageError:
    """The error for a URL that must not be fetched; it tells no secret of it."""
    return ImageError("url_not_allowed", f"image {shown(public_url(url))} {reason}", remedy)


def _web_parts(url: str, scheme: str, match: re.Match[str]) -> UrlParts:
    host = _host(match["host"])
    if host is None:
        raise refused(url, "is a URL without a valid host", "write a name, or an address in its usual form")
    port = int(match["port"] or DEFAULT_PORTS[scheme])
    if not 0 < port < 65536:
        raise refused(url, f"is a URL with port {port}", "give a port between 1 and 65535")
    target = quote(match["target"], safe=_SENT_AS_IT_IS)
    user, _, password = (match["userinfo"] or "").partition(":")
    return UrlParts(
        scheme=scheme,
        host=host,
        port=port,
        target=target if target.startswith("/") else f"/{target}",
        userinfo=(unquote(user), unquote(password)) if user or password else None,
    )


def _object_parts(url: str, match: re.Match[str]) -> UrlParts:
    """Question marks and `#` are characters of a key like others."""
    key = match["target"][1:] + match["fragment"]
    is_plain = match["userinfo"] is None and match["port"] is None and _BUCKET.fullmatch(match["host"])
    if not is_plain or not match["target"].startswith("/") or not key:
        remedy = "write s3://BUCKET/KEY; credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise refused(url, "is no address of an object", remedy)
    if not {".", ".."}.isdisjoint(key.split("/")):
        raise refused(url, "has a part . or .. in its key", "give the object another name")
    return UrlParts(scheme="s3", host=match["host"], port=0, target=f"/{key}")


def _host(text: str) -> str | None:
    """A host in its one form, or None where it has none."""
    if text.startswith("["):
        try:
            address = IPv6Address(text[1:-1])
        except ValueError:
            return None
        return None if address.scope_id is not None else str(address)
    host = (text.lower() if text.isascii() else _encoded(text)).removesuffix(".")
    is_odd_number = _NUMBER.fullmatch(host) and not _IPV4.fullmatch(host)
    return host if _HOST.fullmatch(host) and not is_odd_number else None


def _encoded(host: str) -> str:
    """An international name as it is looked up; empty where it is none."""
    import idna  # here, since its tables are large and few need them

    try:
        return idna.encode(host, uts46=True).decode("ascii").lower()
    except UnicodeError:  # idna's own errors are of this kind
        return ""
