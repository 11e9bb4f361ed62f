"""dvc.yaml against the source: what every stage depends on; and which stages a request names."""

import ast
import json
import os
import shutil
import subprocess
from dataclasses import replace
from functools import cache

import pytest
from ruamel.yaml import YAML

from align.config.params import INHERITS
from align.config.sections import SECTIONS
from align.errors import ConfigError
from align.project import provenance
from align.services.dvc.commands import write_code
from align.verbs import STAGES
from flows.dag import downstream, read_dag, select
from tests.support import ROOT
from tests.support.params import PARAMS_FILE
from tests.support.warm import commands

DAG = read_dag(ROOT)
DATA = {"ingest", "filter", "validate", "shard", "validate_shards", "fit_tokenizer"}


def names(only="all", first=None, last=None):
    found = select(DAG, only, first, last)
    return {stage.name for stage in found.asked}, {stage.name for stage in found.before}


def test_all_and_parts():
    assert names() == ({stage.name for stage in DAG}, set())
    assert names("data") == (DATA, set())
    assert names("training") == ({"pretrain", "finetune"}, DATA)
    assert names("evaluation") == ({"evaluate"}, DATA | {"pretrain", "finetune"})


def test_up_to_and_from():
    assert names(last="validate") == ({"ingest", "filter", "validate"}, set())
    asked, before = names(first="finetune")
    assert asked == {"finetune", "evaluate", "package", "index"} and before == DATA | {"pretrain"}
    assert names(first="shard", last="shard") == ({"shard"}, {"ingest", "filter", "validate"})
    assert names("training", first="finetune")[0] == {"finetune"}
    found = select(DAG, last="shard")
    assert [stage.name for stage in found.stages] == ["ingest", "filter", "validate", "shard"]
    assert set(found.left_out) == {stage.name for stage in DAG} - {"ingest", "filter", "validate", "shard"}


def test_what_the_release_does_not_read_is_left_out():
    """Such as pre-training where fine-tuning starts from an imported model; also where it is asked for."""
    imported = [
        replace(stage, upstream=tuple(name for name in stage.upstream if name not in ("pretrain", "fit_tokenizer")))
        for stage in DAG
    ]
    for only, first in (("all", None), ("training", None), ("all", "validate_shards")):
        found = select(imported, only, first)
        assert {"pretrain", "fit_tokenizer"} <= set(found.left_out), (only, first)
        assert "finetune" in [stage.name for stage in found.asked]
    with pytest.raises(
        ConfigError, match="nothing to run: no stage is in 'all' and from pretrain and up to pretrain, and read"
    ):
        select(imported, last="pretrain", first="pretrain")


def test_nothing_and_unknown():
    with pytest.raises(ConfigError, match="nothing to run: no stage is in 'data' and from pretrain"):
        select(DAG, "data", "pretrain")
    with pytest.raises(ConfigError, match=r"stage 'train': dvc\.yaml has no such stage; it has ingest, "):
        select(DAG, last="train")


ENTRIES = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
CODE = ENTRIES.pop("code")


def deciding(name):
    """The files that can change the bytes of a stage, as paths from the root."""
    files = provenance.deciding(STAGES[name].module).values()
    return {path.relative_to(ROOT).as_posix() for path in files}


def sections(files):
    """The sections of params.yaml that these modules read, `params.section(CLASS)`, and those that they inherit from.

    Sections that change no bytes are not among them, nor those whose class `align.project.provenance` leaves out.
    """
    read = [cls for file in files for cls in read_by(file) if f"{cls.__module__.replace('.', '/')}.py" in files]
    return {name for cls in read for name in (cls.section, INHERITS.get(cls.section, cls.section)) if cls.changes_bytes}


@cache
def read_by(file):
    """The classes of the sections that a module reads."""
    classes = {cls.__name__: cls for cls in SECTIONS.values()}
    calls = [node for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))) if isinstance(node, ast.Call)]
    asks = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "section"]
    return [classes[ast.unparse(call.args[0])] for call in asks]


def test_every_verb_is_a_stage_and_calls_its_verb():
    assert {name: entry["cmd"] for name, entry in ENTRIES.items()} == {name: f"align {name}" for name in STAGES}


def test_the_first_stage_writes_the_code_of_the_others():
    assert CODE["cmd"] == "python -m align.project.code" and CODE["always_changed"] is True and "deps" not in CODE


@pytest.mark.parametrize("name", ENTRIES)
def test_params(name):
    *declared, code = ENTRIES[name]["params"]
    wanted = sections(deciding(name))
    assert set(declared) == wanted, f"dvc.yaml, stage {name}, params: write {sorted(wanted)}"
    assert code == {"code.yaml": [name]}


def test_no_other_out_escapes_the_cache():
    """`cache: false` would make another machine compute again what this one has; a string has no such option."""
    assert all(isinstance(out, str) for entry in ENTRIES.values() for out in entry["outs"])


def test_order_and_upstream():
    stages = DAG
    position = {stage.name: index for index, stage in enumerate(stages)}
    assert set(position) == set(STAGES)
    assert all(position[name] < position[stage.name] for stage in stages for name in stage.upstream)
    upstream = {stage.name: set(stage.upstream) for stage in stages}
    assert upstream["ingest"] == set()
    assert {"ingest", "filter", "validate"} <= upstream["shard"]  # validate: the gate
    assert {"shard", "fit_tokenizer"} <= upstream["pretrain"]
    # the gate over shards: nothing is trained or packaged from what it refused
    assert all("validate_shards" in upstream[name] for name in ("fit_tokenizer", "pretrain", "finetune", "package"))


def test_a_model_of_ones_own_needs_neither_pretraining_nor_its_tokenizer(tmp_path):
    """`finetune.from` decides what the stages after it read, directly or not."""
    yaml = YAML()
    values = yaml.load(PARAMS_FILE)
    (tmp_path / "dvc.yaml").write_bytes((ROOT / "dvc.yaml").read_bytes())
    ours = {"fit_tokenizer", "pretrain"}
    starts = {
        "models/pretrained": ours, "./models/pretrained": ours, "models//x/../pretrained/": ours, "imported": set(),
    }  # fmt: skip
    for start, more in [*starts.items(), (str(tmp_path / "models/pretrained"), ours), ("/imported", set())]:
        values["finetune"]["from"] = start
        yaml.dump(values, tmp_path / "params.yaml")
        needed = {"evaluate", "package", "index"}
        for stage in reversed(read_dag(tmp_path)):
            needed |= set(stage.upstream) if stage.name in needed else set()
        assert needed == set(STAGES) - ours | more, start


def test_sub_flows_come_one_after_the_other():
    order = ["data", "training", "release"]
    stages = {stage.name: stage for stage in DAG}
    for stage in stages.values():
        for name in stage.upstream:
            assert order.index(stages[name].flow) <= order.index(stage.flow), f"{stage.name} reads from {name}"


def test_downstream_is_what_reads_from_a_stage():
    stages = DAG
    assert downstream(stages, []) == frozenset()
    below = downstream(stages, ["finetune"])
    assert "finetune" in below and "evaluate" in below and "package" in below
    assert not below & {"ingest", "filter", "validate", "shard", "fit_tokenizer", "pretrain"}
    assert downstream(stages, ["ingest"]) == frozenset(STAGES)


@pytest.mark.parametrize(("files", "made_stale"), [
    (["evaluate/protocols/zero_shot.py"], {"evaluate", "package"}),  # not the index
    (["display/html.py", "display/console.py", "display/figure.py"], set()),
    (["filter/rules.py"], {*STAGES} - {"ingest"}),
    (["config/filter.py"], {*STAGES} - {"ingest"}),  # the web is not fetched again
])  # fmt: skip
def test_an_edit_makes_what_reads_it_stale(files, made_stale):
    edited = [f"align/{file}" for file in files]
    assert all((ROOT / file).is_file() for file in edited)
    assert downstream(DAG, [name for name in STAGES if deciding(name).intersection(edited)]) == made_stale


def test_dvc_sees_the_same_edits(tmp_path):
    """Stage `code` and `dvc status`, in a project whose outs and inputs are small files that were committed.

    A reworded comment of a module that every stage uses makes nothing stale.
    """
    for file in (ROOT / "dvc.yaml", PARAMS_FILE, ROOT / ".dvcignore"):
        shutil.copy(file, tmp_path)
    shutil.copytree(ROOT / "align", tmp_path / "align", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    stages = read_dag(tmp_path)
    for out in (out for stage in stages for out in stage.outs):
        (tmp_path / out).mkdir(parents=True)
        (tmp_path / out / "content.txt").write_text(out)
    for path in (tmp_path / dep for stage in stages for dep in stage.deps):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("input")
    align_code(tmp_path)
    dvc(tmp_path, "commit", "--force", "--quiet")
    append(tmp_path / "align/durable/files.py", "# a comment\n")
    append(tmp_path / "align/display/console.py", "EDITED = True\n")
    align_code(tmp_path)
    assert set(json.loads(dvc(tmp_path, "status", "--json"))) == {"code"}  # as always
    append(tmp_path / "align/evaluate/protocols/zero_shot.py", "EDITED = True\n")
    append(tmp_path / "align/filter/rules.py", "EDITED = True\n")
    align_code(tmp_path)
    assert set(json.loads(dvc(tmp_path, "status", "--json"))) == {"code", "evaluate", "filter"}


def append(file, text):
    with file.open("a") as module:
        module.write(text)


def align_code(root):
    write_code(root, os.environ | {"PYTHONPATH": str(root)})


def dvc(root, *words):
    command = [str(commands() / "dvc"), *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout


def test_every_report_shows_its_metrics():
    document = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))
    shown = {path.replace("${paths.reports}", "reports") for path in document["metrics"]}
    assert shown == {f"{stage.report}/metrics.json" for stage in DAG}
