"""Images of an object store, under the policy of all URLs."""

import traceback

import pytest

from yivl_core.data.decoding import ImageError
from yivl_core.errors import ConfigurationError
from yivl_core.storage import publish_bytes


def failure(fetcher, url):
    with pytest.raises(ImageError) as failed:
        fetcher.fetch(url)
    assert "secret-of-the-tests" not in "".join(traceback.format_exception(failed.value))
    return failed.value


def test_an_object_is_fetched_once_with_one_request(fetcher, bucket, s3_server, flaky_s3, make_png):
    publish_bytes(f"{bucket}/a b.png", make_png(1))
    flaky_s3.requests.clear()
    one = fetcher("s3://bucket", s3_server)
    image = one.fetch(f"{bucket}/a b.png")
    assert image.path.read_bytes() == make_png(1)
    assert image.url == f"{bucket}/a b.png"
    assert fetcher("s3://bucket", s3_server).fetch(f"{bucket}/a b.png") == image
    assert flaky_s3.requests == [("GET", "/bucket/a b.png")]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["https://"], "is a URL that is not allowed; allow it with --allow-url s3://bucket"),
        (["s3://other"], "is a URL that is not allowed; allow it with --allow-url s3://bucket"),
        (
            ["s3://bucket"],
            "lies on the object store at 127.0.0.1, which leads to 127.0.0.1, no public address; if that machine is meant, ",
        ),
        (
            ["s3://", "http://"],
            "no public address; if that machine is meant, allow host and port by name: --allow-url http://127.0.0.1:",
        ),
    ],
)
def test_bucket_and_store_have_to_be_allowed(fetcher, bucket, flaky_s3, patterns, message):
    error = failure(fetcher(*patterns), f"{bucket}/a.png")
    assert error.kind == "url_not_allowed"
    assert message in str(error)
    assert flaky_s3.count("GET", "/bucket") == 0


def test_an_unchanged_object_is_not_read_again(fetcher, bucket, s3_server, flaky_s3, make_png):
    url = f"{bucket}/a.png"
    publish_bytes(url, make_png(1))
    image = fetcher("s3://bucket", s3_server).fetch(url)
    flaky_s3.requests.clear()
    for _ in range(2):
        assert fetcher("s3://bucket", s3_server, refresh=True).fetch(url) == image
    assert flaky_s3.count("GET", "a.png") == 0
    assert flaky_s3.count("HEAD", "a.png") >= 2
    publish_bytes(url, make_png(2))
    assert fetcher("s3://bucket", s3_server, refresh=True).fetch(url).path.read_bytes() == make_png(2)
    assert flaky_s3.count("GET", "a.png") == 1


def test_what_is_wrong_with_an_object_is_told(fetcher, bucket, s3_server, flaky_s3, cache):
    publish_bytes(f"{bucket}/large.png", b"\x89PNG\r\n\x1a\n" + b"x" * 2000)
    publish_bytes(f"{bucket}/a.pdf", b"%PDF-1.7")
    publish_bytes(f"{bucket}/empty.png", b"")
    one = fetcher("s3://", s3_server, limits={"max_bytes": 1000})
    for name, kind in (
        ("lost.png", "image_missing"),
        ("large.png", "too_many_bytes"),
        ("a.pdf", "unsupported_format"),
        ("empty.png", "empty"),
    ):
        error = failure(one, f"{bucket}/{name}")
        assert error.kind == kind
        assert f'image "{bucket}/{name}"' in error.message
    assert failure(one, "s3://nowhere/a.png").kind == "image_missing"
    with flaky_s3.failing("denied.png", status=403, code="AccessDenied"):
        assert failure(one, f"{bucket}/denied.png").kind == "permission_denied"
    with flaky_s3.failing("broken.png", status=400, code="Odd"):
        assert failure(one, f"{bucket}/broken.png").kind == "fetch_failed"
    assert not list(cache.files.path.rglob("*.png"))


def test_a_store_that_is_set_up_wrongly_is_no_fault_of_an_image(fetcher, bucket, s3_server, flaky_s3):
    with flaky_s3.failing("a.png", status=403, code="InvalidAccessKeyId"):
        future = fetcher("s3://", s3_server).submit(f"{bucket}/a.png")
        assert isinstance(future.exception(), ConfigurationError)
        assert "AWS_ACCESS_KEY_ID" in str(future.exception())
