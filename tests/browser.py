"""A headless Chromium without a driver: its own protocol, CDP, through a web socket."""

import asyncio
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
KEYS = {  # key -> (code, number, text)
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
    "Escape": ("Escape", 27, ""),
    " ": ("Space", 32, " "),
    "End": ("End", 35, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
}


class Browser:
    """One page of a Chromium.

    Args:
        folder: an empty one, for its profile.
    """

    def __init__(self, folder):
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            [*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._loop, self._count, self._events = asyncio.new_event_loop(), 0, []
        port = self._until(lambda: (folder / "DevToolsActivePort").read_text().split()[0])
        self._run(self._connect(port))
        for name in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{name}.enable")

    def _until(self, find, seconds=30):
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, IndexError, StopIteration):
                return find()
            assert time.monotonic() < end and self._process.poll() is None, "Chromium did not start"
            time.sleep(0.1)

    def _run(self, task):
        return self._loop.run_until_complete(task)

    async def _connect(self, port):
        def page():
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                return next(x for x in json.load(answer) if x["type"] == "page")

        self._session = aiohttp.ClientSession()
        address = self._until(page)["webSocketDebuggerUrl"]
        self._socket = await self._session.ws_connect(address, max_msg_size=0)

    async def _call(self, method, arguments):
        self._count += 1
        await self._socket.send_json({"id": self._count, "method": method, "params": arguments})
        while True:
            message = await self._socket.receive_json(timeout=60)
            if message.get("id") == self._count:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self._events.append(message)

    def call(self, method, **arguments):
        """What a method of CDP answers."""
        return self._run(self._call(method, arguments))

    def close(self):
        """Ends it."""
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        self._run(self._session.close())
        self._loop.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def open(self, address):
        """Loads a page."""
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def script(self, expression):
        """The value of an expression of JavaScript."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression, seconds=30):
        """The value of an expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.script(expression)):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)
        return value

    def text(self, selector):
        """The text of an element, as it is shown."""
        return self.script(f"document.querySelector({json.dumps(selector)}).innerText")

    def press(self, key, times=1, shift=False):
        """Presses a key."""
        letter = (f"Key{key.upper()}", ord(key[0].upper()), key)
        code, number, text = KEYS.get(key, letter)
        known = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        known["modifiers"] = 8 if shift else 0
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
            self.call("Input.dispatchKeyEvent", type="keyUp", **known)

    def type(self, text):
        """Puts a text where the focus is."""
        self.call("Input.insertText", text=text)

    def look(self, width, height, dark=False, phone=False):
        """Sets the size of the window, and the theme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])

    def _parameters(self, event):
        self.script("0")  # so that what has been told is heard
        return [found["params"] for found in self._events if found.get("method") == event]

    def requests(self):
        """Addresses of all that was asked so far."""
        return [found["request"]["url"] for found in self._parameters("Network.requestWillBeSent")]

    def errors(self):
        """What the console says of errors, and scripts that failed."""
        found = [x["entry"] for x in self._parameters("Log.entryAdded")]
        found = [entry for entry in found if entry["level"] in ("error", "warning")]
        found += [
            x
            for x in self._parameters("Runtime.consoleAPICalled")
            if x["type"] in ("error", "warning", "assert")
        ]
        return found + self._parameters("Runtime.exceptionThrown")

    def accessible(self):
        """list of (role, name) of what a screen reader is told of."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]
