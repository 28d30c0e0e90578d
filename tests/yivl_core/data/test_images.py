import dataclasses
import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageReference, ImageStore
from yivl_core.errors import StorageError


def reference(root: Path, address: str, sha256: str | None = None) -> ImageReference:
    return ImageReference(uri=address, address=address, root=root, sha256=sha256)


def refused(root: Path, address: str) -> ImageError:
    with pytest.raises(ImageError) as caught:
        ImageStore().load(reference(root, address))
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with one image, and an image and a text file outside it."""
    folder = tmp_path / "root"
    (folder / "sub").mkdir(parents=True)
    Image.new("L", (12, 9)).save(folder / "a.png")
    Image.new("L", (12, 9)).save(tmp_path / "outside.png")
    (tmp_path / "secret").write_text("secret")
    return folder


def test_a_loaded_image_tells_where_and_what_it_is(root: Path) -> None:
    loaded = ImageStore().load(reference(root, "a.png"))
    data = (root / "a.png").read_bytes()
    assert (loaded.info.uri, loaded.info.path) == ("a.png", str(root / "a.png"))
    assert loaded.info.sha256 == hashlib.sha256(data).hexdigest()
    assert (loaded.info.width, loaded.info.height, loaded.info.mode, loaded.info.num_bytes) == (12, 9, "L", len(data))
    assert (loaded.image.mode, loaded.image.size, loaded.warnings) == ("RGB", (12, 9), ())


def test_an_image_that_grows_after_its_size_was_asked_for_is_read_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (root / "a.png").read_bytes()
    monkeypatch.setattr("yivl_core.data.images.os.fstat", lambda _: SimpleNamespace(st_size=len(data) - 1, st_mtime_ns=0))
    info = ImageStore().load(reference(root, "a.png")).info
    assert (info.sha256, info.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))


def test_paths_below_the_root_are_found_absolute_ones_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = root / "a.png"
    monkeypatch.chdir(root.parent)
    for image in (
        reference(root, "a.png"),
        reference(root, "./a.png"),
        reference(root, str(expected)),
        reference(Path("root"), "a.png"),
        reference(Path(), "root/a.png"),
    ):
        assert ImageStore().resolve(image) == expected


def test_symbolic_links_are_followed_as_long_as_they_stay_inside(root: Path) -> None:
    (root / "link.png").symlink_to("a.png")
    (root / "alias").symlink_to(root / "sub", target_is_directory=True)
    Image.new("L", (12, 9)).save(root / "sub" / "b.png")
    assert ImageStore().resolve(reference(root, "link.png")) == root / "a.png"
    assert ImageStore().resolve(reference(root, "alias/b.png")) == root / "sub" / "b.png"
    linked_root = root.parent / "linked"
    linked_root.symlink_to(root, target_is_directory=True)
    assert ImageStore().resolve(reference(linked_root, "a.png")) == root / "a.png"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("../outside.png", "holds .."),
        ("sub/../a.png", "holds .."),
        ("sub/../../outside.png", "holds .."),
        ("/etc/passwd", "leads out of"),
        ("/nowhere/at/all.png", "leads out of"),
        ("~/a.png", "starts in a home folder"),
        ("~root/a.png", "starts in a home folder"),
        ("~", "starts in a home folder"),
        ("C:/a.png", "starts with a drive letter"),
        ("..\\outside.png", "holds a backslash"),
        ("\\\\host\\share\\a.png", "holds a backslash"),
        ("escape.png", "leads out of"),
        ("escape/outside.png", "leads out of"),
        ("escape/nothing-there.png", "leads out of"),
    ],
)
def test_what_leads_out_is_refused_before_anything_is_opened(
    root: Path, address: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "escape.png").symlink_to(root.parent / "outside.png")
    (root / "escape").symlink_to(root.parent, target_is_directory=True)

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was opened")

    monkeypatch.setattr(Path, "open", forbidden)
    error = refused(root, address)
    assert error.kind == "path_escape"
    assert error.message.startswith(f"image {json.dumps(address)} {reason}")
    assert error.remedy in ("give a path below the image root, relative to it", "write / between folders")


def test_an_absolute_path_outside_is_refused_although_the_file_is_there(root: Path) -> None:
    assert refused(root, str(root.parent / "outside.png")).kind == "path_escape"
    assert refused(root, f"{root}-sibling/a.png").kind == "path_escape"


@pytest.mark.parametrize(
    "address",
    [
        "http://images.invalid/a.png",
        "HTTPS://x/a.png",
        "ftp://x/a.png",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "s3://b/a.png",
    ],
)
def test_urls_are_refused(root: Path, address: str) -> None:
    error = refused(root, address)
    assert error.kind == "url_not_allowed"
    remedy = "allow it (allow_url), or fetch it" if address.lower().startswith(("http", "s3")) else "fetch the image"
    assert str(error).endswith(f"is a URL, and none are allowed; {remedy} and give the path of the file")


def test_a_data_uri_that_is_none_is_damaged(root: Path) -> None:
    assert refused(root, "data:image/png;base64").kind == "corrupt"


@pytest.mark.parametrize(
    ("address", "kind", "message"),
    [
        ("nope.png", "image_missing", 'image "nope.png" is not there (No such file or directory: '),
        ("a.png/b.png", "image_missing", "Not a directory"),
        ("loop.png", "image_missing", "Too many levels of symbolic links"),
        ("x" * 300 + ".png", "image_missing", "File name too long"),
        ("", "image_missing", "an image address is empty; give the address, or null"),
        ("sub", "not_a_file", 'image "sub" is a folder, not a file'),
        (".", "not_a_file", 'image "." is a folder, not a file'),
        ("pipe.png", "not_a_file", 'image "pipe.png" is a pipe, not a file'),
        ("empty.png", "empty", 'image "empty.png" has no content; replace the file'),
        ("text.png", "not_an_image", 'image "text.png": the file is not an image'),
        ("a.png\x00.txt", "control_char", 'image address "a.png\\u0000.txt" holds a NUL character'),
        ("\ud800.png", "bad_unicode", "image address '\\ud800.png' is not UTF-8; rename the file or folder"),
    ],
)
def test_what_is_no_image_file_has_its_kind(root: Path, address: str, kind: str, message: str) -> None:
    (root / "loop.png").symlink_to("loop.png")
    (root / "empty.png").touch()
    (root / "text.png").write_text("text")
    os.mkfifo(root / "pipe.png")
    error = refused(root, address)
    assert error.kind == kind
    assert message in str(error)


def test_a_folder_whose_name_is_not_utf8_is_an_error_of_its_own(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    Image.new("L", (12, 9)).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", folder / "a.png")
    assert refused(folder, "a.png").kind == "bad_unicode"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error_of_its_own(root: Path) -> None:
    (root / "a.png").chmod(0)
    assert refused(root, "a.png").kind == "permission_denied"


def test_a_root_that_is_turned_while_it_is_read_lets_nothing_else_in(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        Image.new("L", (12, 9)).save(tmp_path / name / "a.png")
    link = tmp_path / "link"
    link.symlink_to("first")
    store = ImageStore()
    assert store.load(reference(link, "a.png")).info.path == str(tmp_path / "first/a.png")
    link.unlink()
    link.symlink_to("second")
    with pytest.raises(ImageError, match=r"a\.png\" leads out of .*first"):
        store.load(reference(link, "a.png"))
    assert ImageStore().load(reference(link, "a.png")).info.path == str(tmp_path / "second/a.png")


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path: Path) -> None:
    for name in ("scans", "scans2"):
        (tmp_path / name).mkdir()
        Image.new("L", (12, 9)).save(tmp_path / name / "a.png")
    assert refused(tmp_path / "scans", str(tmp_path / "scans2/a.png")).kind == "path_escape"
    assert ImageStore().resolve(reference(Path("/"), str(tmp_path / "scans2/a.png"))) == tmp_path / "scans2/a.png"


@pytest.mark.parametrize("num_bytes", [0, 1])
def test_small_files_and_large_ones_are_read_alike(root: Path, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    expected = ImageStore().load(reference(root, "a.png"))
    monkeypatch.setattr("yivl_core.data.images._MAX_BYTES_IN_MEMORY", expected.info.num_bytes + num_bytes)
    loaded = ImageStore().load(reference(root, "a.png"))
    assert (loaded.info, loaded.image.tobytes()) == (expected.info, expected.image.tobytes())
    assert loaded.info.sha256 == hashlib.sha256((root / "a.png").read_bytes()).hexdigest()


def test_a_failing_disk_is_no_fault_of_the_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("yivl_core.data.images.hashlib.file_digest", fail)
    with pytest.raises(StorageError, match=r"a\.png: Input/output error"):
        ImageStore().load(reference(root, "a.png"))


def test_an_image_is_found_again_from_anywhere_but_only_with_the_content_that_was_seen(root: Path) -> None:
    seen = ImageStore().load(reference(root, "a.png")).info
    again = ImageStore().load(seen.reference)
    assert again.info == seen
    moved = root.rename(root.parent / "moved")
    with pytest.raises(ImageError, match=r'image "a\.png" is not there'):
        ImageStore().load(seen.reference)
    assert ImageStore().load(seen.reference_under(moved)).info == dataclasses.replace(seen, path=str(moved / "a.png"))
    Image.new("L", (12, 9), "white").save(moved / "a.png")
    with pytest.raises(
        ImageError, match=r"is not the image that was validated: its sha256 is .*; bring the image back"
    ) as caught:
        ImageStore().load(seen.reference_under(moved))
    assert caught.value.kind == "image_changed"


def test_a_digest_is_no_key_to_a_file_that_one_does_not_know(root: Path) -> None:
    secret = root.parent / "secret"
    guess = ImageReference(uri="a.png", address=str(secret), root=secret.parent, sha256="0" * 64)
    with pytest.raises(ImageError) as caught:
        ImageStore().load(guess)
    assert caught.value.kind == "image_changed"


@pytest.mark.parametrize(
    ("name", "save_as", "size", "warnings"),
    [
        ("a.jpg", "PNG", (12, 9), ("extension_mismatch",)),
        ("a.JPEG", "JPEG", (12, 9), ()),
        ("a.jpg", "MPO", (12, 9), ()),
        ("a.data", "PNG", (12, 9), ()),
        ("a.svg", "PNG", (12, 9), ()),
        ("b.png", "PNG", (7, 100), ("tiny",)),
        ("b.png", "PNG", (8, 8), ()),
        ("b.png", "JPEG", (1, 1), ("extension_mismatch", "tiny")),
    ],
)
def test_warnings_name_what_a_person_may_want_to_know(
    tmp_path: Path, name: str, save_as: str, size: tuple[int, int], warnings: tuple[str, ...]
) -> None:
    Image.new("RGB", size).save(tmp_path / name, save_as)
    assert ImageStore().load(reference(tmp_path, name)).warnings == warnings
    assert set(warnings) <= set(IMAGE_WARNINGS)


def test_the_stores_pixel_limit_is_the_one_that_holds(root: Path) -> None:
    with pytest.raises(ImageError, match=r'image "a\.png": 12 x 9 pixels are more than 107'):
        ImageStore(max_pixels=107).load(reference(root, "a.png"))
    assert ImageStore(max_pixels=108).load(reference(root, "a.png")).image.size == (12, 9)
