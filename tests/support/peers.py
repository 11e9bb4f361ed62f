"""The tools that people use now, in environments of their own: their pins conflict with ours and with each other's."""

import io
import os
import shutil
import subprocess
import sys
from importlib.metadata import version

import numpy as np
from PIL import Image

from align.display.console import say
from align.durable.files import write_text
from tests.support import ROOT, missing


def _as_here(*names):
    """Packages at the releases that we have; which build of torch is pip's choice."""
    return tuple(f"{name}=={version(name).partition('+')[0]}" for name in names)


#: Environment -> peers; a peer is its pip arguments. With those of evaluation comes what our model imports, since there
#: both run in one process.
PEERS = {
    "peers": (("img2dataset==1.47.0",), ("fastwarc", "beautifulsoup4", "lxml")),
    "peers_croissant": (("mlcroissant==1.1.1", *_as_here("pillow")),),
    "peers_evaluation": (
        ("mteb==2.26.24", "clip-benchmark==1.6.2", "open_clip_torch==3.3.0", "timm==1.0.31", "numpy<2.4",
         *_as_here("torch", "torchvision", "transformers", "pillow", "tokenizers", "safetensors", "pydantic",
                   "ruamel.yaml", "simplejpeg", "psutil", "webdataset")),
    ),
}  # fmt: skip
#: open_clip, with the webdataset that its training asks for, without a second torch: laid beside our packages, so that
#: both run in one process, on the same build.
BESIDE_US = ("open_clip_torch==3.3.0", "timm==1.0.31", "webdataset==0.2.86", "ftfy==6.3.1", "wcwidth", "braceexpand")
FOLDER = ROOT / ".align"
_DONE = "peers.txt"


def build_peers(name="peers"):
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
    say(f"installing the peers into {folder} (some minutes, once)")
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    for peer in PEERS[name]:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer])
    write_text(done, wanted)
    return python


def build_beside_us():
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


def _run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed: {(done.stderr or done.stdout)[-1000:]}")


def version_of(package, name="peers"):
    """As installed there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    done = subprocess.run([str(build_peers(name)), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def tools(environment="peers_evaluation"):
    """The interpreter of an environment for a test, which is skipped where it is not there; CI=true builds it."""
    if not (FOLDER / environment / "bin/python").exists() and os.environ.get("CI") != "true":
        missing(f"needs the tools of .align/{environment}: with CI=true these tests install them")
    return build_peers(environment)


def whole(picture, px):
    """A picture as open_clip prepares it: all of it, in a square, by Pillow."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB").resize((px, px), Image.Resampling.BILINEAR))
