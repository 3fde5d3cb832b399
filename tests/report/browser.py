"""A headless Chromium for the tests of pages, driven over its debugging pipe (Chrome DevTools Protocol)."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
from typing import Any

import pytest

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine")


class Browser:
    """One tab; ``problems`` collects console messages and network requests."""

    def __init__(self, profile: pathlib.Path):
        to_browser, self.to = os.pipe()
        self.back, from_browser = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; the shell redirects them.
        options = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars"
        command = f'exec "{PROGRAM}" {options} --remote-debugging-pipe --user-data-dir="{profile}"'
        self.process = subprocess.Popen(
            ["bash", "-c", f"{command} 3<&{to_browser} 4>&{from_browser}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.number, self.session, self.buffer, self.problems, self.events = 0, None, b"", [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            part = os.read(self.back, 1 << 20)
            assert part, "Chromium exited"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        event = json.loads(message)
        self.events.append(event.get("method"))
        params = event.get("params", {})
        if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.problems.append(params)
        url = params.get("request", {}).get("url", "")
        if event.get("method") == "Network.requestWillBeSent" and not url.startswith(("file:", "data:")):
            self.problems.append(url)
        return event

    def open(self, path: pathlib.Path, width: int, dark: bool = False) -> None:
        """Loads a page and waits until its figures are drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while "Page.loadEventFired" not in self.events:
            self._next()
        drawn = """new Promise(done => {
          const all = () => [...document.querySelectorAll('.chart')].every(chart => chart.querySelector('svg'));
          const look = () => all() ? done(true) : requestAnimationFrame(look);
          setTimeout(() => done(false), 30000);
          look();
        })"""
        assert self.evaluate(drawn), self.problems

    def evaluate(self, expression: str) -> Any:
        """Evaluates a JavaScript expression and awaits its promise."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def hover(self, x: float, y: float) -> None:
        """Moves the pointer to a position in the window."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def screenshot(self, path: pathlib.Path) -> None:
        """Saves the whole page as PNG."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(image))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=20)
        os.close(self.to)
        os.close(self.back)
