"""Which addresses of the internet are public, so that a URL in a dataset cannot reach what only this machine can.

Decides on the numbers alone; nothing is looked up. Python's own `is_global` is not relied on, since what it knows changed between
the versions that we run on.
"""

from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

# https://www.iana.org/assignments/iana-ipv4-special-registry, and what cloud providers serve secrets from.
_CLOSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by the customers of a provider; 100.100.100.200 is Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's WireServer: formally public, and answered by the host that a machine runs on
        "169.254.0.0/16",  # link-local: the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # relays of 6to4
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)

# https://www.iana.org/assignments/iana-ipv6-special-registry. All that is public lies in the first network; the others are the
# parts of it that are not, or that hold an IPv4 address which a relay would go to (6to4, Teredo).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_CLOSED_IPV6 = tuple(IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_TRANSLATED = IPv6Network("64:ff9b::/96")  # NAT64: the last 32 bits are an IPv4 address

# Where clouds tell a machine its own secrets: link-local, and the exceptions of Azure, Alibaba, Oracle and AWS.
_METADATA = tuple(
    map(ip_network, ("169.254.0.0/16", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fe80::/10", "fd00:ec2::254"))
)


def is_metadata(address: str) -> bool:
    """Whether clouds tell machines their own secrets at an address; False for what is no address."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return False
    if isinstance(parsed, IPv6Address):
        parsed = parsed.ipv4_mapped or parsed
        if parsed in _TRANSLATED:
            parsed = IPv4Address(int(parsed) & 0xFFFFFFFF)
    return any(parsed in network for network in _METADATA)


@lru_cache(maxsize=4096)
def is_public(address: str | Address) -> bool:
    """Whether an address is one of the public internet.

    Not public are private, loopback, link-local, shared, multicast, reserved, unspecified, documentation and metadata addresses,
    also inside an IPv6 address; and whatever is no address.
    """
    try:
        parsed = ip_address(address) if isinstance(address, str) else address
    except ValueError:
        return False
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _CLOSED_IPV4)
    if parsed.scope_id is not None:
        return False
    if parsed.ipv4_mapped is not None:
        return is_public(parsed.ipv4_mapped)
    if parsed in _TRANSLATED:
        return is_public(IPv4Address(int(parsed) & 0xFFFFFFFF))
    return parsed in _GLOBAL_UNICAST and not any(parsed in network for network in _CLOSED_IPV6)
