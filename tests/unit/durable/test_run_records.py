"""Records of runs in progress: the kernel's lock alone says who lives, while others look for the dead, too."""

import os
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from align.durable.run_records import FOLDER, RunRecord, claimed, files, hold, look
from align.errors import FormatError

#: A run that lives until it is told to end, or is killed; with "child" it starts a command first, as flows do.
RUN = """
import subprocess, sys
from pathlib import Path
from align.durable.run_records import RunRecord, hold
held = hold(Path.cwd(), RunRecord("demo", sys.argv[1]))
held.write(worktree="/a/worktree")
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
child = subprocess.Popen(["sleep", "60"], **quiet) if "child" in sys.argv else None
print(child.pid if child else 0, flush=True)
sys.stdin.readline()
held.remove()
"""


@contextmanager
def running(root, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "a", *words], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    child = int(process.stdout.readline())
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        if child:
            os.kill(child, 9)


def dead(root, run="b"):
    """The file of a run whose process has ended."""
    held = hold(root, RunRecord("demo", run))
    held._file.close()
    return root / FOLDER / f"{run}.json"


def test_a_live_run_is_not_claimed_and_a_killed_one_is(tmp_path):
    with running(tmp_path, "child") as run:
        [file] = files(tmp_path)
        seen = look(file)
        assert seen and seen[0] == "live" and (seen[1].name, seen[1].worktree) == ("demo", "/a/worktree")
        with claimed(file) as held:
            assert held is None
        run.kill()
        run.wait()  # the child lives on, and holds nothing
        assert look(file) == ("dead", seen[1])
        with claimed(file) as held:
            assert held and held.record == seen[1]
            with claimed(file) as second:  # another process repairs it
                assert second is None
            held.remove()
        with claimed(file) as held:
            assert held is None
    assert files(tmp_path) == []


def test_a_run_that_ends_leaves_nothing(tmp_path):
    with running(tmp_path) as run:
        run.communicate("end\n")
        assert run.returncode == 0
    assert files(tmp_path) == []


def test_a_run_that_starts_beside_a_repair_is_never_hit(tmp_path):
    """Whoever repairs removes dead records as fast as it can, while runs begin, end and die."""
    stop, hit, live = threading.Event(), list[str](), set[str]()

    def repair():
        while not stop.is_set():
            for file in files(tmp_path):
                with claimed(file) as held:
                    if held is not None:
                        hit.extend({held.record.flow_run} & live)
                        held.remove()

    def run(number):
        for turn in range(60):
            name = f"{number}-{turn % 3}"
            held = hold(tmp_path, RunRecord("demo", name))
            live.add(name)
            if not any(seen and seen[1].flow_run == name for seen in map(look, files(tmp_path))):
                hit.append(f"{name} is not recorded")
            live.discard(name)
            if turn % 2:
                held.remove()
            else:
                held._file.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    repairing = threading.Thread(target=repair)
    for each in (repairing, *threads):
        each.start()
    for each in threads:
        each.join()
    stop.set()
    repairing.join()
    assert hit == []


def test_a_run_of_another_machine_is_neither_dead_nor_claimed(tmp_path, monkeypatch):
    file = dead(tmp_path)
    monkeypatch.setattr("platform.node", lambda: "other")
    seen = look(file)
    assert seen and seen[0] == "elsewhere"
    with claimed(file) as held:
        assert held is None


def test_a_run_that_is_started_again_takes_its_file(tmp_path):
    dead(tmp_path)
    again = hold(tmp_path, RunRecord("resumed", "b"))
    [file] = files(tmp_path)
    seen = look(file)
    assert seen and (seen[0], seen[1].name) == ("live", "resumed")
    again.remove()


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"name": "demo"}'])
def test_a_record_that_cannot_be_read_is_named_and_stays(tmp_path, content):
    file = dead(tmp_path)
    file.write_bytes(content)
    refusal = r"b\.json: no record of a run of this version; if that run has ended, remove it"
    with pytest.raises(FormatError, match=refusal):
        look(file)
    with pytest.raises(FormatError, match=refusal), claimed(file):
        pass
    assert file.read_bytes() == content
    file.write_bytes(b"")  # it died before it wrote it
    assert look(file) is None
    with claimed(file) as held:
        assert held is None
    assert files(tmp_path) == []
