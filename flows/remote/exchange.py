"""Calls `align.services.dvc.transfer` in the checkout of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from flows.tasks.child_process import CommandError, run_supervised
from flows.tasks.run_context import RunContext, our_program
from flows.tasks.watch import Watch


def exchange(
    what: str, run: RunContext, log: Callable[[str], None], *words: str, watch: Watch | None = None
) -> dict[str, Any]:
    """Does one thing with DVC's remote. Returns what the program answers.

    Args:
        what: see `align.services.dvc.transfer`.
        run: where.
        log: for what DVC says.
        words: the names of stages, and so on.
        watch: may end it.

    Raises:
        CommandError: DVC, or the remote, refuses; the message is one line.
    """
    command, env = our_program("align.services.dvc.transfer", run)
    command += [what, "--", *words]
    try:
        lines = run_supervised(command, cwd=run.root, env=env, log=lambda line: _say(line, log), watch=watch)
    except CommandError as error:
        raise CommandError(str(error).partition("failed: ")[2]) from None
    answers = [line for line in lines if line.startswith("{")]  # libraries may print something at the end
    if not answers:
        raise CommandError(f"DVC's remote: no answer to '{what}'")
    answer: dict[str, Any] = json.loads(answers[-1])
    return answer


def _say(line: str, log: Callable[[str], None]) -> None:
    if not line.startswith(("{", "Stage '")):  # the answer; and that a stage is cached, which `dvc repro` repeats
        log(line)
