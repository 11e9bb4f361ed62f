"""docs/evaluation.md: mteb and CLIP_benchmark over a model, offline, as the page types it."""

import json
import os

import numpy as np
import pytest
import torch

from align.evaluate.protocols.zero_shot import class_embeddings, predictions, prompts
from align.model.embedder import Embedder
from tests.support import small_model
from tests.support.journeys import travel
from tests.support.peers import tools, whole
from tests.support.tars import samples


@pytest.mark.tools
@pytest.mark.timeout(1800)  # installs other people's tools
def test_other_peoples_tools(folder, sample):
    """In a folder with a model and the demo's sets, as the checkout of the demo has them."""
    python = tools()
    torch.manual_seed(0)
    header = json.loads((sample / "evaluation/classes.json").read_text())
    # words that it does not know would be one class, and rounding would decide which of these is nearer
    model = small_model.write(folder, prompts(header["classes"], header["templates"]), 2000)
    pictures = [row["jpg"] for row in samples(sample / "evaluation/classes.tar").values() if "jpg" in row]
    small_model.tell_apart(model, pictures[:64])
    (folder / "data").mkdir()
    (folder / "data/sample").symlink_to(sample)
    printed = travel(folder, "evaluation", "tools", {"PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"})
    ours = Embedder.load(model)
    rows = samples(folder / "sets/classes/test/0.tar").values()
    labels = [int(row["cls"]) for row in rows]
    shown = {"all": ours.embed_pixels(whole(row["jpg"], 64) for row in rows)}
    shown["one"] = ours.embed_images(row["jpg"] for row in rows)
    assert len(labels) == header["num_query"]
    expected = {}
    for name, templates in (("all", header["templates"]), ("one", ["a picture of {}"])):
        classes = class_embeddings(ours.embed_texts(prompts(header["classes"], templates)), len(header["classes"]))
        expected[name] = float(np.mean(predictions(shown[name], classes) == labels))
    theirs = json.loads((folder / "clip_benchmark.json").read_text())["metrics"]
    assert theirs["acc1"] == pytest.approx(expected["all"], abs=1e-4)
    accuracy = next(line for line in reversed(printed.splitlines()) if line.startswith("accuracy "))
    assert float(accuracy.split()[1]) == pytest.approx(expected["one"], abs=1e-4)
    assert list((folder / "results").rglob("Classes.json"))
