"""Section `paths`: where inputs and outputs are stored. Never DVC params: a path changes where, not what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from align.config.params import Section
from align.errors import ConfigError

#: YAML has no path type, so this type alone is read from a string; all others are strict.
PathField = Annotated[Path, Field(strict=False)]

#: What stages only read. They may lie anywhere; stages write, and replace, the other paths.
INPUTS = frozenset({"archive", "evaluation", "policy"})


class PathsConfig(Section):
    """Paths, relative to the working directory. No output lies in an input, or around one."""

    section: ClassVar[str] = "paths"
    changes_bytes: ClassVar[bool] = False

    #: A path, s3://... or https://...; `ingest.source` says what kind of archive it is.
    archive: Annotated[str, Field(min_length=1)]
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

    @model_validator(mode="after")
    def _apart(self) -> Self:
        inputs = {"evaluation": self.evaluation, "policy": self.policy}
        if "://" not in self.archive:
            parts = Path(self.archive).parts
            fixed = next((number for number, part in enumerate(parts) if "*" in part), len(parts))
            inputs["archive"] = Path(*parts[:fixed])
        read = {name: path.resolve() for name, path in inputs.items()}
        pattern = "*" in self.archive  # names files in a folder, which may hold outputs beside them
        for output in sorted(type(self).model_fields.keys() - INPUTS):
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
    for name in sorted(paths.keys() - INPUTS):
        path = PurePath(str(paths[name]))
        if path.is_absolute() or ".." in path.parts or not path.parts or "://" in str(paths[name]):
            raise ConfigError(
                f"paths.{name} = {paths[name]}: a run in a checkout of its own writes there only; give a path relative "
                "to the checkout, without `..`"
            )
