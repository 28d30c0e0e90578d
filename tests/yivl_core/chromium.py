"""Chromium without a screen, driven through its DevTools protocol by two pipes: no port, no driver and no further package.

https://chromedevtools.github.io/devtools-protocol/ names the methods and events; messages are JSON that ends with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_LIMIT_S = 60.0


class Chromium:
    """One page of a browser.

    Attributes:
        events: what the browser told by itself since the last page was opened: (method, parameters).
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int = 1280, height: int = 900, is_dark: bool = False, has_script: bool = True) -> None:
        """Open a file, in a window of some size in pixels, and wait until it was loaded."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setScriptExecutionDisabled", value=not has_script)
        self.events.clear()
        self._call("Page.navigate", url=path.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self.events += [self._event(self._read())]

    def run(self, script: str) -> Any:
        """The value of an expression in the page; it may be a promise."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key goes down and up; `code` is its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)

    def click(self, selector: str) -> None:
        """A real click in the middle of the first element that fits, which is brought into view."""
        x, y = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect(); "
            f"return [r.x + r.width / 2, r.y + r.height / 2] }})(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Text goes where the keyboard is."""
        self._call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """What the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    @property
    def problems(self) -> list[str]:
        """Errors and warnings of the console, and what the page's policy refused."""
        found = [str(told["entry"]["text"]) for method, told in self.events if method == "Log.entryAdded"]
        found += [str(told["exceptionDetails"]) for method, told in self.events if method == "Runtime.exceptionThrown"]
        return found + [str(told["args"]) for method, told in self.events if method == "Runtime.consoleAPICalled"]

    @property
    def requests(self) -> list[str]:
        """What was asked for, but for what lies in the page itself and what its policy kept in."""
        blocked = {
            told["requestId"]
            for method, told in self.events
            if method == "Network.loadingFailed" and told.get("blockedReason") == "csp"
        }
        sent = [
            told for method, told in self.events if method == "Network.requestWillBeSent" and told["requestId"] not in blocked
        ]
        return [told["request"]["url"] for told in sent if not told["request"]["url"].startswith("data:")]

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(self._event(answer))

    @staticmethod
    def _event(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return str(message.get("method")), message.get("params", {})

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + _LIMIT_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, end - time.monotonic()))
            assert ready, "chromium says nothing"
            piece = os.read(self._from, 1 << 20)
            assert piece, "chromium has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@contextmanager
def chromium(home: Path) -> Iterator[Chromium]:
    """A browser with a folder of its own; the test is skipped where there is none on this machine."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium on this machine")
    asked, ask = os.pipe()
    answer, answered = os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"]
    command = [program, *flags, f"--user-data-dir={home}", "--remote-debugging-pipe"]
    as_3_and_4 = ["bash", "-c", f'exec "$@" 3<&{asked} 4>&{answered}', "bash", *command]
    process = subprocess.Popen(as_3_and_4, pass_fds=(asked, answered), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(asked)
    os.close(answered)
    try:
        yield Chromium(ask, answer)
    finally:
        os.close(ask)  # on which the browser ends by itself
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(answer)
