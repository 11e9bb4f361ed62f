"""Which stages are stale where a run works, and why, as `dvc status` says; what a run must not replace.

Reading the states writes code.yaml, and DVC's own notes of the hashes of files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from align.config.params import PARAMS_FILE, load_yaml
from align.display.report import reported
from align.errors import DataError
from align.project.declared import CODE_FILE
from align.services.dvc.commands import write_code
from align.services.dvc.stages import StageStatus, read_status, unknown_outs
from flows.dag import Stage, overlap
from flows.run.context import RunContext, child_environment

#: Keys of section `paths`: outs that take long to make, or may be put there by hand. The rest is made again in minutes.
PRECIOUS = ("raw", "tokenizer", "pretrained", "finetuned")
#: A reason names at most this many files or parameters, and the number of the others.
SHOWN = 4
#: What DVC says of a file or folder -> our words.
_WORDS = {"modified": "changed", "new": "changed", "deleted": "missing", "not in cache": "not in DVC's cache"}


class StageState(BaseModel):
    """What DVC says of a stage.

    Attributes:
        stage: its name.
        state: `unchanged`: dvc.lock has just this, and its outs are there. `stale`: `dvc repro` makes it again, or
            takes the result from its run cache. What reads from a stale stage is stale, too.
        why: it is stale, in words.
        missing: what it reads that does not exist, and that no stage of the run makes.
        replaced: outs that are there and that are not what dvc.lock says: `dvc repro` would replace them.
        num_bytes: of its outs in dvc.lock, if it has run.
        metrics: of its report, if it is unchanged.
    """

    model_config = ConfigDict(frozen=True)
    stage: str
    state: Literal["unchanged", "stale"]
    why: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    num_bytes: int | None = None
    metrics: dict[str, float] = {}


def read_states(run: RunContext) -> dict[str, StageState]:
    """The state of each stage of dvc.yaml, by its name.

    A stage that the run only reads from is unchanged although outs of it are missing, unless they are read.

    Raises:
        DvcError: DVC refuses, for example because another command works there.
    """
    write_code(run.root, child_environment(run))
    status, values = read_status(run.root), load_yaml(run.root / PARAMS_FILE)
    states: dict[str, StageState] = {}
    for stage in run.chosen.dag:
        found = status[stage.name]
        if stage in run.chosen.before:
            found = found._replace(deps=_there(run, found.deps), outs=_there(run, found.outs))
        makers = [name for name in stage.upstream if states[name].state == "stale"]
        is_stale = bool(makers or found.deps or found.outs or found.other)
        states[stage.name] = StageState(
            stage=stage.name,
            state="stale" if is_stale else "unchanged",
            why=tuple(_why(found, values, makers)),
            missing=_missing(run, stage),
            replaced=tuple(out for out in found.outs if (run.root / out).exists()),
            num_bytes=found.num_bytes if found.has_run else None,
            metrics={} if is_stale else reported(run.root / stage.report, "metrics.json"),
        )
    return states


def _there(run: RunContext, changed: Mapping[str, Any]) -> dict[str, Any]:
    """What has changed, without what is missing."""
    return {path: what for path, what in changed.items() if what == "modified" or (run.root / path).exists()}


def _missing(run: RunContext, stage: Stage) -> tuple[str, ...]:
    made = [out for other in run.chosen.asked for out in other.outs]
    return tuple(
        path for path in stage.deps
        if "://" not in path and not (run.root / path).exists() and not overlap([path], made)
    )  # fmt: skip


def _why(found: StageStatus, values: Mapping[str, Any], makers: Sequence[str]) -> Iterator[str]:
    """Why a stage is stale: from its status, the values in params.yaml, and the stale stages that it reads from."""
    if not found.has_run:
        yield "it has not run here yet"
        return
    yield from found.other
    paths: dict[str, list[str]] = {}
    for path, what in {**found.deps, **found.outs}.items():
        if isinstance(what, str):
            paths.setdefault(_WORDS.get(what, what), []).append(path)
    yield from (f"{words}: {_some(sorted(some))}" for words, some in paths.items())
    if CODE_FILE in found.deps:
        yield "changed code"
    if isinstance(keys := found.deps.get(PARAMS_FILE), Mapping):
        last = found.params[PARAMS_FILE]
        yield _some([line for key in keys for line in _changed(last.get(key), _value(values, key), key)])
    if makers:
        yield f"reads what {_some(makers)} make{'s' if len(makers) == 1 else ''} again"


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _changed(old: Any, new: Any, key: str) -> Iterator[str]:
    """`section.key 3 -> 4` of every value that differs."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            yield from _changed(old.get(name), new.get(name), f"{key}.{name}")
    elif old != new:
        yield f"{key} {json.dumps(old)} -> {json.dumps(new)}"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def require_known(run: RunContext, states: Mapping[str, StageState]) -> None:
    """Refuses to run stages that would replace, in the user's checkout, what only the checkout has.

    DVC removes a stage's outs before it runs the stage. It can give back what is in its cache, and what dvc.lock
    records. The rest would be lost: pictures that were fetched with other values, a model that was put there by hand.

    Raises:
        DataError: a stage would; the message says how to keep it.
    """
    paths = run.params.values["paths"]
    precious = {paths[name] for name in PRECIOUS if name in paths}
    writers = {
        out: stage.name for stage in run.chosen.asked for out in states[stage.name].replaced if out in precious
    }  # fmt: skip
    for out in unknown_outs(run.root, writers) if writers else ():
        stage = writers[out]
        raise DataError(
            f"{out} holds what DVC does not know, and stage {stage} would replace it: if `align {stage}` made it with "
            f"this params.yaml, keep it with `dvc commit {stage}`; else move it to another folder, or delete it"
        )
