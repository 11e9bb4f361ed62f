"""What goes from one machine to another: commits through git's remote, data through DVC's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from align.durable.locks import locked, tried
from align.errors import AlignError, DataError
from align.services.git import git, network_git, resolve
from flows.remote.order import ORIGIN, REFS, Order
from flows.run.context import STATE, RunContext, our_program
from flows.run.supervised import CommandError, run_supervised


@contextmanager
def pushed(root: Path, checkout: Path, order: Order, log: Callable[[str], None]) -> Iterator[None]:
    """Keeps the order's commit on the git remote in this context. Removes what killed runs of this checkout left there.

    Args:
        root: where the run works.
        checkout: the user's, which knows what it has sent.
        order: names commit and ref.
        log: for what could not be removed.

    Raises:
        DataError: the git remote cannot be reached, or refuses.
    """
    folder = checkout / STATE / "sent"
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        with tried(file) as free:
            if free:  # otherwise its run is alive
                _remove(root, file, log)
    with locked(folder / order.commit, f"run '{order.run}'", log):
        network_git(root, "push", "--quiet", ORIGIN, f"{order.commit}:{order.ref}")
        try:
            yield
        finally:
            _remove(root, folder / order.commit, log)


def _remove(root: Path, file: Path, log: Callable[[str], None]) -> None:
    try:
        network_git(root, "push", "--quiet", ORIGIN, f":{REFS}/{file.name}")
    except AlignError as error:
        log(f"{REFS}/{file.name} stays on '{ORIGIN}' until the next run that sends something: {error}")
    else:
        file.unlink(missing_ok=True)


@contextmanager
def fetched(root: Path, order: Order) -> Iterator[None]:
    """Keeps the order's commit in the worker's repository in this context, under a ref of this process.

    Raises:
        DataError: the git remote cannot be reached, or does not have it.
    """
    for ref in git(root, "for-each-ref", "--format=%(refname)", REFS).splitlines():
        process = ref.rpartition("-")[2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):  # of a process that was killed
            git(root, "update-ref", "-d", ref)
    mine = f"{order.ref}-{os.getpid()}"
    network_git(root, "fetch", "--quiet", "--no-tags", "--no-write-fetch-head", ORIGIN, f"+{order.ref}:{mine}")
    try:
        if resolve(root, mine) != order.commit:
            raise DataError(f"{ORIGIN}: {order.ref} is not the commit that it says")
        yield
    finally:
        with suppress(AlignError):
            git(root, "update-ref", "-d", mine)


def exchange(what: str, run: RunContext, log: Callable[[str], None], *words: str) -> dict[str, Any]:
    """Does one thing of `align.services.dvc.transfer` in the checkout of a run. Returns what the program answers.

    Raises:
        CommandError: DVC, or the remote, refuses; the message is one line.
    """
    command, env = our_program("align.services.dvc.transfer", run)
    command += [what, "--", *words]
    try:
        lines = run_supervised(command, cwd=run.root, env=env, log=lambda line: _say(line, log))
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
