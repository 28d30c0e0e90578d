"""Small images, dataset files, and what fetches for the tests of this folder."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.network.fetch_limits import FetchLimits
from yivl_core.data.network.fetching import UrlFetcher
from yivl_core.data.network.url_policy import UrlPolicy
from yivl_core.data.validation import validate_dataset

MakeImage = Callable[..., Path]
WriteRows = Callable[..., Path]


@pytest.fixture
def make_image(tmp_path: Path) -> MakeImage:
    """Writes a small image of one colour below the test's folder."""

    def make(name: str, colour: str = "red", size: tuple[int, int] = (12, 9), mode: str = "RGB") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, colour).save(path)
        return path

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Writes rows to a jsonl file below the test's folder: objects as JSON, strings as they are."""

    def write(*rows: dict[str, Any] | str, name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_bytes("".join(line + "\n" for line in lines).encode())
        return path

    return write


class Validated:
    """A finished validation: its summary, its folder, and the findings in it."""

    def __init__(self, summary: ValidationSummary) -> None:
        self.summary = summary
        self.folder = Path(summary.output)
        self.records = self.lines("records.jsonl")
        self.quarantine = self.lines("quarantine.jsonl")
        self.warnings = self.lines("warnings.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_bytes().split(b"\n")[:-1]]

    @property
    def findings(self) -> list[tuple[int | None, str, str]]:
        """(line, kind, severity) of every finding, in order of lines."""
        found = [
            (row["line"], one["kind"], one["severity"]) for row in self.quarantine + self.warnings for one in row["findings"]
        ]
        return sorted(found, key=lambda finding: finding[0] or 0)

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_bytes())
        return report


@pytest.fixture
def validate(tmp_path: Path) -> Callable[..., Validated]:
    """Validates files into a folder below the test's folder."""

    def run(*files: Path, output: str = "validated", **settings: Any) -> Validated:
        config = ValidationConfig(dataset=tuple(map(str, files)), output=str(tmp_path / output), **settings)
        return Validated(validate_dataset(config))

    return run


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    """An empty cache."""
    return ImageCache(tmp_path / "cache")


@pytest.fixture
def fetcher(web: Any, cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., UrlFetcher]]:
    """Makes fetchers that may reach the web server and lose little time; they are closed when the test ends."""
    monkeypatch.setattr("yivl_core.data.network.downloading._FIRST_PAUSE_S", 0.01)
    with ExitStack() as stack:

        def make(*patterns: str, limits: Mapping[str, Any] = MappingProxyType({}), **settings: Any) -> UrlFetcher:
            given = {"connect_timeout_s": 2.0, "slow_after_s": 2.0, "total_timeout_s": 20.0, "max_retry_after_s": 0.5, **limits}
            policy = UrlPolicy.of(patterns or [web.url])
            settings.setdefault("cache", cache)
            return stack.enter_context(UrlFetcher(policy=policy, limits=FetchLimits(**given), **settings))

        yield make
