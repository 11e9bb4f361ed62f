"""A study: a YAML file of arms, which change parameters, and of seeds. `align study` runs each arm with each seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml.error import YAMLError

from align.config.params import DEMO, did_you_mean, not_yaml, parse_yaml
from align.errors import ConfigError

_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)
#: A part of a run's name, and so of a branch's.
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*$", max_length=60)]
_Metrics = Annotated[tuple[str, ...], Field(strict=False)]


class Settings(BaseModel):
    """What changes parameters: the study for all its runs, an arm for its own.

    Attributes:
        values: `section.key` -> value.
        profiles: of a profile -> what is said instead of `values` where the study is run with it.
    """

    model_config = _STRICT
    values: dict[str, Any] = Field(default_factory=dict, alias="set")
    profiles: dict[str, dict[str, Any]] = {}

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
        also: metrics that the table shows, too.
        seeds: values of `pretrain.seed`.
        arms: the first one is the base, with which the others are compared.
    """

    name: _Name
    question: str = ""
    primary: Annotated[_Metrics, Field(min_length=1)]
    also: _Metrics = ()
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

    def run_name(self, arm: Arm, seed: int) -> str:
        """The name of a run."""
        return f"{self.name}-{arm.name}-s{seed}"

    def values_of(self, arm: Arm, seed: int, profile: str | None) -> dict[str, Any]:
        """`section.key` -> value of what a run changes."""
        return self.of(profile) | arm.of(profile) | {"pretrain.seed": seed}


def read_study(path: Path) -> Study:
    """Reads a study, as YAML 1.2.

    Raises:
        ConfigError: the file is missing or not a study; the message names the key.
    """
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give a study, such as those in infra/studies") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: {not_yaml(error)}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: unreadable: {' '.join(str(error).split())[:300]}") from None
    try:
        return Study.model_validate(document)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = (Arm if where.startswith("arms") else Study).model_fields
            near = did_you_mean(str(first["loc"][-1]), [field.alias or name for name, field in fields.items()])
            raise ConfigError(f"{path}: {where}: unknown key{near}") from None
        why = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {where + ': ' if where else ''}{why}") from None
