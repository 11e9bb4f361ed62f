"""Section `retention`: what `align gc` keeps. Never DVC params: nothing is made from it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from align.config.params import Section


class RetentionConfig(Section):
    """How much of the past stays. What is needed (a registered version's data, a tag's, HEAD's) stays in any case."""

    section: ClassVar[str] = "retention"
    changes_bytes: ClassVar[bool] = False

    #: The newest branches run/* that stay, with their data and MLflow's runs; None: all.
    num_runs: Annotated[int, Field(ge=1, le=100_000)] | None
    #: What is younger than this stays, whatever its kind.
    days: Annotated[float, Field(ge=0, le=36_500)]
    #: Checkpoints of a finished training that are younger than this stay; those of an unfinished one, for `days`.
    finished_days: Annotated[float, Field(ge=0, le=36_500)]
    #: DVC's remotes that lose what the cache loses. Only those that no other clone pushes to.
    remotes: Annotated[tuple[str, ...], Field(strict=False)]
    #: Whether the stores of section `store` (objects, checkpoints) lose what nothing here needs. Only if no other
    #: checkout uses them.
    stores: bool
