"""mlcroissant reads our card of a data set without an error, and by it each sample of the shards."""

import json
import subprocess
from pathlib import Path

import pytest

from align.formats.shards import iter_samples, read_manifest
from align.release.registration.dataset_card import CROISSANT, croissant
from align.release.registration.results import PipelineOutputs
from tests.support import small_data
from tests.support.small_data import Pair
from tests.support.tools import tools

READ = """
import json, sys, mlcroissant
data = mlcroissant.Dataset(jsonld=sys.argv[1])
found = {}
for kind in ("jpg", "txt", "json"):
    records = data.records(f"{kind}-files")
    found[kind] = {one[f"{kind}-files/file"].decode(): one[f"{kind}-files/content"] for one in records}
print(json.dumps({"errors": list(data.metadata.ctx.issues.errors),
                  "sizes": [one.size for one in found["jpg"].values()],
                  "texts": {name: text.decode() for name, text in found["txt"].items()},
                  "rows": [json.loads(row) for row in found["json"].values()]}))
"""


@pytest.mark.costs(25, "mlcroissant and pandas, in a process of their own")
def test_mlcroissant_reads_the_card_and_the_samples(tmp_path: Path) -> None:
    python = tools("peers_croissant")
    small_data.write(tmp_path, [Pair(f"picture number {index}", index) for index in range(30)])
    shards = small_data.write_shards(tmp_path)
    manifest = read_manifest(shards)
    outputs = PipelineOutputs(tmp_path / "packaged", shards, tmp_path / "reports", ())
    (shards / CROISSANT).write_text(croissant("data", manifest, outputs))
    done = subprocess.run(
        [python, "-c", READ, shards / CROISSANT], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "@context` is not standard" not in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    samples = [sample for split in manifest.splits for sample in iter_samples(shards, split)]
    assert found["errors"] == [] and found["sizes"] == [[manifest.image_px] * 2] * len(samples)
    assert found["texts"] == {f"{sample.key}.txt": sample.texts[0] for sample in samples}
    assert sorted(row["key"] for row in found["rows"]) == sorted(sample.key for sample in samples)
