"""The code that a packaged model carries works without the rest of `align`."""

import json
import subprocess
import sys
from pathlib import Path

from PIL import Image

from align.release.packaging.package import copy_code
from tests.support import ROOT
from tests.support.hostile_pictures import EPS, encoded

DECODE = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from align.errors import DataError
from align.model.preprocess import decode
import align.pairs.picture_process
print(align.pairs.picture_process.__file__)
for data in map(bytes.fromhex, sys.argv[2:]):
    try:
        print(decode(data, 8)[4, 4].tolist())
    except DataError as error:
        print(error)
"""


def test_it_decodes_pictures_in_helpers(tmp_path):
    copy_code(tmp_path / "align")
    paths = [str(tmp_path), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    pictures = [encoded(Image.new("RGB", (9, 9), (10, 200, 30)), "TIFF"), EPS]
    command = [sys.executable, "-I", "-S", "-c", DECODE, json.dumps(paths), *(data.hex() for data in pictures)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=True)
    assert done.stdout.splitlines() == [
        str(tmp_path / "align/pairs/picture_process.py"),
        "[10, 200, 30]",
        "not an image that can be decoded: not a picture that we decode",
    ]
