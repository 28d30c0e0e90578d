from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from yivl_core.data.decoding import ImageError
from yivl_core.data.network.addresses import is_public
from yivl_core.data.network.url_parts import UrlParts
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.errors import ConfigurationError

EVERYTHING = UrlPolicy.of(["https://", "http://", "s3://"])


def refusal(policy: UrlPolicy, url: str) -> str:
    with pytest.raises(ImageError) as refused:
        policy.check(url)
    assert refused.value.kind == "url_not_allowed"
    return str(refused.value)


def passed(policy: UrlPolicy, url: str) -> UrlParts | None:
    """The parts of a URL, if it is allowed; there is one kind of refusal."""
    with suppress(ImageError):
        return policy.check(url)
    refusal(policy, url)
    return None


@pytest.mark.parametrize("url", ["https://example.org/a.jpg", "http://localhost:8000/", "s3://bucket/a", "file:///etc/passwd"])
def test_without_patterns_nothing_is_allowed(url):
    assert url in refusal(UrlPolicy(), url)


def test_a_refusal_tells_how_to_allow_it_and_no_secret():
    message = refusal(UrlPolicy.of(["https://other.org"]), "https://ann:hunter2@example.org/a.jpg?sig=hunter2&w=1#hunter2")
    assert message == (
        'image "https://example.org/a.jpg?sig=...&w=1" is a URL that is not allowed; allow it with --allow-url https://example.org'
    )
    assert "none are allowed; fetch it and give the path of the file" in refusal(UrlPolicy(), "https://example.org/a.jpg")


@pytest.mark.parametrize(
    ("pattern", "allowed", "refused"),
    [
        ("https://", ["https://a.org/x", "HTTPS://A.ORG./x", "https://a.org:443"], ["http://a.org/", "https://a.org:8443/"]),
        ("http://", ["http://a.org/x"], ["https://a.org/", "http://a.org:443/", "s3://a.org/x"]),
        (
            "https://a.org",
            ["https://a.org/x?y"],
            ["https://b.a.org/", "https://xa.org/", "https://a.org.evil.com/", "http://a.org/"],
        ),
        ("https://a.org/", ["https://a.org/x?y"], ["https://a.org:8443/"]),
        ("https://A.org.:8443", ["https://a.org:8443/"], ["https://a.org/", "http://a.org:8443/"]),
        (
            "https://*.a.org",
            ["https://b.a.org/", "https://c.b.a.org/"],
            ["https://a.org/", "https://xa.org/", "https://b.a.org:8443/"],
        ),
        ("https://*.a.org:8443", ["https://b.a.org:8443/"], ["https://b.a.org/"]),
        (
            "http://10.0.0.1:8000",
            ["http://10.0.0.1:8000/x"],
            ["http://10.0.0.1/", "http://10.0.0.2:8000/", "https://10.0.0.1:8000/"],
        ),
        ("http://[::1]:8000", ["http://[::1]:8000/x", "http://[0:0::1]:8000/"], ["http://[::2]:8000/", "http://127.0.0.1:8000/"]),
        ("https://bücher.de", ["https://xn--bcher-kva.de/", "https://BÜCHER.de/"], ["https://bucher.de/"]),
        ("s3://", ["s3://bucket/a", "s3://other/a b?c#d"], ["https://bucket/"]),
        ("s3://bucket", ["s3://bucket/a"], ["s3://bucket2/a", "s3://Bucket/a", "s3://other/bucket/a"]),
    ],
)
def test_a_pattern_allows_what_it_says_and_nothing_else(pattern, allowed, refused):
    policy = UrlPolicy.of([pattern])
    for url in allowed:
        policy.check(url)
    for url in refused:
        assert "--allow-url" in refusal(policy, url)


def test_patterns_add_up():
    policy = UrlPolicy.of(["https://a.org", "s3://bucket", "http://b.org:8000"])
    for url in ("https://a.org/", "s3://bucket/a", "http://b.org:8000/"):
        policy.check(url)
    refusal(policy, "http://a.org/")


@pytest.mark.parametrize(
    ("pattern", "remedy"),
    [
        ("", "give one of https://"),
        ("example.org", "give one of https://"),
        ("ftp://example.org", "give one of https://"),
        ("file://", "give one of https://"),
        ("https://*", "give one of https://"),
        ("https://*.", "give one of https://"),
        ("https://a.*.org", "give one of https://"),
        ("https://a b", "give one of https://"),
        ("https://0x7f.1", "give one of https://"),
        ("https://a.org:99999", "give one of https://"),
        ("https://*.10.0.0.1", "give the name of a host below which all are allowed"),
        ("s3://*.abc", "give the name of a host below which all are allowed"),
        ("https://10.0.0.0/8", "no more than scheme, host and port"),
        ("https://a.org/images", "no more than scheme, host and port"),
        ("https://a.org?x", "no more than scheme, host and port"),
        ("s3://bucket/folder", "no more than scheme, host and port"),
        ("https://ann:hunter2@a.org", "no more than scheme, host and port"),
        ("http://127.0.0.1", "needs its port, as in http://127.0.0.1:80"),
        ("http://[::1]", "needs its port, as in http://[::1]:80"),
    ],
)
def test_what_is_no_pattern_is_a_wrong_setting(pattern, remedy):
    with pytest.raises(ConfigurationError, match="is no pattern of URLs") as error:
        UrlPolicy.of([pattern])
    assert remedy in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "scheme file, which is never fetched"),
        ("ftp://a.org/", "scheme ftp, which is never fetched"),
        ("gopher://a.org:70/_x", "scheme gopher"),
        ("gs://bucket/a", "scheme gs"),
        ("https+http://a.org/", "scheme https+http"),
        ("https://good.org\\@evil.org/", "backslash"),
        ("https:\\\\a.org/", "backslash"),
        ("https://a.org/\r\nX: y", "control character"),
        ("https://a.org\t.evil.org/", "control character"),
        ("https://a.org/\x00", "control character"),
        ("https://a.org/\ud800", "control character"),
        ("https://u@good.org@evil.org/", "read in one way only"),
        ("https://a.org:80:80/", "read in one way only"),
        ("https://a.org:+80/", "read in one way only"),
        ("https://[::1/", "read in one way only"),
        ("https:/a.org/", "read in one way only"),
        ("//a.org/", "read in one way only"),
        ("https://a.org:0/", "port 0"),
        ("https://a.org:65536/", "port 65536"),
        ("https:///a", "without a valid host"),
        ("https://a..org/", "without a valid host"),
        ("https://a.org../", "without a valid host"),
        ("https://-a.org/", "without a valid host"),
        ("https://a b.org/", "without a valid host"),
        ("https://127%2e0.0.1/", "without a valid host"),
        ("https://℀.org/", "without a valid host"),
        ("https://2130706433/", "without a valid host"),
        ("https://0x7f000001/", "without a valid host"),
        ("https://0177.0.0.1/", "without a valid host"),
        ("https://127.1/", "without a valid host"),
        ("https://127.0.0.0x1/", "without a valid host"),
        ("https://1.2.3.4.5/", "without a valid host"),
        ("https://256.1.1.1/", "without a valid host"),
        ("https://[fe80::1%25eth0]/", "without a valid host"),
        ("https://[::ffff:1.2.3]/", "without a valid host"),
        ("https://127.0.0.1/", "leads to 127.0.0.1, which is no address of the public internet"),
        ("https://127.0.0.1./", "leads to 127.0.0.1"),
        ("https://１２７。0.0.1/", "leads to 127.0.0.1"),
        ("https://169.254.169.254/latest/meta-data", "leads to 169.254.169.254"),
        ("https://[::ffff:10.0.0.1]/", "no address of the public internet"),
        ("https://[::1]/", "leads to ::1"),
        ("s3://key:hunter2@bucket/a", "no address of an object"),
        ("s3://bucket:80/a", "no address of an object"),
        ("s3://bucket", "no address of an object"),
        ("s3://bucket/", "no address of an object"),
        ("s3://bucket?x/y", "no address of an object"),
        ("s3://arn:aws:s3:us-east-1:1:accesspoint/a", "read in one way only"),
        ("s3://bucket/../other/a", "part . or .. in its key"),
    ],
)
def test_tricks_are_refused_although_the_scheme_is_allowed(url, reason):
    message = refusal(EVERYTHING, url)
    assert reason in message
    assert "hunter2" not in message
    assert message.isprintable()


def test_private_addresses_are_allowed_by_host_and_port_alone():
    policy = UrlPolicy.of(["http://10.0.0.1:80", "http://"])
    assert policy.check("http://10.0.0.1/x").url == "http://10.0.0.1/x"
    assert "allow host and port by name: --allow-url http://10.0.0.2:80" in refusal(policy, "http://10.0.0.2/x")


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "168.63.129.16", "[64:ff9b::a9fe:a9fe]"]
)
def test_nobody_is_advised_to_allow_where_clouds_tell_secrets(host):
    for patterns in ([], ["https://"], ["http://"]):
        message = refusal(UrlPolicy.of(patterns), f"http://{host}/x")
        assert "leave it out" in message
        assert "--allow-url" not in message


def test_all_addresses_of_a_host_have_to_be_public_unless_it_is_named():
    policy = UrlPolicy.of(["https://a.org", "https://b.org:443"])
    parts = policy.check("https://a.org/x?token=hunter2")
    policy.refuse_private(parts, ["8.8.8.8", "2606:4700::1"])
    with pytest.raises(ImageError, match="which is no address of the public internet") as refused:
        policy.refuse_private(parts, ["8.8.8.8", "10.0.0.1"])
    assert refused.value.kind == "url_not_allowed"
    assert "hunter2" not in str(refused.value)
    policy.refuse_private(policy.check("https://b.org/x"), ["8.8.8.8", "10.0.0.1"])


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("https://a.org", "https://a.org/"),
        ("https://A.org?x=1#y", "https://a.org/?x=1"),
        (' https://a.org/a b%20c/é?q=<ü>"', "https://a.org/a%20b%20c/%C3%A9?q=%3C%C3%BC%3E%22"),
        ("https://a.org/%7Ea/../b//c?sig=a%2Fb+c==", "https://a.org/%7Ea/../b//c?sig=a%2Fb+c=="),
        ("https://ann:p%40w@a.org:443/x", "https://a.org/x"),
        ("https://[2606:4700::0:1]/x", "https://[2606:4700::1]/x"),
        ("s3://bucket/a b?c#d", "s3://bucket/a b?c#d"),
    ],
)
def test_what_is_asked_for_is_what_was_written(url, sent):
    assert EVERYTHING.check(url).url == sent


def test_user_and_password_are_kept_apart_and_not_shown():
    parts = EVERYTHING.check("https://ann:p%40w@a.org/x")
    assert parts.userinfo == ("ann", "p@w")
    assert "p@w" not in repr(parts)


@given(
    st.text(alphabet="ahttps:/.\\@#?%[]0127fx-_ö。\t \x7f", max_size=40), st.sampled_from(["", "https://", "http://", "s3://"])
)
def test_what_is_allowed_goes_to_an_allowed_place_however_it_is_written(text, start):
    policy = UrlPolicy.of(["https://", "http://a.a", "s3://"])
    parts = passed(policy, start + text)
    if parts is None:
        return
    assert parts.place[0::2] == ("https", 443) or parts.place == ("http", "a.a", 80) or parts.scheme == "s3"
    assert not parts.is_address or is_public(parts.host)
    assert policy.check(parts.url) == policy.check(policy.check(parts.url).url)
    if parts.userinfo is None:
        assert policy.check(parts.url) == parts


@given(st.ip_addresses(v=4), st.sampled_from(["{0}", "{1}", "{2}", "{3}", "[::ffff:{0}]", "{0}.", "{4}"]))
def test_no_notation_of_a_private_address_is_allowed(address, form):
    assume(not is_public(address))
    octets = address.packed
    number = int(address)
    host = form.format(address, number, hex(number), ".".join(f"{octet:#o}".replace("o", "") for octet in octets),
                       ".".join(hex(octet) for octet in octets))  # fmt: skip
    refusal(EVERYTHING, f"https://{host}/")
