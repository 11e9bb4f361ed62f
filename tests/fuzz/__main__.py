"""`make fuzz`, and `python -m tests.fuzz TARGET FILE` to judge one saved file.

    python -m tests.fuzz                  FUZZ_SECONDS (600) over all targets, in two processes
    python -m tests.fuzz --only TARGET    one target
    python -m tests.fuzz TARGET FILE      what a target does with a file
    python -m tests.fuzz --replay         every file of corpus/ and finds/

Exit code 1 where there is a find.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from tests.fuzz.engine import CORPUS, FINDS, Job
from tests.fuzz.judge import Find, replayed, show
from tests.fuzz.structured import STRATEGIES
from tests.fuzz.targets import TARGETS

_STATE = Path(".align/fuzz")
_PROCESSES = 2
#: A target that dies is started again this often.
_MAX_DEATHS = 5
#: Starting, importing and a last slow input.
_GRACE_S = 600
_NOT_HERE = "atheris is missing: it has wheels for Linux on x86_64 and Python 3.11 to 3.13; run `make fuzz` there"


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--only", choices=sorted(TARGETS))
    parser.add_argument("--replay", action="store_true")
    args = parser.parse_args()
    if args.replay:
        return _replay(_saved_files())
    if args.target:
        if args.file is None:
            parser.error("say which file")
        return _replay([(args.target, args.file)])
    return _fuzz([args.only] if args.only else list(TARGETS), int(os.environ.get("FUZZ_SECONDS", "600")))


def _saved_files():
    """Every saved input with its target, sorted by target."""
    files = [(file.parent.name, file) for file in CORPUS.glob("*/*")]
    return sorted(files + [(file.name.rpartition("-")[0], file) for file in FINDS.glob("*")])


def _replay(files):
    num_finds = 0
    for target, group in groupby(files, key=itemgetter(0)):
        with tempfile.TemporaryDirectory() as folder:
            run = TARGETS[target](Path(folder))
            with suppress(Exception):
                run(b"<img src=a>")  # so that what is imported late is imported here, once for all files
            saved = [file for _, file in group]
            for file, find in zip(saved, replayed(run, [file.read_bytes() for file in saved]), strict=True):
                if find is not None:
                    num_finds += 1
                    show(f"{target} {file}: {find.signature}\n{find.message}")
    show(f"{len(files)} files, {num_finds} finds")
    return 1 if num_finds else 0


def _fuzz(targets, seconds):
    if importlib.util.find_spec("atheris") is None:
        show(_NOT_HERE)
        return 2
    jobs = [_job(name, mode) for name in targets for mode in ("plain", "structured") if _has(name, mode)]
    share = max(1, seconds * min(_PROCESSES, len(jobs)) // len(jobs))
    show(f"{len(jobs)} jobs, {share} s each, {_PROCESSES} at a time")
    with ThreadPoolExecutor(_PROCESSES) as pool:
        list(pool.map(lambda job: _run(job, share), jobs))
    show(f"{'target':<14} {'mode':<11} {'executions':>11} {'finds':>6}")
    for job in jobs:
        show(f"{job.target:<14} {job.mode:<11} {_executions(job):>11,} {len(job.finds()):>6}")
    finds = [(job.target, find) for job in jobs for find in job.finds().values()]
    show(f"{'all':<26} {sum(map(_executions, jobs)):>11,} {len(finds):>6}")
    for target, find in finds:
        show(f"{find['signature']}: python -m tests.fuzz {target} {os.path.relpath(find['file'])}")
    return 1 if finds else 0


def _has(target, mode):
    return mode == "plain" or target in STRATEGIES


def _job(target, mode):
    """Forgets the last run's finds, and keeps what it has reached."""
    job = Job(target, mode, _STATE.absolute() / f"{target}-{mode}")
    job.folder.mkdir(parents=True, exist_ok=True)
    for file in (job.known, job.counter, job.current):
        file.unlink(missing_ok=True)
    return job


def _run(job, seconds):
    """Fuzzes one job for its time; where the process dies, its input is a find."""
    end = time.monotonic() + seconds
    for _ in range(_MAX_DEATHS):
        left = round(end - time.monotonic())
        if left < 1:
            break
        command = [sys.executable, "-m", "tests.fuzz.engine", job.target, job.mode, str(job.folder), str(left)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(_STATE.absolute() / "hypothesis")
        with (job.folder / "log.txt").open("wb") as log:
            try:
                code = subprocess.run(
                    command, env=environment, stdout=log, stderr=log, timeout=left + _GRACE_S, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                code = -9
        for folder in job.folder.glob("tmp*"):
            shutil.rmtree(folder, ignore_errors=True)
        if code == 0:
            break
        if not job.current.exists():
            raise SystemExit(f"{job.target}: does not start, see {job.folder / 'log.txt'}")
        log_end = (job.folder / "log.txt").read_text("utf-8", "replace")[-2000:]
        job.save(Find(f"hangs or dies (exit code {code})", log_end), job.current.read_bytes())


def _executions(job):
    return int.from_bytes(job.counter.read_bytes(), "little") if job.counter.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
