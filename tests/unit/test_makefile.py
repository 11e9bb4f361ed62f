"""`make`: an environment is installed, and compiled; a page is there before that, and ends with what follows."""

import os
import signal
import subprocess
import urllib.error
import urllib.request

import pytest

from align.arguments.commands import SITE
from tests.support import ROOT
from tests.support.tried import trying

#: Says what it is asked for, and what it would write of compiled modules; an environment that it makes holds it, too.
PYTHON = """\
#!/bin/sh
echo "$* ${PYTHONDONTWRITEBYTECODE-compiles}" >> installed
if [ "$2" = venv ]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
case "$*" in *compileall*) echo "some do not" >&2; exit 1;; esac
"""


def test_packages_are_installed_and_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    python, checkout = tmp_path / "a folder/python", tmp_path / "a checkout"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    checkout.mkdir()
    for name in ("Makefile", "requirements.lock", "pyproject.toml", "infra"):
        (checkout / name).symlink_to(ROOT / name)
    command = ["make", "--no-print-directory", ".venv/.installed", f"PYTHON={python}"]
    done = subprocess.run(command, cwd=checkout, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    asked = (checkout / "installed").read_text().splitlines()
    assert all(line.endswith(" compiles") for line in asked), asked
    assert [line.split()[1] for line in asked] == ["import", "venv", "pip", "pip", "pip", "compileall"]
    assert asked[-1].split()[-2] == ".venv/lib" and asked[-2].split()[-3:-1] == ["-e", "."]
    assert (checkout / ".venv/.installed").exists()


def test_a_page_is_there_before_the_service_and_ends_with_it(tmp_path):
    types = {
        "": "text/html", "source.js": "text/javascript", "runtime/ort.wasm.min.mjs": "text/javascript",
        "runtime/ort-wasm-simd-threaded.wasm": "application/wasm",
    }  # fmt: skip
    with trying(tmp_path) as (process, address):
        for name, kind in types.items():
            with urllib.request.urlopen(f"{address}/{name}", timeout=10) as answer:
                assert answer.headers["content-type"] == kind
                assert answer.read() == (ROOT / SITE / (name or "index.html")).read_bytes()
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        assert "ended" in process.communicate(timeout=10)[0]
        with pytest.raises(urllib.error.URLError, match="refused"):
            urllib.request.urlopen(address, timeout=10)
