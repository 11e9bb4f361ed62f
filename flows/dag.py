"""Reads the DAG from dvc.yaml, and selects the stages of a run. Nothing else in flows/ repeats what depends on what."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from align.config import Params, load_params
from align.config.params import PARAMS_FILE, parse_yaml
from align.config.paths import below_root, require_declared
from align.errors import ConfigError
from align.project.declared import CODE_FILE, DVC_FILE

#: The stage that is a part by itself; the others of its sub-flow make the model.
EVALUATE = "evaluate"


@dataclass(frozen=True)
class Stage:
    """A stage of dvc.yaml.

    Attributes:
        name: of the stage and of its verb.
        description: a few words for people.
        flow: the sub-flow that runs it.
        deps: paths it reads, relative to the checkout.
        outs: paths it writes.
        upstream: names of the stages whose outs it reads.
        report: the folder with its report, one of `outs`.
        figures: patterns of metrics that its page in Prefect shows first.
        plot: the picture that comes first there.
    """

    name: str
    description: str
    flow: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    upstream: tuple[str, ...]
    report: str
    figures: tuple[str, ...] = ()
    plot: str = ""


def read_dag(root: Path, params: Params | None = None) -> tuple[Stage, ...]:
    """Reads the stages of a checkout, without the one that writes code.yaml; each after those that it reads from.

    Raises:
        ConfigError: dvc.yaml is missing, or a stage has no `meta.flow` or no report among its outs, or the parameters
            have other paths than these outs.
    """
    try:
        entries: dict[str, Any] = parse_yaml((root / DVC_FILE).read_text("utf-8"))["stages"]
    except FileNotFoundError:
        raise ConfigError(f"{root / DVC_FILE}: no such file; start in the root of a checkout") from None
    entries = {name: entry for name, entry in entries.items() if not _writes_code(entry)}
    params = params or load_params(root / PARAMS_FILE)
    deps = {name: _paths(entry.get("deps", []), params, root) for name, entry in entries.items()}
    outs = {name: tuple(entry.get("outs", ())) for name, entry in entries.items()}  # literal: see require_declared
    require_declared(params.values["paths"], outs)
    upstream = {name: tuple(other for other in entries if overlap(deps[name], outs[other])) for name in entries}
    reports, stages = below_root(params.values["paths"])["reports"], []
    for name in TopologicalSorter(upstream).static_order():
        meta = entries[name].get("meta", {})
        if (flow := meta.get("flow")) is None:
            raise ConfigError(f"{DVC_FILE}: stage '{name}' has no meta.flow: name the sub-flow that runs it")
        report = next((out for out in outs[name] if out.startswith(f"{reports}/")), None)
        if report is None:
            raise ConfigError(f"{DVC_FILE}: stage '{name}' has no out in {reports}/: every stage writes a report")
        words = entries[name].get("desc", name)
        shown = tuple(meta.get("figures", ())), meta.get("plot", "")
        stages.append(Stage(name, words, flow, deps[name], outs[name], upstream[name], report, *shown))
    return tuple(stages)


def downstream(stages: Sequence[Stage], names: Collection[str]) -> frozenset[str]:
    """The named stages and every stage that reads from them, directly or not; `stages` are in topological order."""
    names = set(names)
    for stage in stages:
        if names.intersection(stage.upstream):
            names.add(stage.name)
    return frozenset(names)


def reads_from(stages: Sequence[Stage], names: Collection[str]) -> frozenset[str]:
    """The named stages and all that they read from, directly or not; `stages` are in topological order."""
    found = set(names)
    for stage in reversed(stages):
        if stage.name in found:
            found.update(stage.upstream)
    return frozenset(found)


def _writes_code(entry: dict[str, Any]) -> bool:
    return any(isinstance(out, dict) and CODE_FILE in out for out in entry.get("outs", ()))


def _paths(values: Sequence[str], params: Params, root: Path) -> tuple[str, ...]:
    """The paths with the values of params.yaml in them, as DVC knows them: `./a` is `a`, as is its absolute path."""

    def value(match: re.Match[str]) -> str:
        node: Any = params.values
        for part in match[1].split("."):
            node = node[part]
        return str(node)

    def known(path: str) -> str:
        if "://" in path:
            return path
        home = Path(os.path.normpath(Path.cwd() / root))
        whole = Path(os.path.normpath(home / path))
        return (whole.relative_to(home) if whole.is_relative_to(home) else whole).as_posix()

    return tuple(known(re.sub(r"\$\{([\w.]+)\}", value, path)) for path in values)


def overlap(deps: Sequence[str], outs: Sequence[str]) -> bool:
    """Whether a dep is an out, or lies in one or around one."""
    return any(dep == out or dep.startswith(f"{out}/") or out.startswith(f"{dep}/") for dep in deps for out in outs)


@dataclass(frozen=True)
class Selection:
    """The stages of a run.

    Attributes:
        dag: all stages of dvc.yaml, each after those that it reads from.
        asked: those that may run.
        before: those that they read from, directly or not; they do not run, so they must not be stale.
    """

    dag: tuple[Stage, ...] = ()
    asked: tuple[Stage, ...] = ()
    before: tuple[Stage, ...] = ()

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages that the run works on, each after those that it reads from."""
        return (*self.before, *self.asked)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Stages that neither the release nor the request needs."""
        return tuple(stage.name for stage in self.dag if stage not in self.stages)


def select(stages: Sequence[Stage], only: str = "all", first: str | None = None, last: str | None = None) -> Selection:
    """The stages of a part of the pipeline, from stage `first` and up to stage `last`.

    Raises:
        ConfigError: a name is not that of a stage, or the request names no stage that the release needs.
    """
    known = [stage.name for stage in stages]
    for name in (first, last):
        if name and name not in known:
            raise ConfigError(f"stage '{name}': dvc.yaml has no such stage; it has {', '.join(known)}")
    # a model that was imported needs no pre-training
    release = reads_from(stages, {stage.name for stage in stages if stage.flow == "release"}) or known
    names = {stage.name for stage in stages if stage.name in release and is_part(stage, only)}
    if first:
        names &= downstream(stages, {first})
    if last:
        names &= reads_from(stages, {last})
    if not names:
        asked = [f"'{only}'"] + [f"{word} {name}" for word, name in (("from", first), ("up to", last)) if name]
        raise ConfigError(f"nothing to run: no stage is in {' and '.join(asked)}, and read by the release")
    before = reads_from(stages, names) - names
    return Selection(
        dag=tuple(stages),
        asked=tuple(stage for stage in stages if stage.name in names),
        before=tuple(stage for stage in stages if stage.name in before),
    )


def is_part(stage: Stage, only: str) -> bool:
    """Whether a stage belongs to a part of the pipeline: `all`, `data`, `training` or `evaluation`."""
    if only == "evaluation":
        return stage.name == EVALUATE
    return only == "all" or (stage.flow == only and stage.name != EVALUATE)
