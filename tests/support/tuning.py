"""A small fine-tuning: pictures of four colours, a tiny tower with random weights; also as a suite."""

from dataclasses import replace

import numpy as np
import torch

from align.cli import main
from align.evaluate.fine_tuning.pictures import Pictures
from align.evaluate.fine_tuning.recipe import IMAGENET, resized, shortened
from align.evaluate.fine_tuning.tune import Machine, tune
from align.model.image_tower import ImageTower
from tests.support import tiny_model
from tests.support.colours import COLOURS, square
from tests.support.params import sets
from tests.support.suites import suite
from tests.support.tiny_model import TINY

MACHINE = Machine(part=4, num_threads=1)
RECIPE = replace(resized(shortened(IMAGENET, 1), 32), batch_size=8)


def tower():
    """Equal weights each time; statistics that are not those of a new model."""
    torch.manual_seed(0)
    made = ImageTower(TINY).eval()
    with torch.no_grad():
        for name, value in made.named_buffers():
            if name.endswith("running_var"):
                value.mul_(0.5)
    return made


def pictures(name="train", number=24):
    """Shades of four colours, in turn."""
    colours = list(COLOURS)
    images = [square(colours[index % 4], shade=index // 4 * 3) for index in range(number)]
    return Pictures(name, images, np.arange(number) % 4)


def tuned(recipe=RECIPE, *, seed=0, machine=MACHINE):
    """Trains to the end of the recipe."""
    return tune(tower(), pictures(), 4, recipe, seed=seed, machine=machine)


def content(model):
    """Name -> bytes of every weight and statistic."""
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def write_suite(root, **settings):
    """Writes model, pictures and suite into a folder."""
    tiny_model.write(root)
    for split, first, number in (("train", 0, 6), ("test", 6, 5)):
        for colour in COLOURS:
            folder = root / "set" / split / colour
            folder.mkdir(parents=True)
            for shade in range(first, first + number):
                (folder / f"{shade}.jpg").write_bytes(square(colour, shade=3 * shade))
    tasks = {"tasks": ["zero_shot", "knn", "fine_tuning"], "fine_tuning": {"preset": "small", **settings}}
    suite(root, {"name": "colours", "path": str(root / "set"), "format": "folder", **tasks})


def evaluate(root, out):
    """`align evaluate` of it; the exit code."""
    values = sets(f"paths.evaluation={root / 'suite.yaml'}", "store.features=null", "evaluate.num_resamples=200")
    return main(["evaluate", *values, "--model", str(root / "model"), "--reports", str(root / out)])
