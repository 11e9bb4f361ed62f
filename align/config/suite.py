"""A suite: a YAML file that names evaluation sets where they lie. `paths.evaluation` is one, or a folder of sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator
from ruamel.yaml.error import YAMLError

from align.config.params import Strict, load_yaml, not_yaml
from align.errors import ConfigError, first_line

Format = Literal[
    "align",
    "webdataset",
    "coco",
    "karpathy",
    "retrieval_txt",
    "multi30k",
    "folder",
    "table",
    "parquet",
]
Task = Literal[
    "retrieval",
    "cxc",
    "multi30k",
    "zero_shot",
    "knn",
    "frozen",
    "fine_tuning",
]

#: Tasks of a set of captions, and tasks that learn from the labels of a set of classes (its split `reference`).
CAPTIONED: tuple[Task, ...] = ("retrieval", "cxc", "multi30k")
LEARNED: tuple[Task, ...] = ("knn", "frozen", "fine_tuning")
#: Sets that the pipeline makes itself.
_RESERVED = ("test",)
#: Tasks that a format allows; other formats allow both kinds.
_CAPTIONS: frozenset[Format] = frozenset({"coco", "karpathy", "retrieval_txt", "multi30k"})
#: A value of `among`.
PRESENT = "present"
#: Texts with {} for the name of a class, if neither the suite nor the set has any.
TEMPLATES = ("a photo of a {}.", "a photo of the {}.", "a picture of a {}.", "a {}.", "{}")


M = TypeVar("M", bound=BaseModel)
_Uri = Annotated[str, Field(min_length=1)]


_Count = Annotated[int, Field(ge=1)]
_Seed = Annotated[int, Field(ge=0)]


class FrozenSettings(Strict):
    """Task `frozen`: the paper's schedule of SGD."""

    #: paper: 100 epochs of batches of 1,024 (section 4.3); small: 20 of 64, for some thousand pictures on two cores.
    preset: Literal["paper", "small"] = "paper"
    seed: _Seed = 0


class FineTuningSettings(Strict):
    """Task `fine_tuning`: a new head first, then all layers, on new crops in each epoch (section 4.3)."""

    #: imagenet and fine_grained (Flowers, Pets, Cars, Food101) are the paper's; small: for some thousand pictures on
    #: two cores, at the picture size of the model.
    preset: Literal["imagenet", "fine_grained", "small"] = "imagenet"
    #: Side of the training crops in both phases; null: the preset's.
    train_px: _Count | None = None
    #: Side of the test's crop; null: the preset's, or train_px if that is given.
    test_px: _Count | None = None
    #: Epochs of each phase; null: the preset's.
    epochs: _Count | None = None
    #: Seeds, whose mean accuracy is reported; null: the preset's, three for fine_grained and one for the others.
    runs: _Count | None = None
    #: Pictures in one forward pass, as many as memory holds; a multiple of model.batch_norm_group.
    part: _Count = 64


class SuiteSet(Strict):
    """One set of a suite."""

    #: The name of the set and of its metrics.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    #: A file or folder, from the working directory, or s3://.
    path: Annotated[str, Field(min_length=1)]
    format: Format
    #: What is measured: retrieval and perhaps others of CAPTIONED, or zero_shot and perhaps others of LEARNED.
    tasks: Annotated[tuple[Task, ...], Field(strict=False, min_length=1)]
    #: The split to measure on, for formats that have splits.
    split: Annotated[str, Field(min_length=1)] = "test"
    #: The split whose labels a task of LEARNED learns from.
    reference: Annotated[str, Field(min_length=1)] = "train"
    #: The folder of the pictures of a file of captions; None: the usual folders beside it. Of a table: its own folder.
    images: Annotated[str, Field(min_length=1)] | None = None
    #: Format multi30k: files with one caption per line, in the order of the pictures that `path` lists.
    captions: Annotated[tuple[_Uri, ...], Field(strict=False)] = ()
    #: Format table: its columns, where they have no usual names. Pictures of one `concept` are right for each other's
    #: captions; without it each picture is a concept of its own.
    columns: dict[Literal["picture", "text", "label", "concept"], _Uri] = Field(default_factory=dict)
    #: A file of readable names, for classes that have none in the set.
    classnames: Annotated[str, Field(min_length=1)] | None = None
    #: Task cxc: the folder of Crisscrossed Captions' ratings: sts_test.csv, sis_test.csv and sits_test.csv.
    ratings: _Uri | None = None
    #: The classes among which pictures are classified: `present`, those that have pictures, or a file with one name per
    #: line, as for ImageNet-A and -R. None: all classes of the set, and a class without pictures is an error.
    among: Annotated[str, Field(min_length=1)] | None = None
    #: Texts with {} for the name of a class; None: those of the set, or else ours.
    templates: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None
    #: How many captions of each picture are taken, from the first on; None: all. Published figures of COCO take five.
    texts_per_image: Annotated[int, Field(ge=1)] | None = None
    #: How classifiers that are fitted are measured.
    frozen: FrozenSettings = FrozenSettings()
    fine_tuning: FineTuningSettings = FineTuningSettings()
    #: For people.
    description: str = ""

    @property
    def learns(self) -> bool:
        """Whether a task needs the split `reference`."""
        return not set(self.tasks).isdisjoint(LEARNED)

    @property
    def settings(self) -> dict[str, FrozenSettings | FineTuningSettings]:
        """Task -> its settings, of the tasks that have some."""
        known: dict[str, FrozenSettings | FineTuningSettings]
        known = {"frozen": self.frozen, "fine_tuning": self.fine_tuning}
        return {task: settings for task, settings in known.items() if task in self.tasks}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.name in _RESERVED:
            raise ValueError(f"{self.name}: a set of this name is made by the pipeline; choose another name")
        if (self.format == "multi30k") != bool(self.captions):
            raise ValueError(f"{self.name}: the format multi30k and the key captions, its files, belong together")
        if self.columns and self.format != "table":
            raise ValueError(f"{self.name}: only a table has columns to name")
        tasks = set(self.tasks)
        captioned = tasks & set(CAPTIONED)
        if captioned and captioned != tasks:
            raise ValueError(
                f"{self.name}: retrieval needs captions, zero_shot and knn need classes: make two sets of it"
            )
        base = "retrieval" if captioned else "zero_shot"
        if base not in tasks:
            given = ", ".join(self.tasks)
            raise ValueError(f"{self.name}: {given} is measured beside {base}; tasks: [{base}, {given}]")
        if self.format in _CAPTIONS and not captioned:
            raise ValueError(f"{self.name}: format {self.format} has captions and no classes; tasks: [retrieval]")
        if self.format not in ("coco", "karpathy") and self.ratings:
            raise ValueError(f"{self.name}: ratings name items by COCO's ids, which only coco and karpathy have")
        if ("cxc" in tasks) != (self.ratings is not None):
            raise ValueError(f"{self.name}: the task cxc and the key ratings, the folder of its files, belong together")
        if self.texts_per_image is not None and (not captioned or self.format == "align"):
            raise ValueError(f"{self.name}: texts_per_image is of sets of captions, and not of format align")
        if idle := [task for task in LEARNED if task in self.model_fields_set and task not in tasks]:
            raise ValueError(f"{self.name}: settings of {idle[0]}, which is not among its tasks")
        if self.among is not None and captioned:
            raise ValueError(f"{self.name}: among is a choice of classes, and captions have none")
        for template in self.templates or ():
            if template.count("{}") != 1:
                raise ValueError(f"{self.name}: template {template!r} has no {{}} for the class, or more than one")
        return self


class _Suite(Strict):
    sets: Annotated[tuple[SuiteSet, ...], Field(strict=False, min_length=1)]


def is_suite(path: Path) -> bool:
    """Whether `paths.evaluation` names a suite, by its name."""
    return path.suffix.lower() in (".yaml", ".yml")


def read_checked(path: Path, cls: type[M], what: str) -> M:
    """A YAML 1.2 file that people write, as its class; `what` they should give.

    Raises:
        ConfigError: the file is missing or wrong; the message names the key.
    """
    try:
        document = load_yaml(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give {what}") from None
    except YAMLError as error:
        raise ConfigError(f"{path}: {not_yaml(error)}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: unreadable: {first_line(error)}") from None
    try:
        return cls.model_validate(document)
    except ValidationError as error:
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


def read_suite(path: Path) -> tuple[SuiteSet, ...]:
    """The sets of a suite, read as YAML 1.2.

    Raises:
        ConfigError: the file is missing or not a suite, or two sets have one name; the message names the key.
    """
    sets = read_checked(path, _Suite, "a suite of evaluation sets, such as those in infra/suites").sets
    for name, number in Counter(one.name for one in sets).items():
        if number > 1:
            raise ConfigError(f"{path}: {number} sets have the name {name}; their metrics would have one name, too")
    return sets
