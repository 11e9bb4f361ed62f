"""Compositional sets of coloured squares, in the layouts of their authors."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from align.formats.evaluation_sets.compositional import CATEGORIES
from tests.support.colours import COLOURS, square


def sugarcrepe(root: Path) -> Path:
    """Two rows a category, about a red and a green picture; a model that knows colours is right."""
    (root / "val2017").mkdir(parents=True)
    for number, colour in enumerate(("red", "green"), 1):
        (root / f"val2017/{number:012}.jpg").write_bytes(square(colour))
    rows = {
        "0": {"filename": f"{1:012}.jpg", "caption": "a red square", "negative_caption": "a green square"},
        "3": {"filename": f"{2:012}.jpg", "caption": "a green square", "negative_caption": "a red square"},
    }
    for category in CATEGORIES:
        (root / f"{category}.json").write_text(json.dumps(rows, indent=4))
    return root


def winoground(root: Path) -> Path:
    """Two examples: red and green, blue and yellow."""
    (root / "images").mkdir(parents=True)
    lines = []
    for number, pair in enumerate((("red", "green"), ("blue", "yellow"))):
        for place, colour in enumerate(pair):
            (root / f"images/ex_{number}_img_{place}.png").write_bytes(square(colour, format="PNG"))
        line = {
            "id": number,
            **{f"image_{place}": f"ex_{number}_img_{place}" for place in (0, 1)},
            **{f"caption_{place}": f"a {colour} thing" for place, colour in enumerate(pair)},
            "tag": "Adjective-Color",
            "secondary_tag": "",
            "num_main_preds": 1,
            "collapsed_tag": "Object",
        }
        lines.append(json.dumps(line))
    (root / "examples.jsonl").write_text("\n".join(lines) + "\n")
    return root


def aro_rows(kind: str) -> list[dict[str, Any]]:
    """Left half red, right half green; the third row is wrong about the left half."""
    left, right = ((x, 0, 20, 40) for x in (0, 20))
    rows = []
    for (x, y, width, height), true, false in ((left, "red", "green"), (right, "green", "red"), (left, "green", "red")):
        row = {"image_id": 1, "image_path": "1.jpg", "bbox_x": x, "bbox_y": y, "bbox_w": width, "bbox_h": height,
               "true_caption": f"a {true} square", "false_caption": f"a {false} square"}  # fmt: skip
        more = {"relation_name": "to the left of"} if kind == "relation" else {"attributes": ["red", "green"]}
        rows.append({**row, **more})
    return rows


def aro(root: Path, kind: str) -> Path:
    """Three rows about the halves of one picture."""
    (root / "images").mkdir(parents=True)
    image = Image.new("RGB", (40, 40), COLOURS["red"])
    image.paste(COLOURS["green"], (20, 0, 40, 40))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    (root / "images/1.jpg").write_bytes(stream.getvalue())
    path = root / f"visual_genome_{kind}.json"
    path.write_text(json.dumps(aro_rows(kind)))
    return path
