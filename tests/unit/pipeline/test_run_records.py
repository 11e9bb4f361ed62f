"""Records of runs in progress: the kernel's lock alone says who lives, while others look for the dead, too."""

import json
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest

from align.errors import FormatError
from align.pipeline import run_records
from align.pipeline.run_records import RunRecord, claimed, hold, locks, look

#: A run that lives until it is told to end, or is killed; with "child" it starts a command first, as flows do.
RUN = """
import subprocess, sys
from pathlib import Path
from align.pipeline.run_records import RunRecord, hold
held = hold(RunRecord("demo", sys.argv[1], 1, "", "", str(Path.cwd())))
quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
child = subprocess.Popen(["sleep", "60"], **quiet) if "child" in sys.argv else None
print(child.pid if child else 0, flush=True)
sys.stdin.readline()
held.remove()
"""


@contextmanager
def running(root, run="a", *words):
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, run, *words], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
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


def record(root, run="b", attempt=1):
    return RunRecord("demo", run, attempt, "", "", str(root))


def test_a_live_run_is_not_claimed_and_a_killed_one_is(tmp_path):
    with running(tmp_path, "a", "child") as run:
        [lock] = locks(tmp_path)
        seen = look(lock)
        assert seen and seen[0] == "live" and (seen[1].name, seen[1].pid) == ("demo", run.pid)
        with claimed(lock, 0.1) as held:
            assert held is None
        run.kill()
        run.wait()  # the child lives on, and holds nothing
        assert look(lock) == ("dead", seen[1])
        with claimed(lock) as held:
            assert held and held.record == seen[1]
            with claimed(lock, 0.1) as second:  # another process repairs it
                assert second is None
            held.remove()
        with claimed(lock) as held:
            assert held is None
    assert locks(tmp_path) == [] and list((tmp_path / run_records.FOLDER).iterdir()) == []


def test_a_run_that_ends_leaves_nothing(tmp_path):
    with running(tmp_path) as run:
        run.communicate("end\n")
        assert run.returncode == 0
    assert list((tmp_path / run_records.FOLDER).iterdir()) == []


def test_looking_at_a_dead_run_does_not_hide_it(tmp_path):
    hold(record(tmp_path)).close()
    [lock] = locks(tmp_path)
    stop = threading.Event()

    def watch():
        while not stop.is_set():
            look(lock)

    watchers = [threading.Thread(target=watch) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        with claimed(lock, 20) as held:
            assert held and held.record
    finally:
        stop.set()
        for watcher in watchers:
            watcher.join()


def test_a_run_that_starts_beside_a_repair_is_never_hit(tmp_path):
    """Whoever repairs removes dead records as fast as it can, while runs begin, end and die."""
    stop, hit = threading.Event(), list[str]()
    live = set[str]()

    def repair():
        while not stop.is_set():
            for lock in locks(tmp_path):
                with claimed(lock, 0) as held:
                    if held is None:
                        continue
                    if held.record and held.record.flow_run in live:
                        hit.append(held.record.flow_run)
                    held.remove()

    def run(number):
        for turn in range(60):
            name = f"{number}-{turn % 3}"
            held = hold(record(tmp_path, name))
            live.add(name)
            if not any(seen and seen[1].flow_run == name for seen in map(look, locks(tmp_path))):
                hit.append(f"{name} is not recorded")
            live.discard(name)
            if turn % 2:
                held.remove()
            held.close()

    repairing = threading.Thread(target=repair)
    repairing.start()
    runs = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for each in runs:
        each.start()
    for each in runs:
        each.join()
    stop.set()
    repairing.join()
    assert hit == []


def test_another_checkout_s_and_another_machine_s_runs(tmp_path, monkeypatch):
    first = tmp_path / "first"
    first.mkdir()
    held = hold(record(first))
    shutil.copytree(first, tmp_path / "copy")
    [copied] = locks(tmp_path / "copy")
    seen = look(copied)
    assert seen and seen[0] == "copied"
    held.close()
    first.rename(tmp_path / "moved")
    [moved] = locks(tmp_path / "moved")
    seen = look(moved)
    assert seen and seen[0] == "dead"
    monkeypatch.setattr("platform.node", lambda: "other")
    seen = look(moved)
    assert seen and seen[0] == "dead"  # another container of this machine: one kernel, whose locks it sees
    monkeypatch.setattr(run_records, "_boot", lambda: "other")
    seen = look(moved)
    assert seen and seen[0] == "elsewhere"


def test_after_a_reboot_a_run_is_dead(tmp_path, monkeypatch):
    hold(record(tmp_path)).close()
    monkeypatch.setattr(run_records, "_boot", lambda: "next")
    [lock] = locks(tmp_path)
    seen = look(lock)
    assert seen and seen[0] == "dead"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"schema_version": 2}', b'{"schema_version": 1}'])
def test_a_record_that_cannot_be_read_is_named_and_stays(tmp_path, content):
    hold(record(tmp_path)).close()
    [lock] = locks(tmp_path)
    file = lock.with_suffix(".json")
    file.write_bytes(content)
    refusal = r"\.json: no record of this version; if that run has ended, remove it and b-1\.lock"
    with pytest.raises(FormatError, match=refusal):
        look(lock)
    with pytest.raises(FormatError, match=refusal), claimed(lock):
        pass
    assert file.read_bytes() == content


def test_the_next_attempt_has_a_record_of_its_own_and_replaces_a_dead_one(tmp_path):
    hold(record(tmp_path)).close()
    second = hold(record(tmp_path, attempt=2))
    again = hold(replace(record(tmp_path), name="resumed"))
    assert [lock.name for lock in locks(tmp_path)] == ["b-1.lock", "b-2.lock"]
    states = [seen and (seen[0], seen[1].name) for seen in map(look, locks(tmp_path))]
    assert states == [("live", "resumed"), ("live", "demo")]
    content = json.loads((tmp_path / ".align/runs/b-1.json").read_bytes())
    assert content["schema_version"] == 2 and content["attempt"] == 1
    for held in (second, again):
        held.remove()
        held.close()
