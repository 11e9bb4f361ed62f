"""Prefect's newer UI, driven as a person uses it, and pictures of it for docs/."""

import io
import os
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

#: The folder for pictures; without it none is taken.
PICTURES = os.environ.get("ALIGN_PICTURES")
WIDTH_PX, HEIGHT_PX = 1300, 760
#: Columns of the window that the menu takes, which pictures leave out.
MENU_PX = 256
#: Until all is drawn; and until the graph of a run is, which comes late.
DRAWN_S, GRAPH_S = 1.5, 6.0
#: Of a picture in docs/img.
MAX_PICTURE_BYTES = 120_000
#: The page of an artifact with its description and what it holds: both come after all else, and what it holds may go
#: once more before it stays.
READY = re.compile(r"Documentation\n+(?!Artifact\nRaw)\S.*\nArtifact\nRaw\n+(?!Show Raw Data)\S", re.DOTALL)


class Prefect:
    """Prefect's newer UI in a tab, as a person uses it."""

    def __init__(self, page, url):
        self.page = page
        self.url = url
        self._addresses = {}  # of artifacts: the graph of a run's page costs half a core

    def log_in(self, login):
        self.page.open(self.url)
        self.page.wait("document.querySelector('input[type=password]')")
        self.page.run("document.querySelector('input[type=password]').focus()")
        self.page.type(login)
        self.page.click("Login", "button")
        self.page.wait("location.pathname.startsWith('/v2/dashboard')")

    def open_deployment(self, flow, entry):
        """From the menu: Deployments, the flow's, Run, and `Quick run` or `Custom run`."""
        self.page.click("Deployments")
        row = f"[...document.querySelectorAll('main tr')].find((row) => row.innerText.split('\\n').includes('{flow}'))"
        link = f"""{row}?.querySelector('a[href*="/deployments/deployment/"]')?.getAttribute('href')"""
        self.page.wait(link)  # the name of the flow comes after that of the deployment
        link = self.page.run(link)
        name = str(self.page.run(f"document.querySelector(\"main a[href='{link}']\").innerText.trim()"))
        self.page.click(name, f"main a[href='{link}']")
        self.page.click("Run", "main button")
        self.page.click(entry)

    def open_form(self):
        """The form of the pipeline."""
        self.open_deployment("pipeline", "Custom run")
        self.page.wait("[...document.querySelectorAll('label')].some((label) => label.innerText.startsWith('Steps'))")

    def quick_run(self, flow):
        """Starts a flow without a form, and returns the new run's id."""
        self.open_deployment(flow, "Quick run")
        self.page.click("View run")
        self.page.wait("location.pathname.includes('/runs/flow-run/')")
        return str(self.page.run("location.pathname.split('/').at(-1)"))

    def submit(self):
        """Clicks on Submit, then on View run, and returns the new run's id. A form that did nothing is asked again."""
        submitting = "[...document.querySelectorAll('main button')].some((button) => button.innerText === 'Submit')"
        for _ in range(3):
            time.sleep(1)  # until the form has taken in what was typed
            self.page.click("Submit", "main button")
            with suppress(pytest.fail.Exception):
                self.page.click("View run", timeout_s=30)
                break
            assert self.page.run(submitting), self.page.text()
        self.page.wait("location.pathname.includes('/runs/flow-run/')")
        return str(self.page.run("location.pathname.split('/').at(-1)"))

    def menu(self, entry, confirmed_by):
        """An entry of the menu of the run's page, and the button of the question that it asks."""
        self.page.click("Open menu", "main button")
        self.page.click(entry, "[role=menuitem]")
        self.page.click(confirmed_by, "[role=dialog] button, [role=alertdialog] button")

    def wait_for_state(self, state, timeout_s=60):
        self.page.wait(
            f"document.querySelector('main').innerText.split('\\n').slice(0, 8).includes('{state}')", timeout_s
        )

    def artifacts(self, run):
        """The cards of the tab Artifacts: key -> address. Fails if a key is there twice."""
        self.page.open(f"{self.url}/v2/runs/flow-run/{run}")
        cards = "[...document.querySelectorAll('main a[href*=\"/artifacts/artifact/\"]')]"
        for _ in range(3):  # as the page comes, it may go back to the log after a click
            self.page.click("Artifacts")
            with suppress(pytest.fail.Exception):  # a run that has just begun has none
                self.page.wait(f"{cards}.length", 5)
                break
        found = self.page.run(
            f"{cards}.map((card) => [card.innerText.split('\\n').filter((line) => line)[1], card.href])"
        )
        assert len(dict(found)) == len(found), found
        return dict(found)

    def read(self, run, key):
        """What the artifact of this key says, on a page of its own; waits a few minutes for it to be there."""
        deadline = time.monotonic() + 300  # a plan imports torch, on a machine that may be busy
        while (run, key) not in self._addresses:
            assert time.monotonic() < deadline, f"the run has no artifact {key}"
            self._addresses |= {(run, one): address for one, address in self.artifacts(run).items()}
        self.page.open(self._addresses[run, key])
        return self.artifact()

    def artifact(self):
        """What the page of an artifact says, once it is there and stays as it is."""
        deadline, last, text = time.monotonic() + 60, "", ""
        while not READY.search(text) or text.partition("Show Raw Data")[0] != last:
            assert time.monotonic() < deadline, text
            last = text.partition("Show Raw Data")[0]
            time.sleep(0.5)
            text = self.page.text("main")
        return text

    def picture(self, name, height_px=None, rows=None):
        take(self.page, name, height_px, MENU_PX, rows)


def take(page, name, height_px=None, left_px=0, rows=None):
    """Takes a picture for docs/, if asked to, in a palette of colours, as it is text on a plain ground: of the window
    at that height (None: as it is, with what is open in it), without its first columns, and of these rows of pixels
    from the top.
    """
    if not PICTURES:
        return
    if height_px:
        page.size(WIDTH_PX, height_px)
        page.run("scrollTo(0, 0)")
    page.ask("Emulation.setScrollbarsHidden", hidden=True)
    time.sleep(GRAPH_S if page.run("Boolean(document.querySelector('canvas'))") else DRAWN_S)
    file = Path(PICTURES) / f"{name}.png"
    page.picture(file, left_px)
    with Image.open(io.BytesIO(file.read_bytes())) as image:
        image.convert("RGB").crop((0, 0, image.width, rows or image.height)).quantize(128).save(file, optimize=True)
    assert file.stat().st_size < MAX_PICTURE_BYTES
    page.size(WIDTH_PX, HEIGHT_PX)
