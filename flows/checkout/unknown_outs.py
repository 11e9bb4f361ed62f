"""Finds outs of the user's checkout whose content DVC could not give back.

DVC removes a stage's outs before it runs the stage. DVC can give back what is in its cache, and what dvc.lock records.
The rest would be lost: pictures that were fetched with other values, a model that was put there by hand. DVC has no
command that tells the difference.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from align.errors import DataError
from align.services.dvc.repository import dvc_repository
from align.services.dvc.run_cache import is_known
from flows.tasks.run_context import RunContext

#: Keys of section `paths`: outs that take long to make, or may be put there by hand. The rest is made again in minutes.
PRECIOUS = ("raw", "tokenizer", "pretrained", "finetuned")


def require_known(run: RunContext, status: Mapping[str, Any]) -> None:
    """Refuses to run stages that would replace, in the user's checkout, what only the checkout has.

    Args:
        run: the run.
        status: of `flows.checkout.stage_states.read_status`.

    Raises:
        DataError: a stage would; the message says how to keep it.
    """
    paths = run.params.values["paths"]
    precious = {paths[name] for name in PRECIOUS if name in paths}
    writers = {
        out: stage.name
        for stage in run.chosen.stages
        for out in sorted(_changed(status.get(stage.name, [])) & precious & set(stage.outs))
        if (run.root / out).exists()
    }
    if not writers:
        return
    for out in _unknown(run.root, writers):
        stage = writers[out]
        raise DataError(
            f"{out} holds what DVC does not know, and stage {stage} would replace it: if `align {stage}` made it with "
            f"this params.yaml, keep it with `dvc commit {stage}`; else move it to another folder, or delete it"
        )


def _changed(changes: Collection[Any]) -> set[str]:
    """The outs that a stage's entry in `dvc status --json` names as changed; a deleted one cannot be lost."""
    return {
        out
        for change in changes
        if isinstance(change, Mapping)
        for out, state in change.get("changed outs", {}).items()
        if state != "deleted"
    }


def _unknown(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the outs, named as in dvc.yaml, that hold what DVC could not give back."""
    with dvc_repository(root, "outs") as repo:
        outs = {str(Path(out.fs_path).relative_to(repo.root_dir)): out for out in repo.index.outs if out.exists}
        return [name for name in names if name in outs and not is_known(outs[name])]
