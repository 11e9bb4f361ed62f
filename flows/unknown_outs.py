"""`python -m flows.unknown_outs PATH...`: which of these outs hold what DVC could not give back, as a JSON list.

DVC removes a stage's outs before it runs the stage. What is in its cache can be had again, and so can what dvc.lock
records. The rest would be lost: pictures that were fetched with other values, a model that was put there by hand. DVC
has no command that tells the difference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.config import load_params
from align.declared import DVC_FILE
from align.errors import DataError
from flows.child_process import run_supervised
from flows.dag import Stage
from flows.run_context import RunContext, child_environment

#: Section `paths`: what takes long to make, or may be put there by hand. The rest is made again in minutes.
PRECIOUS = ("raw", "tokenizer", "pretrained", "finetuned")


def require_known(stages: Sequence[Stage], run: RunContext, status: str) -> None:
    """Refuses to run stages that would replace, in the user's checkout, what only the checkout has.

    Args:
        stages: those that may run.
        run: the run.
        status: of `dvc status --json`.

    Raises:
        DataError: a stage would; the message says how to keep it.
    """
    paths = load_params(run.root / "params.yaml").values["paths"]
    precious = {paths[name] for name in PRECIOUS if name in paths}
    changes = {name.removeprefix(f"{DVC_FILE}:"): entry for name, entry in json.loads(status).items()}
    writers = {
        out: stage.name
        for stage in stages
        for out in sorted(_changed(changes.get(stage.name, [])) & precious & set(stage.outs))
        if (run.root / out).exists()
    }
    if not writers:
        return
    command = [sys.executable, "-m", "flows.unknown_outs", *writers]
    answer = run_supervised(command, cwd=run.root, env=child_environment(run), log=lambda line: None)[-1]
    for out in json.loads(answer):
        stage = writers[out]
        raise DataError(
            f"{out} holds what DVC does not know, and stage {stage} would replace it: if `align {stage}` made it with "
            f"this params.yaml, keep it with `dvc commit {stage}`; else move it to another folder, or delete it"
        )


def _changed(changes: Collection[Any]) -> set[str]:
    """The outs that a stage's entry in `dvc status --json` names as changed; a deleted one is not there to be lost."""
    return {
        out
        for change in changes
        if isinstance(change, Mapping)
        for out, state in change.get("changed outs", {}).items()
        if state != "deleted"
    }


def main(names: Sequence[str]) -> int:
    """Prints the list; the outs are named as in dvc.yaml."""
    from dvc.repo import Repo  # type: ignore[import-untyped]  # DVC ships no types

    repo = Repo()
    outs = {str(Path(out.fs_path).relative_to(repo.root_dir)): out for out in repo.index.outs if out.exists}
    print(json.dumps([name for name in names if name in outs and not _is_known(outs[name])]))
    return 0


def _is_known(out: Any) -> bool:
    _, _, found = out._build(out.cache, out.fs_path, out.fs, out.hash_name, ignore=out.dvcignore, dry_run=True)
    if found.hash_info == out.hash_info:
        return True
    members = [entry.value for _, _, entry in found] if found.hash_info.isdir else []
    return all(out.cache.exists(oid) for oid in (found.hash_info.value, *members))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
