"""Datasets whose images lie elsewhere, through a whole validation."""

import base64
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.data.images import ImageStore
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.storage import publish_bytes

Validate = Callable[..., Any]
WriteRows = Callable[..., Path]
MakeImage = Callable[..., Path]

SECRET = "S3CRETWORD"


def row(number: int, *images: str | None, **more: Any) -> dict[str, Any]:
    return {"query": f"What is {number}?", "response": f"{number}", "images": list(images), **more}


@pytest.fixture(params=[0, 1])
def num_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """In this process, and in another one from the first row."""
    monkeypatch.setattr("yivl_core.data.checks.row_workers._NUM_ROWS_FOR_WORKERS", 0)
    return int(request.param)


def test_images_of_urls_are_fetched_once_and_used_without_network_afterwards(
    web: Any, write_rows: WriteRows, validate: Validate, tmp_path: Path, num_workers: int
) -> None:
    rows = [row(number, web.image(number % 20)) for number in range(60)]
    settings = {"allow_url": (web.url,), "cache": str(tmp_path / "cache"), "num_workers": num_workers}
    result = validate(write_rows(*rows), **settings)
    assert (result.summary.num_records, result.summary.num_images, result.findings) == (60, 20, [])
    assert sorted(web.paths) == sorted(f"/{number}.png" for number in range(20))
    again = validate(tmp_path / "data.jsonl", **settings, output="again")
    assert again.summary.digest == result.summary.digest
    assert len(web.paths) == 20
    web.close()
    offline = validate(tmp_path / "data.jsonl", **settings, offline=True, output="offline")
    assert offline.summary.digest == result.summary.digest
    store = ImageStore()
    for record in ValidatedDataset.open(str(result.folder)):
        assert store.load(record.images[0].reference).image.size == (9, 8)
        assert record.images[0].uri.startswith(web.url)


def test_the_digest_is_that_of_the_same_images_on_disk(
    web: Any, make_png: Callable[[int], bytes], write_rows: WriteRows, validate: Validate, tmp_path: Path
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(make_png(number))
    local = validate(write_rows(*(row(number, f"{number}.png") for number in range(3))))
    path = write_rows(*(row(number, web.image(number)) for number in range(3)), name="urls.jsonl")
    remote = validate(path, allow_url=(web.url,), cache=str(tmp_path / "cache"), output="remote")
    relative = validate(tmp_path / "data.jsonl", image_root=web.url, cache=str(tmp_path / "other"), output="relative")
    assert remote.summary.digest == relative.summary.digest == local.summary.digest
    assert relative.records[0]["images"] == ["0.png"]


def test_what_cannot_be_fetched_is_a_finding_of_its_row(
    web: Any, write_rows: WriteRows, validate: Validate, tmp_path: Path, num_workers: int
) -> None:
    rows = [
        row(0, web.image(0)),
        row(1, f"{web.url}/gone.png"),
        row(2, web.serve("/page.png", b"<html>no image</html>")),
        row(3, web.serve("/denied.png", web.answer(status=403))),
        row(4, "https://example.com/a.png"),
        row(5, "file:///etc/passwd"),
        row(6, web.serve("/far.png", web.answer(status=302, headers={"Location": "http://169.254.169.254/latest"}))),
        row(7, None, web.image(1), history=[["a", "b"]]),
    ]
    result = validate(write_rows(*rows), allow_url=(web.url,), cache=str(tmp_path / "cache"), num_workers=num_workers)
    assert result.findings == [
        (2, "image_missing", "error"),
        (3, "image_unreadable", "error"),
        (4, "image_unreadable", "error"),
        (5, "url_not_allowed", "error"),
        (6, "url_not_allowed", "error"),
        (7, "url_not_allowed", "error"),
    ]
    assert result.report["unreadable_images"] == {"not_an_image": 1, "permission_denied": 1}
    assert [record["query"] for record in result.records] == ["What is 0?", "What is 7?"]
    assert result.records[1]["images"] == [None, f"{web.url}/1.png"]


def test_without_leave_nothing_is_fetched(web: Any, write_rows: WriteRows, validate: Validate) -> None:
    result = validate(write_rows(row(0, web.image(0))))
    assert result.findings == [(1, "url_not_allowed", "error")]
    assert web.requests == []


def test_no_secret_of_a_url_is_written_anywhere(
    web: Any, write_rows: WriteRows, validate: Validate, tmp_path: Path, capfd: pytest.CaptureFixture[str], num_workers: int
) -> None:
    host = web.url.removeprefix("http://")
    urls = [f"http://ann:{SECRET}@{host}/{name}?size=2&X-Amz-Signature={SECRET}#{SECRET}" for name in ("0.png", "gone.png")]
    web.image(0)
    rows = [row(0, urls[0].replace(f"ann:{SECRET}@", "")), row(1, urls[1]), row(2, urls[0]), json.dumps(row(3, *urls))[:-3]]
    result = validate(write_rows(*rows), allow_url=(web.url,), cache=str(tmp_path / "cache"), num_workers=num_workers)
    assert result.summary.num_records >= 1
    assert result.records[0]["images"] == [f"{web.url}/0.png?size=2&X-Amz-Signature=..."]
    for place in (result.folder, tmp_path / "cache"):
        for path in place.rglob("*"):
            assert SECRET.encode() not in (path.read_bytes() if path.is_file() else b""), path
    assert SECRET not in "".join(capfd.readouterr())


def test_images_that_stand_in_the_dataset_itself_are_kept_by_content(
    make_png: Callable[[int], bytes], write_rows: WriteRows, validate: Validate, tmp_path: Path, num_workers: int
) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(make_png(1)).decode()}"
    rows = [row(0, uri), row(1, uri[:-40]), row(2, "data:image/png;base64,%%%"), row(3, "data:text/html,<p>a</p>")]
    settings = {"cache": str(tmp_path / "cache"), "num_workers": num_workers}
    result = validate(write_rows(*rows), **settings)
    assert [(line, kind) for line, kind, _ in result.findings] == [(line, "image_unreadable") for line in (2, 3, 4)]
    assert (result.folder / "records.jsonl").stat().st_size < 1000
    (info,) = next(iter(ValidatedDataset.open(str(result.folder)))).images
    assert info.uri == f"data:image/png;sha256={info.sha256}"
    assert Path(info.path).read_bytes() == make_png(1)
    table = pa.table(
        {"query": ["What is 0?"], "response": ["0"], "images": [[{"bytes": make_png(1), "path": None}]]},
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    inline = validate(tmp_path / "rows.parquet", **settings, output="inline")
    assert inline.summary.digest == result.summary.digest
    assert inline.records[0]["validated"]["images"][0]["path"] == info.path


def test_refreshing_asks_once_whether_an_image_has_changed(
    web: Any, make_png: Callable[[int], bytes], write_rows: WriteRows, validate: Validate, tmp_path: Path
) -> None:
    answers = [web.answer(body=make_png(0), headers={"ETag": '"a"'}), web.answer(status=304), web.answer(body=make_png(1))]
    path = write_rows(row(0, web.serve("/0.png", *answers)), row(1, f"{web.url}/0.png"))
    settings = {"allow_url": (web.url,), "cache": str(tmp_path / "cache")}
    first = validate(path, **settings).summary.digest
    assert validate(path, **settings, refresh_urls=True, output="same").summary.digest == first
    assert validate(path, **settings, output="cached").summary.digest == first
    assert validate(path, **settings, refresh_urls=True, output="new").summary.digest != first
    assert [headers.get("If-None-Match") for _, headers in web.requests] == [None, '"a"', '"a"']


@pytest.mark.slow
def test_a_validation_that_is_killed_while_it_fetches_goes_on_where_it_was(
    web: Any, write_rows: WriteRows, validate: Validate, tmp_path: Path
) -> None:
    rows = [row(number, web.image(number)) for number in range(300)]
    path = write_rows(*rows)
    for number in range(300):
        web.answers[f"/{number}.png"][0].pause_s = 0.02
    settings = {"allow_url": [web.url], "cache": str(tmp_path / "cache"), "fetch": {"connections_per_host": 4}}
    (tmp_path / "settings.json").write_text(json.dumps({**settings, "dataset": [str(path)], "output": str(tmp_path / "out")}))
    command = [sys.executable, "-m", "yivl_core", "validate", str(tmp_path / "settings.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(web.requests) < 120 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    num_asked = len(web.requests)
    assert 120 <= num_asked < 300
    assert not (tmp_path / "out").exists()
    result = validate(path, allow_url=(web.url,), cache=str(tmp_path / "cache"), output="out")
    assert result.summary.num_records == 300
    assert len(web.requests) - 300 <= 4  # those that were under way when it was killed
    undisturbed = validate(path, allow_url=(web.url,), cache=str(tmp_path / "other"), output="undisturbed")
    assert undisturbed.summary.digest == result.summary.digest


def test_a_dataset_itself_may_lie_anywhere(
    web: Any, make_png: Callable[[int], bytes], validate: Validate, write_rows: WriteRows, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(row(number, f"{number}.png")) + "\n" for number in range(5)).encode()
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(make_png(number))
        web.image(number)
    local = validate(write_rows(*(row(number, f"{number}.png") for number in range(5))))
    url = web.serve("/rows.jsonl.gz", gzip.compress(lines)) + f"?token={SECRET}"
    settings = ValidationConfig(dataset=(url,), output=str(tmp_path / "remote"), cache=str(tmp_path / "cache"))
    summary = validate_dataset(settings)
    assert summary.digest == local.summary.digest
    few = validate_dataset(settings.model_copy(update={"dataset": (f"{url}#2",), "output": str(tmp_path / "few")}))
    assert few.num_records == 2
    for path in [*(tmp_path / "remote").iterdir(), *(tmp_path / "few").iterdir()]:
        assert SECRET.encode() not in path.read_bytes(), path
    assert f"{web.url}/rows.jsonl.gz?token=...:1" in (tmp_path / "remote/report.json").read_text()


def test_a_dataset_on_a_server_that_does_not_answer_is_no_file_that_is_not_there(web: Any, validate: Validate) -> None:
    with pytest.raises(ConfigurationError, match=r"/gone\.jsonl: there is no such file"):
        validate_dataset(ValidationConfig(dataset=(f"{web.url}/gone.jsonl",), output="out"))
    web.close()
    with pytest.raises(StorageError, match=r"/rows\.jsonl: no connection to the store; check the network"):
        validate_dataset(ValidationConfig(dataset=(f"{web.url}/rows.jsonl",), output="out"))


def test_a_dataset_with_a_url_that_is_refused_is_recognised_and_one_that_failed_is_tried_again(
    web: Any, write_rows: WriteRows, validate: Validate, tmp_path: Path
) -> None:
    settings = {"allow_url": (web.url,), "cache": str(tmp_path / "cache")}
    path = write_rows(row(0, web.image(0)), row(1, "https://example.com/a.png"))
    assert validate(path, **settings).summary.num_records == 1
    assert validate(path, **settings).summary.was_there
    path = write_rows(row(0, web.image(0)), row(1, f"{web.url}/7.png"))
    assert validate(path, **settings).summary.num_records == 1
    web.image(7)
    assert validate(path, **settings).summary.num_records == 2


def test_images_below_a_place_of_another_kind_are_refused(
    write_rows: WriteRows, make_png: Callable[[int], bytes], validate: Validate
) -> None:
    publish_bytes("memory://images/0.png", make_png(0))
    result = validate(write_rows(row(0, "0.png")), image_root="memory://images")
    assert result.findings == [(1, "url_not_allowed", "error")]
    assert 'is below "memory://images", from where nothing is fetched' in result.quarantine[0]["message"]
