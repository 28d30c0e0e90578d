"""Names of hosts -> addresses, as the system knows them."""

import socket
from collections.abc import Callable, Sequence

Resolve = Callable[[str, int], Sequence[str]]


def resolve_host(host: str, port: int) -> list[str]:
    """The addresses of a host; waits for the name server.

    Raises:
        OSError: there is no such host, or the name server does not answer.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))
