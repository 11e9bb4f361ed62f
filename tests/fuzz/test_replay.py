"""Every input that fuzzing has saved is handled: seeds, and what was once a find."""

import faulthandler
import os
import subprocess
import time

import pytest

from tests.fuzz import judge
from tests.support import ROOT, warm


def test_every_saved_input_is_handled():
    done = subprocess.run(
        [str(warm.commands() / "python"), "-m", "tests.fuzz", "--replay"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert int(done.stdout.split()[-4]) > 100, done.stdout


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_the_judge_sees_exceptions_memory_time_and_death(monkeypatch):
    monkeypatch.setattr(judge, "PEAK_BYTES", 50_000_000)
    monkeypatch.setattr(judge, "CPU_S", 0.3)

    def allocates(data):
        bytearray(200_000_000).count(1)

    def is_slow(data):
        end = time.process_time() + 0.4
        while time.process_time() < end:
            pass

    def dies(data):
        faulthandler.disable()  # its report would look like a failure
        os.abort()

    runs = {b"allocates": allocates, b"slow": is_slow, b"dies": dies, b"fails": lambda data: data[9]}
    inputs = [b"", b"fails", b"allocates", b"dies", b"", b"slow", b"dies", b"fails"]
    finds = judge.replayed(lambda data: runs.get(data, len)(data), inputs)
    assert [find and find.signature.partition(" at ")[0] for find in finds] == [
        None, "IndexError", "memory", "dies by signal 6", None, "slow", "dies by signal 6", "IndexError",
    ]  # fmt: skip
