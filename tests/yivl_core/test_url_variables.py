import json
import os
import traceback
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.images import ImageReference, ImageStore
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.listing import list_tree
from yivl_core.storage import is_file, open_binary, read_bytes
from yivl_core.url_variables import literally, with_user, with_values

SECRET = "s3cr3t/x y"  # a slash and a space stand in no password as they are


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YIVL_USER", "ann")
    monkeypatch.setenv("YIVL_TOKEN", SECRET)
    monkeypatch.setenv("YIVL_SIGNED", "sv=2020&sig=a%2Bb/c%3D")
    monkeypatch.delenv("YIVL_UNSET", raising=False)


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("https://host/a.jsonl?token=${YIVL_TOKEN}&page=2", "https://host/a.jsonl?token=s3cr3t%2Fx%20y&page=2"),
        ("https://${YIVL_USER}:${YIVL_TOKEN}@host/a", "https://ann:s3cr3t%2Fx%20y@host/a"),
        ("http://host/a.parquet?${YIVL_SIGNED}", "http://host/a.parquet?sv=2020&sig=a%2Bb/c%3D"),
        ("https://host/a.jsonl#${YIVL_TOKEN}", "https://host/a.jsonl#${YIVL_TOKEN}"),
        ("https://host/a?b=$YIVL_TOKEN&c=${}&d=${1}", "https://host/a?b=$YIVL_TOKEN&c=${}&d=${1}"),
        ("s3://bucket/a?${YIVL_TOKEN}", "s3://bucket/a?${YIVL_TOKEN}"),
        ("folder/${YIVL_TOKEN}.jsonl", "folder/${YIVL_TOKEN}.jsonl"),
    ],
)
def test_variables_count_in_user_password_and_query_of_web_addresses(url: str, asked: str) -> None:
    assert with_values(url) == asked


def test_a_variable_that_is_not_set_is_named() -> None:
    for put_in in (with_values, with_user):
        with pytest.raises(ConfigurationError) as raised:
            put_in("https://${YIVL_USER}:${YIVL_UNSET}@host/a.jsonl?old=secret")
        message = "https://host/a.jsonl: the environment variable YIVL_UNSET is not set; set it where this runs"
        assert str(raised.value) == message


@pytest.mark.parametrize("url", ["https://${YIVL_TOKEN}/a", "https://host/${YIVL_TOKEN}/a?b=${YIVL_USER}"])
def test_a_variable_in_host_or_path_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"\$\{YIVL_TOKEN\} stands for a variable .* in user, password and query alone"):
        with_values(url)


def test_of_a_folder_only_user_and_password_are_put_in() -> None:
    assert with_user("https://${YIVL_USER}:x@host/${YIVL_TOKEN}?${YIVL_TOKEN}") == (
        "https://ann:x@host/${YIVL_TOKEN}?${YIVL_TOKEN}"
    )


def test_a_file_is_asked_for_with_the_value(web: Any) -> None:
    url = web.serve("/a.jsonl", b"row")
    assert is_file(url + "?token=${YIVL_TOKEN}")
    assert read_bytes(url + "?token=${YIVL_TOKEN}") == b"row"
    assert {path.replace("%2F", "/") for path in web.paths} == {"/a.jsonl?token=s3cr3t/x%20y"}


def test_a_file_is_asked_for_with_user_and_password(web: Any) -> None:
    url = web.serve("/a.jsonl", b"row").replace("http://", "http://${YIVL_USER}:${YIVL_TOKEN}@")
    assert read_bytes(url) == b"row"
    assert {headers["Authorization"] for _, headers in web.requests} == {f"Basic {b64encode(f'ann:{SECRET}'.encode()).decode()}"}


@pytest.mark.parametrize("status", [401, 404, 500])
@pytest.mark.parametrize("query", ["?token=${YIVL_TOKEN}", "?${YIVL_TOKEN}"])
def test_no_error_holds_the_value_nor_does_its_cause(status: int, query: str, web: Any) -> None:
    url = web.serve("/a.jsonl", web.answer(status=status))
    with pytest.raises(StorageError) as raised, open_binary(url.replace("://", "://${YIVL_USER}:${YIVL_TOKEN}@") + query) as file:
        file.read()
    assert "s3cr3t" not in "".join(traceback.format_exception(raised.value))


def test_an_image_below_a_web_folder_is_taken_literally(web: Any) -> None:
    image = ImageReference(uri="x", address="a.png?x=${YIVL_TOKEN}", root=web.url)
    assert image.url == f"{web.url}/a.png?x=${{YIVL_TOKEN}}"
    web.image(1)
    web.serve("/a.png", web.answers["/1.png"][0])
    ImageStore().load(image)
    assert web.paths
    assert all("s3cr3t" not in path for path in web.paths)


def test_a_name_that_a_server_lists_is_taken_literally(web: Any) -> None:
    page = b'<a href="a.png?x=${YIVL_TOKEN}&.png">a</a>'
    web.serve("/images", web.answer(body=page, headers={"Content-Type": "text/html"}))
    names = [file.name for file in list_tree(f"{web.url}/images")]
    assert names == ["a.png?x=$%7BYIVL_TOKEN}&.png"]
    assert with_values(f"https://host/{names[0]}") == f"https://host/{names[0]}"
    assert literally("${YIVL_TOKEN}") == "$%7BYIVL_TOKEN}"


def test_an_image_beside_a_dataset_is_asked_for_with_its_user_and_password() -> None:
    image = ImageReference(uri="a.png", address="${YIVL_TOKEN}.png", root="https://${YIVL_USER}:${YIVL_TOKEN}@host/images")
    assert image.url == "https://ann:s3cr3t%2Fx%20y@host/images/${YIVL_TOKEN}.png"
    assert image.public_name == "https://host/images/${YIVL_TOKEN}.png"
    elsewhere = ImageReference(uri="a", address="https://${YIVL_USER}:${YIVL_TOKEN}@other/a.png", root=image.root)
    assert elsewhere.url == elsewhere.address


def test_rows_are_taken_literally(web: Any, tmp_path: Path) -> None:
    home = os.environ["HOME"]
    rows = [
        {"query": "<image>a", "response": "b", "images": [address]}
        for address in (
            web.url + "/a.png?x=${HOME}",
            web.url.replace("://", "://${USER}:${HOME}@") + "/a.png",
            "${HOME}.png",
            "http://${HOME}/a.png",
        )
    ]
    body = "".join(json.dumps(row) + "\n" for row in rows).encode()
    url = web.serve("/rows.jsonl", body)
    validate_dataset(
        ValidationConfig(
            dataset=(url + "?token=${YIVL_TOKEN}",),
            output=str(tmp_path / "out"),
            cache=str(tmp_path / "cache"),
            allow_url=(web.url,),
            num_workers=0,
        )
    )
    asked = [path for path in web.paths if not path.startswith("/rows.jsonl")]
    assert len(asked) == 3  # the last one has no valid host
    assert not [path for path in asked if home in path]
    for _, headers in web.requests:
        assert headers.get("Authorization") in (None, f"Basic {b64encode(b'${USER}:${HOME}').decode()}")
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes()
