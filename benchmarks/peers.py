"""The tools that people use now, in environments of their own: their pins conflict with ours and with each other's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from align.display.console import say
from align.durable.files import write_text
from benchmarks.measure import Comparison

if TYPE_CHECKING:  # it brings torch along, which would count as memory of the data half's processes
    from benchmarks.world import World

from tests.support import ROOT


def _as_here(*names: str) -> tuple[str, ...]:
    """Packages at the releases that we have; which build of torch is pip's choice."""
    return tuple(f"{name}=={version(name).partition('+')[0]}" for name in names)


#: Environment -> peers; a peer is its pip arguments. cc2dataset comes alone: it needs Spark and S3 for what is not
#: compared. Data-Juicer pins `dill` and `multiprocess`; with it comes what it imports without asking pip for it (Ray
#: and torch it would install by itself while it runs), and what `align.pairs.text` imports, as we have it. open_clip
#: comes with the webdataset that its training asks for; with it comes what our training imports, since there both run
#: in one process, on the same torch. CLIP_benchmark comes with what it imports.
PEERS = {
    "peers": (
        ("img2dataset==1.47.0",), ("--no-deps", "cc2dataset==1.5.0"),
        ("fastwarc", "pysimdjson", "loguru", "beautifulsoup4", "lxml"),
    ),
    "peers_data_juicer": (
        ("py-data-juicer==1.6.1", "aiohttp", "ray", "torch"), _as_here("pycld2", "regex"),
    ),
    "peers_training": (
        ("open_clip_torch==3.3.0", "timm==1.0.31", "webdataset==0.2.86", "pandas",
         *_as_here("torch", "torchvision", "transformers", "pillow", "numpy", "tokenizers", "safetensors", "pydantic",
                   "ruamel.yaml", "simplejpeg", "psutil", "pyarrow", "pycld2", "regex")),
    ),
    "peers_classify": (
        ("--no-deps", "clip-benchmark==1.6.2"), ("numpy<2.4", *_as_here("torch", "scikit-learn", "tqdm")),
    ),
    "peers_croissant": (("mlcroissant==1.1.1", *_as_here("pillow")),),
    "peers_evaluation": (
        ("mteb==2.26.24", "clip-benchmark==1.6.2", "open_clip_torch==3.3.0", "timm==1.0.31", "numpy<2.4",
         *_as_here("torch", "torchvision", "transformers", "pillow", "tokenizers", "safetensors", "pydantic",
                   "ruamel.yaml", "simplejpeg", "psutil", "webdataset")),
    ),
}  # fmt: skip
#: open_clip without a second torch: laid beside our packages, so that both run on the same build for CUDA.
BESIDE_US = ("open_clip_torch==3.3.0", "timm==1.0.31", "webdataset==0.2.86", "ftfy==6.3.1", "wcwidth", "braceexpand")
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


def build_beside_us() -> Path:
    """A folder of BESIDE_US for the path of a process of ours; made where it is missing or of another list.

    Raises:
        RuntimeError: pip failed; its last words.
    """
    folder, wanted = FOLDER / "peers_beside_us", " ".join(BESIDE_US) + "\n"
    if not (done := folder / _DONE).exists() or done.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
              "--target", str(folder), *BESIDE_US])  # fmt: skip
        write_text(done, wanted)
    return folder


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-1000:]}")


def version_of(package: str, name: str = "peers") -> str:
    """As installed there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(build_peers(name)), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run_beside_peers(module: str, world: World) -> list[Comparison]:
    """The rows of a module of ours whose `run(world)` needs a peer in its own process: all of it runs over there.

    Raises:
        RuntimeError: it failed; its last words.
    """
    command = [str(build_peers("peers_training")), "-m", "benchmarks.beside_peers", module, str(world.root)]
    quiet = {
        "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "OMP_NUM_THREADS": "1", "HOME": str(world.root),
    }  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{module} failed in the environment of its peers: {done.stdout[-1000:]}")
    rows = json.loads(done.stdout.splitlines()[-1])
    return [Comparison(**row | {"ratios": tuple(row["ratios"])}) for row in rows]
