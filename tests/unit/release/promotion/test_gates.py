"""Each gate on a version, without MLflow."""

import argparse
import hashlib
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from align.arguments import commands
from align.config.evaluate import EvaluateConfig
from align.config.release import PromoteConfig
from align.durable.files import sha256_folder
from align.errors import ConfigError, RefusedError
from align.formats.query_ranks import QueryRanks
from align.release.packaging.smoke import judged, smoke
from align.release.promotion import gates
from align.release.promotion.decision import Compared
from align.release.promotion.promote import Approval, approval_of
from align.services.git import git
from align.services.tracking.registry import Version
from align.services.tracking.tracker import Tracker
from align.statistics.paired import Difference
from tests.support import small_git
from tests.support.params import load_params
from tests.support.registered import RECALL, ranks

TAGS = {
    "align.git_revision": "0123abc", "align.data_digest": "d" * 64, "align.model_digest": "e" * 64,
    "align.quality": "passed",
}  # fmt: skip


def version(**changed):
    """A version with tags; `quality="x"` is tag `align.quality`, and None takes it away."""
    tags = {**TAGS, **{f"align.{name}": value for name, value in changed.items()}}
    return Version("align", 3, "run", {name: value for name, value in tags.items() if value is not None})


class Runs:
    """In place of MLflow: metrics and tags of runs."""

    def __init__(self, metrics, tags):
        self._metrics, self._tags = metrics, tags

    def run(self, run_id):
        if run_id not in self._metrics and run_id != "run":
            raise RefusedError("no such run")
        return SimpleNamespace(tags=self._tags, metrics=self._metrics.get(run_id, {}))


def health(metrics, **tags):
    gate = gates.health(version(), cast("Tracker", Runs(metrics, tags)))
    return gate.passed, gate.figure


def test_lineage_names_what_is_not_recorded():
    assert gates.lineage(version()).passed
    gate = gates.lineage(version(data_digest=None, quality=None))
    assert (gate.passed, gate.figure) == (False, "not recorded: data, verdict")
    assert gates.lineage(version(git_revision="0123abc-dirty")).figure.endswith("whose files had been edited")


def test_a_verdict_passes_or_is_accepted_by_name():
    assert gates.verdict(version()).passed
    accepted = gates.verdict(version(quality_accepted="drift, by me: new source"))
    assert accepted.passed and "drift, by me: new source" in accepted.figure
    assert [gates.verdict(version(quality=value)).passed for value in (None, "failed")] == [False, False]


def test_alarms_at_the_end_of_training_are_those_of_the_run_that_trained():
    other = "0" * 32
    assert health({"run": {"pretrain/train/alarms": 0.0, "finetune/train/alarms": 0.0}}) == (
        True,
        "none at the end of finetune and pretrain",
    )
    assert health({"run": {"finetune/train/alarms": 2.0}}) == (False, "finetune ended with 2 signs out of bounds")
    two = {"finetune/train/alarms": 2.0, "finetune/train/alarm/gradient norm": 1.0, "finetune/train/alarm/b": 1.0}
    assert health({"run": two}) == (False, "finetune ended with b and gradient norm out of bounds")
    over = {"finetune/train/alarms": 0.0, "finetune/train/alarm/b": 0.0, "finetune/train/alarm/gradient norm": 1.0}
    rank = {"pretrain/train/alarms": 1.0, "pretrain/train/alarm/effective rank": 1.0}
    metrics = {"run": over, other: rank}
    assert health(metrics, cached_from=other) == (False, "pretrain ended with effective rank out of bounds")
    both = {"run": {"pretrain/train/alarms": 0.0}, other: rank}  # trained again, after the run that the cache had
    assert health(both, cached_from=other) == (True, "none at the end of pretrain")
    assert health(metrics, cached_from="DVC's cache") == (True, "none at the end of finetune")
    assert health({"run": {}}, cached_from=other)[0] is None  # that run was deleted


@pytest.mark.parametrize(
    ("value", "low", "passed"), [(0.03, 0.021, True), (0.03, 0.02, False), (0.03, 0.01, False), (-0.01, -0.02, False)]
)
def test_better_is_the_lower_bound_above_the_margin(value, low, passed):
    config = load_params(overrides=["promote.margin=0.02"]).section(PromoteConfig)
    one = Difference(value=value, error=0.01, low=low, high=0.1, critical=1.0, num_units=100)
    assert gates.better(config, Compared(one, {}, ()), 1).passed is passed
    few = gates.better(config, Compared(replace(one, low=-1.0), {}, ()), 1)
    assert (few.figure.endswith("lower bound unknown: too few concepts"), few.passed) == (True, False)


@pytest.mark.parametrize(
    ("recall", "times", "passed"),
    [(0.5, 3.0, True), (0.3, 1.0, True), (0.3, 3.0, False), (0.34, 3.0, False), (0.39, 3.0, True)],
)
def test_above_chance_is_the_lower_bound_at_so_many_times_chance(recall, times, passed):
    """Of 200 queries: the bounds of 0.3 are 0.24 and 0.365, those of 0.34 0.275 and 0.405; chance is 0.1."""
    params = load_params(overrides=[f"promote.metrics=[{RECALL}]", f"promote.min_times_chance={times}"])
    (gate,) = gates.above_chance(params.section(PromoteConfig), params.section(EvaluateConfig), ranks(recall))
    assert gate.passed is passed
    if not passed:  # the value that it names does let it through
        (lower,) = re.findall(r"promote\.min_times_chance ([\d.]+)", gate.way_out)
        params = load_params(overrides=[f"promote.metrics=[{RECALL}]", f"promote.min_times_chance={lower}"])
        (gate,) = gates.above_chance(params.section(PromoteConfig), params.section(EvaluateConfig), ranks(recall))
        assert gate.passed


def test_each_metric_must_be_above_chance():
    worse = "concepts/text_to_image/recall@10"
    params = load_params(overrides=[f"promote.metrics=[{RECALL}, {worse}]", "promote.min_times_chance=3"])
    parts = ranks(0.7).ranked | {("concepts", "text_to_image"): ranks(0.1).ranked["concepts", "text_to_image"]}
    rows = gates.above_chance(
        params.section(PromoteConfig), params.section(EvaluateConfig), QueryRanks(ranks(0.7).sets, parts)
    )
    assert [(row.name, row.passed) for row in rows] == [
        (f"above chance: {RECALL}", True),
        (f"above chance: {worse}", False),
    ]
    assert [row.way_out for row in rows] == ["", "it may be a random order: train longer"]


def test_registered_bytes_are_compared_with_the_tag_and_with_dvc(tmp_path, monkeypatch):
    packaged, checkout = tmp_path / "model", tmp_path / "checkout"
    (packaged / "code").mkdir(parents=True)
    for name in ("MLmodel", "code/b.py", "code/a.py"):
        (packaged / name).write_text(name)
    files = [
        {"md5": hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(), "relpath": name}
        for name in ("MLmodel", "code/a.py", "code/b.py")
    ]
    md5 = hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    digest = sha256_folder(packaged)

    def gate(revision, digest=digest):
        found = gates.registered_bytes(version(model_digest=digest, git_revision=revision), packaged)
        return found.passed, found.figure.partition(" ")[2]

    unknown = "as registered; no dvc.lock of its revision here"
    assert gate("0123abc") == (True, unknown)  # no repository
    small_git.write(checkout, {"README.md": "a checkout"})
    revisions = []
    for recorded in (md5, "0" * 32, None):
        outs = [{"path": "models/packaged", "md5": f"{recorded}.dir"}] if recorded else []
        (checkout / "dvc.lock").write_text(json.dumps({"stages": {"package": {"outs": outs}}}))
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", "-m", "another")
        revisions.append(git(checkout, "rev-parse", "HEAD"))
    assert gate(revisions[0]) == (True, "as registered; as in dvc.lock")
    assert gate(revisions[1]) == (False, "as registered; not as in dvc.lock")
    assert gate(revisions[2]) == gate(f"{revisions[0]}-dirty") == (True, unknown)
    assert gate(revisions[0], "f" * 64) == (False, f"registered as {'f' * 12}")


def test_a_prediction_is_finite_and_of_length_1():
    unit = [0.6, 0.8]
    assert judged({"text_embedding": unit, "image_embedding": unit}).passed
    for row, why in (
        ([math.nan, 0.0], "the embedding of the image is not finite"),
        ([], "the embedding of the image is not finite"),
        ([1.0, 1.0], "the embedding of the image has length 1.4142"),
        ([0.3, 0.4], "the embedding of the image has length 0.5000"),
        ([1.0], "text and picture have embeddings of 1 and 2 values"),
    ):
        done = judged({"text_embedding": unit, "image_embedding": row})
        assert (done.passed, done.figure) == (False, why)


def test_a_folder_that_is_no_model_predicts_nothing(tmp_path, monkeypatch):
    from align.release.packaging import smoke as module

    monkeypatch.setattr(module, "_PROGRAM", "import sys; sys.exit('no MLmodel in it')")
    done = smoke(tmp_path)
    assert (done.passed, done.figure) == (False, "it does not load or embed: no MLmodel in it")
    for program in ("print('hello')", "print()", "pass", "print('[1]')"):
        monkeypatch.setattr(module, "_PROGRAM", program)
        assert smoke(tmp_path).figure == "its answer is not an embedding"


def said(*words):
    parser = argparse.ArgumentParser()
    commands.promote(parser)
    return approval_of(parser.parse_args(words))


def test_words_become_one_line_without_logins():
    assert said() is None
    assert said("--approved-by", " Ann \n", "--because", "see\thttps://me:secret@host/ \x1b[2J") == Approval(
        "Ann", "see https://host/ \\u001b[2J"
    )
    assert said("--approved-by", "a" * 200, "--because", "x" * 1000) == Approval("a" * 200, "x" * 1000)  # the longest
    rejected = said("--rejected-by=Bob", "--because=-x")
    assert rejected == Approval("Bob", "-x", is_rejection=True)


@pytest.mark.parametrize(("words", "problem"), [
    (["--approved-by", "Ann"], "--approved-by: say why, too: --because WHY"),
    (["--because", "better"], "--because: say who, too: --approved-by WHO, or --rejected-by WHO"),
    (["--rejected-by", " ", "--because", "x"], "--rejected-by: expected words, not an empty text"),
    (["--approved-by", "Ann", "--because", "x" * 1001], "--because: 1,001 characters; at most 1,000 are kept"),
])  # fmt: skip
def test_who_and_why_go_together(words, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        said(*words)
