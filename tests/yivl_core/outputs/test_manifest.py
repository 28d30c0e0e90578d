import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from yivl_core.errors import OutputError
from yivl_core.outputs import manifest
from yivl_core.outputs.machine import image_libraries
from yivl_core.outputs.manifest import code, code_digest, environment, read_manifest, write_manifest

CONTENT = {"model": {"digest": "m1"}, "adapter": None, "decoding": {"temperature": 0.0}, "ünïcode": "é"}


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    """Neither from tests before, nor for tests after."""
    forget()
    yield
    forget()


def forget() -> None:
    manifest.code_digest.cache_clear()
    manifest._git_state.cache_clear()


def of_a_new_process(look_up: Callable[[], Any]) -> Any:
    forget()
    return look_up()


def test_times_stand_apart_from_the_digest(tmp_path: Path) -> None:
    first = write_manifest(str(tmp_path / "a.json"), CONTENT, {"began": "2026-01-01T00:00:00Z"})
    second = write_manifest(str(tmp_path / "b.json"), dict(reversed(CONTENT.items())), {"began": "2026-02-02T00:00:00Z"})
    other = write_manifest(str(tmp_path / "c.json"), CONTENT | {"adapter": {"digest": "a1"}}, {})
    assert first == second != other
    assert read_manifest(str(tmp_path / "a.json")) == {**CONTENT, "digest": first, "times": {"began": "2026-01-01T00:00:00Z"}}


def test_keys_are_sorted_and_text_is_readable(tmp_path: Path) -> None:
    write_manifest(str(tmp_path / "a.json"), CONTENT, {})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert '"ünïcode": "é"' in text


def test_absent_manifest_is_none(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path / "manifest.json")) is None


def test_manifest_changed_by_hand_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_manifest(str(path), CONTENT, {})
    path.write_text(path.read_text().replace("m1", "m2"))
    with pytest.raises(OutputError, match=r"manifest\.json was changed after it was written"):
        read_manifest(str(path))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"digest": NaN, "x": NaN}'])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=r"manifest\.json is not a manifest"):
        read_manifest(str(tmp_path / "manifest.json"))


def test_environment_names_versions_and_loads_no_torch() -> None:
    script = (
        "import json, sys; from yivl_core.outputs.manifest import code, environment; import yivl_core.evaluation.report; "
        "print(json.dumps([environment(), [name for name in ('torch', 'transformers', 'prefect') if name in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found, loaded = json.loads(done.stdout)
    assert loaded == []
    assert found["python"] == ".".join(str(number) for number in sys.version_info[:3])
    import rapidfuzz

    assert found["packages"]["rapidfuzz"] == rapidfuzz.__version__
    assert {"sacrebleu", "torch", "pillow"} <= found["packages"].keys()
    assert found["image_libraries"] == image_libraries()
    assert [found[name] for name in ("gpu", "num_gpus", "cuda", "driver")] == [None] * 4


def test_environment_names_the_gpu_that_torch_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, get_device_name=lambda: "NVIDIA H100", device_count=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda="12.8")))
    found = environment()
    assert (found["gpu"], found["num_gpus"], found["cuda"]) == ("NVIDIA H100", 1, "12.8")


def test_code_digest_changes_with_any_source_file_and_with_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "yivl_core"
    (source / "sub").mkdir(parents=True)
    (source / "sub/a.py").write_text("x = 1\n")
    monkeypatch.setattr(manifest, "_SOURCE", source)
    first = of_a_new_process(code_digest)
    (source / "notes.txt").write_text("not code")
    assert of_a_new_process(code_digest) == first
    (source / "sub/a.py").write_text("x = 2\n")
    assert code_digest() == first, "the code that runs is what was loaded"
    second = of_a_new_process(code_digest)
    (source / "sub/a.py").rename(source / "sub/b.py")
    assert len({first, second, of_a_new_process(code_digest)}) == 3


def test_code_without_a_repository_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yivl_core").mkdir()
    monkeypatch.setattr(manifest, "_SOURCE", tmp_path / "yivl_core")
    assert (code()["git_commit"], code()["is_changed"]) == (None, None)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_code_in_a_repository_names_commit_and_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(
            ["git", *identity, "-C", str(tmp_path), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    (tmp_path / "yivl_core").mkdir()
    (tmp_path / "yivl_core/a.py").write_text("x = 1\n")
    git("init")
    git("add", "yivl_core")
    git("commit", "-m", "first")
    monkeypatch.setattr(manifest, "_SOURCE", tmp_path / "yivl_core")
    assert (code()["git_commit"], code()["is_changed"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "yivl_core/a.py").write_text("x = 2\n")
    assert of_a_new_process(code)["is_changed"] is True
    monkeypatch.setenv("PATH", str(tmp_path))
    found = of_a_new_process(code)
    assert (found["git_commit"], found["is_changed"]) == (None, None)
