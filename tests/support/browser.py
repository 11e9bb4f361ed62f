"""A real Chromium without a window, driven through its debugging protocol."""

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from websockets.sync.client import connect

from tests.support import ROOT, missing

#: What a person clicks on.
CLICKABLE = "a, button, [role=menuitem], [role=tab], [role=option]"
#: What is clicked has stood still for so long: a page that comes may be drawn twice, and a click on the first be lost.
STILL_S = 0.5
#: Finds the visible element with these words.
_NAMED = """(words, within) => [...document.querySelectorAll(within)].find((e) => e.getClientRects().length
  && ((e.innerText || "").trim() === words || (e.getAttribute("aria-label") || "") === words))"""
#: Finds the field of a label; that of an editor is beside it, not named by it.
_LABELLED = """(words) => {
  const label = [...document.querySelectorAll("label")].find((e) => e.innerText.trim().startsWith(words));
  const named = label && document.getElementById(label.htmlFor);
  if (named) return named;
  let around = label;
  while (around && !around.querySelector("[contenteditable=true]")) around = around.parentElement;
  return around?.querySelector("[contenteditable=true]");
}"""
#: Brings an element into view and says where it can be clicked, and a number of its own, which one that is drawn in its
#: place does not have; null where something lies over it.
_PLACE = """(element) => {
  if (!element) return null;
  element.scrollIntoView({block: "center"});
  const box = element.getBoundingClientRect();
  const at = [box.x + Math.min(box.width / 2, 300), box.y + box.height / 2];
  element.drawn ??= Math.random();
  return element.contains(document.elementFromPoint(...at)) ? [...at, element.drawn] : null;
}"""


class Page:
    """A tab: opens addresses, runs JavaScript, takes pictures."""

    def __init__(self, connection):
        self._connection = connection
        self._numbers = itertools.count(1)
        self.ask("Page.enable")

    def ask(self, method, **parameters):
        """One command of the protocol and its answer."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, url):
        """Opens an address and waits until its document is there; a refusal is a document, too."""
        self.ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script):
        """The value of a JavaScript expression in the page; of a promise, what it resolves to."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition, timeout_s=60):
        """Waits until an expression is true in the page."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            try:
                if self.run(f"Boolean({condition})"):
                    return
            except AssertionError:  # the document is just being replaced
                pass
            time.sleep(0.1)
        pytest.fail(f"never true: {condition}; the page says: {self.run('document.body?.innerText')!r}")

    def type(self, text):
        """Types into the focused field."""
        self.ask("Input.insertText", text=text)

    def text(self, selector="body"):
        """What a person reads there; empty if there is no such element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, words, within=CLICKABLE, timeout_s=60):
        """Clicks with the mouse on what has exactly these words (or is called so for people who cannot see it) and fits
        the selector, once it stands still and nothing, such as a notice, lies over it.
        """
        arguments = json.dumps([words, within])
        self._click(f"({_NAMED})(...{arguments})", words, timeout_s)

    def fill(self, label, value):
        """Clicks into the field whose label begins like this, and types a value in place of what is there."""
        self._click(f"({_LABELLED})({json.dumps(label)})", label, 60)
        keys = {"key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65, "modifiers": 2, "commands": ["selectAll"]}
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, **keys)
        self.type(value)

    def _click(self, element, words, timeout_s):
        deadline, last, still_since = time.monotonic() + timeout_s, None, 0.0
        while time.monotonic() < deadline:
            at = self.run(f"({_PLACE})({element})")
            if at != last:
                still_since = time.monotonic()
            if at and time.monotonic() - still_since > STILL_S:
                for kind, button, count in (("Moved", "none", 0), ("Pressed", "left", 1), ("Released", "left", 1)):
                    self.ask(
                        "Input.dispatchMouseEvent", type=f"mouse{kind}", x=at[0], y=at[1], button=button,
                        clickCount=count,
                    )  # fmt: skip
                return
            last = at
            time.sleep(0.1)
        pytest.fail(f"nothing to click is called {words!r}; the page says: {self.text()!r}")

    def size(self, width_px, height_px):
        """Sets the size of the window's inside."""
        self.ask(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False
        )

    def look(self, scheme=""):
        """Prefers `light` or `dark` pages; '': neither."""
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def violations(self):
        """What axe finds in the page: rules and the elements; without axe, the test is skipped."""
        file = Path(os.environ.get("AXE_CORE", ROOT / "node_modules/axe-core")) / "axe.min.js"
        if not file.is_file():
            missing("no axe-core here (npm install axe-core, or its folder in AXE_CORE): nobody asks it")
        self.ask("Runtime.evaluate", expression=file.read_text("utf-8"))
        return self.run(
            "axe.run().then((said) => said.violations.map((one) => [one.id, one.nodes.map((node) => node.html)]))"
        )

    def picture(self, file, left_px=0):
        """Writes what the tab shows as PNG, without the first `left_px` columns."""
        width, height, right, down = self.run("[innerWidth, innerHeight, scrollX, scrollY]")
        clip = {"x": right + left_px, "y": down, "width": width - left_px, "height": height, "scale": 1}
        file.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", clip=clip)["data"]))


@contextmanager
def open_page(folder, *options):
    """A tab of a new browser with an empty profile in `folder`; without Chromium, the test is skipped."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    command = [
        found or missing("no Chromium here (apt install chromium): pages are not opened"),
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,900",
        "--remote-debugging-port=0", f"--user-data-dir={folder}", *options, "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        with connect(_first_tab(folder / "DevToolsActivePort"), max_size=None) as connection:
            yield Page(connection)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _first_tab(file):
    """The address of the first tab's debugger; the browser writes its port into `file` when it is ready."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with suppress(OSError, IndexError, ValueError):
            port = int(file.read_text().splitlines()[0])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
                return next(str(tab["webSocketDebuggerUrl"]) for tab in json.load(answer) if tab["type"] == "page")
        time.sleep(0.1)
    pytest.fail("Chromium did not start")
