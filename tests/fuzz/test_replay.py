"""Every input that fuzzing has saved is handled: seeds, and what was once a find."""

import faulthandler
import os
import subprocess
import sys
import time

import pytest

from tests.fuzz import judge
from tests.support import ROOT


@pytest.mark.costs(40, "each saved input in a fork of its own")
def test_every_saved_input_is_handled() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.fuzz", "--replay"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
    assert int(done.stdout.split()[-4]) > 100, done.stdout


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_the_judge_sees_exceptions_memory_time_and_death(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "PEAK_BYTES", 50_000_000)
    monkeypatch.setattr(judge, "CPU_S", 0.5)

    def allocates(data: bytes) -> None:
        bytearray(200_000_000).count(1)

    def is_slow(data: bytes) -> None:
        end = time.process_time() + 1
        while time.process_time() < end:
            pass

    def dies(data: bytes) -> None:
        faulthandler.disable()  # its report would look like a failure
        os.abort()

    assert judge.replayed(lambda data: None, b"") is None
    assert judge.replayed(lambda data: data[1], b"").signature.startswith("IndexError")
    assert judge.replayed(allocates, b"").signature == "memory"
    assert judge.replayed(is_slow, b"").signature == "slow"
    assert judge.replayed(dies, b"").signature == "dies by signal 6"
