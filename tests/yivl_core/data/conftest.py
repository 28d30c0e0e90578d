"""Small images, dataset files, and a web server for the tests of this folder."""

import io
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from PIL import Image

from yivl_core.data.configuration import ValidationConfig, ValidationSummary
from yivl_core.data.fetch_limits import FetchLimits
from yivl_core.data.fetching import UrlFetcher
from yivl_core.data.image_cache import ImageCache
from yivl_core.data.url_policy import UrlPolicy
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


@dataclass
class Answer:
    """What the web server sends for a path: of several, one after another, the last for ever."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    sends_length: bool = True
    pause_s: float = 0.0  # before the head, and between pieces of the body
    piece: int = 1 << 20


class Web:
    """A web server in this process, with the log of its requests."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.num_open = self.most_open = 0
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def serve(self, path: str, *answers: Answer | bytes) -> str:
        """Answer a path so; returns its URL."""
        self.answers[path] = [answer if isinstance(answer, Answer) else Answer(body=answer) for answer in answers]
        return self.url + path

    def image(self, number: int) -> str:
        """The URL of an image that differs from those of other numbers."""
        return self.serve(f"/{number}.png", png(number))

    def answer(self, **fields: Any) -> Answer:
        """An answer for `serve`."""
        return Answer(**fields)

    def use(self, context: ssl.SSLContext) -> None:
        """Speak TLS from now on."""
        accept = self._server.get_request
        self._server.get_request = lambda: self._secured(*accept(), context)  # type: ignore[method-assign]

    def _secured(self, connection: Any, address: Any, context: ssl.SSLContext) -> tuple[Any, Any]:
        return context.wrap_socket(connection, server_side=True), address

    def count(self, url: str) -> int:
        """How often a URL has been asked for."""
        return self.paths.count(url.removeprefix(self.url))

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def note_end(self) -> None:
        with self.lock:
            self.num_open -= 1

    def next_answer(self, path: str) -> Answer:
        with self.lock:
            answers = self.answers.get(path.partition("?")[0], [Answer(status=404)])
            return answers.pop(0) if len(answers) > 1 else answers[0]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with web.lock:
                    web.requests.append((self.path, dict(self.headers)))
                    web.num_open += 1
                    web.most_open = max(web.most_open, web.num_open)
                answer = web.next_answer(self.path)
                try:
                    self._send(answer)
                except OSError:  # the client has gone
                    self.close_connection = True
                if not answer.body:
                    web.note_end()

            def _send(self, answer: Answer) -> None:
                time.sleep(answer.pause_s)
                headers = dict(answer.headers)
                if answer.sends_length:
                    headers.setdefault("Content-Length", str(len(answer.body)))
                else:
                    headers["Connection"] = "close"
                self.send_response(answer.status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                for start in range(0, len(answer.body), answer.piece):
                    if start:
                        time.sleep(answer.pause_s)
                    if start + answer.piece >= len(answer.body):  # who has all may ask for more before we come back
                        web.note_end()
                    self.wfile.write(answer.body[start : start + answer.piece])
                if int(headers.get("Content-Length", 0)) > len(answer.body):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def png(number: int) -> bytes:
    """A small image of its own colour."""
    file = io.BytesIO()
    Image.new("RGB", (9, 8), (number % 256, number // 256 % 256, 7)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def web() -> Iterator[Web]:
    """A web server of this test."""
    server = Web()
    yield server
    server.close()


@pytest.fixture
def make_png() -> Callable[[int], bytes]:
    """The bytes of a small image of its own colour, by its number."""
    return png


@pytest.fixture
def cache(tmp_path: Path) -> ImageCache:
    """An empty cache."""
    return ImageCache(tmp_path / "cache")


@pytest.fixture
def fetcher(web: Web, cache: ImageCache, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., UrlFetcher]]:
    """Makes fetchers that may reach the web server and lose little time; they are closed when the test ends."""
    monkeypatch.setattr("yivl_core.data.downloading._FIRST_PAUSE_S", 0.01)
    with ExitStack() as stack:

        def make(*patterns: str, limits: Mapping[str, Any] = MappingProxyType({}), **settings: Any) -> UrlFetcher:
            given = {"connect_timeout_s": 2.0, "slow_after_s": 2.0, "total_timeout_s": 20.0, "max_retry_after_s": 0.5, **limits}
            policy = UrlPolicy.of(patterns or [web.url])
            settings.setdefault("cache", cache)
            return stack.enter_context(UrlFetcher(policy=policy, limits=FetchLimits(**given), **settings))

        yield make
