"""A study of stub stages: killed in the middle and typed again, an arm that fails, figures known beforehand."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys

import pytest

from align.services.git import git
from tests.support import wait_until
from tests.support.dvc_projects import commit_all
from tests.support.killing import kill_family
from tests.support.local_stack import Stack, stub_repository

DVC_YAML = """\
stages:
  ingest:
    cmd: align ingest
    params: [ingest]
    outs: ["reports/ingest", data/raw]
    meta: {flow: data}
  pretrain:
    cmd: align pretrain
    deps: ["reports/ingest"]
    params: [pretrain]
    outs: ["reports/pretrain", models/pretrained]
    meta: {flow: training}
  evaluate:
    cmd: align evaluate
    deps: ["reports/pretrain"]
    params: [evaluate]
    outs: ["reports/evaluation"]
    meta: {flow: training}
  index:
    cmd: align index # never called: a study ends with evaluate
    deps: ["reports/evaluation"]
    outs: ["reports/index", data/index]
    meta: {flow: release}
"""
#: Training waits as long as checkpoints/wait exists; with a learning rate above 1 it fails. A model's figure is 0.2 per
#: thousandth of its learning rate, and a hundredth per seed; the seeds of an arm differ by a thousandth more.
PROGRAM = f"""\
#!/bin/sh
'''exec' "{sys.executable}" "$0" "$@"
' '''
import json, sys, time
from pathlib import Path
from ruamel.yaml import YAML
verb = sys.argv[1]
values = YAML(typ="safe").load(Path("params.yaml").read_text())
with Path("checkpoints/called").open("a") as called:
    print(verb, values["pretrain"]["learning_rate"], values["pretrain"]["seed"], file=called)
metrics, report = {{verb + "/value": 1}}, {{}}
if verb == "pretrain":
    while Path("checkpoints/wait").exists() and values["pretrain"]["seed"]:
        time.sleep(0.1)
    rate, seed = values["pretrain"]["learning_rate"], values["pretrain"]["seed"]
    if rate > 1:
        sys.exit("align: error: the loss is not finite")
    metrics = {{"pretrain/figure": 200 * rate + 0.01 * seed + 0.001 * (seed * round(1000 * rate) % 2)}}
if verb == "evaluate":
    figure = json.loads(Path("reports/pretrain/metrics.json").read_text())["pretrain/figure"]
    metrics = {{"concepts/mean_recall": figure, "vendor/mean_recall": figure}}
    report = {{"sets": {{"concepts": {{"digest": "c"}}, "vendor": {{"digest": "v"}}}}}}
folder = Path("reports") / {{"evaluate": "evaluation"}}.get(verb, verb)
folder.mkdir(parents=True)
for out in {{"ingest": ["data/raw"], "pretrain": ["models/pretrained"]}}.get(verb, []):
    Path(out).mkdir(parents=True)
    (Path(out) / "table").write_text(json.dumps(metrics))
(folder / "metrics.json").write_text(json.dumps(metrics))
(folder / "report.json").write_text(json.dumps(report))
"""
STUDY = """\
name: rates
primary: [concepts/mean_recall, vendor/mean_recall]
seeds: [0, 1]
arms:
  - {name: base, set: {pretrain.learning_rate: 0.001}}
  - {name: faster, paper: faster is better, expected: better, set: {pretrain.learning_rate: 0.002}}
  - {name: too-fast, set: {pretrain.learning_rate: 2.0}}
"""


@pytest.fixture(name="alone")
def _alone(tmp_path):
    root = tmp_path / "repo"
    stub_repository(root)
    (root / "bin/align").write_text(PROGRAM)
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "study.yaml").write_text(STUDY)
    commit_all(root, "study")
    (root / "checkpoints").mkdir()
    stack = Stack(root)
    yield stack
    stack.close()


def called(stack):
    file = stack.root / "checkpoints/called"
    return file.read_text().splitlines() if file.exists() else []


@pytest.mark.kill
def test_killed_in_the_middle_and_typed_again(alone):
    root = alone.root
    command = [sys.executable, "-m", "align.cli", "study", "study.yaml"]
    (root / "checkpoints/wait").touch()
    said = root / "checkpoints/said"
    with (
        said.open("w") as output,
        subprocess.Popen(
            command, cwd=root, env=alone.env, stdout=output, stderr=output, start_new_session=True
        ) as first,
    ):  # fmt: skip
        try:
            wait_until(
                lambda: first.poll() is not None or "pretrain 0.001 1" in called(alone), 400, says=said.read_text
            )
        finally:
            kill_family(first.pid)
    assert first.returncode == -signal.SIGKILL
    assert [name for name in git(root, "branch", "--format=%(refname:short)").split() if "rates" in name] == [
        "run/rates-base-s0", "run/rates-faster-s0",
    ]  # fmt: skip
    (root / "checkpoints/wait").unlink()
    again = alone.run(*command[1:])
    assert again.returncode == 1, again.stdout + again.stderr
    assert "2 of 6 runs failed; the same command tries them again" in again.stderr, again.stderr
    trained = [line for line in called(alone) if line.startswith("pretrain")]
    assert sorted(trained) == sorted([
        "pretrain 0.001 0", "pretrain 0.002 0", "pretrain 2 0", "pretrain 2 0",
        "pretrain 0.001 1", "pretrain 0.001 1", "pretrain 0.002 1", "pretrain 2 1",
    ])  # fmt: skip
    assert called(alone).count("ingest 0.001 0") == 1 and sum(line.startswith("ingest") for line in called(alone)) == 1

    report = json.loads((root / "reports/study/rates/report.json").read_text())
    found = {(run["arm"], run["seed"]): run["figure"] for run in report["runs"]}
    assert found == pytest.approx({
        ("base", 0): 0.2, ("base", 1): 0.211, ("faster", 0): 0.4, ("faster", 1): 0.41,
    })  # fmt: skip
    faster = report["differences"]["faster"]
    assert faster["value"] == pytest.approx(0.1995) and faster["verdict"] == "better" and report["freedom"] == 1
    page = (root / "reports/study/rates/report.html").read_text()
    assert "as in the paper" in page and "faster is better" in page
    assert re.search("Without too-fast, seed 1: .*the loss is not finite", page)
    with sqlite3.connect(root / "mlflow.db") as runs:
        tags = runs.execute("select run_uuid, key, value from tags where key like 'align.%'").fetchall()
        by_run = {uuid: {key: value for one, key, value in tags if one == uuid} for uuid, _, _ in tags}
    of_faster = [one for one in by_run.values() if (one["align.arm"], one["align.seed"]) == ("faster", "1")]
    assert [one["align.study"] for one in of_faster] == ["rates"]
    assert of_faster[0]["align.git_revision"] == git(root, "rev-parse", "run/rates-faster-s1")

    before = len(called(alone))
    (root / "study.yaml").write_text(STUDY.replace("seeds: [0, 1]", "seeds: [0]").replace("  - {name: too-fast", "#"))
    commit_all(root, "one seed")
    one = alone.run(*command[1:])
    assert one.returncode == 0, one.stdout + one.stderr
    assert len(called(alone)) == before  # another commit with the same stages: DVC has them all
    assert "There is no verdict: it takes two seeds or more" in one.stdout


@pytest.mark.kill
def test_an_arm_of_wrong_values_is_refused_before_any_run(alone):
    text = STUDY.replace("pretrain.learning_rate: 2.0", "pretrain.learning_rat: 2.0")
    (alone.root / "study.yaml").write_text(text)
    commit_all(alone.root, "wrong")
    done = alone.run("-m", "align.cli", "study", "study.yaml")
    assert done.returncode == 1 and not os.path.lexists(alone.root / "checkpoints/called"), done.stderr
    assert "arm too-fast: " in done.stderr and "did you mean pretrain.learning_rate" in done.stderr
