"""A headless Chromium that tests talk to: what a page says, asks of the network, shows and does with keys."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

BROWSER = shutil.which("chromium")
MISSING = "needs chromium"
TIMEOUT = 60


class Browser:
    """A browser that is told what to do through a pair of pipes, in the words of the DevTools protocol.

    What it reports without being asked is kept in `events`, as pairs of a name and its values.
    """

    def __init__(self, profile):
        self.events, self._answers, self._number, self._rest = [], {}, 0, b""
        self._session = None
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-extensions", "--hide-scrollbars"]
        options += [f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"]
        # it reads what it is told from descriptor 3, and writes to 4
        command = ["bash", "-c", f'exec "$@" 3<&{read} 4>&{write}', "bash", BROWSER, *options]
        self._process = subprocess.Popen(
            command, pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read)
        os.close(write)
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """What a method of the protocol returns."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        self._read_until(lambda: self._number in self._answers)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, address):
        """Load a page, and wait until it is there."""
        before = len(self.events)
        self("Page.navigate", url=address)
        self._read_until(lambda: any(name == "Page.loadEventFired" for name, _ in self.events[before:]))

    def run(self, script):
        """The value of an expression of JavaScript in the page."""
        result = self("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def press(self, key):
        """Press a key: Tab, Enter, ArrowRight ..."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        values = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        text = {"Enter": "\r", " ": " "}.get(key)
        self("Input.dispatchKeyEvent", type="keyDown", **values, **({"text": text} if text else {}))
        self("Input.dispatchKeyEvent", type="keyUp", **values)

    def view(self, width, height, dark=False):
        """Take a size, and a preference for light or dark pages."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[feature])

    def picture(self, path, whole=False, **clip):
        """Write a picture of what is shown, or of the whole page."""
        parameters = {"captureBeyondViewport": True} if whole or clip else {}
        if whole:
            size = self("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"]}
        if clip:
            parameters["clip"] = {"scale": 1} | clip
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot", **parameters)["data"]))

    def values(self, name):
        """The values of all events of a name."""
        return [values for event, values in self.events if event == name]

    @property
    def requests(self):
        """All addresses that pages asked for."""
        return [values["request"]["url"] for values in self.values("Network.requestWillBeSent")]

    @property
    def complaints(self):
        """What went wrong in pages, and what they wrote to the console."""
        names = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
        return [values for name in names for values in self.values(name)]

    def close(self):
        """End it, and wait until it has left its files alone."""
        self._session = None
        try:
            self("Browser.close")
            self._process.wait(TIMEOUT)
        finally:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _read_until(self, done):
        until = time.monotonic() + TIMEOUT
        while not done():
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser says nothing"
            received = os.read(self._read, 2**20)
            assert received, "the browser has ended"
            *whole, self._rest = (self._rest + received).split(b"\0")
            for message in map(json.loads, whole):
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    self.events.append((message["method"], message["params"]))


@contextlib.contextmanager
def browser(profile):
    """A browser that is ended on exit.

    Args:
        profile: a folder for its files.
    """
    made = Browser(profile)
    try:
        yield made
    finally:
        made.close()
