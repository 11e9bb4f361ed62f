"""A study: a YAML file of arms, which change parameters, and of seeds. `align study` runs each arm with each seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from align.config.params import DEMO, Strict
from align.config.suite import read_checked

#: A part of a run's name, and so of a branch's.
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*$", max_length=60)]
#: An arm's name, and a seed.
Cell = tuple[str, int]


class Settings(Strict):
    """What changes parameters: the study for all its runs, an arm for its own.

    Attributes:
        values: `section.key` -> value.
        profiles: of a profile -> what is said instead of `values` where the study is run with it.
    """

    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    profiles: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def of(self, profile: str | None) -> dict[str, Any]:
        """The values with a profile."""
        return self.profiles.get(profile or DEMO, self.values)


class Arm(Settings):
    """An arm: a recipe, which is run with each seed.

    Attributes:
        name: the end of the names of its runs.
        paper: what the paper, or whoever proposes the arm, found, in words.
        expected: that the primary figure is better or worse than base's; None: nothing is expected.
    """

    name: _Name
    paper: str = ""
    expected: Literal["better", "worse"] | None = None


class Study(Settings):
    """A study, as it is written before any run.

    Attributes:
        name: the beginning of the names of its runs.
        question: in words.
        primary: the metrics whose mean decides; of sets that are the same in all arms.
        seeds: values of `pretrain.seed`.
        arms: the first one is the base, with which the others are compared.
    """

    name: _Name
    question: str = ""
    primary: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)]
    arms: Annotated[tuple[Arm, ...], Field(strict=False, min_length=2)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for what, all_of_it in (("arms", [arm.name for arm in self.arms]), ("seeds", self.seeds)):
            value, number = Counter(all_of_it).most_common(1)[0]
            if number > 1:
                raise ValueError(f"{what}: {number} are called {value}; each run needs a name of its own")
        return self

    def cells(self) -> list[tuple[Arm, int]]:
        """Arm and seed of every run, all arms with the first seed before the second."""
        return [(arm, seed) for seed in self.seeds for arm in self.arms]

    def values_of(self, arm: Arm, seed: int, profile: str | None) -> dict[str, Any]:
        """`section.key` -> value of what a run changes."""
        return self.of(profile) | arm.of(profile) | {"pretrain.seed": seed}


def read_study(path: Path) -> Study:
    """Reads a study. Raises ConfigError as `read_checked`."""
    return read_checked(path, Study, "a study, such as those in infra/studies")
