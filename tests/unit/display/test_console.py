import io
import json
import os
import subprocess
import sys

import pytest

from align.display.console import say, show, show_json, track
from align.display.visible import fenced_markdown, plain_markdown, visible

EVIL = "http://h/\x1b]0;pwned\x07/\u202egpj\nalign: error: faked"
SHOWN = r"http://h/\u001b]0;pwned\u0007/\u202egpj\nalign: error: faked"


def test_foreign_words_cannot_steer_the_terminal(capsys):
    say(EVIL)
    show(EVIL, "second")
    show_json('["' + EVIL.replace("\n", "") + '",\n1]\n')
    said = capsys.readouterr()
    assert said.err == f"{SHOWN}\n"
    assert said.out == f"{SHOWN}\nsecond\n" + '["' + SHOWN.replace(r"\n", "") + '",\n1]\n'


def test_the_words_of_a_progress_bar_cannot_either(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    list(track([1], what="\x1b[2J evil"))
    assert r"\u001b[2J evil" in terminal.getvalue()


def test_a_terminal_that_knows_ascii_only_gets_escapes(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    show("renard · 狐 \udc80")
    assert terminal.buffer.getvalue() == b"renard \\xb7 \\u72d0 \\udc80\n"  # type: ignore[attr-defined]


def test_the_reader_may_leave_and_the_work_goes_on():
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


def test_an_uncaught_error_cannot_steer_the_terminal():
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


@pytest.mark.parametrize(("text", "shown"), [
    ("a red fox", "a red fox"),
    ("\x1b]0;pwned\x07", r"\u001b]0;pwned\u0007"),
    ("kept\nalign: error: all is lost\r", r"kept\nalign: error: all is lost\r"),
    ("\x9b31m", r"\u009b31m"),  # one byte's worth of ESC [
    ("txt.\u202egpj\u2066", r"txt.\u202egpj\u2066"),
    ("a\u2028b\u2029", r"a\u2028b\u2029"),
    ("half \ud83e of a fox", r"half \ud83e of a fox"),
    ("fox\U000e0041", r"fox\udb40\udc41"),
    ("שועל \u200f!", "שועל \u200f!"),
    ("الثعلب, 赤い狐, 🦊", "الثعلب, 赤い狐, 🦊"),
])  # fmt: skip
def test_what_steers_is_shown(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_a_text_may_keep_lines_of_its_own():
    assert visible("a\tb\n\x1bc\x0b", lines=True) == "a\tb\n" + r"\u001bc\u000b"


def test_json_keeps_its_meaning():
    texts = ["\x7f\x9b \u202e", "\U000e0041", '"\n"']
    assert json.loads(visible(json.dumps(texts, ensure_ascii=False))) == texts


@pytest.mark.parametrize(("text", "shown"), [
    ("![a](http://x/b.png)", r"!\[a\](http://x/b.png)"),
    (r"\[a\](http://x)", r"\\\[a\\\](http://x)"),  # a backslash of its own frees no bracket
    ("<img src=x>\n# a | b", r"\<img src=x\> # a \| b"),
    ("`code` *a*\x1b", r"\`code\` \*a\*\\u001b"),
])  # fmt: skip
def test_foreign_text_is_no_markdown(text, shown):
    assert plain_markdown(text) == shown
    assert fenced_markdown(["~~~~", text]).count("~~~~") == 2
