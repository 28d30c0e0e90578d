"""Which URLs may be fetched: what `--allow-url` has allowed, and nothing else. Opens no connection and looks up no name."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from yivl_core.data.decoding import ImageError
from yivl_core.data.network.addresses import is_metadata, is_public
from yivl_core.data.network.url_parts import DEFAULT_PORTS, UrlParts, origin, read_url, refused
from yivl_core.data.public_urls import public_url
from yivl_core.errors import ConfigurationError

Place = tuple[str, str, int]  # scheme, host, port

_FORMS = "https://, https://HOST, https://*.HOST, http://HOST:PORT, s3:// or s3://BUCKET"
_PORT = re.compile(r":[0-9]+/?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """What may be fetched. Made by `of`; without arguments it allows nothing.

    Attributes:
        schemes: any public host at the scheme's own port, or any bucket.
        hosts: these, where their addresses are public; of `s3` buckets.
        parents: hosts below these, where their addresses are public.
        named: these, wherever they lead.
    """

    schemes: frozenset[str] = frozenset()
    hosts: frozenset[Place] = frozenset()
    parents: frozenset[Place] = frozenset()
    named: frozenset[Place] = frozenset()

    @classmethod
    def of(cls, patterns: Iterable[str]) -> Self:
        """The policy that patterns make together.

        | pattern | allows |
        |---|---|
        | `https://` | every public host, at the port of the scheme |
        | `https://example.org` | this host, at the port of the scheme |
        | `https://*.example.org` | hosts below it, not itself; also with a port |
        | `http://host:8000` | this host at this port, also where its address is private, or this machine |
        | `s3://`, `s3://bucket` | all buckets, or one |

        Raises:
            ConfigurationError: a pattern is none of these.
        """
        found = [_read_pattern(pattern) for pattern in patterns]
        places = {kind: frozenset(place for one, place in found if one == kind) for kind in ("hosts", "parents", "named")}
        schemes = frozenset(scheme for kind, (scheme, *_) in found if kind == "schemes")
        return cls(schemes=schemes, hosts=places["hosts"], parents=places["parents"], named=places["named"])

    def check(self, url: str) -> UrlParts:
        """The parts of a URL that may be asked for; the addresses of its host still have to pass `refuse_private`.

        Raises:
            ImageError: of kind `url_not_allowed`.
        """
        parts = read_url(url)
        if not self._allows(parts):
            if parts.is_address and not is_public(parts.host):
                raise refused(url, "is a URL that is not allowed", private_remedy(parts, parts.host))
            allowing = f"--allow-url {origin(*parts.place)}"
            if self == type(self)():
                raise refused(url, "is a URL, and none are allowed", f"fetch it and give the path of the file, or {allowing}")
            raise refused(url, "is a URL that is not allowed", f"allow it with {allowing}")
        if parts.is_address:
            self.refuse_private(parts, [parts.host])
        return parts

    def is_named(self, host: str, port: int) -> bool:
        """Whether this very host and port are allowed, so that its address need not be public."""
        return any(place[1:] == (host, port) for place in self.named)

    def refuse_private(self, parts: UrlParts, addresses: Iterable[str]) -> None:
        """Nothing, if all addresses that a host has are public, or that very host and port are allowed by name.

        Raises:
            ImageError: of kind `url_not_allowed`.
        """
        private = next((address for address in addresses if not is_public(address)), None)
        if private is not None and not self.is_named(parts.host, parts.port):
            reason = f"leads to {private}, which is no address of the public internet"
            raise refused(parts.url, reason, private_remedy(parts, private))

    def _allows(self, parts: UrlParts) -> bool:
        scheme, host, port = place = parts.place
        if place in self.named or place in self.hosts or (scheme in self.schemes and port == DEFAULT_PORTS[scheme]):
            return True
        if not self.parents or parts.is_address:
            return False
        labels = host.split(".")
        return any((scheme, ".".join(labels[start:]), port) in self.parents for start in range(1, len(labels)))


def private_remedy(parts: UrlParts, address: str) -> str:
    """What to do about a URL that leads to an address which is not public."""
    if is_metadata(address):
        return "leave it out; clouds tell a machine its own secrets there"
    return f"if that machine is meant, allow host and port by name: --allow-url {origin(*parts.place, with_port=True)}"


def _read_pattern(pattern: str) -> tuple[str, Place]:
    """The attribute of `UrlPolicy` that a pattern belongs to, and what it names."""
    scheme, separator, place = pattern.strip().partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in DEFAULT_PORTS:
        raise _bad_pattern(pattern, f"give one of {_FORMS}")
    if not place:
        return "schemes", (scheme, "", 0)
    parts = _read_place(pattern, scheme, place.removesuffix("/"))
    if scheme == "s3":
        return "hosts", parts.place
    if place.startswith("*."):
        return "parents", parts.place
    if _PORT.search(place):
        return "named", parts.place
    if parts.is_address and not is_public(parts.host):
        needed = origin(*parts.place, with_port=True)
        raise _bad_pattern(pattern, f"an address that is not public needs its port, as in {needed}")
    return "hosts", parts.place


def _read_place(pattern: str, scheme: str, place: str) -> UrlParts:
    """The parts of a pattern, which has nothing behind host and port."""
    name = place.removeprefix("*.")
    if re.search(r"[/?#@]", place):
        raise _bad_pattern(pattern, f"give no more than scheme, host and port: {_FORMS}")
    try:
        parts = read_url(f"{scheme}://{name}/x")
    except ImageError as cause:
        raise _bad_pattern(pattern, f"give one of {_FORMS}") from cause
    if name != place and (parts.is_address or scheme == "s3"):
        raise _bad_pattern(pattern, "give the name of a host below which all are allowed")
    return parts


def _bad_pattern(pattern: str, remedy: str) -> ConfigurationError:
    return ConfigurationError(f"--allow-url {public_url(pattern)} is no pattern of URLs; {remedy}")
