"""The tools that people use now, in environments of their own: they pin what ours, or each other, must not have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from align.stage import say, write_text
from tests.conftest import ROOT

#: Environment -> peers; a peer is its pip arguments. cc2dataset comes alone: it needs Spark and S3 for what is not
#: compared. Data-Juicer pins `dill` and `multiprocess`; with it comes what it imports without asking pip for it (Ray
#: and torch it would install by itself while it runs), and what `align.pairs.text` imports, as we have it.
PEERS = {
    "peers": (
        ("img2dataset==1.47.0",), ("--no-deps", "cc2dataset==1.5.0"),
        ("fastwarc", "pysimdjson", "loguru", "beautifulsoup4", "lxml"),
    ),
    "peers_data_juicer": (
        ("py-data-juicer==1.6.1", "aiohttp", "ray", "torch"),
        tuple(f"{name}=={version(name)}" for name in ("regex", "resiliparse")),
    ),
}  # fmt: skip
FOLDER = ROOT / ".align"
_DONE = "peers.txt"


def build_peers(name: str = "peers") -> Path:
    """The interpreter of an environment of peers, which is built where it is missing or of another list.

    Raises:
        RuntimeError: pip failed; its last words.
    """
    folder = FOLDER / name
    python = folder / "bin/python"
    wanted = "\n".join(" ".join(peer) for peer in PEERS[name]) + "\n"
    done = folder / _DONE
    if python.exists() and done.exists() and done.read_text() == wanted:
        return python
    say(f"benchmark: installing the peers into {folder} (some minutes, once)")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    for peer in PEERS[name]:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer])
    write_text(done, wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-1000:]}")


def version_of(package: str, name: str = "peers") -> str:
    """As installed there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(build_peers(name)), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()
