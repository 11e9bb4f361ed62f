import io
import os
import subprocess
import sys

import pytest

from align.display.console import say, show, show_json, track

EVIL = "http://h/\x1b]0;pwned\x07/\u202egpj\nalign: error: faked"
SHOWN = r"http://h/\u001b]0;pwned\u0007/\u202egpj\nalign: error: faked"


def test_track_yields_everything_in_order() -> None:
    assert list(track(range(5), what="counting", total=5)) == [0, 1, 2, 3, 4]


def test_foreign_words_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    show(EVIL, "second")
    show_json('["' + EVIL.replace("\n", "") + '",\n1]\n')
    said = capsys.readouterr()
    assert said.err == f"{SHOWN}\n"
    assert said.out == f"{SHOWN}\nsecond\n" + '["' + SHOWN.replace(r"\n", "") + '",\n1]\n'


def test_the_words_of_a_progress_bar_cannot_either(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    list(track([1], what="\x1b[2J evil"))
    assert r"\u001b[2J evil" in terminal.getvalue()


def test_a_terminal_that_knows_ascii_only_gets_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    show("renard · 狐 \udc80")
    assert terminal.buffer.getvalue() == b"renard \\xb7 \\u72d0 \\udc80\n"  # type: ignore[attr-defined]


def test_the_reader_may_leave_and_the_work_goes_on() -> None:
    code = (
        "from align.display.console import say, show\n"
        "for number in range(20_000): show(f'line {number}')\n"
        "say('the work is done')"
    )
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    os.close(reading)  # before the first line or amid them
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, "the work is done\n")


def test_an_uncaught_error_cannot_steer_the_terminal() -> None:
    code = (
        "import sys, align.cli, align.config\n"
        "def fail(*_): raise RuntimeError('http://h/\\x1b[2J')\n"
        "align.config.load_params = fail\n"
        "sys.exit(align.cli.main(['filter']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("RuntimeError: http://h/\\u001b[2J\n")
