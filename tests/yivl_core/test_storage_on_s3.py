"""Files on an object store: a real HTTP server answers, at times with errors."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3fs import S3FileSystem

from yivl_core.errors import ConfigurationError, FileTooLargeError, StorageError, YivlError
from yivl_core.filesystems import within_patience
from yivl_core.listing import file_state, list_tree
from yivl_core.storage import (
    exists,
    is_missing,
    join,
    list_files,
    open_binary,
    publish_bytes,
    publish_from_file,
    publish_new,
    read_bytes,
    read_limited,
)

SECRETS = ("AKIATESTTESTTESTTEST", "secret-of-the-tests", "hunter2")


@pytest.fixture
def new_client() -> Iterator[None]:
    """The client that reads the environment of the test is made by the test."""
    S3FileSystem.clear_instance_cache()
    yield
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client waits before it tries again; the test does not wait for them."""
    seconds: list[float] = []
    sleep = asyncio.sleep

    async def note(delay: float, *arguments: Any) -> Any:
        if threading.current_thread().name != "fsspecIO":  # of others in this process, as a server's
            return await sleep(delay, *arguments)
        seconds.append(delay)
        return await sleep(0, *arguments)

    monkeypatch.setattr(asyncio, "sleep", note)
    return seconds


def publish_through_file(url: str) -> None:
    with publish_from_file(url) as path:
        path.write_bytes(b"new")


def open_and_read(url: str) -> bytes:
    with open_binary(url) as file:
        return file.read()


USES: list[Callable[[str], object]] = [
    exists,
    list_files,
    read_bytes,
    open_and_read,
    lambda url: read_limited(url, 100),
    file_state,
    lambda url: list(list_tree(url)),
    lambda url: publish_bytes(url, b"new"),
    lambda url: publish_new(url, b"new"),
    publish_through_file,
]
READS = USES[2:6]


def message_of(error: BaseException) -> str:
    text = str(error)
    assert not any(secret in text for secret in SECRETS), text
    return text


# When all is well


def test_what_was_published_can_be_read_and_listed(bucket: str) -> None:
    folder = join(bucket, "run 1+%", "中文")
    url = join(folder, "a b+%20.bin")
    assert not exists(url)
    assert list_files(folder) == []
    publish_bytes(url, b"one")
    publish_bytes(join(folder, "deeper", "c.bin"), b"")
    S3FileSystem().call_s3("put_object", Bucket="bucket", Key=f"{folder.removeprefix('s3://bucket/')}/")
    assert exists(url)
    assert exists(folder)
    assert read_bytes(url) == open_and_read(url) == b"one"
    assert list_files(folder) == ["a b+%20.bin"]


def test_what_other_processes_do_is_seen_at_once(bucket: str) -> None:
    other = S3FileSystem(skip_instance_cache=True)
    publish_bytes(join(bucket, "run", "part-0"), b"0")
    assert list_files(join(bucket, "run")) == ["part-0"]
    assert not exists(join(bucket, "run", "part-1"))
    other.pipe_file("bucket/run/part-1", b"1")
    assert list_files(join(bucket, "run")) == ["part-0", "part-1"]
    assert exists(join(bucket, "run", "part-1"))
    state = file_state(join(bucket, "run", "part-1"))
    other.pipe_file("bucket/run/part-1", b"other")
    assert file_state(join(bucket, "run", "part-1")) != state
    assert read_bytes(join(bucket, "run", "part-1")) == b"other"
    other.rm("bucket/run/part-1")
    assert list_files(join(bucket, "run")) == ["part-0"]
    assert not exists(join(bucket, "run", "part-1"))


def test_a_small_file_costs_one_request(bucket: str, flaky_s3: Any) -> None:
    publish_bytes(join(bucket, "a.jpg"), b"1234")
    assert read_limited(join(bucket, "a.jpg"), 4) == b"1234"
    assert flaky_s3.requests == [("PUT", "/bucket/a.jpg"), ("GET", "/bucket/a.jpg")]


def test_a_file_is_read_up_to_the_limit_and_a_larger_one_is_an_error(bucket: str) -> None:
    url = join(bucket, "a.jpg")
    for content in (b"", b"1234"):
        publish_bytes(url, content)
        assert read_limited(url, 4) == content
    publish_bytes(url, b"12345")
    with pytest.raises(FileTooLargeError, match=r"^s3://bucket/a.jpg: the file is larger than 4 bytes$"):
        read_limited(url, 4)


def test_a_new_file_is_created_once(bucket: str) -> None:
    assert publish_new(join(bucket, "run", "plan.json"), b"first")
    assert not publish_new(join(bucket, "run", "plan.json"), b"second")
    assert read_bytes(join(bucket, "run", "plan.json")) == b"first"


@pytest.mark.usefixtures("pauses")
def test_a_new_file_waits_for_who_creates_the_same(bucket: str, flaky_s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with flaky_s3.failing("plan.json", status=409, code="ConditionalRequestConflict", times=2):
        assert publish_new(join(bucket, "plan.json"), b"first")
    assert flaky_s3.count("PUT", "plan.json") == 3
    conflict = flaky_s3.failing("other.json", status=409, code="ConditionalRequestConflict")
    with conflict, pytest.raises(StorageError, match=r"409 \(ConditionalRequestConflict\)"):
        publish_new(join(bucket, "other.json"), b"first")


def test_a_file_of_many_parts_is_published(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, **_: 6 << 20)
    content = bytes(range(256)) * (14 << 12)
    with publish_from_file(join(bucket, "large")) as path:
        path.write_bytes(content)
        assert path.is_relative_to(tmp_path)
        assert not exists(join(bucket, "large"))
    assert read_bytes(join(bucket, "large")) == content
    assert file_state(join(bucket, "large")).state.endswith("-3"), "it was to go in three parts"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(("method", "part"), [("POST", "large?uploads"), ("PUT", "partNumber=2"), ("POST", "large?uploadId")])
def test_a_file_of_many_parts_is_not_published_by_halves(
    method: str, part: str, bucket: str, flaky_s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, **_: 6 << 20)

    def publish() -> None:
        with publish_from_file(join(bucket, "large")) as path:
            path.write_bytes(bytes(14 << 20))

    message = r"^s3://bucket/large: the store answers 503 \(SlowDown\)"
    with flaky_s3.failing(part, method=method) as failure, pytest.raises(StorageError, match=message):
        publish()
    assert failure.num_answers == 10
    assert not exists(join(bucket, "large"))
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_makes_a_client_of_its_own(bucket: str, repository: Path) -> None:
    publish_bytes(join(bucket, "a"), b"content")
    code = (
        "import os; from yivl_core.storage import read_bytes\n"
        "assert read_bytes('s3://bucket/a') == b'content'\n"
        "child = os.fork()\n"
        "if not child: os._exit(read_bytes('s3://bucket/a') != b'content')\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, timeout=60)


# When it is not


@pytest.mark.parametrize("use", READS)
def test_a_file_that_is_not_there_is_told_from_a_store_that_fails(
    use: Callable[[str], object], bucket: str, flaky_s3: Any
) -> None:
    with pytest.raises(StorageError) as error:
        use(join(bucket, "gone.jpg"))
    assert message_of(error.value) == "s3://bucket/gone.jpg: there is no such file or folder; check the path"
    assert is_missing(error.value)
    with flaky_s3.failing("gone.jpg", status=403, code="AccessDenied"), pytest.raises(StorageError) as error:
        use(join(bucket, "gone.jpg"))
    assert not is_missing(error.value)


@pytest.mark.parametrize("use", USES)
def test_a_store_that_answers_503_for_ever_is_given_up_within_a_minute(
    use: Callable[[str], object], bucket: str, flaky_s3: Any, pauses: list[float]
) -> None:
    with flaky_s3.failing(""), pytest.raises(StorageError) as error:
        use(join(bucket, "run", "part-00001"))
    assert "bucket/run/part-00001: the store answers 503" in message_of(error.value)
    assert "; run it again later with --resume" in str(error.value)
    assert not is_missing(error.value)
    assert 5 <= len(flaky_s3.requests) <= 10
    assert 1 < sum(pauses) < 40, "no patience, or too much"


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize("use", USES)
def test_a_store_that_answers_503_for_a_while_is_asked_again(use: Callable[[str], object], bucket: str, flaky_s3: Any) -> None:
    publish_bytes(join(bucket, "run", "part"), b"content")
    publish_bytes(join(bucket, "run", "part", "below"), b"content")
    flaky_s3.requests.clear()
    with flaky_s3.failing("", times=3) as failure:
        use(join(bucket, "run", "part"))
    assert failure.num_answers == 3
    assert len(flaky_s3.requests) >= 4


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(
    ("status", "code", "kind", "message"),
    [
        (500, "InternalError", StorageError, r"the store answers 500 \(InternalError\) again and again; run it again later with"),
        (403, "AccessDenied", StorageError, r"access denied \(403 AccessDenied\); check the name, and that the credentials have"),
        (403, "SignatureDoesNotMatch", ConfigurationError, r"not accept the credentials \(403 Signature.*; check AWS_ACCESS"),
        (403, "InvalidAccessKeyId", ConfigurationError, r"does not accept the credentials \(403 InvalidAccessKeyId\)"),
        (400, "ExpiredToken", StorageError, r"the credentials have expired \(400 ExpiredToken\); get new ones, and run it again"),
        (404, "NoSuchBucket", ConfigurationError, r"there is no such bucket \(404 NoSuchBucket\); check its name, and AWS"),
        (418, "Teapot", StorageError, r"the store answers 418 \(Teapot\): So it is."),
    ],
)  # fmt: skip
def test_an_answer_is_told_with_the_remedy(
    status: int, code: str, kind: type[YivlError], message: str, bucket: str, flaky_s3: Any
) -> None:
    uses = (lambda url: read_limited(url, 9), lambda url: list(list_tree(url)), lambda url: publish_new(url, b""), list_files)
    for use in uses if code != "NoSuchBucket" else uses[:3]:
        with flaky_s3.failing("", status=status, code=code), pytest.raises(kind, match=rf"^s3://bucket/a: .*{message}") as error:
            use(join(bucket, "a"))
        message_of(error.value)


@pytest.mark.usefixtures("pauses")
@pytest.mark.parametrize(("status", "message"), [(403, "access denied (403)"), (400, "the request is refused (400)")])
def test_an_answer_without_a_code_is_told_too(status: int, message: str, bucket: str, flaky_s3: Any) -> None:
    with flaky_s3.failing("", status=status), pytest.raises(StorageError) as error:
        file_state(join(bucket, "a"))
    assert message_of(error.value).startswith(f"s3://bucket/a: {message}; check")


@pytest.mark.parametrize("use", [use for use in USES if use is not list_files])
def test_a_bucket_that_is_not_there_is_named_and_not_created(use: Callable[[str], object], bucket: str, flaky_s3: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^s3://buket/run: there is no such bucket") as error:
        use("s3://buket/run")
    message_of(error.value)
    assert ("PUT", "/buket") not in flaky_s3.requests


def test_an_address_that_names_no_bucket_shows_no_password(bucket: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        read_bytes("s3://me:hunter2@bucket/a")
    assert message_of(error.value) == "s3://bucket/a: this is no name of a bucket or file; check the address"


@pytest.mark.usefixtures("new_client", "s3_server")
def test_credentials_that_are_missing_are_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for use in USES:
        with pytest.raises(ConfigurationError, match=r"^s3://bucket/a: no credentials for the store; set AWS_ACCESS_KEY_ID and"):
            use("s3://bucket/a")


@pytest.mark.usefixtures("new_client", "s3_server")
def test_a_profile_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(ConfigurationError, match=r"^s3://bucket/a: there is no such profile of credentials; check AWS_PROFILE"):
        read_bytes("s3://bucket/a")


@pytest.mark.usefixtures("new_client", "s3_server", "pauses")
@pytest.mark.parametrize("use", USES)
def test_a_store_that_is_not_there_is_told(use: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    with pytest.raises(StorageError, match=r"^s3://bucket/a: no connection to the store; check the network and AWS_END") as error:
        use("s3://bucket/a")
    assert not is_missing(error.value)


@pytest.fixture
def silent_store(new_client: None, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that takes requests and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        yield


@pytest.mark.usefixtures("silent_store", "pauses")
@pytest.mark.parametrize("use", READS)
def test_a_store_that_never_answers_is_asked_again_and_given_up(
    use: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(S3FileSystem, "read_timeout", 0.05)
    with pytest.raises(StorageError, match=r"^s3://bucket/a: the store does not answer in time; run it again later") as error:
        use("s3://bucket/a")
    assert "FSTimeoutError" not in repr(error.value.__cause__)


@pytest.mark.usefixtures("silent_store")
@pytest.mark.parametrize("use", [use for use in USES if use not in (list_files, read_bytes, open_and_read)])
def test_no_request_is_waited_for_beyond_patience(use: Callable[[str], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.filesystems._PATIENCE_S", 0.2)
    with pytest.raises(StorageError, match=r"^s3://bucket/a: the store does not answer in time; run it again later") as error:
        use("s3://bucket/a")
    assert "FSTimeoutError" in repr(error.value.__cause__)


def test_more_bytes_are_given_more_time(s3_server: str) -> None:
    limits = [within_patience(S3FileSystem(), num_bytes)["timeout"] for num_bytes in (0, 25_000_000)]
    assert limits == [60, 160]


@pytest.mark.usefixtures("new_client", "s3_server")
def test_an_endpoint_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "me:hunter2")
    with pytest.raises(ConfigurationError, match=r"^s3://bucket/a: AWS_ENDPOINT_URL is no address of a store") as error:
        read_bytes("s3://bucket/a")
    message_of(error.value)


@pytest.mark.usefixtures("new_client", "pauses")
def test_an_endpoint_with_a_password_does_not_show_it(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.replace("://", "://me:hunter2@"))
    with pytest.raises(StorageError) as error:
        read_bytes("s3://bucket/a")
    message_of(error.value)


def test_the_environment_decides_how_often_the_client_tries(
    new_client: None, bucket: str, flaky_s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with flaky_s3.failing("a"), pytest.raises(StorageError, match="503"):
        file_state(join(bucket, "a"))
    assert flaky_s3.count("HEAD", "a") == 1


def test_the_environment_can_ask_for_no_credentials(bucket: str, flaky_s3: Any, repository: Path, tmp_path: Path) -> None:
    """As for a public bucket; that of the test is none, but it is asked."""
    keys = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environment = {name: value for name, value in os.environ.items() if name not in keys}
    environment |= {"FSSPEC_S3_ANON": "true", "HOME": str(tmp_path)}
    publish_bytes(join(bucket, "a"), b"content")
    code = "from yivl_core.storage import read_limited; read_limited('s3://bucket/a', 9)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert process.stderr.splitlines()[-1].startswith("yivl_core.errors.StorageError: s3://bucket/a: access denied (403)")
    assert flaky_s3.count("GET", "/bucket/a") == 1
