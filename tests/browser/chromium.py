"""Headless Chromium for tests of pages, driven through chromedriver by the W3C WebDriver protocol: JSON over HTTP.

Debian's packages chromium and chromium-driver are sufficient; no Python package is needed.
"""

import base64
import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
TIMEOUT = 120  # Seconds in which the driver must answer.


def missing() -> str:
    """Returns the reason why no browser is available, or an empty string if one is."""
    if shutil.which("chromium") and shutil.which("chromedriver"):
        return ""
    return "requires Chromium: apt-get install chromium chromium-driver (Debian)"


class Browser:
    """A browser with one window. Use `start`."""

    def __init__(self, address: str, profile: str):
        self._address = address
        options = {"binary": shutil.which("chromium"), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        session = self._request("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self._path = f"/session/{session['sessionId']}"
        self._go("about:blank")  # The browser's own first page makes requests.

    def _request(self, method: str, path: str, body: dict | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.read().decode()[:500]}") from None

    def command(self, name: str, **parameters) -> Any:
        """Sends a command of Chrome's DevTools protocol."""
        return self._request("POST", f"{self._path}/goog/cdp/execute", {"cmd": name, "params": parameters})

    def open(self, page: pathlib.Path | str, width: int, dark: bool = False) -> None:
        """Loads a file or an address in a window of this width in CSS pixels, and discards what was logged before."""
        for kind in ("browser", "performance"):
            self.log(kind)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._resize(width, 900)
        self._go(page.resolve().as_uri() if isinstance(page, pathlib.Path) else page)

    def _go(self, address: str) -> None:
        self._request("POST", f"{self._path}/url", {"url": address})

    def _resize(self, width: int, height: int) -> None:
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.command("Emulation.setDeviceMetricsOverride", **size)

    def log(self, kind: str) -> list[dict]:
        """Returns the new entries of a log: "browser" is the console, "performance" DevTools' events."""
        return self._request("POST", f"{self._path}/se/log", {"type": kind})

    def requests(self) -> list[str]:
        """Returns the addresses that the pages requested since the last call or `open`."""
        events = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]

    def evaluate(self, script: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        return self._request("POST", f"{self._path}/execute/sync", {"script": f"return {script}", "args": []})

    def picture(self, path: pathlib.Path) -> None:
        """Writes a PNG of the complete page."""
        self._resize(*self.evaluate("[window.innerWidth, document.documentElement.scrollHeight]"))
        shot = self.command("Page.captureScreenshot")
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self._request("DELETE", self._path)


@contextlib.contextmanager
def start() -> Iterator[Browser]:
    """Runs a browser with a new profile."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            assert driver.stdout is not None
            ports = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            port = next(filter(None, ports))[1]
            browser = Browser(f"http://127.0.0.1:{port}", profile)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait()
            driver.stdout.close()  # type: ignore[union-attr]
