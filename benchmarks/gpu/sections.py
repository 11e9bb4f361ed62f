"""The sections, and how the main process runs them: each within its time, so that all end within ten minutes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from align.display.console import say
from benchmarks.gpu.journal import Budget, read
from tests.support import ROOT

#: A check that has had less when the section's time ends says nothing about the card.
_FAIR_S = 60.0
_BY_THE_CLOCK = "was ended after"


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: of its work, see `section.work`.
        title: of the page.
        least_s, most_s: seconds that it needs to be worth a start, and that it may take.
        keep_s: what it leaves for the sections after it.
    """

    name: str
    title: str
    least_s: float
    most_s: float
    keep_s: float = 0.0


#: In order of importance; a card that is slow gets fewer of them.
SECTIONS = (
    Section("checks", "Correctness", 30, 200),
    Section("depthwise", "Depthwise convolutions", 10, 30),
    Section("steps-cc3m", "B3 + Mini", 25, 85, keep_s=100),
    Section("steps-coyo", "B7 + Base", 25, 95, keep_s=60),
    Section("ranks", "Several cards", 25, 70, keep_s=65),
    Section("open_clip", "Beside open_clip", 25, 80, keep_s=40),
    Section("fed", "Fed by the loader", 25, 60),
    Section("compile", "torch.compile", 25, 240),
)


@dataclass
class Result:
    """What a section has found.

    Attributes:
        entries: of its journal.
        seconds: that it took.
        ended: how, if not by itself.
    """

    section: Section
    entries: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    ended: str = ""


def run_all(
    sections: Sequence[Section], budget: Budget, folder: Path, device: str, path: Sequence[Path] = ()
) -> list[Result]:
    """Runs the sections one after another.

    Args:
        sections: which.
        budget: for all of them.
        folder: for their journals and logs.
        device: "cpu" or "cuda".
        path: more folders of packages.
    """
    results = []
    for section in sections:
        granted = budget.grant_s(section.least_s + section.keep_s, section.most_s + section.keep_s) - section.keep_s
        if granted < section.least_s:
            results.append(Result(section, ended="left out: no time was left"))
            continue
        say(f"bench-gpu: {section.title}, at most {granted:.0f} s")
        before = budget.left_s()
        result = _run(section, granted, folder, device, path)
        result.seconds = before - budget.left_s()
        result.entries += [{"kind": "note", "text": line} for line in _warnings(folder / f"{section.name}.log")]
        results.append(result)
    return results


def _run(section: Section, seconds: float, folder: Path, device: str, path: Sequence[Path]) -> Result:
    """One section. Checks are taken up again after one that ended its process."""
    limit = Budget(seconds)
    journal, entries, ended = folder / f"{section.name}.jsonl", [], ""
    while True:
        ended = _process(section, limit.left_s(), journal, device, path, [each["name"] for each in begun(entries)])
        entries = read(journal)
        died = unfinished(entries)
        if section.name != "checks" or not ended or died is None:
            return Result(section, entries, ended=ended)
        with journal.open("a") as file:
            file.write("\n" + json.dumps(_without_result(died, ended, time.monotonic())) + "\n")
        entries = read(journal)
        if limit.left_s() < section.least_s:
            return Result(section, entries, ended=ended)


def begun(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Checks that have a result."""
    return [entry for entry in entries if entry["kind"] == "check"]


def unfinished(entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The beginning of the check that has no result."""
    finished = {entry["name"] for entry in begun(entries)}
    return next((each for each in entries if each["kind"] == "begin" and each["name"] not in finished), None)


def _without_result(began: dict[str, Any], ended: str, now: float) -> dict[str, Any]:
    """The result of a check whose process ended before it wrote one: failed, unless only time was short."""
    entry = {"kind": "check", "name": began["name"], "bound": ""}
    if ended.startswith(_BY_THE_CLOCK) and now - began["at"] < _FAIR_S:
        return entry | {"verdict": "not possible here", "found": "no time was left for it"}
    return entry | {"verdict": "failed", "found": f"its process {ended}"}


def _process(
    section: Section, seconds: float, journal: Path, device: str, path: Sequence[Path], done: list[str]
) -> str:
    """How the section's process ended, if not by itself; its output's last words if it failed."""
    command = _command(section.name, str(journal), f"{seconds:.1f}", device)
    known = os.environ.get("PYTHONPATH")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*(str(each) for each in path), str(ROOT), *([known] if known else [])]),
        "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    }  # fmt: skip
    log = journal.with_suffix(".log")
    with log.open("ab") as output, subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            process.communicate("\n".join(done).encode(), timeout=max(seconds, 1.0))
        except subprocess.TimeoutExpired:
            ended = f"{_BY_THE_CLOCK} {seconds:.0f} s"
        except BaseException:
            _end(process)
            raise
        else:
            code = process.returncode
            ended = "" if code == 0 else f"ended with code {code}: {_last_words(log)}"
        _end(process)
    return ended


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.section", *arguments]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the section and what it started, such as the workers of a compiler."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _warnings(log: Path) -> list[str]:
    """What the program warned of, such as a compiler that failed where something slower took its place; each once."""
    lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
    return list(dict.fromkeys(line.strip()[:300] for line in lines if line.lstrip().startswith("warning: ")))


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return (lines[-1] if lines else "no output")[:300]
