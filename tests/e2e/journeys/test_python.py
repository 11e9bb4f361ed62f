"""docs/python.md and examples/first_hour.ipynb as they are typed, over a small demo."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support import ROOT, evaluation_sets, shard_folder, small_data, tiny_model, training_data
from tests.support.params import PARAMS_FILE

_EXECUTE = """
import nbformat, sys
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


@pytest.fixture(name="demo")
def _demo(folder):
    """What the page reads of a finished demo."""
    pairs = [
        small_data.Pair("a red bar", 1), small_data.Pair("click here", 2, reason="few_words"),
        small_data.Pair("a blue bar", 3), small_data.Pair("gone", None, reason="no_image"),
    ]  # fmt: skip
    small_data.write(folder / "data", pairs)
    shard_folder.write_shards(folder / "data/shards", {"test": [training_data.samples(12)]}, image_px=40)
    shutil.move(tiny_model.write(folder), folder / "made")
    (folder / "models").mkdir()
    shutil.move(folder / "made", folder / "models/finetuned")
    for name in ("concepts", "classes"):
        evaluation_sets.write_coloured_set(folder / "data/sample/evaluation", name)
    shutil.copyfile(PARAMS_FILE, folder / "params.yaml")
    return folder


def _run(folder, *words):
    own = {name: str(folder / "jupyter") for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR")}
    env = os.environ | {"PYTHONPATH": str(ROOT)} | own
    done = subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.journeys
def test_the_page(demo):
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text("utf-8"), re.M | re.S)
    assert len(blocks) == 3
    said = _run(demo, "-c", "".join(blocks))
    assert "<align.Dataset filtered data/filtered, 4 pairs>" in said and "[('kept', 2)" in said
    assert "('few_words',) click here" in said and "concepts/image_to_text/recall@10" in said
    assert (demo / "trial/reports/from-python/report.html").is_file()


@pytest.mark.journeys
def test_the_notebook(demo):
    source = ROOT / "examples/first_hour.ipynb"
    _run(demo, "-c", _EXECUTE, str(source), "done.ipynb")
    cells = json.loads((demo / "done.ipynb").read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "concepts/image_to_text/recall@10" in "".join("".join(output.get("text", "")) for output in outputs)


def test_the_notebook_in_git_has_pictures_and_no_place_of_its_maker():
    text = (ROOT / "examples/first_hour.ipynb").read_text("utf-8")
    cells = json.loads(text)["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not any(output["output_type"] == "error" for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|Users)/", text) and len(text) < 1_500_000
