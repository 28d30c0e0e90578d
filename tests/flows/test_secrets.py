"""No secret of an address becomes a parameter of a run."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.configuration import RetrainConfig, SftConfig
from flows.secrets import refuse_secrets
from yivl_core.data.configuration import ValidationConfig, ValidationSettings
from yivl_core.errors import ConfigurationError

FLOWS = pytest.mark.flows
ADDRESS = "http://u:PWSECRET@127.0.0.1:1/a.jsonl?token=TOKSECRET&page=2"
SHOWN = "http://127.0.0.1:1/a.jsonl?token=...&page=2"
REMEDY = "write ${NAME} for user, password and each secret value, and set the environment variable NAME where this runs"


def fail(*_: Any) -> None:
    raise AssertionError("a flow was run")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (f"validate {ADDRESS} --output o", "DATASET"),
        (f"validate a.jsonl {ADDRESS}#500 --output o", "DATASET"),
        (f"validate a.jsonl --output o --image-root {ADDRESS}", "--image-root"),
        (f"sft --model m --dataset a --val-dataset {ADDRESS} --output o", "--val-dataset"),
        (f"sft --model m --dataset a --output o --validation.allow-url {ADDRESS}", "--validation.allow-url"),
        (f"infer --model m --images {ADDRESS} --prompt p --output o", "--images"),
        (f"retrain --model m --dataset a {ADDRESS} --output o", "--dataset"),
        (f"evaluate --predictions {ADDRESS} --output o", "--predictions"),
    ],
)
def test_a_command_refuses_a_secret_and_tells_the_remedy(
    arguments: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run_flow", fail)
    assert cli.main(arguments.split()) == 2
    command = arguments.partition(" ")[0]
    message = f"yivl {command}: {name} {SHOWN}: a secret in this address would be stored with the run; {REMEDY}\n"
    assert capsys.readouterr() == ("", message)


def test_what_stands_for_a_variable_is_no_secret() -> None:
    refuse_secrets(ValidationConfig(dataset=("https://${USER}:${PASSWORD}@host/a.jsonl?sig=${SIGNATURE}#500",), output="o"))


def test_the_remedy_for_an_object_store_is_its_own() -> None:
    with pytest.raises(ConfigurationError) as raised:
        refuse_secrets({"config": {"dataset": ["s3://key:SECRET@bucket/a.jsonl"]}})
    assert str(raised.value).startswith("config.dataset s3://bucket/a.jsonl: a secret in this address would be stored")
    assert "the environment variables that the client of such addresses reads" in str(raised.value)


def test_text_that_is_no_address_is_let_through() -> None:
    refuse_secrets({"prompt": "Note: is ann@host at https://u:p@host?token=1 in the image?", "images": "data/a@b/c.png"})


@FLOWS
def test_a_flow_that_is_called_refuses_a_secret_before_there_is_a_run(prefect_api: str) -> None:
    from prefect.client.orchestration import get_client

    from flows.finetune import sft
    from flows.retrain import retrain
    from flows.validate import validate

    def count_runs() -> int:
        with get_client(sync_client=True) as client:
            return len(client.read_flow_runs(limit=200))

    before = count_runs()
    nested = ValidationSettings(allow_url=(ADDRESS,))
    calls: list[tuple[Any, Any]] = [
        (validate, ValidationConfig(dataset=(ADDRESS,), output="o")),
        (validate.with_options(retries=1), ValidationConfig(dataset=(ADDRESS,), output="o")),
        (validate, {"dataset": [ADDRESS], "output": "o"}),
        (sft, SftConfig(model="m", dataset="a", val_dataset=ADDRESS, output="o")),
        (retrain, RetrainConfig(model="m", dataset=("a",), output="o", validation=nested)),
    ]
    for flow, config in calls:
        with pytest.raises(ConfigurationError) as raised:
            flow(config)
        assert "SECRET" not in str(raised.value)
        assert REMEDY in str(raised.value)
    assert count_runs() == before


def test_every_flow_is_checked() -> None:
    from prefect import Flow

    from flows import demo, evaluate, finetune, infer, retrain, validate
    from flows.checked_flow import CheckedFlow

    found = [
        value
        for module in (demo, evaluate, finetune, infer, retrain, validate)
        for value in vars(module).values()
        if isinstance(value, Flow)
    ]
    assert {flow.name for flow in found} == {"demo", "evaluate", "sft", "export", "infer", "infer-shard", "retrain", "validate"}
    assert all(isinstance(flow, CheckedFlow) for flow in found)


@pytest.fixture
def guarded() -> Iterator[str]:
    """Where a web server gives rows to who has the token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_allowed = self.path == "/rows.jsonl?token=TOKSECRET"
            body = b'{"query": "a", "response": "b"}\n' if is_allowed else b""
            self.send_response(200 if is_allowed else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@FLOWS
def test_the_token_is_asked_with_and_written_nowhere(guarded: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "home"),
        "YIVL_CACHE": str(tmp_path / "cache"),
        "TOKEN": "TOKSECRET",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "flows.cli", "validate", guarded + "/rows.jsonl?token=${TOKEN}", "--output"]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], env=environment, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "1 of 1 records are clean" in done.stdout
    assert "SECRET" not in done.stdout + done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"token=${TOKEN}" in path.read_bytes() for path in files if path.name.startswith("prefect.db"))
    assert [path for path in files if b"TOKSECRET" in path.read_bytes()] == []
