"""Which files of a checkout's code are others than in the run whose result DVC has recorded, as git knows them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from align.errors import DataError
from align.project.provenance import deciding, says
from align.services.git import LOCK_FILE, git
from align.verbs import STAGES

_PACKAGE = Path(deciding("align")["align"]).parent


def changed_code(root: Path, stage: str, digest: str) -> list[str]:
    """The files that decide the bytes of a stage and do something else now than at the commit of an earlier run.

    Args:
        root: of the checkout, which may be a worktree.
        stage: its name.
        digest: of the stage's code, in the dvc.lock of that run.

    Returns:
        Paths from the root; none where git has no such run, or the code is no part of the checkout.
    """
    if not digest or not (root / "align").is_dir():
        return []
    try:
        run = git(root, "log", "-1", "--format=%H", f"-S{digest}", "--all", "--", LOCK_FILE)
        files = git(root, "diff", "--name-only", "--no-renames", run, "--", "align").split() if run else []
    except DataError:
        return []
    decides = {f"align/{path.relative_to(_PACKAGE).as_posix()}" for path in deciding(STAGES[stage].module).values()}
    return [file for file in files if file in decides and _differs(root, run, file)]


def _differs(root: Path, commit: str, file: str) -> bool:
    """Whether a file does something else than at a commit; a new one does."""
    with suppress(DataError, OSError, SyntaxError):
        return says((root / file).read_text("utf-8")) != says(git(root, "show", f"{commit}:{file}"))
    return True
