"""The smoke test of a registered model: its own bytes, loaded as anybody would, embed a text and a picture.

It runs in a process of its own: the model brings its own copy of the modules of `align` that it needs, and this process
has already loaded those of the checkout.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

#: Prints the embeddings as JSON in its last line. It knows nothing of this project.
_PROGRAM = """
import base64, io, json, sys
import mlflow.pyfunc, pandas
from PIL import Image
buffer = io.BytesIO()
Image.new("RGB", (96, 64), (200, 60, 20)).save(buffer, "PNG")
frame = pandas.DataFrame({"text": ["a red fox"], "image": [buffer.getvalue()]})
answer = mlflow.pyfunc.load_model(sys.argv[1]).predict(frame)
rows = {name: [float(value) for value in answer[name].iloc[0]] for name in ("text_embedding", "image_embedding")}
print("\\n" + json.dumps(rows))
"""
#: Loading torch and the largest model from a slow disk included.
_PATIENCE_S = 900.0
#: A unit vector in float32, summed over a thousand values.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Smoke:
    """`passed`, and the result in words."""

    passed: bool
    figure: str


def smoke(model: Path) -> Smoke:
    """Loads a packaged model in a fresh process and asks for one text and one picture.

    Args:
        model: the folder of an MLflow model.
    """
    command = [sys.executable, "-P", "-W", "ignore", "-c", _PROGRAM, str(model.resolve())]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        return Smoke(False, f"no answer within {_PATIENCE_S:,.0f} s")
    said = done.stderr.strip().splitlines() or ["no word on stderr"]
    if done.returncode:
        return Smoke(False, f"it does not load or embed: {said[-1][:200]}")
    try:
        rows = {str(name): list(map(float, row)) for name, row in json.loads(done.stdout.splitlines()[-1]).items()}
    except (ValueError, LookupError, AttributeError, TypeError):
        return Smoke(False, "its answer is not an embedding")
    return judged(rows)


def judged(rows: dict[str, list[float]]) -> Smoke:
    """Whether embeddings, name -> values, are finite, of one width, and of length 1."""
    for name, row in rows.items():
        what = name.removesuffix("_embedding")
        if not row or not all(map(math.isfinite, row)):
            return Smoke(False, f"the embedding of the {what} is not finite")
        length = math.sqrt(sum(value * value for value in row))
        if abs(length - 1) > _TOLERANCE:
            return Smoke(False, f"the embedding of the {what} has length {length:.4f}")
    widths = {len(row) for row in rows.values()}
    if len(widths) != 1:
        return Smoke(False, f"text and picture have embeddings of {' and '.join(map(str, sorted(widths)))} values")
    return Smoke(True, f"a text and a picture have embeddings of length 1, {widths.pop()} values each")
