"""`pretrain.validate_on`: a run's figures on evaluation sets are those of `align evaluate` of that checkpoint."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock

import pytest
import torch
from torch import Tensor

from align.cli import main
from align.config.evaluate import EvaluateConfig
from align.config.infrastructure import StoreConfig
from align.errors import ConfigError
from align.model.dual_encoder import DualEncoder
from align.model.image_tower import estimate_statistics
from align.model.tokenizer import TextTokenizer
from align.pipeline import validation
from align.pipeline.validation import SetValidation
from align.training.ranks.process_group import Ranks
from tests.support import training_data
from tests.support.evaluation_sets import write_coloured_set
from tests.support.params import load_params, sets
from tests.support.training_data import MODEL, RECIPE
from tests.support.training_project import write_project

CPU, SEEDED = torch.device("cpu"), Lock()
NAMES = ("pairs", "classes")
OF_SETS = ("val/pairs/", "val/classes/")


@pytest.fixture(scope="module", name="evaluation")
def _evaluation(tmp_path_factory):
    """Sets of captions and of classes; a picture of each is no picture."""
    folder = tmp_path_factory.mktemp("sets")
    for name in NAMES:
        write_coloured_set(folder, name)
    return folder


def test_equal_to_an_evaluation_of_the_checkpoint(data, evaluation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    best = {"best_metric": "val/classes/zero_shot/accuracy", "export": "best"}
    write_project(tmp_path, data, RECIPE | {"validate_on": NAMES, "checkpoint_every_steps": 4} | best)
    where = sets(f"paths.evaluation={evaluation}")
    assert main(["pretrain", *where]) == 0
    rows = [json.loads(line) for line in (tmp_path / "reports/pretrain/metrics.jsonl").read_text().splitlines()]
    for step in (4, 8):
        ours = next(row for row in rows if row["step"] == step)
        found = {name.removeprefix("val/"): value for name, value in ours.items() if name.startswith(OF_SETS)}
        assert main(["evaluate", *where, "--checkpoint", f"pretrain:{step}", "--reports", f"at{step}"]) == 0
        theirs = json.loads((tmp_path / f"at{step}/metrics.json").read_text())
        assert found == {name: theirs[name] for name in found}
        assert found.keys() >= {"pairs/mean_recall", "pairs/text_to_image/recall@1/low", "classes/knn/accuracy/high"}
    report = json.loads((tmp_path / "reports/pretrain/metrics.json").read_text())
    at = {row["step"]: row["val/classes/zero_shot/accuracy"] for row in rows if row["step"] in (4, 8)}
    assert report["pretrain/exported_step"] == max(at, key=lambda step: (at[step], -step))


def model(vocab_size):
    with SEEDED:  # threads share torch's generator
        torch.manual_seed(0)
        made = DualEncoder(MODEL, vocab_size).train()
        pixels = torch.rand(8, 3, 32, 32) * 2 - 1
    estimate_statistics(made.vision_model, [pixels])
    return made


def measured(evaluation, tokenizer, out, ranks):
    params, words = load_params(), TextTokenizer.load(tokenizer, MODEL.max_tokens)
    measure = SetValidation(NAMES, evaluation, params.section(StoreConfig), params.section(EvaluateConfig))
    found = measure(model(words.vocab_size), words, ranks)
    (out / f"{ranks.rank} of {ranks.world_size}").write_text(json.dumps(found))


class Together(Ranks):
    """A rank of two that are threads."""

    barrier, sums = Barrier(2), dict[int, Tensor]()

    def sum(self, tensor):
        self.sums[self.rank] = tensor
        self.barrier.wait(60)
        total = self.sums[0] + self.sums[1]
        assert not (self.sums[0] * self.sums[1]).any()  # each has its own rows
        assert all(part.any() for part in self.sums.values())
        self.barrier.wait(60)
        return total


def test_each_rank_embeds_its_share(data, evaluation, tmp_path, small_blocks):
    measured(evaluation, data[1], tmp_path, Ranks(0, 1, CPU))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda rank: measured(evaluation, data[1], tmp_path, Together(rank, 2, CPU)), (0, 1)))
    assert len({path.read_text() for path in tmp_path.iterdir()}) == 1 and len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("name", ["other", ""])
def test_a_set_that_is_not_there_is_said_before_training(evaluation, name):
    with pytest.raises(ConfigError, match=r"no set of captions or of classes has this name in .*; there are classes"):
        validation.set_validation(load_params(overrides=[f"paths.evaluation={evaluation}"]), ("pairs", name))


@pytest.mark.parametrize("metric", ["val/other/mean_recall", "pairs/mean_recall", "val/pairs/recall@2"])
def test_best_metric_is_one_that_is_measured(metric):
    training_data.pretrain_config(validate_on=["pairs"], best_metric="val/pairs/mean_recall")
    with pytest.raises(ValueError, match="best_metric"):
        training_data.pretrain_config(validate_on=["pairs"], best_metric=metric)
