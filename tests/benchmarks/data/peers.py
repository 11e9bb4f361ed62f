"""The tools that people use now, in an environment of their own: they pin what ours must not have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from align.stage import say, write_text
from tests.conftest import ROOT

#: A peer is its pip arguments. cc2dataset comes alone: it needs Spark and S3 for what is not compared.
PEERS = (
    ("img2dataset==1.47.0",), ("--no-deps", "cc2dataset==1.5.0"),
    ("fastwarc", "pysimdjson", "loguru", "beautifulsoup4", "lxml"),
)  # fmt: skip
FOLDER = ROOT / ".align/peers"
_DONE = "peers.txt"


def build_peers() -> Path:
    """The interpreter of the peers' environment, which is built where it is missing or of another list.

    Raises:
        RuntimeError: pip failed; its last words.
    """
    python = FOLDER / "bin/python"
    wanted = "\n".join(" ".join(peer) for peer in PEERS) + "\n"
    done = FOLDER / _DONE
    if python.exists() and done.exists() and done.read_text() == wanted:
        return python
    say(f"benchmark: installing the peers into {FOLDER} (some minutes, once)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(FOLDER)])
    for peer in PEERS:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer])
    write_text(done, wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-1000:]}")


def version_of(package: str) -> str:
    """As installed there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(build_peers()), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
