"""A dataset on S3, both ways: DVC's remote holds its tars, or DVC versions its manifests and the store has the tars."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.checkout.run_branch import record
from tests.support import ROOT
from tests.support.dvc_projects import (
    RECIPE,
    add_remote,
    attempt,
    aws_variables,
    clone,
    file_bytes,
    make_repository,
    num_runs,
    shell,
)
from tests.support.params import PARAMS_FILE
from tests.support.s3_server import S3Server, serve

DVC_YAML = """\
stages:
  raw:
    cmd: python -m make
    deps: [make.py]
    outs: [data/raw, data/filtered, reports/quality]
  shard:
    cmd: 'align shard && echo ran >> $TEST_RUNS'
    deps: [data/raw, data/filtered]
    params: [shard]
    outs: [data/shards, reports/shard]
  read:
    cmd: 'python -m read && echo ran >> $TEST_RUNS'
    deps: [data/shards]
    outs: [texts]
"""

#: Does the work of ingest, filter and validate.
MAKE = """\
import hashlib
from functools import partial
from pathlib import Path

from align.config import load_params
from align.config.infrastructure import StoreConfig
from align.formats.filtered import decisions_digest
from align.ingest.writer import RawShardWriter, write_raw_manifest
from align.services.s3.store import keep_tar
from tests.support import small_data

raw, filtered = Path("data/raw"), Path("data/filtered")
raw.mkdir(parents=True)
filtered.mkdir()
decisions, images = [], []
keep = partial(keep_tar, config=load_params().section(StoreConfig))
for number in range(3):
    with RawShardWriter(raw, f"{number:05d}", 4, keep) as writer:
        for index in range(number * 40, number * 40 + 40):
            data, key = small_data.jpeg(index), writer.next_key
            image_id = hashlib.sha256(data).hexdigest()
            row = {"key": key, "url": f"http://x/{index}", "caption": f"picture {index}", "status": "success"}
            row |= {"sha256": image_id, "image_key": key, "error_message": None}
            writer.add(row, data, key)
            decisions.append(row | {"keep": True, "image_id": image_id, "text": row["caption"]})
            images.append({"image_id": image_id, "image_key": key, "phash": small_data.far_apart(index)})
write_raw_manifest(raw, ["00000", "00001", "00002"])
small_data.write_decisions(filtered, decisions)
small_data.write_images(filtered, images)
small_data.write_verdict(Path("reports/quality"), passed=True, data=decisions_digest(filtered))
"""

#: Reads the shards as the stages do that train, index and evaluate.
READ = """\
from pathlib import Path

from align.config import load_params
from align.config.paths import PathsConfig
from align.config.infrastructure import StoreConfig
from align.formats.shards import SPLITS, iter_samples
from align.services.s3.store import materialised

params = load_params()
shards = materialised(params.section(PathsConfig).shards, params.section(StoreConfig))
texts = [text for split in SPLITS for sample in iter_samples(shards, split) for text in sample.texts]
Path("texts").write_text("\\n".join(texts))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with serve(tmp_path_factory.mktemp("s3") / "server") as running:
        yield running


def make_project(root: Path, objects: str, aws: dict[str, str]) -> Path:
    """A repository with a dataset of two folders, which its stages have made."""
    values = PARAMS_FILE.read_text()
    for old, new in {
        "  objects: null": f"  objects: {objects}", "  num_workers: null": "  num_workers: 1",
        "  images_per_shard: 1000": "  images_per_shard: 20", "  num_retries: 5": "  num_retries: 0",
        "val_fraction: 0.03": "val_fraction: 0.2", "test_fraction: 0.03": "test_fraction: 0.1",
    }.items():  # fmt: skip
        assert values.count(old) == 1, old
        values = values.replace(old, new)
    files = {"params.yaml": values, "dvc.yaml": DVC_YAML, "make.py": MAKE, "read.py": READ}
    make_repository(root, files, ignored="/data/\n/reports/\n/texts\n")
    shell(root, "dvc repro", aws)
    return root


def dataset(root: Path) -> dict[str, bytes]:
    """Path -> bytes of everything that DVC versions."""
    return {
        f"{name}/{path}": data
        for name in ("data/raw", "data/filtered", "data/shards", "reports/shard")
        for path, data in file_bytes(root / name).items()
    }


def tars(folder: Path) -> list[str]:
    """Paths below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.tar"))


@pytest.mark.full
def test_both_ways_a_clone_has_the_dataset_and_runs_nothing(server: S3Server, tmp_path: Path) -> None:
    aws = aws_variables(server) | {"PYTHONPATH": str(ROOT)}
    projects = {}
    for way in ("whole", "manifest"):
        bucket = server.make_bucket(way)
        root = tmp_path / way / "project"
        root.parent.mkdir()
        objects = f"s3://{bucket}/objects" if way == "manifest" else "null"
        project = projects[way] = make_project(root, objects, aws)
        add_remote(RECIPE, project, bucket, aws, server.url)
        shell(project, "dvc push --run-cache", aws)
        record(project, "demo", "a run")
        cloned = clone(project, "clone", "run/demo")
        add_remote(RECIPE, cloned, bucket, aws, server.url)
        shell(cloned, "dvc pull", aws)
        assert dataset(cloned) == dataset(project)
        assert "Data and pipelines are up to date" in shell(cloned, "dvc repro", aws)
        assert num_runs(project) == 2

        # The stages that need the tars run there too, and make the same bytes from them.
        shell(cloned, "dvc repro --force --single-item read shard", aws)
        assert num_runs(project) == 4
        assert dataset(cloned) == dataset(project)
        assert (cloned / "texts").read_text() == (project / "texts").read_text()
        assert (cloned / "dvc.lock").read_bytes() == (project / "dvc.lock").read_bytes()

    whole, manifest = projects["whole"], projects["manifest"]
    assert len(tars(whole / "data")) > 3 + 3
    assert tars(manifest / "data") == []
    kept = {key.rpartition("/")[2] for key in server.keys("manifest") if key.startswith("objects/")}
    assert len(kept) == len(tars(whole / "data"))
    for name in ("data/raw/manifest.json", "data/shards/manifest.json", "texts"):  # nothing in them says where
        assert (whole / name).read_bytes() == (manifest / name).read_bytes()
    in_remote = sum(len(data) for key, data in server.objects("manifest").items() if key.startswith("dvc/files/"))
    assert in_remote < sum(path.stat().st_size for path in (whole / "data").rglob("*.tar")) / 2


@pytest.mark.costs(6, "a real server is killed and started again; three stages read and write S3")
def test_an_unavailable_store_is_one_clear_error_and_nothing_is_lost(tmp_path: Path) -> None:
    with serve(tmp_path / "server") as server:
        aws = aws_variables(server) | {"PYTHONPATH": str(ROOT)}
        bucket = server.make_bucket("away")
        project = make_project(tmp_path / "project", f"s3://{bucket}/objects", aws)
        before = dataset(project)
        shutil.rmtree(project / ".align/store", ignore_errors=True)
        server.kill()
        done = attempt_read(project, aws)
        assert done[0] == 1
        assert done[1].startswith("align.errors.ServiceError: s3://away/objects/")
        assert f"no answer from {server.url}" in done[1]
        assert dataset(project) == before
        server.start()
        # A restarted server needs some seconds until it has its volumes, more on a busy machine.
        deadline = time.monotonic() + 120
        while (done := attempt_read(project, aws))[0] != 0 and time.monotonic() < deadline:
            time.sleep(1)
        assert done[0] == 0, done[1]
        server.kill()
        assert attempt_read(project, aws)[0] == 0  # from the checked copies


def attempt_read(project: Path, aws: dict[str, str]) -> tuple[int, str]:
    """Return code, and the last line on stderr."""
    done = attempt(project, "python -m read", aws)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]
