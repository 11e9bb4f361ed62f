"""Each journey starts in a fresh folder, and leaves the demo of this checkout as it is."""

import pytest

from flows.checkout.run_branch import record
from tests.support import ROOT, own_model
from tests.support.dvc_projects import shell
from tests.support.journeys import demo_state

#: A model that is made in seconds, over the profile for photographs. One thread: more wait for each other where other
#: tests run. The width is the image tower's own, so that the model can be exported for transformers; of a handful of
#: test pictures, any ten have the right one.
VALUES = {
    "engine.num_workers": 1, "shard.image_px": 48, "model.resize_px": 36, "model.image_px": 32,
    "model.image_tower.width_coefficient": 0.25, "model.image_tower.depth_coefficient": 0.25, "model.embed_width": 80,
    "model.text_tower.width": 64, "model.text_tower.layers": 1, "model.text_tower.heads": 2, "pretrain.num_steps": 2,
    "pretrain.warmup_steps": 1, "pretrain.batch_size": 16, "pretrain.num_processes": 1, "pretrain.num_threads": 1,
    "pretrain.validate_every_steps": 2, "finetune.num_steps": 1, "finetune.num_processes": 1,
    "finetune.num_threads": 1, "finetune.validate_every_steps": 1, "evaluate.num_resamples": 100,
    "promote.min_times_chance": 0,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A fresh folder, outside the checkout."""
    before = demo_state()
    yield tmp_path
    assert demo_state() == before, "a journey touched the demo of this checkout"


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory):
    """A small project whose every stage has run, with that as branch run/demo; tests work in copies of its folder."""
    home, code = tmp_path_factory.mktemp("small"), {"PYTHONPATH": str(ROOT)}
    own_model.write_photos(home)
    values = " ".join(f"--set {key}={value}" for key, value in VALUES.items())
    shell(home, f"align init mine --profile photographs --set paths.archive=photos {values}", code)
    shell(home / "mine", "dvc repro", code, timeout_s=500)
    record(home / "mine", "demo", "a run")
    return home / "mine"
