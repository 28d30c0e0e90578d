"""What a second validation does again, and what it recognises."""

import base64
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFile

from yivl_core.data import images
from yivl_core.data.cache import verdicts
from yivl_core.data.cache.cache_configuration import CacheConfig, PruneConfig
from yivl_core.data.cache.cache_upkeep import prune_cache, show_cache
from yivl_core.data.configuration import UNDECIDING, ValidationConfig
from yivl_core.data.dataset import ValidatedDataset
from yivl_core.data.validation import validate_dataset

Validate = Callable[..., Any]
WriteRows = Callable[..., Path]
MakeImage = Callable[..., Path]


class Counted:
    """Counts how often an image is inspected."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.num = 0
        inspect = images.inspect_image

        def counted(*arguments: Any) -> Any:
            self.num += 1
            return inspect(*arguments)

        monkeypatch.setattr(images, "inspect_image", counted)

    def since(self) -> int:
        """How often since it was asked last."""
        num, self.num = self.num, 0
        return num


@pytest.fixture
def inspected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counted:
    monkeypatch.setenv("YIVL_CACHE", str(tmp_path / "cache"))
    return Counted(monkeypatch)


@pytest.fixture
def dataset(make_image: MakeImage, write_rows: WriteRows) -> Path:
    for number in range(10):
        make_image(f"{number}.png", size=(10 + number, 9))
    (make_image("cut.png").parent / "text.png").write_text("no image")
    return write_rows(*rows())


def rows() -> list[dict[str, Any]]:
    named = [{"query": f"{number}", "response": "1", "images": [f"{number % 10}.png"]} for number in range(30)]
    return [
        *named,
        {"query": "x", "response": "1", "images": ["text.png"]},
        {"query": "y", "response": "1", "images": ["no.png"]},
    ]


def test_unchanged_input_is_recognised_and_nothing_is_looked_at(dataset: Path, validate: Validate, inspected: Counted) -> None:
    first = validate(dataset)
    assert inspected.since() >= 11
    before = {path.name: path.stat() for path in first.folder.iterdir()}
    again = validate(dataset, num_workers=0)
    assert (again.summary.was_there, first.summary.was_there) == (True, False)
    assert {path.name: path.stat() for path in first.folder.iterdir()} == before
    assert inspected.since() == 0
    assert (again.summary.digest, again.summary.num_errors) == (first.summary.digest, first.summary.num_errors)
    assert again.summary.findings_by_kind == first.summary.findings_by_kind == {"image_missing": 1, "image_unreadable": 1}


def test_a_changed_line_has_its_own_images_looked_at_and_no_others(
    dataset: Path, make_image: MakeImage, write_rows: WriteRows, validate: Validate, inspected: Counted
) -> None:
    validate(dataset)
    inspected.since()
    make_image("new.png", size=(77, 9))
    changed = rows()
    changed[7]["images"] = ["new.png"]
    result = validate(write_rows(*changed))
    assert not result.summary.was_there
    assert result.summary.num_images == 11
    assert inspected.since() == 1


@pytest.mark.parametrize("change", ["image", "missing image comes", "result", "settings", "image goes", "time", "dataset apart"])
def test_whatever_decides_a_result_has_it_made_anew(
    change: str, dataset: Path, make_image: MakeImage, write_rows: WriteRows, validate: Validate, inspected: Counted
) -> None:
    settings: dict[str, Any] = {}
    if change == "dataset apart":
        settings["apart_from"] = (str(validate(write_rows({"query": "a", "response": "b"}, name="v.jsonl"), output="v").folder),)
    first = validate(dataset, **settings)
    assert validate(dataset, **settings).summary.was_there
    if change == "image":
        make_image("3.png", "blue", size=(13, 9))
    elif change == "missing image comes":
        make_image("no.png")
    elif change == "image goes":
        (dataset.parent / "3.png").unlink()
    elif change == "result":
        (first.folder / "records.jsonl").write_text("")
    elif change == "settings":
        settings["policy"] = ("duplicate_record=quarantine",)
    elif change == "dataset apart":
        validate(write_rows({"query": "1", "response": "b"}, name="v.jsonl"), output="v")
    elif change == "time":  # of an image that kept its size and its time of change
        path = dataset.parent / "3.png"
        status = path.stat()
        data = bytearray(path.read_bytes())
        data[45] ^= 255
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = validate(dataset, **settings)
    assert not again.summary.was_there
    assert (again.folder / "records.jsonl").stat().st_size > 0
    if change in ("image", "missing image comes", "image goes", "time"):
        assert again.summary.digest != first.summary.digest


def test_a_damaged_note_of_the_inputs_has_the_result_made_anew(dataset: Path, validate: Validate) -> None:
    first = validate(dataset)
    (first.folder / "inputs.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert validate(dataset).summary.digest == first.summary.digest
    (first.folder / "inputs.parquet").unlink()
    assert not validate(dataset).summary.was_there


def test_what_is_no_matter_for_a_result_is_a_setting_that_there_is() -> None:
    assert set(ValidationConfig.model_fields) >= UNDECIDING


def test_an_image_that_leads_out_of_its_root_by_now_is_refused_although_it_was_good(
    dataset: Path, make_image: MakeImage, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    """Also where the file itself, which the link leads to now, is the very one that was looked at."""
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.move(dataset.parent / "3.png", root / "3.png")
    path = root / "data.jsonl"
    path.write_text(json.dumps({"query": "a", "response": "b", "images": ["3.png"]}) + "\n")
    assert validate(path).summary.num_records == 1
    shutil.move(root / "3.png", outside / "3.png")
    (root / "3.png").symlink_to(outside / "3.png")
    assert validate(path).findings == [(1, "path_escape", "error")]


def test_a_memory_that_cannot_be_used_is_done_without_or_made_anew(
    dataset: Path, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/verdicts.sqlite").write_bytes(b"this is no database, and is long enough to be taken for one" * 20)
    expected = validate(dataset).summary.digest
    inspected.since()
    assert validate(dataset, output="again").summary.digest == expected
    assert inspected.since() == 0  # the file was made anew
    data = bytearray((tmp_path / "cache/verdicts.sqlite").read_bytes())
    data[100:] = b"\x55" * (len(data) - 100)
    (tmp_path / "cache/verdicts.sqlite").write_bytes(data)
    assert validate(dataset, output="damaged").summary.digest == expected
    (tmp_path / "cache/verdicts.sqlite").unlink(missing_ok=True)
    (tmp_path / "cache/verdicts.sqlite").mkdir()
    inspected.since()
    assert validate(dataset, output="without").summary.digest == expected
    assert inspected.since() >= 11


def test_other_code_remembers_nothing(
    dataset: Path, validate: Validate, inspected: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate(dataset)
    inspected.since()
    validate(dataset, output="again")
    assert inspected.since() == 0
    monkeypatch.setattr(verdicts, "_rules", lambda: "other rules")
    validate(dataset, output="other")
    assert inspected.since() >= 11
    validate(dataset, output="header", image_depth="header")
    assert inspected.since() >= 11


def test_an_image_is_told_under_the_name_that_its_record_gives_it(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate, inspected: Counted
) -> None:
    make_image("a/tiny.png", size=(3, 3))
    first = validate(write_rows({"query": "a", "response": "b", "images": ["a/tiny.png"]}))
    again = validate(write_rows({"query": "a", "response": "b", "images": ["a/../a/tiny.png".replace("a/../", "")]}), output="x")
    below = validate(
        write_rows({"query": "a", "response": "b", "images": ["tiny.png"]}), image_root=str(first.folder.parent / "a"), output="y"
    )
    assert [one["message"].split(":")[0] for result in (first, again, below) for one in result.warnings] == [
        'image "a/tiny.png"',
        'image "a/tiny.png"',
        'image "tiny.png"',
    ]


@pytest.mark.slow
def test_a_validation_that_was_killed_goes_on_with_what_it_had_found_out(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    """Its children do, too, since they end with it."""
    num_images = 1500
    for number in range(num_images):
        make_image(f"{number}.png", size=(8 + number % 50, 8 + number // 50))
    path = write_rows(*({"query": f"{number}", "response": "1", "images": [f"{number}.png"]} for number in range(num_images)))
    settings = {"dataset": [str(path)], "output": str(tmp_path / "validated"), "num_workers": 2}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    code = "from yivl_core.data.checks import row_workers; row_workers._NUM_IMAGES_FOR_WORKERS = 100\n"
    code += "import sys; from yivl_core.__main__ import main; sys.argv[1:] = ['validate', sys.argv[1]]; sys.exit(main())"
    command = [sys.executable, "-c", code, str(tmp_path / "settings.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line)["done"] >= 700:
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "validated").exists()
    result = validate(path, num_workers=0)
    assert 0 < inspected.since() <= num_images - 600
    assert result.summary.num_records == num_images
    assert not list(tmp_path.glob(".validated.*"))
    undisturbed = validate(path, num_workers=0, cache=str(tmp_path / "other"), output="undisturbed")
    assert undisturbed.summary.digest == result.summary.digest
    assert inspected.since() >= num_images


def test_what_is_remembered_is_counted_and_forgotten_when_it_is_old(
    dataset: Path, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    validate(dataset)
    cache = str(tmp_path / "cache")
    num = show_cache(CacheConfig(cache=cache)).num_verdicts
    assert num == 11  # a missing file has none
    assert prune_cache(PruneConfig(cache=cache, unused_days=1)).num_forgotten == 0
    assert prune_cache(PruneConfig(cache=cache)).num_forgotten == 0
    inspected.since()
    assert prune_cache(PruneConfig(cache=cache, unused_days=0)).num_forgotten == num
    assert show_cache(CacheConfig(cache=cache)).num_verdicts == 0
    validate(dataset, output="again")
    assert inspected.since() >= 11


@pytest.mark.parametrize("name", ["report.md", "images.jpg"])
def test_a_file_for_people_that_was_removed_is_there_again(name: str, dataset: Path, validate: Validate) -> None:
    first = validate(dataset)
    (first.folder / name).unlink()
    assert not validate(dataset).summary.was_there
    assert (first.folder / name).is_file()


def test_an_image_of_the_dataset_itself_that_the_cache_has_lost_is_kept_again(
    make_image: MakeImage, write_rows: WriteRows, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    address = "data:image/png;base64," + base64.b64encode(make_image("a.png").read_bytes()).decode()
    path = write_rows({"query": "a", "response": "b", "images": [address]})
    validate(path)
    assert validate(path).summary.was_there
    shutil.rmtree(tmp_path / "cache")
    again = validate(path)
    assert not again.summary.was_there
    assert [Path(image["path"]).is_file() for image in again.records[0]["validated"]["images"]] == [True]


@pytest.mark.parametrize("link", ["folder", "root"])
def test_an_image_whose_folder_is_a_link_out_of_the_root_by_now_is_refused_although_no_file_has_changed(
    link: str, make_image: MakeImage, write_rows: WriteRows, validate: Validate, tmp_path: Path
) -> None:
    """Moving a folder changes no file in it."""
    real_root = tmp_path / ("root" if link == "folder" else "first")
    make_image(f"{real_root.name}/sub/a.png")
    if link == "root":
        (tmp_path / "root").symlink_to(real_root)
    path = write_rows({"query": "a", "response": "b", "images": ["sub/a.png"]})
    assert validate(path, image_root=str(tmp_path / "root")).findings == []
    if link == "folder":
        (real_root / "sub").rename(tmp_path / "outside")
        (real_root / "sub").symlink_to(tmp_path / "outside")
    else:
        (tmp_path / "second").mkdir()
        (tmp_path / "second/sub").symlink_to(real_root / "sub")
        (tmp_path / "root").unlink()
        (tmp_path / "root").symlink_to(tmp_path / "second")
    assert validate(path, image_root=str(tmp_path / "root")).findings == [(1, "path_escape", "error")]


def test_a_dataset_that_was_moved_with_its_result_has_its_images_found_where_they_are_now(
    make_image: MakeImage, write_rows: WriteRows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    make_image("old/a.png")
    write_rows({"query": "a", "response": "b", "images": ["a.png"]}, name="old/data.jsonl")
    config = ValidationConfig(dataset=("data.jsonl",), output="validated")
    monkeypatch.chdir(tmp_path / "old")
    validate_dataset(config)
    assert validate_dataset(config).was_there
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").rename(tmp_path / "new")
    monkeypatch.chdir(tmp_path / "new")
    assert not validate_dataset(config).was_there
    (record,) = ValidatedDataset.open("validated")
    assert record.images[0].path == str(tmp_path / "new/a.png")


def test_a_file_on_a_web_server_that_tells_nothing_of_its_changes_is_read(web: Any, validate: Validate) -> None:
    def answer(response: str) -> None:
        web.serve("/data.jsonl", json.dumps({"query": "a", "response": response}).encode())

    answer("b")
    validate(web.url + "/data.jsonl")
    assert validate(web.url + "/data.jsonl").summary.was_there
    answer("c")  # as long as before
    assert [record["response"] for record in validate(web.url + "/data.jsonl").records] == ["c"]


@pytest.mark.parametrize("failure", [MemoryError(), PermissionError(13, "Permission denied")])
def test_what_is_wrong_only_with_this_process_or_user_is_not_remembered(
    failure: Exception, dataset: Path, validate: Validate, inspected: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        if isinstance(failure, MemoryError):
            patched.setattr(Image.Image, "load", lambda *_: raised(failure))
            patched.setattr(ImageFile.ImageFile, "load", lambda *_: raised(failure))
        else:
            patched.setattr(images, "open", lambda *_: raised(failure), raising=False)
        failed = validate(dataset)
        assert failed.summary.num_records == 0
        assert not validate(dataset).summary.was_there
    again = validate(dataset)
    assert not again.summary.was_there
    assert again.summary.num_records == 30


def test_no_secret_of_a_url_that_may_not_be_fetched_is_noted(
    write_rows: WriteRows, validate: Validate, inspected: Counted, tmp_path: Path
) -> None:
    result = validate(write_rows({"query": "a", "response": "b", "images": ["https://ann:pw5f@host/a.png?token=77ab"]}))
    assert result.findings == [(1, "url_not_allowed", "error")]
    for path in [*result.folder.iterdir(), *(tmp_path / "cache").rglob("*")]:
        assert not any(secret in path.read_bytes() for secret in (b"pw5f", b"77ab")), path
    assert validate(tmp_path / "data.jsonl").summary.was_there


def raised(failure: Exception) -> None:
    raise failure


def test_what_an_earlier_version_remembered_is_forgotten_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / verdicts.VERDICTS_NAME
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, state TEXT, verdict TEXT) WITHOUT ROWID")
    with closing(verdicts.Verdicts(path, "full")) as first, closing(verdicts.Verdicts(path, "full")) as second:
        for number, one in enumerate((first, second)):
            one.verdict(f"/{number}.png", f"{number}.png", verdicts.file_state("/gone.png"), lambda: (None, ()))
            one.flush()
    assert verdicts.count_verdicts(path) == 2


def test_a_write_that_fails_gives_its_lock_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdicts, "_WAIT_S", 0.1)
    path = tmp_path / verdicts.VERDICTS_NAME
    with closing(verdicts.Verdicts(path, "full")) as first, closing(verdicts.Verdicts(path, "full")) as second:
        with closing(sqlite3.connect(path)) as database:
            database.execute("CREATE TRIGGER refusal BEFORE INSERT ON verdicts BEGIN SELECT RAISE(FAIL, 'no'); END")
        first.verdict("/a.png", "a.png", verdicts.file_state("/gone.png"), lambda: (None, ()))
        first.flush()
        with closing(sqlite3.connect(path, timeout=0.1)) as database:
            database.execute("DROP TRIGGER refusal")
        second.verdict("/b.png", "b.png", verdicts.file_state("/gone.png"), lambda: (None, ()))
        second.flush()
    assert verdicts.count_verdicts(path) == 1
