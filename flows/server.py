"""A Prefect server for one command, where the user has none: on 127.0.0.1, on the SQLite database in PREFECT_HOME.

Prefect would start one itself, but in the terminal's process group, so that Ctrl-C would take it away before the runs are marked
as stopped, and writing to the terminal, where its shutdown looks like a crash. This one has a session of its own, writes to a log
that is shown only if it fails, and stops when the command's process has ended, after Prefect's last words to it.
"""

import http
import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from yivl_core.child import stop_when_stdin_ends
from yivl_core.errors import ChildFailedError, ConfigurationError, StorageError

START_TIMEOUT_S = 120
_LOG_TAIL_BYTES = 4000
_LOG_TAIL_LINES = 4
_ENVIRONMENT = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}


class TemporaryServer:
    """A server process that is starting; it stops by itself some time after this process has ended."""

    def __init__(self) -> None:
        """Start it. The socket is opened here, so its port is known, and requests wait until the server is ready."""
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the process)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "flows.server", str(listener.fileno())],
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
                pass_fds=[listener.fileno()],
                env={**os.environ, **_ENVIRONMENT},
            )

    @property
    def api_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._port}/api"

    def wait_until_ready(self) -> None:
        """Return when it answers.

        Raises:
            ChildFailedError: it did not start.
        """
        try:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=START_TIMEOUT_S)
            connection.request("GET", "/api/health")
            is_ready = connection.getresponse().status == http.HTTPStatus.OK
            connection.close()
        except (http.client.HTTPException, OSError):
            is_ready = False
        if not is_ready:
            self._process.kill()
            self._process.wait()
            raise ChildFailedError(
                f"the temporary Prefect server did not start; its last words:\n{self.last_words()}\n"
                "check PREFECT_HOME (default ~/.prefect), or start `prefect server start` and set PREFECT_API_URL"
            )

    def last_words(self) -> str:
        """The last lines of its log, without the lines of a traceback that tell the places."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _LOG_TAIL_BYTES))
        lines = [line for line in self._log.read().decode(errors="replace").splitlines() if line and not line[0].isspace()]
        return "\n".join(lines[-_LOG_TAIL_LINES:])


@contextmanager
def prefect_server(say: Callable[[str], None], *, needs_workers: bool = False) -> Iterator[None]:
    """Within this block Prefect has a server that answers.

    Args:
        say: tells the user why it takes a while.
        needs_workers: a temporary server would not do, since it has none.

    Raises:
        StorageError: Prefect cannot keep its files.
        ConfigurationError: the server that is configured does not answer, or none is where one is needed.
        ChildFailedError: the temporary server did not start, or fails.
    """
    _check_home()
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_URL

    api_url, server = PREFECT_API_URL.value(), None
    if api_url:
        _check_configured(api_url)
    elif needs_workers:
        raise ConfigurationError("this needs a Prefect server with workers; set PREFECT_API_URL to its address")
    else:
        server = _start_temporary(say)
    try:
        yield
    except PrefectHTTPStatusError as error:
        words = f"; its last words:\n{server.last_words()}" if server else ""
        raise ChildFailedError(f"the Prefect server cannot do its work: {error}{words}") from error


def _check_home() -> None:
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise StorageError(
            f"Prefect keeps its runs in {home}, which cannot be written: {error.strerror}; set PREFECT_HOME to another folder"
        ) from error


def _check_configured(api_url: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem:
        raise ConfigurationError(
            f"no Prefect server answers at {api_url} ({problem}); start it, or unset PREFECT_API_URL to use a temporary one"
        )


def _start_temporary(say: Callable[[str], None]) -> TemporaryServer:
    from prefect.context import refresh_global_settings_context

    say("starting a temporary Prefect server (PREFECT_API_URL would name one that runs already)")
    server = TemporaryServer()
    os.environ["PREFECT_API_URL"] = server.api_url
    refresh_global_settings_context()
    server.wait_until_ready()
    return server


def _serve(listener_fd: int) -> None:
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener_fd)])


if __name__ == "__main__":
    stop_when_stdin_ends(grace_s=5.0)
    _serve(int(sys.argv[1]))
