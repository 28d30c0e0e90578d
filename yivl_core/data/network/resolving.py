"""Names of hosts -> the addresses that a connection may go to: checked, and then used as they were checked. For `downloading.py`.

The connector connects to the addresses that `CheckedResolver` has given it and looks nothing up again, so that a name server that
answers differently the second time gains nothing.
"""

import asyncio
import socket
from concurrent.futures import Executor
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from yivl_core.data.network.addresses import is_public
from yivl_core.data.network.host_names import Resolve
from yivl_core.data.network.url_policy import UrlPolicy


class PrivateAddressError(Exception):
    """A host has an address that is not public.

    Attributes:
        address: the first one of that kind.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class CheckedResolver(AbstractResolver):
    """Looks names up, and gives all their addresses or none.

    Args:
        policy: which hosts may have addresses that are not public.
        resolve: looks up the addresses of a host and port, and may take its time.
        threads: where it is called.
        timeout_s: how long it is waited for.
    """

    def __init__(self, policy: UrlPolicy, resolve: Resolve, threads: Executor, timeout_s: float) -> None:
        self._policy = policy
        self._resolve = resolve
        self._threads = threads
        self._timeout_s = timeout_s
        self._named: set[tuple[str, int]] = set()  # addresses of hosts that are allowed by name

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        """The addresses of a host.

        Raises:
            PrivateAddressError: one of them is not public, and the host is not allowed by name.
            OSError: there is no such host, or the name server does not answer.
            TimeoutError: it does not answer in time.
        """
        async with asyncio.timeout(self._timeout_s):
            addresses = await asyncio.get_running_loop().run_in_executor(self._threads, self._resolve, host, port)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no address")
        if self._policy.is_named(host, port):
            self._named.update((address, port) for address in addresses)
        elif (private := next((address for address in addresses if not is_public(address)), None)) is not None:
            raise PrivateAddressError(private)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for an address; a second look, right before it is connected.

        Raises:
            PermissionError: the address is not public, and was not given by this resolver for a host that is allowed by name.
        """
        family, kind, protocol, _, (address, port, *_) = info
        if not (is_public(address) or (address, port) in self._named or self._policy.is_named(address, port)):
            raise PermissionError(f"{address} is no address of the public internet")
        return socket.socket(family, kind, protocol)
