"""A headless Chromium that a test talks to over a pipe: it opens pages, runs scripts, reports requests."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--no-default-browser-check", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT_S = 60.0


def find_chromium() -> str:
    """Return the browser's path; without one the test is skipped, on a CI machine it fails."""
    found = next((path for name in _NAMES if (path := shutil.which(name))), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is missing: install it (apt-get install chromium)")
        pytest.skip("Chromium is missing: install it (apt-get install chromium)")
    return found


class Page:
    """One open page.

    `requests` are the addresses the page asked for, `problems` its console errors, exceptions and violations of its
    own policy.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer = b""
        self._last = 0
        self._session = ""
        self.requests: list[str] = []
        self.problems: list[str] = []
        self._events: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load an address and wait until it has loaded."""
        self._events.clear()
        self.send("Page.navigate", url=url)
        self._pump(lambda: "Page.loadEventFired" in self._events)

    def run(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"].get("exception", {}).get("description", answer))
        return answer["result"].get("value")

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key, such as "Tab"."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, modifiers=modifiers,
                      windowsVirtualKeyCode={"Tab": 9, "Enter": 13}.get(key, 0))  # fmt: skip

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Give the page a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, mobile=is_phone,
            deviceScaleFactor=2 if is_phone else 1,
        )  # fmt: skip

    def prefer(self, scheme: str, media: str = "") -> None:
        """Emulate a colour scheme, "light" or "dark", and a medium such as "print"."""
        self.send(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def screenshot(self, *, is_whole: bool = False) -> bytes:
        """Return a PNG of the window, or of the whole page."""
        return base64.b64decode(
            self.send("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)["data"]
        )

    def print_pdf(self) -> bytes:
        """Return the page as it prints, on A4."""
        answer = self.send("Page.printToPDF", preferCSSPageSize=True, paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(answer["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        found: dict[int, dict[str, Any]] = {}
        wanted = self._last
        self._pump(lambda: wanted in found, found)
        if "error" in found[wanted]:
            raise AssertionError(f"{method}: {found[wanted]['error']}")
        result: dict[str, Any] = found[wanted]["result"]
        return result

    def _pump(self, is_done: Callable[[], bool], found: dict[int, dict[str, Any]] | None = None) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not is_done():
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError("the browser does not answer")
            data = os.read(self._in, 1 << 20)
            if not data:
                raise AssertionError("the browser has ended")
            *messages, self._buffer = (self._buffer + data).split(b"\0")
            for text in messages:
                self._hear(json.loads(text), found if found is not None else {})

    def _hear(self, message: dict[str, Any], found: dict[int, dict[str, Any]]) -> None:
        if "id" in message:
            found[message["id"]] = message
            return
        method, content = message["method"], message["params"]
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(content["exceptionDetails"].get("exception", {}).get("description", content)))
        elif method == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning"):
            self.problems.append(str(content["args"]))
        elif method == "Log.entryAdded" and content["entry"]["level"] in ("error", "warning"):
            self.problems.append(content["entry"]["text"])


@contextlib.contextmanager
def open_browser(profile: Path) -> Iterator[Page]:
    """Start Chromium with a fresh profile and give its page; the browser ends with the context."""
    command = [find_chromium(), *_FLAGS, f"--user-data-dir={profile}"]
    read_theirs, write_ours = os.pipe()
    read_ours, write_theirs = os.pipe()
    # Chromium reads commands from descriptor 3 and writes to 4; move ours out of the way first.
    reader, writer = (fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (read_theirs, write_theirs))

    def take_places() -> None:
        os.dup2(reader, 3)
        os.dup2(writer, 4)

    with (profile.parent / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=take_places, pass_fds=(3, 4),
            start_new_session=True,
        )  # fmt: skip
    for end in (read_theirs, write_theirs, reader, writer):
        os.close(end)
    try:
        yield Page(write_ours, read_ours)
    finally:
        with contextlib.suppress(OSError):
            os.write(write_ours, b'{"id":999999,"method":"Browser.close"}\0')
        try:
            process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        os.close(write_ours)
        os.close(read_ours)
