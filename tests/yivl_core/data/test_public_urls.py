import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.public_urls import has_secret, public_url, redact_urls

SECRET = "hunter2-5f/Q=="
NAMES = [
    "signature", "Signature", "sig", "token", "access_token", "key", "api_key", "apikey", "secret", "client-secret", "password",
    "credential", "auth", "X-Amz-Signature", "x-amz-credential", "X-Amz-Security-Token", "X-Goog-Signature", "AWSAccessKeyId",
    "Expires", "Policy", "Key-Pair-Id", "se", "sp", "sv", "sr", "GoogleAccessId", "%73ig", "x-auth",
]  # fmt: skip
HARMLESS = ["size", "w", "format", "author", "v", "id", "page", "signal", "description", "keyword"]


@pytest.mark.parametrize("name", NAMES)
def test_the_value_of_a_secret_parameter_is_removed_and_others_are_kept(name):
    url = f"https://host/a.jpg?size=2&{name}={SECRET}&page=3"
    assert public_url(url) == f"https://host/a.jpg?size=2&{name}=...&page=3"


@pytest.mark.parametrize("name", HARMLESS)
def test_other_parameters_are_kept(name):
    url = f"https://host/a.jpg?{name}=5%2F7&{name}"
    assert public_url(url) == redact_urls(url) == url


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://ann:pw@host/a", "https://host/a"),
        ("https://ann@host:8000/a", "https://host:8000/a"),
        ("https://a@b@host/a", "https://host/a"),
        ("https://ann:p/w@host/a", "https://host/a"),
        ("https://ann:p?w#x@host/a", "https://host/a"),
        ("s3://AKIA:pw@bucket/a", "s3://bucket/a"),
        ("https://host/@ann/a", "https://host/@ann/a"),
        ("https://host:8000/@ann/a", "https://host:8000/@ann/a"),
        ("https://host/a#access_token=5", "https://host/a"),
        ("https://[::1]:80/a@2x.png", "https://[::1]:80/a@2x.png"),
        ("https://host/a;jsessionid=5;v=1", "https://host/a;jsessionid=...;v=1"),
        ("https://host/?url=http://u:p@h/?sig=5&w=2", "https://host/?url=http://h/?sig=...&w=2"),
        ("https://host/?url=http%3A%2F%2Fh%2F%3Fsig%3D5%26w%3D2", "https://host/?url=http%3A%2F%2Fh%2F%3Fsig%3D...%26w%3D2"),
        ("https://host/?sig=&w=2", "https://host/?sig=&w=2"),
        ("https:/ann:pw@host/a", "https:host/a"),
        ("//ann:pw@host/a", "//host/a"),
        ("https:ann:pw@host/a?next=http://b/", "https:host/a?next=http://b/"),
        ("//ann:pw@host/a?next=http://b/", "//host/a?next=http://b/"),
    ],
)
def test_what_is_secret_in_a_url_is_removed(url, public):
    assert public_url(url) == public


@pytest.mark.parametrize(
    "setting",
    [
        "https://ann:pw@host/a", "https://ann@host/a", "https://ann:p?w#x@host/a", "s3://AKIA:pw@bucket/a",
        "https:/ann:pw@host/a", "https:ann:pw@host/a", "//ann:pw@host/a", " HTTPS://ann:pw@host/a", "simplecache::https://ann:pw@host/a",
        "https://host/a?size=2&sig=5", "https://host/a.jsonl?sig=5#500", "https://host/a#access_token=5",
        "https://${USER}:pw@host/a", "https://ann:${PASSWORD}@host/a", "https://host/a?sig=5${REST}", "https://host/a?sig=${1}",
        "https://host/a?sig=${SIG}&token=5", "s3://${KEY}:${SECRET}@bucket/a",
    ],
)  # fmt: skip
def test_a_setting_with_a_secret_that_is_written_out_has_one(setting):
    assert has_secret(setting)


@pytest.mark.parametrize(
    "setting",
    [
        "https://host/a.jsonl?size=2#500", "https://host/@ann/a", "s3://bucket/a#b.jsonl", "data/a@b.jsonl", "/data//a@b",
        "//a/b@c", "https://${USER}:${PASSWORD}@host:80/a", "https://${TOKEN}@host/a", "https://host/a?sig=${SIG}&x=1#5",
        "https://host/?${SAS}", "https://host/?sig=&w=2", "Note: ann@host", "C:/x@y", "https://", "", "file:///home/a@b/c",
    ],
)  # fmt: skip
def test_other_settings_have_none(setting):
    assert not has_secret(setting)


@pytest.mark.parametrize("path", ["a@2x.png", "scans/a?key=5.jpg", "a#b.png", "C:/x@y", "data:image/png;key=aGk=", ""])
def test_what_is_no_url_stays_as_it_is(path):
    assert public_url(path) == redact_urls(path) == path


def test_urls_in_a_row_are_found_however_json_escapes_them():
    url = f"https://ann:pw@host/a.jpg?size=2&sig={quote(SECRET)}&w=1#top"
    row = json.dumps({"images": [url, "b.png"], "query": f'Compare {url} and\n"{url}" <{url}>'})
    for text in (row, row.replace("/", "\\/"), row.replace("&", "\\u0026").replace("=", "\\u003d"), row.replace("&", "&amp;"),
                 json.dumps(row.replace("/", "\\/").replace("&", "\\u0026"))):  # fmt: skip
        redacted = redact_urls(text)
        assert not any(secret in redacted for secret in ("ann", "pw", "hunter2", "top"))
        value = json.loads(redacted)
        if isinstance(value, str):
            value = json.loads(value)
        assert value["images"][1] == "b.png"
        assert "host/a.jpg" in value["images"][0]
        assert value["images"][0].endswith("w=1")


def test_a_text_without_urls_costs_next_to_nothing():
    text = json.dumps({"query": "What is this? sig=5; a@b", "images": ["a.png"] * 50, "response": "x y" * 300})
    assert redact_urls(text) is text  # and no pattern was tried


@pytest.mark.parametrize(
    "part", ["://", "://a:b", "?a=b&", "%25", "?sig=", "\\", "://a@", "#", "\\u0026", "://u:p\\", "?[]", "a:", "&amp;"]
)
def test_no_text_takes_long(part):
    seconds = []
    for times in (5_000, 40_000):
        text = "http://" + part * times + "://"
        started = time.perf_counter()
        redact_urls(text)
        public_url(text)
        seconds.append(time.perf_counter() - started)
    assert seconds[1] < 40 * seconds[0] + 0.05  # eight times as long a text; 64 times as long would be quadratic


URL_TEXT = st.text(alphabet="ab:/?#@&;=%25\\.[]sigkey \"'<>u06", max_size=60)


@given(URL_TEXT, st.sampled_from(["https://", "http://h/", "s3://", "//", "https:"]))
def test_what_was_made_public_once_stays_as_it_is(text, start):
    once = public_url(start + text)
    assert public_url(once) == once
    redacted = redact_urls(start + text)
    assert redact_urls(redacted) == redacted


CLEAN = st.text(alphabet="abcXYZ019.-_~/", min_size=1, max_size=12)


@given(
    name=st.sampled_from(NAMES),
    secret=st.text(alphabet="QZ0987%+/=.-_~?", min_size=8).map(lambda text: "hunter2" + text),
    others=st.lists(st.tuples(st.sampled_from(HARMLESS), CLEAN), max_size=3),
    path=CLEAN,
    user=st.text(alphabet="JKL:%!$", max_size=9).map(lambda text: "JKL" + text),
    before=st.sampled_from(["", "see ", '{"images": ["', "<", "(", "\n"]),
    after=st.sampled_from(["", " there", '"]}', ">", "\n"]),
)
def test_no_secret_is_left_wherever_it_stands(name, secret, others, path, user, before, after):
    query = [f"{other}={value}" for other, value in others]
    query.insert(len(query) // 2, f"{name}={secret}")
    url = f"https://{user}@host/{path}?{'&'.join(query)}#hunter2"
    for public in (public_url(url), redact_urls(before + url + after)):
        assert "hunter2" not in public
        assert "JKL" not in public
        assert f"https://host/{path}?" in public
        assert all(f"{other}={value}" in public for other, value in others)
    assert redact_urls(before + url + after) == before + public_url(url) + after
