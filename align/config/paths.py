"""Section `paths`: where inputs and outputs are stored. Never DVC params: a path changes where, not what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from align.config.params import Section
from align.errors import ConfigError

#: YAML has no path type, so only this type is read from a string; all others are strict.
PathField = Annotated[Path, Field(strict=False)]

#: Paths that stages only read. They may lie anywhere; stages write, and replace, the other paths.
INPUTS = frozenset({"archive", "evaluation", "policy"})
#: Parameters of any section that name what stages only read.
READ = (*(f"paths.{name}" for name in sorted(INPUTS)), "index.queries", "finetune.from")
#: The prefix of the outputs; it is itself neither read nor written.
ROOT = "root"

#: The stages, and their sections, that make the model in `pretrained`. If fine-tuning begins with another model, their
#: outputs and values do not belong to the model that was fine-tuned.
MAKE_PRETRAINED = ("fit_tokenizer", "pretrain")

#: The outs of dvc.yaml: name -> the stage that writes it. Each stage also writes a folder in `reports`.
WRITTEN_BY = {
    "raw": "ingest",
    "filtered": "filter",
    "shards": "shard",
    "tokenizer": "fit_tokenizer",
    "pretrained": "pretrain",
    "finetuned": "finetune",
    "packaged": "package",
    "index": "index",
}


#: Our own stages, each with a report; a person's own stages in dvc.yaml may write anything.
_REPORTING = frozenset({*WRITTEN_BY.values(), "validate", "validate_shards", "evaluate"})


def below_root(paths: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the section with `root` put before every relative output. An absolute output stays."""
    root = paths.get(ROOT)
    if not isinstance(root, str) or root == ".":
        return dict(paths)
    return {
        name: str(Path(root, value)) if is_output(name) and isinstance(value, str) and value else value
        for name, value in paths.items()
    }


def is_output(name: str) -> bool:
    """Whether a key of the section is a path that stages write."""
    return name != ROOT and name not in INPUTS


class PathsConfig(Section):
    """Paths, relative to the working directory. No output lies in an input, or around one.

    The outputs here have `root` before them already.
    """

    section: ClassVar[str] = "paths"
    changes_bytes: ClassVar[bool] = False

    #: A path, s3://... or https://...; `ingest.source` says what kind of archive it is.
    archive: Annotated[str, Field(min_length=1)]
    root: PathField
    evaluation: PathField
    raw: PathField
    filtered: PathField
    shards: PathField
    tokenizer: PathField
    pretrained: PathField
    finetuned: PathField
    packaged: PathField
    index: PathField
    reports: PathField
    policy: PathField
    checkpoints: PathField
    runtime: PathField

    @model_validator(mode="before")
    @classmethod
    def _below_root(cls, values: Any) -> Any:
        return below_root(values) if isinstance(values, dict) else values

    def moved(self, path: Path) -> Path:
        """The place of a path from another section, such as `finetune.from`: an output follows `root`."""
        below = self.root / path
        return below if any(below == getattr(self, name) for name in WRITTEN_BY) else path

    def is_made_elsewhere(self, start: Path) -> bool:
        """Whether fine-tuning from the model in `start` begins with another model than `align pretrain`'s."""
        return self.moved(start) != self.pretrained

    @model_validator(mode="after")
    def _apart(self) -> Self:
        inputs = {"evaluation": self.evaluation, "policy": self.policy}
        if "://" not in self.archive:
            parts = Path(self.archive).parts
            fixed = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
            inputs["archive"] = Path(*parts[:fixed])
        read = {name: path.resolve() for name, path in inputs.items()}
        pattern = "*" in self.archive  # names files in a folder, which may hold outputs beside them
        for output in sorted(filter(is_output, type(self).model_fields)):
            written = getattr(self, output).resolve()
            for name, path in read.items():
                inside = written.is_relative_to(path) and not (pattern and name == "archive")
                if inside or path.is_relative_to(written):
                    raise ValueError(
                        f"paths.{output} ({getattr(self, output)}) lies in, or around, the input paths.{name}"
                        f" ({inputs[name]}); stages replace what they write, so choose another folder"
                    )
        return self


def require_inside(paths: Mapping[str, Any]) -> None:
    """Checks that a run writes in its own checkout only: its outputs are relative, without `..`.

    Args:
        paths: the values of the section, some or all.

    Raises:
        ConfigError: an output lies elsewhere.
    """
    for name, value in sorted(below_root(paths).items(), key=lambda item: (item[0] != ROOT, item[0])):
        path = PurePath(str(value))
        outside = path.is_absolute() or ".." in path.parts or "://" in str(value)
        if (name == ROOT and outside) or (is_output(name) and (outside or not path.parts)):
            raise ConfigError(
                f"paths.{name} = {paths[name]}: a run in a checkout of its own writes there only; give a path relative "
                "to the checkout, without `..`"
            )


def require_declared(paths: Mapping[str, Any], outs: Mapping[str, Sequence[str]]) -> None:
    """Checks that stages write what dvc.yaml says they write.

    DVC removes an out before it runs the stage, so dvc.yaml names outs literally, and no value of params.yaml makes a
    folder one. So a stage that writes, or reads, another folder would give DVC a false record.

    Args:
        paths: the values of the section, some or all.
        outs: stage -> its outs, as dvc.yaml has them.

    Raises:
        ConfigError: a path differs from the out; the message names both.
    """
    for name, value in below_root(paths).items():
        written = PurePath(str(value))
        for stage, declared in outs.items():
            if WRITTEN_BY.get(name) == stage and str(written) not in declared:
                raise ConfigError(_undeclared(paths, name, stage, declared))
            if name == "reports" and stage in _REPORTING and written not in (PurePath(out).parent for out in declared):
                raise ConfigError(_undeclared(paths, name, stage, declared))


def _undeclared(paths: Mapping[str, Any], name: str, stage: str, declared: Sequence[str]) -> str:
    moved = below_root(paths)[name] != paths[name]
    what = f"paths.root = {paths[ROOT]} moves paths.{name}" if moved else f"paths.{name} = {paths[name]}"
    return (
        f"{what}: stage {stage} of dvc.yaml writes {', '.join(declared)}, and under DVC both must be the same, since "
        f"DVC removes what dvc.yaml names; put paths.{ROOT if moved else name} back, or use --set with the single "
        "`align` commands"
    )
