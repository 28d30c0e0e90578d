"""Batch inference over images that lie behind URLs, or stand in the dataset itself."""

import base64
import csv
import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from yivl_core.data.cache.image_cache import CachedImage
from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.findings import Source
from yivl_core.data.images import ImageError, ImageReference
from yivl_core.data.reading import InputRow
from yivl_core.data.validation import validate_dataset
from yivl_core.doors import ShardedInferenceConfig
from yivl_core.errors import ConfigurationError, DatasetError, OutputError, StorageError
from yivl_core.inference.configuration import InferenceConfig, InferenceSummary
from yivl_core.inference.fetching_rows import fetch_rows
from yivl_core.inference.preparation import PlannedRow
from yivl_core.outputs.predictions import Prediction, list_parts, read_predictions
from yivl_core.progress import Progress

Infer = Callable[..., InferenceSummary]
MakePng = Callable[[int], bytes]

SECRET = "S3CRETWORD"


class StoppedError(Exception):
    pass


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("yivl_core.data.network.downloading._FIRST_PAUSE_S", 0.01)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def row(number: int, *images: str | None, **more: Any) -> dict[str, Any]:
    return {"query": f"What is {number}?", "images": list(images), **more}


def rows_of(summary: InferenceSummary) -> list[Prediction]:
    return list(read_predictions(summary.output))


def kinds(summary: InferenceSummary) -> list[str | None]:
    return [prediction.error_kind for prediction in rows_of(summary)]


def answers(summary: InferenceSummary) -> list[tuple[str | None, tuple[float, ...] | None]]:
    """The answers with their log-probabilities, which tell small pictures apart that are answered alike."""
    return [(prediction.response, prediction.completion_logprobs) for prediction in rows_of(summary)]


def test_each_url_is_fetched_once_and_answered_as_a_file_and_offline_afterwards(
    web: Any, make_png: MakePng, infer: Infer, tmp_path: Path
) -> None:
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(make_png(number))
    files = write(tmp_path / "local.jsonl", *(row(number, f"{number % 5}.png") for number in range(12)))
    local = infer(dataset=files, output="local", logprobs=True)
    settings = {
        "dataset": write(tmp_path / "rows.jsonl", *(row(number, web.image(number % 5)) for number in range(12))),
        "allow_url": (web.url,),
        "shard_size": 3,
        "contact_sheet": 12,
        "logprobs": True,
    }
    summary = infer(**settings)
    assert answers(summary) == answers(local)
    assert len(set(answers(summary))) == 12
    there, here = rows_of(summary), rows_of(local)
    assert [one.images[0].uri for one in there] == [f"{web.url}/{number % 5}.png" for number in range(12)]
    assert [one.images[0].sha256 for one in there] == [one.images[0].sha256 for one in here]
    assert len({one.sample_id for one in there}) == 12
    assert sorted(web.paths) == [f"/{number}.png" for number in range(5)]
    page = (tmp_path / "predictions" / "contact-sheet.html").read_text()
    assert page.count("data:image/png;base64") == 12
    assert infer(**settings, output="again").content_digest == summary.content_digest
    assert len(web.paths) == 5
    web.close()
    assert infer(**settings, output="offline", offline=True).content_digest == summary.content_digest
    elsewhere = infer(**settings, output="elsewhere", offline=True, cache=str(tmp_path / "other"))
    assert kinds(elsewhere) == ["fetch_failed"] * 12
    assert str(tmp_path / "other") in str(rows_of(elsewhere)[0].error)


def test_what_cannot_be_fetched_is_one_row_and_stops_nothing(web: Any, infer: Infer, tmp_path: Path) -> None:
    rows = [
        row(0, web.image(0)),
        row(1, web.serve("/page.png", b"<html>no image</html>")),
        row(2, web.serve("/denied.png", web.answer(status=403))),
        row(3, web.serve("/broken.png", web.answer(status=500))),
        row(4, "https://example.com/a.png"),
        row(5, "ftp://example.com/a.png"),
        row(6, web.image(1), f"{web.url}/gone.png"),
        *(row(7 + number, f"{web.url}/gone-{number}.png") for number in range(30)),
        row(40, None, web.image(2), history=[["a", "b"]]),
    ]
    summary = infer(dataset=write(tmp_path / "rows.jsonl", *rows), allow_url=(web.url,), fetch={"num_tries": 2})
    assert kinds(summary) == [
        None, "not_an_image", "permission_denied", "fetch_failed", "url_not_allowed", "url_not_allowed",
        *["image_missing"] * 31, None,
    ]  # fmt: skip
    assert web.count(f"{web.url}/broken.png") == 2
    found = rows_of(summary)
    assert "--allow-url https://example.com" in str(found[4].error)
    assert [image.sha256 is None for image in found[6].images] == [False, True]
    assert f"{web.url}/gone.png" in str(found[6].error)


def test_a_row_keeps_its_name_whatever_becomes_of_its_url(web: Any, make_png: MakePng, infer: Infer, tmp_path: Path) -> None:
    """Names are given before anything is fetched, and have to differ also where contents do not."""
    cut = make_png(0)[:45]
    urls = [web.serve("/a.png", cut), web.serve("/b.png", cut), f"{web.url}/gone.png", web.image(0), f"{web.url}/a.png"]
    dataset = write(tmp_path / "rows.jsonl", *(row(0, url) for url in urls))
    summary = infer(dataset=dataset, allow_url=(web.url,))
    assert kinds(summary) == ["truncated", "truncated", "image_missing", None, "truncated"]
    names = [one.sample_id for one in rows_of(summary)]
    assert len(set(names)) == 5
    assert names[4] == f"{names[0]}#2"
    assert [one.sample_id for one in rows_of(infer(dataset=dataset, output="refused"))] == names


def test_without_leave_a_url_stays_a_row_and_nothing_is_fetched(web: Any, infer: Infer, tmp_path: Path) -> None:
    summary = infer(dataset=write(tmp_path / "rows.jsonl", row(0, web.image(0)), row(1)))
    assert kinds(summary) == ["url_not_allowed", None]
    assert web.requests == []
    with pytest.raises(ConfigurationError, match=r"--allow-url example\.com is no pattern of URLs"):
        infer(allow_url=("example.com",), output="other")
    assert not (tmp_path / "other").exists()


def test_a_list_may_name_urls_beside_files(web: Any, make_png: MakePng, infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(make_png(0))
    names = ["0.png", web.image(1), web.image(0), f"{web.url}/gone.png", web.image(1)]
    (tmp_path / "list.txt").write_text("\n".join(names))
    summary = infer(images=str(tmp_path / "list.txt"), prompt="What?", allow_url=(web.url,), shard_size=2)
    found = rows_of(summary)
    assert [one.images[0].uri for one in found] == names
    assert kinds(summary) == [None, None, None, "image_missing", None]
    assert found[0].response == found[2].response
    assert found[4].sample_id == f"{found[1].sample_id}#2"
    assert len({one.sample_id for one in found}) == 5
    assert sorted(web.paths) == ["/0.png", "/1.png", "/gone.png"]


def test_addresses_below_a_web_folder_that_is_the_image_root_are_allowed(web: Any, infer: Infer, tmp_path: Path) -> None:
    web.image(0)
    dataset = write(tmp_path / "rows.jsonl", row(0, "0.png"), row(1, "/0.png"), row(2, "../0.png"), row(3, "gone.png"))
    summary = infer(dataset=dataset, image_root=web.url)
    assert kinds(summary) == [None, "path_escape", "path_escape", "image_missing"]
    (tmp_path / "list.txt").write_text("gone.png\n0.png\n")
    summary = infer(images=str(tmp_path / "list.txt"), prompt="What?", image_root=web.url, output="list")
    assert [(one.images[0].uri, one.error_kind) for one in rows_of(summary)] == [("gone.png", "image_missing"), ("0.png", None)]
    assert web.count(f"{web.url}/0.png") == 1


def test_a_dataset_on_the_web_is_read_with_its_images(
    web: Any, infer: Infer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    web.serve("/in/0.png", web.answers[web.image(0).removeprefix(web.url)][0])
    web.serve("/in/rows.jsonl", "".join(json.dumps(row(number, name)) + "\n" for number, name in
              enumerate(("0.png", "gone.png", "../0.png"))).encode())  # fmt: skip
    web.serve("/in/list.txt", b"0.png\ngone.png\n")
    there = web.url.replace("://", f"://ann:{SECRET}@") + "/in"
    summary = infer(dataset=f"{there}/rows.jsonl", contact_sheet=3)
    assert kinds(summary) == [None, "image_missing", "path_escape"]
    assert rows_of(summary)[0].source == f"{web.url}/in/rows.jsonl:1"
    summary = infer(images=f"{there}/list.txt", prompt="What?", contact_sheet=2, output="list")
    assert kinds(summary) == [None, "image_missing"]
    assert files_that_tell(SECRET, tmp_path / "predictions", tmp_path / "list", tmp_path / "cache") == []
    assert SECRET not in "".join(capfd.readouterr())


def messages(url: str) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": parts}]}


def llava(url: str) -> dict[str, Any]:
    return {"id": "a", "image": url, "conversations": [{"from": "human", "value": "<image>\nWhat is it?"}]}


def plain(url: str) -> dict[str, Any]:
    return {"query": "<image>What is it?", "images": [url]}


def csv_of(rows: list[dict[str, Any]]) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows([["query", "images"], *([one["query"], json.dumps(one["images"])] for one in rows)])
    return file.getvalue().encode()


@pytest.mark.parametrize(
    ("name", "make", "write_all"),
    [
        ("a.jsonl.gz", plain, lambda rows: gzip.compress("\n".join(map(json.dumps, rows)).encode())),
        ("a.jsonl.zst", plain, lambda rows: pa.compress("\n".join(map(json.dumps, rows)).encode(), "zstd", asbytes=True)),
        ("a.jsonl", messages, lambda rows: "\n".join(map(json.dumps, rows)).encode()),
        ("a.json", llava, lambda rows: json.dumps(rows).encode()),
        ("a.json.gz", llava, lambda rows: gzip.compress(json.dumps(rows).encode())),
        ("a.csv", plain, csv_of),
        ("a.parquet", plain, None),
    ],
)
def test_datasets_of_every_format_are_answered_without_a_secret(
    name: str, make: Any, write_all: Any, web: Any, infer: Infer, tmp_path: Path
) -> None:
    rows = [make(f"{url}?token={SECRET}") for url in (web.image(0), web.image(1), f"{web.url}/gone.png")]
    if write_all is None:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(write_all(rows))
    summary = infer(dataset=str(tmp_path / name), allow_url=(web.url,))
    assert [one.images[0].uri for one in rows_of(summary)] == [f"{web.url}/{one}.png?token=..." for one in (0, 1, "gone")]
    assert kinds(summary) == [None, None, "image_missing"]
    assert files_that_tell(SECRET, tmp_path / "predictions") == []


def files_that_tell(word: str, *folders: Path) -> list[str]:
    """Files in which a word stands, or the columns of parquet files, which are compressed."""
    found = []
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        text = path.read_bytes()
        if path.suffix == ".parquet":
            text += repr(pq.read_table(path).to_pylist()).encode()
        found += [path.name] if word.encode() in text or word in path.name else []
    return found


@pytest.mark.parametrize("form", ["dataset", "list"])
def test_no_secret_of_a_url_gets_out(
    form: str, web: Any, infer: Infer, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    host = web.url.removeprefix("http://")
    web.image(0)
    ends = f"?size=2&X-Amz-Signature={SECRET}#{SECRET}"
    urls = [f"{scheme}://ann:{SECRET}@{host}/{name}{ends}" for scheme, name in
            (("http", "0.png"), ("http", "gone.png"), ("https", "0.png"), ("ftp", "0.png"), ("file", "0.png"))]  # fmt: skip
    if form == "dataset":
        source = {"dataset": write(tmp_path / "rows.jsonl", *map(row, range(5), urls))}
    else:
        (tmp_path / "list.txt").write_text("\n".join(urls))
        source = {"images": str(tmp_path / "list.txt"), "prompt": "What?"}
    told: list[Progress] = []
    settings = {**source, "allow_url": (web.url,), "shard_size": 2, "contact_sheet": 5, "on_progress": told.append}
    summary = infer(**settings)
    assert kinds(summary) == [None, "image_missing", "url_not_allowed", "url_not_allowed", "url_not_allowed"]
    assert rows_of(summary)[0].images[0].uri == f"{web.url}/0.png?size=2&X-Amz-Signature=..."
    (path,) = set(web.paths) - {path for path in web.paths if "gone" in path}
    assert SECRET in path, "the server is asked for the URL as it was written"
    assert files_that_tell(SECRET, tmp_path / "predictions", tmp_path / "cache") == []
    assert len(list((tmp_path / "predictions").rglob("*.parquet"))) == 4
    with pytest.raises(DatasetError) as caught:
        infer(**settings, max_failures=0, output="other")
    assert SECRET not in f"{caught.value}{told}{caplog.text}{''.join(capfd.readouterr())}"


def test_no_secret_gets_out_of_a_row_that_is_no_record(infer: Infer, tmp_path: Path) -> None:
    url = f"http://ann:{SECRET}@example.com/{'x' * 40}?token={SECRET}"
    bad = [
        {"query": "a", "images": url},
        {"query": "a", "images": {"a": url}},
        {"query": "a", "images": [f"{url}\0"]},
        {"a": [url]},
    ]
    long = {"query": "a", "images": [f"http://ann:{80 * 'x'}{SECRET}@example.com/a.png"], "history": url}
    summary = infer(dataset=write(tmp_path / "rows.jsonl", *bad, long))
    assert None not in kinds(summary)
    assert files_that_tell(SECRET, tmp_path / "predictions") == []


@pytest.mark.parametrize("form", ["dataset", "list"])
def test_to_plan_fetches_nothing_and_a_worker_its_own_shards_alone(form: str, web: Any, infer: Infer, tmp_path: Path) -> None:
    urls = [f"{web.image(number)}?token={SECRET}{number}" for number in range(7)]
    if form == "dataset":
        source = {"dataset": write(tmp_path / "rows.jsonl", *map(row, range(7), urls))}
    else:
        (tmp_path / "list.txt").write_text("\n\n".join(urls))
        source = {"images": str(tmp_path / "list.txt"), "prompt": "What?"}
    settings = {**source, "allow_url": (web.url,), "shard_size": 2}
    infer(**settings, shard_indices=())
    assert web.requests == []
    infer(**settings, shard_indices=(1, 3), resume=True, as_planned=True)
    assert sorted(web.paths) == [f"/{number}.png?token={SECRET}{number}" for number in (2, 3, 6)]
    summary = infer(**settings, resume=True)
    assert (kinds(summary), len(web.paths)) == ([None] * 7, 7)
    assert files_that_tell(SECRET, tmp_path / "predictions") == []


def test_a_list_that_was_changed_since_it_was_planned_is_refused(web: Any, infer: Infer, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(web.image(number) for number in range(3)))
    settings = {"images": str(path), "prompt": "What?", "allow_url": (web.url,), "shard_size": 1}
    infer(**settings, shard_indices=())
    path.write_text("\n".join(f"{web.image(number)}?token={SECRET}" for number in (0, 2)))
    message = rf'list.txt:2: names "{web.url}/2\.png\?token=\.\.\.", and "{web.url}/1\.png" was planned; the list was changed'
    with pytest.raises(DatasetError, match=message):
        infer(**settings, shard_indices=(1,), resume=True, as_planned=True)
    with pytest.raises(OutputError, match=r"data\.digest was"):
        infer(**settings, resume=True)


def test_links_that_are_signed_again_are_the_same_input(web: Any, infer: Infer, tmp_path: Path) -> None:
    def signed(word: str) -> str:
        rows = [row(number, f"{web.image(number)}?X-Amz-Signature={word}") for number in range(4)]
        return write(tmp_path / "rows.jsonl", *rows)

    settings = {"allow_url": (web.url,), "shard_size": 2}
    infer(dataset=signed("one"), shard_indices=(0,), **settings)
    summary = infer(dataset=signed("two"), resume=True, **settings)
    assert sorted(web.paths) == [
        f"/{number}.png?X-Amz-Signature={word}" for number, word in enumerate(("one", "one", "two", "two"))
    ]
    assert infer(dataset=signed("three"), output="other", **settings).content_digest == summary.content_digest


def test_what_may_be_fetched_belongs_to_a_run_and_how_does_not(web: Any, infer: Infer, tmp_path: Path) -> None:
    settings = {"dataset": write(tmp_path / "rows.jsonl", row(0, web.image(0)), row(1, web.image(1))), "shard_size": 1}
    infer(**settings, allow_url=(web.url,), shard_indices=(0,))
    with pytest.raises(OutputError, match=r"data\.allow_url was \[.*\] and is not set"):
        infer(**settings, resume=True)
    with pytest.raises(OutputError, match=r"data\.allow_url was"):
        infer(**settings, resume=True, allow_url=(web.url, "https://"))
    how = {"cache": str(tmp_path / "other"), "fetch": {"connections_per_host": 1, "max_bytes": 10**6}, "refresh_urls": True}
    assert kinds(infer(**settings, resume=True, allow_url=(web.url,), **how)) == [None, None]
    assert sorted(web.paths) == ["/0.png", "/1.png"]


def test_limits_and_refreshing_are_kept(web: Any, infer: Infer, tmp_path: Path) -> None:
    urls = [web.serve(f"/{number}", web.answer(body=web.answers[path][0].body, pause_s=0.05)) for number, path in
            ((n, web.image(n).removeprefix(web.url)) for n in range(6))]  # fmt: skip
    settings = {"dataset": write(tmp_path / "rows.jsonl", *map(row, range(6), urls)), "allow_url": (web.url,)}
    assert kinds(infer(**settings, fetch={"connections_per_host": 2})) == [None] * 6
    assert web.most_open == 2
    summary = infer(**settings, fetch={"max_bytes": 20}, cache=str(tmp_path / "other"), output="small")
    assert kinds(summary) == ["too_many_bytes"] * 6
    num_requests = len(web.requests)
    infer(**settings, refresh_urls=True, output="fresh")
    assert len(web.requests) == num_requests + 6


def test_images_of_coming_rows_are_fetched_while_the_model_answers(web: Any, infer: Infer, tmp_path: Path) -> None:
    dataset = write(tmp_path / "rows.jsonl", *(row(number, web.image(number)) for number in range(200)))
    asked: list[int] = []

    def see(progress: Progress) -> None:
        if progress.stage == "infer" and progress.done == 1:
            deadline = time.monotonic() + 20
            while len(web.requests) < 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            asked.append(len(web.requests))

    infer(dataset=dataset, allow_url=(web.url,), limit=200, max_new_tokens=1, batch_size=1, on_progress=see)
    assert asked == [200]


def test_a_run_that_is_stopped_and_gone_on_with_asks_for_no_url_twice(web: Any, infer: Infer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "dataset": write(tmp_path / "rows.jsonl", *(row(number, web.image(number)) for number in range(12))),
        "allow_url": (web.url,), "shard_size": 3, "batch_size": 2,
    }  # fmt: skip
    whole = infer(**settings, output="whole", cache=str(tmp_path / "other"))

    def stop(progress: Progress) -> None:
        if progress.stage == "infer" and progress.done == 5:
            while len(web.requests) < 24:
                time.sleep(0.01)
            raise StoppedError

    with pytest.raises(StoppedError):
        infer(**settings, on_progress=stop)
    assert len(list_parts(str(tmp_path / "predictions"))) == 1
    assert infer(**settings, resume=True).content_digest == whole.content_digest
    assert len(web.requests) <= 24 + 1  # the answer to the last one may have come too late


@pytest.mark.slow
@pytest.mark.parametrize("num_fetched", [1, 10])
def test_what_a_killed_run_has_fetched_is_not_asked_for_again(
    num_fetched: int, web: Any, make_png: MakePng, merged: str, tmp_path: Path
) -> None:
    urls = [web.serve(f"/{number}", web.answer(body=make_png(number), pause_s=0.03)) for number in range(40)]
    config = ShardedInferenceConfig(
        model=merged, dataset=write(tmp_path / "rows.jsonl", *map(row, range(40), urls)), output=str(tmp_path / "p"),
        allow_url=(web.url,), fetch={"connections_per_host": 2}, shard_size=10, max_new_tokens=4, resume=True, device="cpu",
    )  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("forked_runs.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for _ in range(2):
            server.stdin.write(config.model_dump_json() + "\n")
        server.stdin.flush()
        group = int(server.stdout.readline())
        while len(entries := list((tmp_path / "cache" / "urls").rglob("*.json"))) < num_fetched:
            time.sleep(0.005)
        os.killpg(group, signal.SIGKILL)
        assert int(server.stdout.readline()) == -signal.SIGKILL
        fetched = {json.loads(entry.read_bytes())["url"] for entry in entries}
        server.stdout.readline()
        assert int(server.stdout.readline()) == 0
        server.stdin.close()
    assert num_fetched <= len(fetched) < 40
    assert {web.count(url) for url in fetched} == {1}
    assert max(web.count(url) for url in urls) <= 2
    assert [prediction.error_kind for prediction in read_predictions(config.output)] == [None] * 40


def test_an_image_that_stands_in_the_dataset_is_answered_as_a_file(make_png: MakePng, infer: Infer, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(make_png(0))
    uri = "data:image/png;base64," + base64.b64encode(make_png(0)).decode()
    dataset = write(tmp_path / "rows.jsonl", row(0, uri), row(0, "0.png"), row(1, uri[:-9] + "*"))
    summary = infer(dataset=dataset, contact_sheet=3)
    held, file, broken = rows_of(summary)
    assert (held.response, held.images[0].sha256) == (file.response, file.images[0].sha256)
    assert held.images[0].uri == f"data:image/png;sha256={held.images[0].sha256}"
    assert file.sample_id == f"{held.sample_id}#2"
    assert broken.error_kind == "corrupt"
    infer(dataset=dataset, limit=1, output="one")
    assert files_that_tell(uri[22:60], tmp_path / "one") == []


def test_a_validated_dataset_is_answered_from_any_cache_that_has_its_images(web: Any, infer: Infer, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *(row(number, web.image(number), response="a") for number in range(2)))
    config = ValidationConfig(dataset=(rows,), output=str(tmp_path / "validated"), allow_url=(web.url,))
    assert validate_dataset(config).num_records == 2
    before = infer(dataset=config.output)
    (tmp_path / "cache").rename(tmp_path / "moved")
    after = infer(dataset=config.output, cache=str(tmp_path / "moved"), output="after", contact_sheet=2)
    assert after.content_digest == before.content_digest
    assert (tmp_path / "after" / "contact-sheet.html").read_text().count("data:image/png;base64") == 2
    lost = infer(dataset=config.output, output="lost")
    assert kinds(lost) == ["image_missing"] * 2
    assert f"nor in the cache ({tmp_path / 'cache'}); validate the dataset again" in str(rows_of(lost)[0].error)
    assert len(web.paths) == 2


# Rows ahead of the model


class GivenFetcher:
    """Stands for a `UrlFetcher`: the test says what comes, and when."""

    def __init__(self) -> None:
        self.futures: dict[str, Future[CachedImage]] = {}

    def submit(self, url: str) -> "Future[CachedImage]":
        return self.futures.setdefault(url, Future())


def planned(number: int, *addresses: str) -> PlannedRow:
    images = tuple(ImageReference(uri=address, address=address, root=Path("/here")) for address in addresses)
    found = InputRow(source=Source(file="f", line=number), images=images)
    return PlannedRow(record_index=number, occurrence=1, was_found=True, row=found, images=images)


def test_rows_come_in_order_and_only_some_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.inference.fetching_rows._NUM_ROWS_AHEAD", 3)
    fetcher: Any = GivenFetcher()
    rows = [planned(number, "a.png", f"http://h/{number}") for number in range(6)]
    for number in range(6):
        future: Future[CachedImage] = Future()
        future.set_result(CachedImage(path=Path(f"/cache/{number}"), sha256=f"{number}", num_bytes=1, url=None))
        fetcher.futures[f"http://h/{number}"] = future
    taken: list[int] = []
    found = fetch_rows((taken.append(one.record_index) or one for one in rows), fetcher)  # type: ignore[func-returns-value]
    first = next(found)
    assert taken == [0, 1, 2]
    assert first.row == rows[0].row
    here = ImageReference(uri="http://h/0", address="/cache/0", root=Path("/cache"), sha256="0")
    assert first.images == (rows[0].images[0], here)
    assert [one.record_index for one in found] == [1, 2, 3, 4, 5]
    assert fetch_rows(rows, None).__next__() is rows[0]


def test_a_failure_is_of_its_image_and_one_of_the_disk_is_raised() -> None:
    fetcher: Any = GivenFetcher()
    failure = ImageError("fetch_failed", "it is gone", "bring it back")
    fetcher.submit("http://h/a").set_exception(failure)
    fetcher.submit("http://h/b").set_exception(StorageError("the disk is full"))
    (found,) = fetch_rows([planned(0, "http://h/a")], fetcher)
    assert found.images == (failure,)
    with pytest.raises(StorageError, match="the disk is full"):
        list(fetch_rows([planned(0, "http://h/b")], fetcher))


def test_settings_of_urls_are_those_of_a_validation() -> None:
    names = {"allow_url", "cache", "offline", "refresh_urls", "fetch"}
    for name in names:
        assert InferenceConfig.model_fields[name].description == ValidationConfig.model_fields[name].description
