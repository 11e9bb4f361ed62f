"""What a person asks of the pipeline: the form in Prefect's UI, or the arguments of `align run`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.json_schema import SkipJsonSchema

from align.config import load_params
from align.config.checks import require_valid, wrong_parameters
from align.config.infrastructure import Pool
from align.config.params import DEMO, PARAMS_FILE, PROFILES, chosen_values, profile_names, profile_overrides
from align.config.paths import require_inside
from align.errors import LOGIN, ConfigError, DataError
from align.filter.rules import RULES
from align.project.declared import DVC_FILE
from align.services.git import git, resolve
from align.verbs import STAGES
from flows.dag import Selection, Stage, read_dag, select

_LOGIN = {"type": "string", "pattern": LOGIN}
#: For JSON Schema: no address with a login. Prefect's server refuses such a value before it records it.
NO_LOGIN: dict[str, Any] = {"not": {"anyOf": [_LOGIN, {"type": "array", "contains": _LOGIN}]}}
#: The same for all values of a mapping.
NO_LOGINS: dict[str, Any] = {"patternProperties": {"": NO_LOGIN}}

#: Fields of the form that stand for one parameter each: what people change most.
SHORTCUTS = {
    "seed": "pretrain.seed",
    "num_steps": "pretrain.num_steps",
    "batch_size": "pretrain.batch_size",
    "learning_rate": "pretrain.learning_rate",
    "training_pool": "cluster.training_pool",
}
#: The files of a revision that the check of a request reads.
_READ = (PARAMS_FILE, DVC_FILE, PROFILES.as_posix())
#: Parts of the pipeline that can be run alone.
Part = Literal["all", "data", "training", "evaluation"]
_AS_IN_PROFILE = "Empty: as the profile has it."
_Nothing = SkipJsonSchema[None]  # of a type with `None` the form would make two tabs


def _shown(schema: dict[str, Any]) -> None:
    """The order of the fields, and no `null` in them; `name` and `tags`, which programs set, have no field."""
    for position, field in enumerate(schema["properties"].values()):
        field["position"] = position
        if field.get("default", "") is None:
            del field["default"]
    schema["patternProperties"] = {
        "^name$": {"type": ["string", "null"]} | NO_LOGIN,
        "^tags$": {"type": "object"},
    }


class Request(BaseModel):
    """What to run: an empty field changes nothing. The result becomes branch run/NAME, by the name above."""

    model_config = ConfigDict(frozen=True, extra="forbid", json_schema_extra=_shown)
    name: SkipJsonSchema[str | None] = None
    profile: str = Field(
        default=DEMO,
        title="Profile",
        description="Ready-made settings for a kind of data or machine (infra/profiles). demo: those of params.yaml.",
        json_schema_extra={"enum": [DEMO, *profile_names()]},
    )
    ref: str | _Nothing = Field(
        default=None,
        title="Git revision",
        description="Runs another state of the code: a branch, tag or commit. Empty: the last commit of the checkout.",
        json_schema_extra=NO_LOGIN,
    )
    only: Part = Field(
        default="all",
        title="What to run",
        description="all makes a model and registers it. data ends with the vocabulary, training with the model; "
        "evaluation only measures it. What a part reads must have been made before.",
    )
    from_stage: str | _Nothing = Field(
        default=None,
        title="From stage",
        description=f"Skips the stages before it, whose results must be there. Empty: {next(iter(STAGES))}, the first.",
        json_schema_extra={"enum": list(STAGES)},
    )
    to_stage: str | _Nothing = Field(
        default=None,
        title="Up to stage",
        description=f"Stops after this stage. Empty: {list(STAGES)[-1]}, the last.",
        json_schema_extra={"enum": list(STAGES)},
    )
    seed: Annotated[int, Field(ge=0)] | _Nothing = Field(
        default=None,
        title="Seed",
        description=f"Another number is another random start, as a second opinion. {_AS_IN_PROFILE}",
    )
    num_steps: Annotated[int, Field(ge=1)] | _Nothing = Field(
        default=None,
        title="Steps",
        description=f"How long to pre-train: twice as many take twice as long. {_AS_IN_PROFILE}",
    )
    batch_size: Annotated[int, Field(ge=1)] | _Nothing = Field(
        default=None,
        title="Batch size",
        description="Pairs that one step compares with each other: more teach more, and take more memory and time. "
        f"{_AS_IN_PROFILE}",
    )
    learning_rate: Annotated[float, Field(gt=0)] | _Nothing = Field(
        default=None,
        title="Learning rate",
        description="How far a step of pre-training moves the weights, at most: too far, and nothing is learned. "
        f"{_AS_IN_PROFILE}",
    )
    training_pool: Pool | _Nothing = Field(
        default=None,
        title="Train in pool",
        description=f"Trains on another machine, by the name of its work pool (docs/scale.md). {_AS_IN_PROFILE}",
    )
    overrides: dict[str, Any] = Field(
        default_factory=dict,
        title="More parameters",
        description='Any setting of params.yaml, such as {"filter.min_words": 4}. No passwords: they are recorded.',
        json_schema_extra=NO_LOGINS,
    )
    snapshot_dirty: bool = Field(
        default=False,
        title="With uncommitted changes",
        description="Runs files that you edited but did not commit, too, tagged dirty. Off: they are refused.",
    )
    tags: SkipJsonSchema[dict[str, str] | None] = None  #: of its run in MLflow

    @model_serializer(mode="wrap")
    def _given(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields that are not empty: the schema of a drop-down knows no `null`."""
        return {name: value for name, value in plain(self).items() if value is not None}

    @property
    def in_place(self) -> bool:
        """Whether `align run` works in the checkout itself: the request changes nothing there."""
        return not (self.ref or self.overrides or self.snapshot_dirty)

    def changes(self) -> dict[str, Any]:
        """What the fields and `overrides` change: `section.key` -> value. If both have a key, `overrides` counts."""
        fields = {key: getattr(self, name) for name, key in SHORTCUTS.items()}
        return {key: value for key, value in fields.items() if value is not None} | self.overrides

    def select(self, dag: Sequence[Stage]) -> Selection:
        """The stages that it names, see `flows.dag.select`."""
        return select(dag, self.only, self.from_stage, self.to_stage)


def inside(root: Path, path: str) -> Path:
    """A path that a form names, below the checkout.

    Raises:
        DataError: it leads elsewhere.
    """
    try:
        found = (root / path).resolve()
        found.exists()  # raises where a name is too long
        if found.is_relative_to(root.resolve()):
            return found
    except (OSError, ValueError, RuntimeError):  # a null byte, a name that is too long, links in a circle
        pass
    raise DataError(f"{path[:100]}: not in the checkout; give a path relative to it, without `..`")


class Settled(Request):
    """A request that `settled` has checked: all that it changes is in `overrides`."""


def settled(root: Path, request: Request) -> Settled:
    """The request with every value that it changes in `overrides`, after all of them are checked, once.

    The values are checked together with the params.yaml and the profiles of the revision, before anything is made. Of
    a revision with other sections than those here, whose types nobody knows, only the changed values are. Equal values
    are written equally, so that equal requests are one run.

    Raises:
        ConfigError: the message names section and key; or there is no such profile or stage.
        DataError: there is no such revision.
    """
    if isinstance(request, Settled):
        return request
    if request.ref in (None, "", "HEAD"):  # a checkout with changes is run with them, or refused later
        return _settled(root, root, request, whole=True)
    commit = resolve(root, str(request.ref))
    with tempfile.TemporaryDirectory(prefix="align-") as name:
        folder = Path(name)
        listed = git(root, "ls-tree", "-r", "-z", "--name-only", commit, "--", *_READ)
        for path in filter(None, listed.split("\0")):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(git(root, "show", f"{commit}:{path}") + "\n", encoding="utf-8")
        # the classes here are of this checkout: they cannot judge all values of a revision with others
        return _settled(root, folder, request, whole=not git(root, "diff", "--name-only", commit, "--", "align/config"))


def _settled(root: Path, folder: Path, request: Request, *, whole: bool) -> Settled:
    """See `settled`; `folder` has the params.yaml, the dvc.yaml and the profiles that count."""
    where = Path(PARAMS_FILE if folder == root else f"{request.ref}:{PARAMS_FILE}")
    profile = profile_overrides(request.profile, folder)
    if odd := [key for key in request.changes() if "=" in key]:
        raise ConfigError(f"overrides: '{odd[0]}' is not the name of a parameter; expected section.key")
    typed = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in request.changes().items()]
    try:
        params = replace(load_params(folder / PARAMS_FILE, [*profile, *typed]), source=where)
    except ConfigError as error:
        raise ConfigError(str(error).removeprefix("--set ").replace(str(folder / PARAMS_FILE), str(where))) from None
    changed = chosen_values(params, [*profile, *typed])
    if whole:
        require_valid(params, RULES)
    elif wrong := {key: line for key, line in wrong_parameters(params, RULES).items() if _concerns(key, changed)}:
        raise ConfigError(f"{where}: {next(iter(wrong.values()))}")
    policy = "paths.policy"
    if policy in changed and changed[policy] != load_params(folder / PARAMS_FILE).values["paths"]["policy"]:
        raise ConfigError(f"{policy} = {changed[policy]}: a run obeys the take-downs of its revision, and no others")
    if root != folder or changed:
        require_inside(params.values.get("paths", {}))
    request.select(read_dag(folder, params))
    return Settled(**request.model_dump(exclude={"profile", "overrides", *SHORTCUTS}), overrides=_plain(changed))


def _plain(value: Any) -> Any:
    """The value with each number that is whole written as one: 1.0 is 1, which a section takes for either."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(_plain, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _concerns(key: str, changed: Iterable[str]) -> bool:
    return any(f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for one in changed)
