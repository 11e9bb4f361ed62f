"""mlcroissant reads our card of a data set without an error, and by it each sample of the shards."""

import io
import json
import os
import subprocess

import pytest
from PIL import Image

from align.formats.shards import iter_samples, read_manifest
from align.release.registration.dataset_card import CROISSANT, croissant
from align.release.registration.results import PipelineOutputs
from tests.support import small_data
from tests.support.peers import tools
from tests.support.small_data import Pair

READ = """
import json, sys, mlcroissant
data = mlcroissant.Dataset(jsonld=sys.argv[1])
found = {}
for kind in ("jpg", "txt", "json"):
    records = data.records(f"{kind}-files")
    found[kind] = {one[f"{kind}-files/file"].decode(): one[f"{kind}-files/content"] for one in records}
print(json.dumps({"errors": list(data.metadata.ctx.issues.errors),
                  "sizes": {name: one.size for name, one in found["jpg"].items()},
                  "texts": {name: text.decode() for name, text in found["txt"].items()},
                  "rows": [json.loads(row) for row in found["json"].values()]}))
"""


def size_of(picture):
    return Image.open(io.BytesIO(picture)).size


@pytest.mark.tools
@pytest.mark.timeout(1800)  # installs mlcroissant
def test_mlcroissant_reads_the_card_and_the_samples(tmp_path):
    python = tools("peers_croissant")
    small_data.write(tmp_path, [Pair(f"picture number {index}", index) for index in range(30)])
    shards = small_data.write_shards(tmp_path)
    manifest = read_manifest(shards)
    outputs = PipelineOutputs(tmp_path / "packaged", shards, tmp_path / "reports", ())
    (shards / CROISSANT).write_text(croissant("data", manifest, outputs))
    cache = {"CROISSANT_CACHE": str(tmp_path / "cache")}  # which knows tars by their names alone
    command = [python, "-c", READ, shards / CROISSANT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | cache)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "@context` is not standard" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    samples = [sample for split in manifest.splits for sample in iter_samples(shards, split)]
    assert found["errors"] == []
    assert found["sizes"] == {f"{sample.key}.jpg": [*size_of(sample.image)] for sample in samples}
    assert found["texts"] == {f"{sample.key}.txt": sample.texts[0] for sample in samples}
    assert sorted(row["key"] for row in found["rows"]) == sorted(sample.key for sample in samples)
