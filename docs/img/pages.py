"""Takes the pictures of pages from a finished demo: `make pictures`, or `python docs/img/pages.py DEMO`.

Here are the reports' pages and figures, and the comparison of two models. Those of Prefect, MLflow and the
search page are taken by the browser's tests, which make the runs that they show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from tests.support.browser import open_page

HERE = Path(__file__).parent
#: Figures that are shown as stages drew them.
FIGURES = ("evaluation/recall", "index/queries")
#: What is longer than wide by this is shown as two columns.
LONG = 2.0
#: Until a page is drawn.
DRAWN_S = 1.5


class Shot(NamedTuple):
    """A picture of a page: which page, the size of its window, and the element (CSS) at its top.

    With `dark` there is a second one, NAME_dark.png.
    """

    page: str
    width_px: int
    height_px: int
    dark: bool = False
    top: str = "body"


SHOTS = {
    "filter_report": Shot("reports/filter/report.html", 1100, 1400, dark=True),
    "quality_report": Shot("reports/quality/report.html", 1100, 1400, dark=True),
    "training_report": Shot("reports/pretrain/report.html", 1100, 1400, dark=True),
    "evaluation_report": Shot("reports/evaluation/report.html", 1110, 1210),
    "evaluation_compare": Shot("compared/report.html", 1000, 1000),
    "retrieval": Shot("reports/evaluation/report.html", 1100, 1500, top="h2[id^=examples--image]"),
    "minus": Shot("reports/index/report.html", 1100, 1060, top="h2[id^=image]"),
}


def main(demo: Path) -> None:
    """Renews the pictures from the demo in a folder, whose `align` and services are used."""
    for figure in FIGURES:
        with Image.open(demo / "reports" / f"{figure}.png") as drawn:
            keep(in_columns(drawn), Path(figure).name)
    with tempfile.TemporaryDirectory() as made, open_page(Path(made) / "browser") as tab:
        compare = ["evaluate", "--compare", "models/pretrained", "models/finetuned", "--reports", f"{made}/compared"]
        subprocess.run(["align", *compare], cwd=demo, check=True)
        tab.ask("Emulation.setScrollbarsHidden", hidden=True)
        for name, shot in SHOTS.items():
            page = next(path for root in (demo, Path(made)) if (path := root / shot.page).is_file())
            tab.size(shot.width_px, shot.height_px)
            for looks in ("light", "dark") if shot.dark else ("light",):
                tab.look(looks)
                tab.open(page.resolve().as_uri())
                tab.run(f"document.querySelector('{shot.top}').scrollIntoView()")
                time.sleep(DRAWN_S)
                tab.picture(Path(made) / "taken.png")
                with Image.open(Path(made) / "taken.png") as taken:
                    keep(taken, name + "_dark" * (looks == "dark"))


def in_columns(picture: Image.Image) -> Image.Image:
    """The picture, or its lower half beside its upper one."""
    if picture.height < LONG * picture.width:
        return picture
    half = picture.height // 2
    both = Image.new("RGB", (2 * picture.width, half), "white")
    both.paste(picture.crop((0, 0, picture.width, half)), (0, 0))
    both.paste(picture.crop((0, half, picture.width, 2 * half)), (picture.width, 0))
    return both


def keep(picture: Image.Image, name: str) -> None:
    """Saves it beside this file, in 256 colours."""
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
