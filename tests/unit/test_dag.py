"""dvc.yaml against the source: every stage depends on the code and the parameters that can change its bytes."""

import ast
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from align.cli import STAGES
from flows.dag import downstream, read_dag, stale

ROOT = Path(__file__).parents[2]
ENTRIES: dict[str, Any] = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]

#: Modules that cannot change the bytes of a stage: a change in them makes nothing stale.
BYTE_NEUTRAL = {
    "align/cli.py",  # calls the verb
    "align/errors.py",  # words of failures
    "align/config/params.py",  # reads params.yaml, whose values are tracked themselves
    "align/config/paths.py",  # where, not what
    "align/services/spark_engine.py",  # where SQL runs; its decisions equal DuckDB's, row for row (test_spark.py)
    "align/config/engine.py",  # how fast, not what
    "align/config/store.py",  # where bytes lie
    "align/config/cluster.py",  # on how many machines
    "align/config/health.py",  # what is watched, not what is trained
    "align/services/store.py",  # likewise
    "align/services/store_client.py",  # likewise
    "align/services/store_mirror.py",  # likewise
    "align/services/tracking.py",  # what MLflow is told
    "align/services/live_log.py",  # likewise
}

#: Sections that say where and how fast: never DVC params.
NOT_PARAMS = {"paths", "engine", "store", "health", "cluster"}


def imported(path: Path) -> set[Path]:
    """Files inside align/ that a file imports, at its top or anywhere else, with the packages on the way."""
    tree = ast.parse(path.read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == "align":
            for length in range(1, len(parts) + 1):
                module = ROOT.joinpath(*parts[:length])
                found |= {file for file in (module.with_suffix(".py"), module / "__init__.py") if file.is_file()}
    return found


def says_something(path: Path) -> bool:
    """Whether a file holds more than its docstring."""
    body = ast.parse(path.read_text("utf-8")).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)


def closure(start: Path) -> set[str]:
    """What a module imports inside align/, itself included, less the byte-neutral ones."""
    found: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        relative = path.relative_to(ROOT).as_posix()
        if path not in found and relative not in BYTE_NEUTRAL:
            found.add(path)
            todo += imported(path)
    neutral_package = {ROOT / "align/config/__init__.py"}  # re-exports config/params.py
    return {path.relative_to(ROOT).as_posix() for path in found - neutral_package if says_something(path)}


def sections(files: set[str]) -> set[str]:
    """The sections of params.yaml that these config modules read."""
    found = set()
    for file in files:
        if file.startswith("align/config/"):
            for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
                if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "section" and node.value is not None:
                    assert isinstance(node.value, ast.Constant)
                    found.add(str(node.value.value))
    return found - NOT_PARAMS


def test_every_verb_is_a_stage_and_calls_its_verb() -> None:
    assert {name: entry["cmd"] for name, entry in ENTRIES.items()} == {name: f"align {name}" for name in STAGES}


def files_of(dep: str) -> set[str]:
    """A folder stands for all modules in it."""
    if not (ROOT / dep).is_dir():
        return {dep}
    return {file.relative_to(ROOT).as_posix() for file in (ROOT / dep).rglob("*.py") if says_something(file)}


@pytest.mark.parametrize("name", ENTRIES)
def test_code_deps(name: str) -> None:
    declared = {file for dep in ENTRIES[name]["deps"] if dep.startswith("align/") for file in files_of(dep)}
    wanted = closure(ROOT / "align" / f"{name}.py")
    add = "".join(f"\n      - {path}" for path in sorted(wanted - declared))
    drop = "".join(f"\n      - {path}" for path in sorted(declared - wanted))
    assert declared == wanted, f"dvc.yaml, stage {name}, deps: add{add or ' nothing'}\nand remove{drop or ' nothing'}"


@pytest.mark.parametrize("name", ENTRIES)
def test_params(name: str) -> None:
    declared = set(ENTRIES[name].get("params", []))
    wanted = sections(closure(ROOT / "align" / f"{name}.py"))
    assert declared == wanted, f"dvc.yaml, stage {name}, params: write {sorted(wanted)}"


def test_no_out_escapes_the_cache() -> None:
    """`cache: false` would make another machine compute again what this one has; a string has no such option."""
    assert all(isinstance(out, str) for entry in ENTRIES.values() for out in entry["outs"])


def test_order_and_upstream() -> None:
    stages = read_dag(ROOT)
    position = {stage.name: index for index, stage in enumerate(stages)}
    assert set(position) == set(STAGES)
    assert all(position[name] < position[stage.name] for stage in stages for name in stage.upstream)
    upstream = {stage.name: set(stage.upstream) for stage in stages}
    assert upstream["ingest"] == set()
    assert {"ingest", "filter", "validate"} <= upstream["shard"]  # validate: the gate
    assert {"shard", "fit_tokenizer"} <= upstream["pretrain"]
    # the gate over shards: nothing is trained or packaged from what it refused
    assert all("validate_shards" in upstream[name] for name in ("fit_tokenizer", "pretrain", "finetune", "package"))


def test_sub_flows_come_one_after_the_other() -> None:
    order = ["data", "training", "release"]
    stages = {stage.name: stage for stage in read_dag(ROOT)}
    for stage in stages.values():
        for name in stage.upstream:
            assert order.index(stages[name].flow) <= order.index(stage.flow), f"{stage.name} reads from {name}"


def test_stale_means_changed_or_below() -> None:
    stages = read_dag(ROOT)
    assert stale(stages, "{}") == frozenset()
    below = stale(stages, '{"finetune": [{"changed deps": {}}]}')
    assert "finetune" in below and "evaluate" in below and "package" in below
    assert not below & {"ingest", "filter", "validate", "shard", "fit_tokenizer", "pretrain"}
    assert downstream(stages, ["ingest"]) == frozenset(STAGES)


def test_every_report_shows_its_metrics() -> None:
    document = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text("utf-8"))
    shown = {path.replace("${paths.reports}", "reports") for path in document["metrics"]}
    assert shown == {f"{stage.report}/metrics.json" for stage in read_dag(ROOT)}
