"""A suite: a YAML file that names evaluation sets where they lie. `paths.evaluation` is one, or a folder of sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.errors import ConfigError

Format = Literal["align", "webdataset", "coco", "karpathy", "retrieval_txt", "folder", "parquet"]
Task = Literal["retrieval", "zero_shot", "knn"]

#: Sets that the pipeline makes itself.
_RESERVED = ("test", "held_out")
#: What can be measured of each format; of the others, both kinds.
_CAPTIONS: frozenset[Format] = frozenset({"coco", "karpathy", "retrieval_txt"})
#: Texts with {} for the name of a class, where neither the suite nor the set has any.
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "a {}.", "{}")


class SuiteSet(BaseModel):
    """One set of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    #: Of the set, and of its metrics.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    #: A file or folder, from the working directory, or s3://.
    path: Annotated[str, Field(min_length=1)]
    format: Format
    #: What is measured: retrieval, or zero_shot and perhaps knn.
    tasks: Annotated[tuple[Task, ...], Field(strict=False, min_length=1)]
    #: What is measured on, of formats that have splits.
    split: Annotated[str, Field(min_length=1)] = "test"
    #: Whose labels the nearest-neighbour classifier knows, with the task knn.
    reference: Annotated[str, Field(min_length=1)] = "train"
    #: The folder of the pictures of a file of captions; None: the usual folders beside it.
    images: Annotated[str, Field(min_length=1)] | None = None
    #: A file of readable names, for classes that have none in the set.
    classnames: Annotated[str, Field(min_length=1)] | None = None
    #: Texts with {} for the name of a class; None: those of the set, or else ours.
    templates: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    #: For people.
    description: str = ""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.name in _RESERVED:
            raise ValueError(f"{self.name}: a set of this name is made by the pipeline; choose another name")
        tasks = set(self.tasks)
        if "retrieval" in tasks and len(tasks) > 1:
            raise ValueError(
                f"{self.name}: retrieval needs captions, zero_shot and knn need classes: make two sets of it"
            )
        if "knn" in tasks and "zero_shot" not in tasks:
            raise ValueError(f"{self.name}: knn is measured beside zero_shot; tasks: [zero_shot, knn]")
        if self.format in _CAPTIONS and tasks != {"retrieval"}:
            raise ValueError(f"{self.name}: format {self.format} has captions and no classes; tasks: [retrieval]")
        for template in self.templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"{self.name}: template {template!r} has no {{}} for the class, or more than one")
        return self


class _Suite(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sets: Annotated[tuple[SuiteSet, ...], Field(strict=False, min_length=1)]


def is_suite(path: Path) -> bool:
    """Whether `paths.evaluation` names a suite, by its name."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_suite(path: Path) -> tuple[SuiteSet, ...]:
    """The sets of a suite, read as YAML 1.2.

    Raises:
        ConfigError: the file is missing, is no suite, or two sets have one name; the message names the key.
    """
    try:
        document = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give a suite of evaluation sets, such as those in infra/suites"
        ) from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: unreadable: {' '.join(str(error).split())[:300]}") from None
    try:
        sets = _Suite.model_validate(document).sets
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    for name, number in Counter(one.name for one in sets).items():
        if number > 1:
            raise ConfigError(f"{path}: {number} sets have the name {name}; their metrics would have one name, too")
    return sets
