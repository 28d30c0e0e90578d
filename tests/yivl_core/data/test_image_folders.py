import os
import shutil
import subprocess
from pathlib import Path

import pytest

from yivl_core.data.image_folders import find_files
from yivl_core.data.images import EXTENSIONS, Folder
from yivl_core.errors import ConfigurationError, DatasetError, StorageError
from yivl_core.progress import Progress


def find_images(pattern: str) -> tuple[Folder, list[str]]:
    listing = find_files(pattern, frozenset(EXTENSIONS))
    return listing.root, [file.name for file in listing.files]


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_a_folder_is_searched_through_and_sorted_the_same_everywhere(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "B.PNG", "a/z.jpg", "a/b/c.tiff", "a.webp", "é.png", "z.svg", "notes.txt", "Thumbs.db", "x", "png")
    root, names = find_images(str(tmp_path))
    assert root == tmp_path
    assert names == ["B.PNG", "a.webp", "a/b/c.tiff", "a/z.jpg", "b.png", "z.svg", "é.png"]


def test_a_long_listing_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yivl_core.data.image_folders._ROWS_PER_INSERT", 3)
    fill(tmp_path, *(f"{number}.png" for number in range(8)))
    seen: list[Progress] = []
    find_files(str(tmp_path), frozenset({".png"}), seen.append)
    assert [(event.stage, event.done, event.unit) for event in seen] == [("list", 3, "file"), ("list", 6, "file")]


def test_dot_files_and_dot_folders_are_left_out_but_the_folder_itself_may_be_one(tmp_path: Path) -> None:
    folder = fill(tmp_path / ".cache", "a.png", ".b.png", ".git/c.png", "sub/.d.png")
    assert find_images(str(folder))[1] == ["a.png"]
    assert find_images(str(folder / "**" / "*.png"))[1] == ["a.png"]


def test_symbolic_links_to_folders_are_not_followed_and_links_to_files_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, "a.png", "sub/b.png")
    (tmp_path / "loop").symlink_to(".", target_is_directory=True)
    (tmp_path / "sub" / "up").symlink_to("..", target_is_directory=True)
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "self.png").symlink_to("self.png")
    expected = ["a.png", "link.png", "self.png", "sub/b.png"]
    assert find_images(str(tmp_path))[1] == expected
    assert find_images(f"{tmp_path}/**/*.png")[1] == expected


def test_pipes_and_strange_names_are_listed_and_nothing_is_opened(tmp_path: Path) -> None:
    fill(tmp_path, "new\nline.png", "caf\u00e9.png", "cafe\u0301.png", "-dash.png", "a?*[b].png")
    os.mkfifo(tmp_path / "pipe.png")
    raw_name = os.fsdecode(b"\xff\xfe.png")
    (tmp_path / raw_name).write_text("x")
    names = find_images(str(tmp_path))[1]
    assert names == ["-dash.png", "a?*[b].png", "cafe\u0301.png", "caf\u00e9.png", "new\nline.png", "pipe.png", raw_name]


def test_of_the_awkward_files_only_those_to_ignore_are_left_out(shared_data: Path) -> None:
    folder = shared_data / "data/awkward/files"
    everything = {path.name for path in folder.iterdir()}
    assert everything - set(find_images(str(folder))[1]) == {".hidden.png", "Thumbs.db"}


def test_a_pattern_gives_what_it_matches_relative_to_the_folder_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "2024/a.png", "2024/b.jpg", "2025/a.png", "2025/deep/a.png", "2025/a.txt")
    assert find_images(f"{tmp_path}/*/a.png") == (tmp_path, ["2024/a.png", "2025/a.png"])
    assert find_images(f"{tmp_path}/2025/**/a.*") == (tmp_path / "2025", ["a.png", "deep/a.png"])
    monkeypatch.chdir(tmp_path)
    assert find_images("202[4]/*") == (Path(), ["2024/a.png", "2024/b.jpg"])


def test_a_folder_or_file_with_magic_characters_in_its_name_is_taken_by_its_name(tmp_path: Path) -> None:
    fill(tmp_path, "[2024]/a.png", "2/b.png", "one[1].bin")
    assert find_images(str(tmp_path / "[2024]")) == (tmp_path / "[2024]", ["a.png"])
    assert find_images(str(tmp_path / "one[1].bin")) == (tmp_path, ["one[1].bin"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: there is no such folder of images; check the path"):
        find_images(str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match=r"\*\.png: no file there has the extension of an image; looked for \.apng, "):
        find_images(f"{tmp_path}/*.png")
    with pytest.raises(DatasetError, match="no file there has the extension of an image"):
        find_images(str(fill(tmp_path, "a.txt")))


def test_a_subfolder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a.png", "sub/b.png")
    real_scandir = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return real_scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StorageError, match="sub: permission denied; check who owns the folder"):
        find_images(str(tmp_path))
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "sub")
    assert find_images(str(tmp_path))[1] == ["a.png"]


def test_folders_may_be_nested_as_deeply_as_the_system_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        os.mkdir("d")  # noqa: PTH102
        os.chdir("d")
    Path("a.png").touch()
    os.chdir(tmp_path)
    try:
        assert find_images("d")[1] == ["d/" * 1199 + "a.png"]
    finally:
        subprocess.run(["rm", "-r", "d"], check=True)  # which `shutil.rmtree` cannot do
