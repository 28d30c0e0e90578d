"""Hosts, addresses and redirects that lead where nobody has allowed them to."""

import socket
import ssl
import traceback
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from yivl_core.data.decoding import ImageError
from yivl_core.data.network.resolving import CheckedResolver
from yivl_core.data.network.url_policy import UrlPolicy

PUBLIC, OTHER_PUBLIC = "198.41.0.4", "199.9.14.201"


def failure(fetcher, url):
    with pytest.raises(ImageError) as failed:
        fetcher.fetch(url)
    assert "hunter2" not in "".join(traceback.format_exception(failed.value))
    return failed.value


class Connections:
    """Notes where connections would go, in place of making them."""

    def __init__(self, monkeypatch):
        self.tried = []
        monkeypatch.setattr(CheckedResolver, "open_socket", self._refuse)

    def _refuse(self, info):
        self.tried.append(info[4][:2])
        raise ConnectionRefusedError(111, "Connection refused")


class LyingResolver:
    """Gives other addresses each time, the last ones for ever."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, host, port):
        self.asked.append((host, port))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


OF_CLOUDS = {"169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fe80::1%2"}


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["100.100.100.200"],
        ["168.63.129.16"],
        ["::1"],
        ["fd00:ec2::254"],
        ["::ffff:127.0.0.1"],
        ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"],
        ["0.0.0.0"],
        [PUBLIC, "127.0.0.1"],
        ["127.0.0.1", PUBLIC],
        [PUBLIC, "2606:4700::1", "fe80::1%2"],
    ],
)
def test_a_host_with_an_address_that_is_not_public_is_refused(fetcher, monkeypatch, addresses):
    connections = Connections(monkeypatch)
    error = failure(fetcher("https://", resolve=LyingResolver(addresses)), "https://images.test/a?key=hunter2")
    assert error.kind == "url_not_allowed"
    assert "https://images.test/a?key=..." in error.message
    assert "no address of the public internet" in error.message
    if OF_CLOUDS & set(addresses):
        assert error.remedy == "leave it out; clouds tell a machine its own secrets there"
    else:
        assert error.remedy == "if that machine is meant, allow host and port by name: --allow-url https://images.test:443"
    assert connections.tried == []


def test_a_connection_goes_to_the_addresses_that_were_checked_and_nothing_is_looked_up_again(fetcher, monkeypatch):
    connections = Connections(monkeypatch)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up again"))
    resolver = LyingResolver([PUBLIC, OTHER_PUBLIC], ["127.0.0.1"])
    error = failure(fetcher("https://", resolve=resolver, limits={"num_tries": 1}), "https://images.test/a")
    assert error.kind == "fetch_failed"
    assert resolver.asked == [("images.test", 443)]
    assert set(connections.tried) == {(PUBLIC, 443), (OTHER_PUBLIC, 443)}


def test_an_answer_that_changes_between_two_tries_is_checked_again(fetcher, monkeypatch):
    connections = Connections(monkeypatch)
    connector = aiohttp.TCPConnector
    monkeypatch.setattr(aiohttp, "TCPConnector", lambda **settings: connector(use_dns_cache=False, **settings))
    resolver = LyingResolver([PUBLIC], ["127.0.0.1"])
    assert failure(fetcher("https://", resolve=resolver), "https://images.test/a").kind == "url_not_allowed"
    assert len(resolver.asked) == 2
    assert connections.tried == [(PUBLIC, 443)]


def test_a_host_and_port_that_is_named_may_lead_anywhere(fetcher, web, make_png):
    web.serve("/a", make_png(1))
    named = f"http://images.test:{web.port}"
    resolver = LyingResolver(["127.0.0.1"])
    assert fetcher(named, resolve=resolver).fetch(f"{named}/a").path.read_bytes() == make_png(1)
    assert web.requests[0][1]["Host"] == f"images.test:{web.port}"


def test_the_same_address_under_another_name_or_port_stays_refused(fetcher, web, make_png):
    web.serve("/a", make_png(1))
    one = fetcher(web.url, f"http://*.test:{web.port}", "http://", resolve=LyingResolver(["127.0.0.1"]))
    one.fetch(f"{web.url}/a")
    for url in (
        f"http://images.test:{web.port}/a",
        "http://images.test/a",
        f"http://127.0.0.2:{web.port}/a",
        "http://127.0.0.1/a",
    ):
        assert failure(one, url).kind == "url_not_allowed"
    assert web.paths == ["/a"]


def test_a_host_does_not_profit_from_the_address_of_a_named_one(fetcher, web, make_png):
    web.serve("/a", make_png(1))
    named, other = f"http://named.org:{web.port}", f"http://images.test:{web.port}"
    one = fetcher(named, f"http://*.test:{web.port}", resolve=LyingResolver(["127.0.0.1"]))
    one.fetch(f"{named}/a")
    assert "leads to 127.0.0.1" in failure(one, f"{other}/a").message
    web.serve("/b", web.answer(status=302, headers={"Location": f"{other}/a"}))
    assert "leads to 127.0.0.1" in failure(one, f"{named}/b").message
    assert web.paths == ["/a", "/b"]


def test_a_socket_is_not_opened_for_an_address_that_nobody_has_checked():
    resolver = CheckedResolver(UrlPolicy.of(["http://10.0.0.1:8000"]), LyingResolver([]), None, 1)
    for address in (("127.0.0.1", 80), ("10.0.0.1", 8001), ("10.0.0.2", 8000)):
        with pytest.raises(PermissionError, match="is no address of the public internet"):
            resolver.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", address))
    for address in ((PUBLIC, 80), ("10.0.0.1", 8000)):
        resolver.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", address)).close()


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://127.0.0.1:{other}/b", "is a URL that is not allowed"),
        ("http://127.0.0.1/b", "leads to 127.0.0.1, which is no address of the public internet"),
        ("http://2130706433/b", "without a valid host"),
        ("http://[::1]/b", "leads to ::1"),
        ("http://169.254.169.254/latest/meta-data/?token=hunter2", "leads to 169.254.169.254"),
        ("http://inside.test/b", "leads to 10.0.0.1"),
        ("//inside.test/b", "leads to 10.0.0.1"),
        ("http://ann:hunter2@inside.test/b", "leads to 10.0.0.1"),
        ("https://other.test/b", "is a URL that is not allowed"),
        ("file:///etc/passwd", "scheme file, which is never fetched"),
        ("gopher://inside.test:70/_x", "scheme gopher"),
        ("data:image/png;base64,aGk=", "read in one way only"),
        ("s3://bucket/a", "is of scheme s3"),
        ("http://a\\b/", "backslash"),
    ],
)
def test_a_redirect_is_checked_as_a_url_of_the_dataset_is(fetcher, web, location, reason):
    location = location.format(other=web.port + 1 if web.port < 65535 else 1024)
    url = web.serve("/a", web.answer(status=302, headers={"Location": location}))
    one = fetcher(web.url, "http://", "s3://", resolve=LyingResolver(["10.0.0.1"]))
    error = failure(one, url)
    assert error.kind == "url_not_allowed"
    assert error.message.startswith(f'image "{url}" redirects, and image ')
    assert reason in error.message
    assert web.paths == ["/a"]


def test_redirects_that_are_allowed_are_followed_up_to_a_number(fetcher, web, make_png):
    for number, status in enumerate((301, 302, 303, 307, 308)):
        web.serve(
            f"/{number}",
            web.answer(status=status, headers={"Location": f"/{number + 1}" if number % 2 else f"{web.url}/{number + 1}"}),
        )
    web.serve("/5", make_png(1))
    url = f"{web.url}/0"
    image = fetcher().fetch(url)
    assert image.url == url
    assert web.paths == [f"/{number}" for number in range(6)]
    loop = web.serve("/loop", web.answer(status=302, headers={"Location": "/loop"}))
    error = failure(fetcher(), loop)
    assert (error.kind, error.message) == ("fetch_failed", f'image "{loop}" cannot be fetched: it redirects more than 5 times')
    assert web.count(loop) == 6


def test_a_redirect_without_a_place_ends(fetcher, web):
    url = web.serve("/a", web.answer(status=302))
    assert failure(fetcher(), url).kind == "fetch_failed"


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 that no authority knows, in a file together with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
    key_bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path = tmp_path / "certificate.pem"
    path.write_bytes(key_bytes + made.sign(key, SHA256()).public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def secure_web(web, certificate):
    """The address of the web server under TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    web.use(context)
    return web.url.replace("http://", "https://")


def test_a_certificate_that_is_not_valid_is_no_reason_to_try_again(fetcher, web, secure_web):
    error = failure(fetcher(secure_web), f"{secure_web}/a?token=hunter2")
    assert error.kind == "fetch_failed"
    assert error.message.endswith("cannot be fetched: the certificate of the server is not valid")
    assert "SSL_CERT_FILE" in error.remedy
    assert web.requests == []


def test_a_redirect_does_not_lead_from_https_to_http(fetcher, web, secure_web, certificate, monkeypatch, make_png):
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context(cafile=str(certificate)))
    web.serve("/a", make_png(1))
    web.serve("/b", web.answer(status=302, headers={"Location": f"{web.url}/a"}))
    web.serve("/c", web.answer(status=302, headers={"Location": "/a"}))
    one = fetcher(secure_web, web.url)
    one.fetch(f"{secure_web}/a")
    one.fetch(f"{secure_web}/c")
    error = failure(one, f"{secure_web}/b")
    assert error.kind == "url_not_allowed"
    assert f'image "{secure_web}/b" redirects, and image "{web.url}/a" is of scheme http' in error.message
    assert web.paths == ["/a", "/c", "/a", "/b"]
