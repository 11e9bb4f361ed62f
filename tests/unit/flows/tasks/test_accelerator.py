"""The accelerator's lock: who needs it, where it is, and how waiting ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from align.errors import ServiceError
from flows.dag import read_dag
from flows.tasks import accelerator
from tests.support import ROOT


@pytest.mark.parametrize(
    ("files", "environment", "found"),
    [
        ([], {}, False),
        (["nvidia0", "nvidiactl"], {}, True),
        (["nvidiactl"], {}, False),  # a driver without a GPU
        (["kfd"], {}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "1"}, True),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": ""}, False),
        (["nvidia0"], {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        (["kfd"], {"HIP_VISIBLE_DEVICES": "-1"}, False),
    ],
)
def test_an_accelerator_is_found(tmp_path: Path, files: list[str], environment: dict[str, str], found: bool) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert accelerator.has_accelerator(tmp_path, environment) is found


def test_stages_that_compute_on_it() -> None:
    assert [stage.name for stage in read_dag(ROOT) if accelerator.uses_accelerator(stage)] == [
        "pretrain", "finetune", "evaluate", "index",
    ]  # fmt: skip


def test_without_an_accelerator_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "has_accelerator", lambda: False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with accelerator.accelerator("a", print), accelerator.accelerator("b", print):
        assert not list(tmp_path.iterdir())


#: Trains for a while, or until it is told to end.
RUN = """
import sys, time
from pathlib import Path
from flows.tasks import accelerator
accelerator.has_accelerator = lambda: True
say = lambda line: print(line, flush=True)
with accelerator.accelerator(sys.argv[1], say):
    say("trains")
    time.sleep(float(sys.argv[2]))
"""


def start(name: str, seconds: float, runtime: Path, cwd: Path) -> subprocess.Popen[str]:
    cwd.mkdir()
    env = os.environ | {"XDG_RUNTIME_DIR": str(runtime), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, name, str(seconds)]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, text=True)


def test_of_two_checkouts_one_trains_and_the_other_says_who(tmp_path: Path) -> None:
    (tmp_path / "runtime").mkdir()
    with start("stage pretrain of /a", 60, tmp_path / "runtime", tmp_path / "a") as first:
        assert first.stdout is not None and first.stdout.readline() == "trains\n"
        with (
            start("stage pretrain of /b", 0, tmp_path / "runtime", tmp_path / "b") as second,
            start("stage pretrain of /c", 0, tmp_path / "runtime", tmp_path / "c") as third,
        ):
            assert second.stdout is not None and third.stdout is not None
            for waiting in (second, third):
                assert waiting.stdout and waiting.stdout.readline().startswith("waiting for stage pretrain of /a")
            third.send_signal(signal.SIGTERM)  # cancelled while it waits
            assert third.wait(60) == -signal.SIGTERM
            assert second.poll() is None
            first.kill()  # its lock ends with it
            assert second.stdout.readline() == "trains\n"
            assert second.wait(60) == 0


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "has_accelerator", lambda: True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "align").mkdir(mode=0o700)
    (tmp_path / "align").chmod(0o777)
    with pytest.raises(ServiceError, match="not a folder of yours alone"), accelerator.accelerator("a", print):
        pass
    (tmp_path / "align").rmdir()
    (tmp_path / "align").symlink_to(tmp_path)
    with pytest.raises(ServiceError, match="not a folder of yours alone"), accelerator.accelerator("a", print):
        pass
