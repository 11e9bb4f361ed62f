"""A stand-in for SLURM: `sbatch --wait --array` and `scancel`, which run an array's tasks on this machine."""

import shlex
import stat
import sys

PROGRAM = r'''import os, pathlib, re, signal, subprocess, sys, time
state = pathlib.Path({state!r})
name, *words = sys.argv[1:]
if name == "scancel":
    os.kill(int(words[0]), signal.SIGTERM)
    sys.exit()
options = dict(word[2:].partition("=")[::2] for word in words)
with (state / "calls").open("a") as file:
    file.write(repr(words) + "\n")
if (state / "refuse").exists():
    sys.exit("sbatch: error: invalid partition specified: " + (state / "refuse").read_text())
low, high, _, at_once = re.fullmatch(r"(\d+)-(\d+)(%(\d+))?", options["array"]).groups()
print(os.getpid(), flush=True)


def command(task):
    """The task's; or with a file `lose`, nothing at all for as many tasks as it says."""
    lose = state / "lose"
    if not lose.exists():
        return options["wrap"]
    left = int(lose.read_text()) - 1
    lose.write_text(str(left)) if left else lose.unlink()
    return "exit 1"


waiting, running, code = list(range(int(low), int(high) + 1)), {{}}, 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
try:
    while waiting or running:
        while waiting and len(running) < min(2, int(at_once or 2)):
            task = waiting.pop(0)
            log = open(options["output"].replace("%a", str(task)), "wb")
            environment = dict(os.environ, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_JOB_ID=str(os.getpid()))
            running[task] = subprocess.Popen(["/bin/sh", "-c", command(task)], env=environment, stdout=log, stderr=log)
        for task, process in list(running.items()):
            if process.poll() is not None:
                code = code or process.returncode
                del running[task]
        time.sleep(0.02)
finally:
    for process in running.values():
        process.kill()
sys.exit(1 if code else 0)
'''


def install(folder):
    """Puts `sbatch` and `scancel` into a folder, which is to be the first of PATH; returns it.

    `calls` has the arguments of sbatch, a line a call. A file `refuse` in it makes sbatch refuse; `lose` is a number of
    tasks that end without having done anything.
    """
    folder.mkdir(parents=True)
    code = folder / "program.py"
    code.write_text(PROGRAM.format(state=str(folder)))
    for name in ("sbatch", "scancel"):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(code), name])} "$@"\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder
