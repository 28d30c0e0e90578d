"""Small validated datasets with real image files; pages of HTML; an object store and a web server."""

import gc
import io
import json
import re
import shutil
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.validation import validate_dataset
from yivl_core.training.configuration import TrainingConfig, TrainingSummary

if TYPE_CHECKING:
    from yivl_core.model.configuration import YiVLConfig
    from yivl_core.model.spreading import Places

MakeDataset = Callable[..., Path]
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="session")
def golden_cases(reference: Path) -> dict[str, Any]:
    """What the original code made of prompts, texts and whole cases: `cases.json` of the reference."""
    cases: dict[str, Any] = json.loads((reference / "cases.json").read_text(encoding="utf-8"))
    return cases


AWKWARD = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "</style></title></article><!-- &lt;b&gt; &amp;",
    "]]>\x00\x1b[31m\r",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "שלום עולם",
    "first\nsecond",
    "x" * 5000,
]


class Page(HTMLParser):
    """What a browser would make of a page: its tags, its text, and the text of each card."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cards: list[str] = []
        self.text = ""
        self._in_card = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "article":
            self.cards.append("")
            self._in_card = True

    def handle_endtag(self, tag: str) -> None:
        self._in_card = self._in_card and tag != "article"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._in_card:
            self.cards[-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def draw(path: Path, seed: int) -> str:
    """Writes a small picture; pictures of different seeds differ. Returns its name."""
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed % 5, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path.name


@pytest.fixture(scope="session")
def make_dataset(tmp_path_factory: pytest.TempPathFactory) -> MakeDataset:
    """Writes and validates a dataset; of four records two have one image, one has two, and one has none.

    `responses` are in place of the usual ones, by the number of the record.
    """

    def make(num_records: int = 12, *, responses: Mapping[int, str | None] = MappingProxyType({}), **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp("dataset")
        lines = []
        for number in range(num_records):
            num_images = (1, 1, 2, 0)[number % 4]
            images = [draw(folder / f"{number}-{place}.png", 10 * number + place) for place in range(num_images)]
            query = "<image>" * num_images + f"What is it? ({number})"
            history = [["Hello.", "Good morning."]] if number % 3 == 0 else []
            response = responses.get(number, f"It is number {number} ({WORDS[number % 8]}).")
            row = {"query": query, "response": response, "images": images, "history": history}
            lines.append(json.dumps(row) + "\n")
        (folder / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        validated = folder / "validated"
        config = ValidationConfig(dataset=(str(folder / "rows.jsonl"),), output=str(validated), **settings)
        summary = validate_dataset(config)
        assert summary.num_records == num_records, summary
        return validated

    return make


@pytest.fixture(scope="session")
def trained(tiny_checkpoint: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingSummary:
    """A run that has tuned decoder, projector and tower so that answers change; not to be written to."""
    import torch

    from yivl_core.training.sft import train_adapter

    torch.set_num_threads(1)
    config = TrainingConfig(
        model=str(tiny_checkpoint), dataset=str(dataset), output=str(tmp_path_factory.mktemp("trained") / "run"), batch_size=4,
        num_epochs=3, learning_rate=0.01, val_fraction=0.4, target_modules="all", lora_dropout=0,
    )  # fmt: skip
    return train_adapter(config)


@pytest.fixture(scope="session")
def tight_places() -> "Callable[[YiVLConfig], Places]":
    """Places for a model in float32 on a GPU that has room for half of its layers, and in CPU memory."""
    import torch

    from yivl_core.model.spreading import find_places
    from yivl_core.model.weights import expected_shapes

    def find(config: "YiVLConfig") -> "Places":
        layer_bytes, head_bytes, rest_bytes = 0, 0, 0
        for name, shape in expected_shapes(config).items():
            size = 4 * torch.Size(shape).numel()
            layer_bytes += size if "language_model.layers." in name else 0
            head_bytes += size if name.startswith("lm_head.") else 0
            rest_bytes += size
        rest_bytes -= layer_bytes + head_bytes
        copied_bytes = max(head_bytes, layer_bytes // config.text_config.num_hidden_layers)
        gpu_bytes = [rest_bytes + copied_bytes + layer_bytes // 2]
        places = find_places(
            config, torch.float32, gpu_bytes=gpu_bytes, cpu_bytes=2 * layer_bytes + 2 * head_bytes, cache_bytes=0
        )
        assert places is not None
        assert {device for part, device in places.items() if ".layers." in part} == {torch.device("cuda", 0), None}
        return places

    return find


@pytest.fixture(scope="session")
def dataset(make_dataset: MakeDataset) -> Path:
    """Twelve records; not to be written to."""
    return make_dataset()


@pytest.fixture
def look_at(tmp_path: Path) -> Callable[[Path, int], dict[str, Any]]:
    """Opens a page in Chromium, in a frame of some width, and looks at it by a script outside of it: it allows none itself.

    Of each image the answer says whether it was loaded and is no wider than the page.
    """
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine")
    script = (
        "const w = this.contentWindow, d = this.contentDocument, e = d.documentElement;"
        "document.title = JSON.stringify({scroll_width: e.scrollWidth, client_width: e.clientWidth,"
        "num_cards: d.querySelectorAll('article').length,"
        "images: [...d.images].map(i => [i.naturalWidth > 0, i.getBoundingClientRect().width <= e.clientWidth]),"
        "requests: w.performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).map(r => r.name)})"
    )

    def look(page: Path, width: int) -> dict[str, Any]:
        frame = tmp_path / "frame.html"
        frame.write_text(
            f'<iframe style="border:0;width:{width}px;height:900px" src="{page.as_uri()}" onload="{script}"></iframe>'
        )
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom"]
        command = [chromium, *flags, f"--user-data-dir={tmp_path / 'home'}", frame.as_uri()]
        html = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
        title = re.search("<title>(.*)</title>", html)
        assert title is not None, html
        seen: dict[str, Any] = json.loads(title[1])
        return seen

    return look


@dataclass
class Failure:
    """What is answered to the next `times` requests that hold `part`, in place of the store."""

    part: str
    method: str | None
    status: int
    body: bytes
    times: float
    num_answers: int = 0

    def is_due(self, method: str, asked: str) -> bool:
        """Whether this request is one of those."""
        return self.part in asked and self.method in (None, method) and self.num_answers < self.times


class FlakyS3:
    """Stands before the object store: notes what is asked, and answers chosen requests with an error.

    A request is known by its method and what it asks for: `/BUCKET/KEY?QUERY`, decoded.
    """

    def __init__(self, store: Callable[..., Iterable[bytes]]) -> None:
        self.requests: list[tuple[str, str]] = []
        self._store = store
        self._failures: list[Failure] = []
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        method, asked = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode()
        if environ.get("QUERY_STRING"):
            asked += "?" + unquote(environ["QUERY_STRING"])
        with self._lock:  # the store itself does not keep two conditional writes apart
            self.requests.append((method, asked))
            failure = next((one for one in self._failures if one.is_due(method, asked)), None)
            if failure is None:
                return self._store(environ, start_response)
            failure.num_answers += 1
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(f"{failure.status} -", [("Content-Type", "application/xml"), ("Content-Length", str(len(failure.body)))])
        return [b"" if method == "HEAD" else failure.body]

    def count(self, method: str, part: str = "") -> int:
        """How many requests of this method, with `part` in what they asked for, have come in this test."""
        return sum(one == method and part in asked for one, asked in self.requests)

    @contextmanager
    def failing(
        self,
        part: str,
        *,
        status: int = 503,
        code: str = "SlowDown",
        times: float = float("inf"),
        method: str | None = None,
        body: str | None = None,
    ) -> Iterator[Failure]:
        """Requests with `part` in what they ask for are answered by an error: always, or the next `times`."""
        text = f"<Error><Code>{code}</Code><Message>So it is.</Message></Error>" if body is None else body
        failure = Failure(part, method, status, text.encode(), times)
        self._failures.append(failure)
        try:
            yield failure
        finally:
            self._failures.remove(failure)


@pytest.fixture(scope="session")
def _object_store() -> Iterator[tuple[FlakyS3, str]]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class QuietRequestHandler(MotoRequestHandler):
        def log(self, *_: Any) -> None:
            pass

    flaky = FlakyS3(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, flaky, threaded=True, request_handler=QuietRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield flaky, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def s3_server(_object_store: tuple[FlakyS3, str]) -> Iterator[str]:
    """The address of an object store, to which the environment leads all `s3://` addresses from now on."""
    from s3fs import S3FileSystem

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("AWS_ENDPOINT_URL", _object_store[1])
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATESTTESTTESTTEST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield _object_store[1]
        S3FileSystem.clear_instance_cache()
        gc.collect()  # the client's connections are closed while there is somebody at the other end


@pytest.fixture
def flaky_s3(_object_store: tuple[FlakyS3, str], s3_server: str) -> FlakyS3:
    """The same store, to be watched and disturbed."""
    flaky, _ = _object_store
    flaky.requests.clear()
    return flaky


@pytest.fixture
def bucket(s3_server: str) -> str:
    """A new bucket on an empty object store."""
    for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):
        with urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{path}", method=method)):
            pass
    return "s3://bucket"


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
