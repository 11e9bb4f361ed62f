"""The stages that a run is asked for: all that the release needs, a part of them, or those between two stages."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from align.errors import ConfigError, DataError
from flows.dag import Stage, downstream, needed, reads_from

#: The stage that is a part by itself; the others of its sub-flow make the model.
EVALUATE = "evaluate"


@dataclass(frozen=True)
class Selection:
    """The stages of a run.

    Attributes:
        dag: all stages of dvc.yaml, each after those that it reads from.
        asked: those that may run.
        before: those that they read from, directly or not, and that must not run: unchanged, or in DVC's cache.
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
    """The stages that a request names.

    Args:
        stages: of dvc.yaml, each after those that it reads from.
        only: `all`, `data`, `training` or `evaluation`.
        first: from this stage on; None: from the beginning.
        last: up to this stage; None: to the end.

    Raises:
        ConfigError: a name is not that of a stage, or the request names no stage that the release needs.
    """
    known = [stage.name for stage in stages]
    for name in (first, last):
        if name and name not in known:
            raise ConfigError(f"stage '{name}': dvc.yaml has no such stage; it has {', '.join(known)}")
    release = needed(stages, "release")
    names = {stage.name for stage in stages if stage.name in release and _is_part(stage, only)}
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


def require_made(selection: Selection, would_run: Collection[str]) -> None:
    """Refuses a run of a part whose inputs would have to be made first.

    Raises:
        DataError: a stage before it would run.
    """
    if missing := [stage.name for stage in selection.before if stage.name in would_run]:
        first = selection.asked[0].name
        raise DataError(
            f"{', '.join(missing)} must run before {first}: what they write is neither unchanged nor in DVC's cache; "
            f"run all, or from {missing[0]}"
        )


def _is_part(stage: Stage, only: str) -> bool:
    if only == "evaluation":
        return stage.name == EVALUATE
    return only == "all" or (stage.flow == only and stage.name != EVALUATE)
