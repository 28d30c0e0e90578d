import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.network.addresses import is_public

PRIVATE_IPV4 = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.7", "203.0.113.7", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
]  # fmt: skip
PUBLIC_IPV4 = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.0.1",
    "172.32.0.1",
    "168.63.129.17",
    "223.255.255.255",
]
PRIVATE_IPV6 = [
    "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "100::1", "2001:db8::1", "2001::1",
    "2001:10::1", "2002:808:808::1", "3fff::1", "5f00::1", "64:ff9b:1::808:808", "2606:4700::1%2",
]  # fmt: skip
PUBLIC_IPV6 = ["2606:4700:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888"]


@pytest.mark.parametrize("address", [*PRIVATE_IPV4, *PRIVATE_IPV6])
def test_what_is_not_of_the_public_internet_is_told(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", [*PUBLIC_IPV4, *PUBLIC_IPV6])
def test_public_addresses_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize("form", ["::ffff:{}", "64:ff9b::{}"])
def test_an_ipv4_address_in_an_ipv6_address_counts(form):
    assert not any(is_public(form.format(address)) for address in PRIVATE_IPV4)
    assert all(is_public(form.format(address)) for address in PUBLIC_IPV4)


@pytest.mark.parametrize("form", ["::{}", "64:ff9b:1::{}"])
def test_forms_that_nobody_routes_are_never_public(form):
    assert not any(is_public(form.format(address)) for address in PRIVATE_IPV4 + PUBLIC_IPV4)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5", "8.8.8.8 "])
def test_what_is_no_address_is_not_public(text):
    assert not is_public(text)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_to_be_private(address):
    if is_public(address):
        assert not any((address.is_private, address.is_loopback, address.is_link_local, address.is_multicast))
        assert is_public(str(address))
