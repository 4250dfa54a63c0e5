"""A headless Chromium, driven over its debugging protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def program() -> str | None:
    """The browser, if one is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Browser:
    """One page of a browser; keeps the addresses that it asked, and what its console said."""

    def __init__(self, url: str) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname or "", place.port or 0), 60)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self._stream = self._socket.makefile("rb")
        while self._stream.readline().strip():
            pass
        self._count = 0
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.bytes = 0
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol."""
        self._count += 1
        self._send(json.dumps({"id": self._count, "method": method, "params": params}).encode())
        while True:
            message = json.loads(self._receive())
            if message.get("id") == self._count:
                assert "error" not in message, message
                return dict(message["result"])
            self._note(message.get("method"), message.get("params", {}))

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript; a promise is awaited."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(f"Boolean({script})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"not in {seconds} s: {script}; {self.problems}")

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the window's size, and the colours that the user prefers."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, file: Path) -> None:
        """Save a picture of the page, to its end."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        """Leave the page."""
        self._stream.close()
        self._socket.close()

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.loadingFinished":
            self.bytes += int(params["encodedDataLength"])
        elif method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def _send(self, text: bytes) -> None:
        mask = os.urandom(4)
        size = len(text)
        if size < 126:
            head = bytes([0x81, 0x80 | size])
        elif size < 65536:
            head = bytes([0x81, 0xFE]) + size.to_bytes(2, "big")
        else:
            head = bytes([0x81, 0xFF]) + size.to_bytes(8, "big")
        self._socket.sendall(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(text)))

    def _receive(self) -> bytes:
        text = b""
        while True:
            first, second = self._stream.read(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
            text += self._stream.read(size)
            if first & 0x80:
                return text


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with an empty profile."""
    found = program()
    assert found is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        more = ["--no-first-run", "--disable-component-update", "--remote-debugging-port=0"]
        words = [found, *flags, *more, f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        with subprocess.Popen(words, stdout=quiet, stderr=quiet) as process:
            try:
                port = Path(profile, "DevToolsActivePort")
                end = time.monotonic() + 60
                while not (port.is_file() and port.read_text().strip()):
                    assert time.monotonic() < end, "the browser does not start"
                    time.sleep(0.1)
                address = f"http://127.0.0.1:{port.read_text().split()[0]}/json"
                with urlopen(address, timeout=60) as reply:
                    pages = [each for each in json.load(reply) if each["type"] == "page"]
                page = Browser(pages[0]["webSocketDebuggerUrl"])
                yield page
                page.close()
            finally:
                process.terminate()
