"""The parts of `make bench-gpu`, which have to hold on the one day when there is a card."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from align.model import normalisation
from benchmarks.gpu import checks, machine, operation_checks, sections
from benchmarks.gpu import page as pages
from benchmarks.gpu import section as section_process
from benchmarks.gpu.checks import Check, Found, NotPossibleError, make, relative
from benchmarks.gpu.journal import Budget, Journal, read
from benchmarks.gpu.scale import scale
from benchmarks.gpu.sections import SECTIONS, Result, Section, run_all
from benchmarks.gpu.steps import expected_bytes


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_budget_grants_what_is_left() -> None:
    clock = Clock()
    budget = Budget(100.0, clock)
    assert budget.grant_s(10.0, 60.0) == 60.0
    clock.now += 70.0
    assert budget.grant_s(10.0, 60.0) == 30.0
    assert budget.grant_s(31.0, 60.0) == 0.0
    clock.now += 70.0
    assert budget.left_s() == 0.0


def test_the_sections_end_within_ten_minutes_and_the_last_one_starts_even_if_all_take_their_most() -> None:
    clock = Clock()
    budget = Budget(560.0, clock)
    for section in SECTIONS[:-1]:
        granted = budget.grant_s(section.least_s + section.keep_s, section.most_s + section.keep_s) - section.keep_s
        assert granted >= section.least_s, section
        clock.now += granted
    assert budget.left_s() >= 0 and clock.now - 100.0 <= 560.0


def test_a_batch_that_does_not_fit_gives_no_result_and_frees_its_memory() -> None:
    freed = []

    class Held:
        def __del__(self) -> None:
            freed.append(True)

    def too_large() -> int:
        held = Held()
        raise torch.OutOfMemoryError(f"CUDA out of memory {held!r:.1}")

    assert machine.attempt(too_large) is None
    assert freed == [True]
    assert machine.attempt(lambda: 3) == 3
    with pytest.raises(ValueError, match="another"):
        machine.attempt(lambda: (_ for _ in ()).throw(ValueError("another")))


@pytest.mark.parametrize(
    ("error", "memory", "lost"),
    [(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True, False),
     (torch.AcceleratorError("CUDA error: out of memory"), True, False),
     (RuntimeError("Triton Error [CUDA]: out of memory"), True, False),
     (RuntimeError("GET was unable to find an engine to execute this computation"), True, False),
     (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True, False),
     (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False, True),
     (torch.AcceleratorError("CUDA error: misaligned address"), False, True),
     (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), False, True),
     (RuntimeError("CUDA error: device-side assert triggered"), False, True),
     (RuntimeError("unspecified launch failure"), False, True),
     (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False, False),
     (ValueError("a file's words: out of memory, illegal memory access"), False, False)],
    ids=repr,
)  # fmt: skip
def test_errors_of_memory_and_of_a_lost_card_are_told_apart(
    error: Exception, memory: bool, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "release", lambda: None)  # takes half a second; another test's
    assert (machine.out_of_memory(error), machine.card_lost(error)) == (memory, lost)
    work = _raises(error)
    if memory:
        assert machine.attempt(work) is None
    else:
        with pytest.raises(type(error)):
            machine.attempt(work)


def test_memory_of_the_next_batch_is_guessed_from_the_last_two() -> None:
    assert expected_bytes([], 64) == expected_bytes([(32, 5)], 64) == 0
    assert expected_bytes([(32, 500), (64, 900)], 128) == 900 + 400 / 32 * 64


def _made(tmp_path: Path, checks: list[Check], seconds: float = 60.0) -> list[dict[str, Any]]:
    journal = Journal(tmp_path / "journal.jsonl", time.monotonic() + seconds)
    make(checks, scale(True), journal)
    return [entry for entry in read(journal.path) if entry["kind"] == "check"]


def _raises(error: Exception) -> Any:
    def check(*_: object) -> Found:
        raise error

    return check


def test_a_check_that_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    checks = [
        Check("far", lambda _: Found(0.5, 0.1)), Check("broken", _raises(RuntimeError("first\nsecond"))),
        Check("absent", _raises(NotPossibleError("no card"))), Check("large", _raises(torch.OutOfMemoryError("x"))),
        Check("also large", _raises(RuntimeError("Triton Error [CUDA]: out of memory"))),
        Check("wrong", lambda _: Found(float("nan"), 0.1)), Check("near", lambda _: Found(0.05, 0.1)),
    ]  # fmt: skip
    found = _made(tmp_path, checks)
    assert [entry["verdict"] for entry in found] == [
        "failed", "failed", "not possible here", "not possible here", "not possible here", "failed", "passed"
    ]  # fmt: skip
    assert found[0]["found"] == "largest relative error 0.5" and found[0]["bound"] == "0.1"
    assert found[1]["found"].startswith("RuntimeError at test_gpu_benchmark.py:")
    assert found[1]["found"].endswith(": first")
    results = [Result(Section("checks", "Correctness", 1, 2), found)]
    assert pages.failed(results) == ["far", "broken", "wrong"]


def test_a_lost_card_ends_the_process_so_that_the_rest_gets_a_new_one(tmp_path: Path) -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(torch.AcceleratorError):
        _made(tmp_path, [Check("writes elsewhere", _raises(error)), Check("next", _raises(AssertionError("made")))])
    entries = read(tmp_path / "journal.jsonl")
    assert [(entry["kind"], entry["name"]) for entry in entries] == [("begin", "writes elsewhere")]


def test_the_last_line_of_a_section_that_fails_is_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_...`")

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(section_process, "work", _raises(error))
    monkeypatch.setattr(section_process, "when_parent_ends", lambda _: None)
    monkeypatch.setattr(section_process, "silence_telemetry", lambda: None)
    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(sys, "argv", ["section", "checks", str(tmp_path / "journal.jsonl"), "60", "cuda"])
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    with pytest.raises(SystemExit, match="1"):
        section_process.main()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("AcceleratorError at test_gpu_benchmark.py:")
    assert last.endswith(": CUDA error: an illegal memory access was encountered")


def test_a_machine_without_a_compiler_fails_no_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "triton_lacks", lambda: ["a C compiler", "Python's headers"])
    names = ("compiled", "to compile", "Triton's kernels")
    chosen = [each for each in operation_checks.CHECKS if any(name in each.name for name in names)]
    journal = Journal(tmp_path / "journal.jsonl", time.monotonic() + 60)
    make(chosen, scale(False), journal)
    found = [entry for entry in read(journal.path) if entry["kind"] == "check"]
    assert [(entry["verdict"], entry["found"]) for entry in found] == [
        ("not possible here", "missing here: a C compiler and Python's headers")
    ] * 4


def test_checks_without_time_are_not_made(tmp_path: Path) -> None:
    found = _made(tmp_path, [Check("late", _raises(AssertionError("made")))], seconds=0.5)
    assert [entry["verdict"] for entry in found] == ["not possible here"]


def test_what_is_not_finite_is_infinitely_far() -> None:
    assert relative(torch.tensor([1.0, float("nan")]), torch.ones(2)) == float("inf")
    assert relative(torch.ones(3), torch.ones(2)) == float("inf")
    assert relative(torch.tensor([1.0, 1.1]), torch.ones(2)) == pytest.approx(0.1 / 2**0.5, rel=1e-5)


@pytest.mark.parametrize(("name", "scaled"), [("gate_gradient", 0), ("normalise_backward", 1), ("normalise", 0)])
def test_the_comparison_of_kernels_sees_one_that_is_wrong(name: str, scaled: int) -> None:
    right = dict(normalisation._PLAIN)

    def wrong(*arguments: Any) -> Any:
        found = right[name](*arguments)
        if isinstance(found, torch.Tensor):
            return found * 1.01
        return tuple(each * 1.01 if number == scaled else each for number, each in enumerate(found))

    assert operation_checks._every_operation(scale(True), right, torch.float32) < 1e-5
    assert operation_checks._every_operation(scale(True), right | {name: wrong}, torch.float32) > 5e-3


class Patient(subprocess.Popen[bytes]):
    """Its time is over when it hangs, however long a busy machine takes to start it."""

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        assert timeout is not None and isinstance(self.args, list)
        while True:
            try:
                return super().communicate(input, 0.02)
            except subprocess.TimeoutExpired:
                if Path(f"{self.args[3]}.hangs").exists():
                    raise
                input = None


def test_a_section_that_dies_or_hangs_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, os, signal, sys, time\n"
        "name, path, seconds, device = sys.argv[1:]\n"
        "done = sys.stdin.read().split()\n"
        "def write(**entry):\n"
        "    with open(path, 'a') as file: file.write(json.dumps(entry) + '\\n')\n"
        "hang = lambda: (open(path + '.hangs', 'w').close(), time.sleep(600))\n"
        "if name == 'checks' and float(seconds) < 10:\n"
        "    write(kind='begin', name='late', at=time.monotonic())\n"
        "    hang()\n"
        "if name == 'hangs':\n"
        "    write(kind='note', text='before')\n"
        "    hang()\n"
        "if name == 'fails':\n"
        "    print('warning: slower\\nwarning: slower', file=sys.stderr)\n"
        "    sys.exit('some reason')\n"
        "for each in ('one', 'dies', 'two'):\n"
        "    if each in done: continue\n"
        "    write(kind='begin', name=each)\n"
        "    if each == 'dies': os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    write(kind='check', name=each, verdict='passed', found='0', bound='1')\n"
    )
    command = [sys.executable, str(program)]
    monkeypatch.setattr(sections, "_command", lambda *arguments: [*command, *arguments])
    monkeypatch.setattr(subprocess, "Popen", Patient)
    three = [Section("checks", "A", 0, 60), Section("hangs", "B", 0, 1), Section("fails", "C", 0, 60),
             Section("late", "D", 1000, 2000)]  # fmt: skip
    checked, hung, ended, late = run_all(three, Budget(120.0), tmp_path, "cpu")
    verdicts = {entry["name"]: entry["verdict"] for entry in checked.entries if entry["kind"] == "check"}
    assert verdicts == {"one": "passed", "dies": "failed", "two": "passed"}
    assert not checked.ended
    assert hung.entries == [{"kind": "note", "text": "before"}] and hung.ended == "was ended after 1 s"
    assert ended.ended == "ended with code 1: some reason"
    assert ended.entries == [{"kind": "note", "text": "warning: slower"}]
    assert late.ended == "left out: no time was left"
    assert pages.failed([checked, hung, ended, late]) == ["dies", "C"]

    folder = tmp_path / "short"
    folder.mkdir()
    short = run_all([Section("checks", "A", 1, 3)], Budget(120.0), folder, "cpu")
    (last,) = [entry for entry in short[0].entries if entry["kind"] == "check"]
    assert (last["verdict"], last["found"]) == ("not possible here", "no time was left for it")
    assert pages.failed(short) == [] and short[0].ended == "was ended after 3 s"


def test_a_check_that_time_ended_has_failed_only_if_it_had_a_minute() -> None:
    begin = {"kind": "begin", "name": "one", "at": 1000.0}
    by_the_clock, by_itself = "was ended after 200 s", "ended with code -11: no output"
    assert sections._without_result(begin, by_the_clock, 1059.0)["verdict"] == "not possible here"
    assert sections._without_result(begin, by_itself, 1001.0)["verdict"] == "failed"
    assert sections._without_result(begin, by_the_clock, 1060.0) == {
        "kind": "check", "name": "one", "verdict": "failed", "found": f"its process {by_the_clock}", "bound": ""
    }  # fmt: skip


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(json.dumps({"kind": "note", "text": "whole"}) + '\n{"kind": "no')
    assert read(path) == [{"kind": "note", "text": "whole"}]
    assert read(tmp_path / "missing.jsonl") == []


def test_a_page_has_a_table_for_each_kind_of_row() -> None:
    entries: list[dict[str, Any]] = [
        {"kind": "row", "table": "steps", "cells": {"towers": "B3 + Mini", "batch": "32", "mfu": "", "peak": "1 GiB"}},
        {"kind": "row", "table": "steps", "cells": {"towers": "B3 + Mini", "batch": "64", "mfu": "", "peak": ""}},
        {"kind": "row", "table": "profile", "cells": {"kernel": "a|b\nc", "calls": "3"}},
        {"kind": "note", "text": "Something."},
    ]
    result = Result(Section("steps", "B3 + Mini", 1, 2), entries, seconds=3.0, ended="was ended after 3 s")
    text = pages.page([result], "a card.", "2026-01-01", 12.3, stand_in=False)
    assert "| towers | pairs | peak memory |\n|---|---|---|\n| B3 + Mini | 32 | 1 GiB |\n| B3 + Mini | 64 |  |" in text
    assert "| a\\|b c | 3 |" in text and "* Something." in text and "This section was ended after 3 s." in text
    assert "2026-01-01: a card. 12 s in all." in text and "No card" not in text
    assert "No card" in pages.page([result], "x", "y", 1.0, stand_in=True)


@pytest.mark.parametrize(
    ("name", "peak"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121),
     ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165), ("NVIDIA H200", 989), ("Tesla T4", None),
     ("NVIDIA L40", None), ("NVIDIA RTX A1000", None), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
     ("NVIDIA H200 NVL", None), ("NVIDIA H100 NVL", 835), ("NVIDIA GH200 480GB", 989), ("NVIDIA GB200", None),
     ("NVIDIA GeForce RTX 4090 D", None), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA A10G", 70)],
)  # fmt: skip
def test_peaks_by_name(name: str, peak: float | None) -> None:
    assert machine.published_tflops(name) == peak


def test_a_card_has_a_name_where_nvidia_smi_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_by_nvidia_smi", dict)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.card_here() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert machine.describe(machine.card_here()).startswith("NVIDIA H100, torch ")


def test_a_card_that_torch_cannot_use_is_told_how(monkeypatch: pytest.MonkeyPatch) -> None:
    card = {"name": "NVIDIA H100", "driver_version": "550.54"}
    assert machine.why_no_cuda({}) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    why = machine.why_no_cuda(card)
    assert why is not None and "build without CUDA" in why and "pip install --force-reinstall torch==" in why
    assert "+cpu" not in why.partition("pip install")[2]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    why = machine.why_no_cuda(card)
    assert why is not None and "driver 550.54" in why and "CUDA 13.0" in why
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert machine.why_no_cuda(card) is None
