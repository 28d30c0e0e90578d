"""What of an address and of a failure is told."""

import pytest

from yivl_core.errors import StorageError
from yivl_core.object_stores import answer_code, explain, without_secrets


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a.png", "s3://bucket/a.png"),
        ("s3://me:hunter2@bucket/a.png", "s3://bucket/a.png"),
        ("https://me@host/a?X-Amz-Signature=abc&part=1 failed", "https://host/a?X-Amz-Signature=...&part=... failed"),
        ("simplecache::s3://me:hunter2@bucket/a", "simplecache::s3://bucket/a"),
        ("what?.png", "what?.png"),
        ("/home/me@work/a.png", "/home/me@work/a.png"),
    ],
)
def test_an_address_is_shown_without_secrets(text: str, expected: str) -> None:
    assert without_secrets(text) == expected


def test_errors_of_a_disk_are_none_of_a_store() -> None:
    for error in (OSError(28, "full"), FileNotFoundError("a"), ValueError("Invalid"), RuntimeError("SSL")):
        assert answer_code(error) is None
        assert explain(error) is None


def test_what_the_client_itself_calls_a_failure_is_told_without_secrets() -> None:
    from aiohttp import ClientPayloadError
    from botocore.exceptions import BotoCoreError

    for error in (ClientPayloadError("http://me:hunter2@host/a"), type("NewError", (BotoCoreError,), {})()):
        explained = explain(error)
        assert explained is not None
        kind, message = explained
        assert kind is StorageError
        assert message.startswith(f"the request failed ({type(error).__name__}: ")
        assert message.endswith("run it again later with --resume")
        assert "hunter2" not in message
