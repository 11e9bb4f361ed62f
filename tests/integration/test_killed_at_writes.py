"""Each command that writes, killed before its changes one after the other: nothing is torn, nothing is lost, and the
same command then makes the same bytes. KILL_POINTS=0 takes every change, else it is a sample.

And one flipped byte in each kind of file that a command reads: it is named, or what is made stays the same. Not here:
figures of reports (evaluation's metrics, the filter's cuts) and pictures of an evaluation set that somebody gave, which
have no digest but DVC's; SQLite's databases, which have no checksums; and the shards' manifest, which `align
validate_shards` compares.
"""

import contextlib
import io
import os
import re
import shutil
import sqlite3
from contextlib import closing

import pyarrow.parquet as pq
import pytest

from align.cli import main
from align.formats.filtered import decisions_digest
from align.services.git import git_if_any
from align.services.tracking.registry import PROMOTED, PROMOTED_BECAUSE, ROLLED_BACK, ROLLED_BACK_BECAUSE
from flows.checkout.run_branch import record
from tests.support import (
    ROOT,
    colour_index,
    pictures_project,
    registered,
    small_data,
    small_filter,
    small_git,
    small_model,
    tiny_model,
)
from tests.support.colours import square
from tests.support.dvc_projects import environment, file_bytes, shell
from tests.support.kill_points import CHOSEN, Case, survives
from tests.support.killing import digests
from tests.support.params import PARAMS_FILE, sets
from tests.support.pictures_project import CODE, INGEST_AND_FILTER
from tests.support.registered import RECALL
from tests.support.small_data import Pair, jpeg
from tests.support.suites import suite

ALIGN = "align.cli"


def of(*folders):
    """The bytes of folders, without the note that says that one is not finished."""
    return lambda root: {
        name: {path: digest for path, digest in digests(root / name).items() if path != ".work.json"}
        for name in folders if (root / name).exists()
    }  # fmt: skip


def words(verb, *settings):
    values = ("engine.num_workers=1", *settings)
    return [ALIGN, verb, "--params", str(PARAMS_FILE), *sets(*values)]


def ingest(root):
    settings = (f"paths.archive={ROOT / 'data/sample/archive.warc.gz'}", "ingest.max_pages=4", "ingest.shard_size=8")
    return Case(root, words("ingest", *settings), of("data/raw", "reports/ingest"))


def filter_(root):
    (root / "project/data/sample").mkdir(parents=True)
    small_filter.shards(root / "project/data/raw", 3)
    small_filter.evaluation_set(root / "project/sets", small_filter.noise(2))
    return Case(root, words("filter", "paths.evaluation=sets"), of("data/filtered", "reports/filter"))


def shard(root):
    project = root / "project"
    small_data.write(project / "data", [Pair(f"picture number {index}", index) for index in range(12)])
    small_data.write_verdict(project / "reports/quality", passed=True, data=decisions_digest(project / "data/filtered"))
    settings = ("shard.images_per_shard=4", "shard.val_fraction=0.3", "shard.test_fraction=0.3")
    return Case(root, words("shard", *settings), of("data/shards", "reports/shard"))


def validate_shards(root):
    """Of what `align shard` wrote."""
    told = shard(root).words[1:]
    with contextlib.chdir(root / "project"):
        assert run(told)[0] == 0
    return Case(root, words("validate_shards"), of("reports/quality_shards"))


def evaluate(root):
    project = root / "project"
    tiny_model.write(project)
    for colour in ("red", "blue"):
        (project / "a/test" / colour).mkdir(parents=True)
        for number in range(3):
            data = square(colour, shade=number, format="PNG", side_px=36)
            (project / "a/test" / colour / f"{number}.png").write_bytes(data)
    suite(project, {"name": "a", "path": "a", "format": "folder", "tasks": ["zero_shot"], "templates": ["a {}."]})
    settings = ("paths.evaluation=suite.yaml", "evaluate.num_resamples=100")
    return Case(root, [*words("evaluate", *settings), "--model", "model", "--reports", "report"], of("report"))


def index(root):
    project = root / "project"
    tiny_model.write(project)
    colour_index.write_data(project, project / "reports")
    places = ("paths.finetuned=model", "paths.raw=raw", "paths.shards=shards", "index.queries=null")
    return Case(root, words("index", *places), of("data/index", "reports/index"))


def package(root):
    project = root / "project"
    small_model.write(project)
    (project / "reports/evaluation").mkdir(parents=True)
    (project / "reports/evaluation/metrics.json").write_text('{"concepts/image_to_text/recall@10": 0.5}\n')
    return Case(root, words("package"), of("models/packaged", "reports/package"))


ALL = (ingest, filter_, shard, validate_shards, evaluate, index, package)


pytestmark = [pytest.mark.kill]
if CHOSEN == "0":
    pytestmark.append(pytest.mark.timeout(7200))  # kills a command before each of its changes


def words_of(project, verb):
    places = [f"paths.{name}={name}" for name in ("shards", "packaged", "filtered", "evaluation")]
    model = f"register.model_name={project.config.model_name}"
    settings = (*places, "paths.finetuned=models/finetuned", model, f"register.experiment={project.config.experiment}")
    return words(verb, *settings, f"promote.metrics=[{RECALL}]", "promote.margin=0.02")


def in_mlflow(root):
    """What git's tags, MLflow's database and files say, without times, ids, what belongs to no version, lineage's page
    (after a kill it is not made again), and hidden parts of files that MLflow leaves; and
    of each move of the champion only from where to where: of a command that is killed between the alias and its entry
    in the history, the next one says `by hand`, and the reason is lost.
    """

    def rows(question):
        with closing(sqlite3.connect(root / "mlflow.db")) as database:
            return [tuple(_TIME.sub("T", str(value)) for value in row) for row in database.execute(question)]

    files = {
        _TIME.sub("T", path.relative_to(root).as_posix().split("/artifacts/")[-1]): path.stat().st_size > 0
        for path in (root / "mlartifacts").rglob("*")
        if path.is_file() and path.parent.name != "lineage" and not path.name.startswith(".artifact.uploading.")
    }  # fmt: skip
    of_version = "run_uuid IN (SELECT run_id FROM model_versions)"
    return {
        "aliases": rows("SELECT alias, version FROM registered_model_aliases ORDER BY 1"),
        "versions": rows("SELECT version, status, description != '' FROM model_versions ORDER BY 1"),
        "version tags": {
            (version, key): value
            for version, key, value in rows("SELECT version, key, value FROM model_version_tags")
            if key not in (PROMOTED, PROMOTED_BECAUSE, ROLLED_BACK, ROLLED_BACK_BECAUSE)
        },
        "model tags": rows("SELECT key, value ->> '$.before', value ->> '$.to' FROM registered_model_tags ORDER BY 1"),
        "runs": rows(f"SELECT status, count(*) FROM runs WHERE {of_version}"),
        "metrics": rows(f"SELECT key, step, value FROM metrics WHERE {of_version} ORDER BY 1, 2, 3"),
        "params": rows(f"SELECT key, value FROM params WHERE {of_version} ORDER BY 1, 2"),
        "tags": rows(f"SELECT DISTINCT key FROM tags WHERE {of_version} ORDER BY 1"),
        "files": sorted(files.items()),
        "git": git_if_any(root, "for-each-ref", "--format=%(refname) %(contents:subject)", "refs/tags"),
    }


#: Of a decision, in sentences and in names of folders.
_TIME = re.compile(r"20\d\d-?\d\d-?\d\dT[\d:.]+Z?(?:\+00:00)?")


@pytest.mark.parametrize("verb", ["register", "promote", "rollback"])
def test_a_change_of_the_registry(verb, tmp_path, empty_mlflow, monkeypatch):
    """Its first version is registered; a second one is promoted; it is rolled back."""
    root = tmp_path / "here/project"  # where `survives` runs it: MLflow's database belongs to a place
    root.mkdir(parents=True)
    monkeypatch.chdir(root)
    project = registered.write(root, empty_mlflow(root))
    small_git.write(root, {"code": "one", ".gitignore": "ml*\n.align\n"})
    (root / "dvc.lock").write_text("schema: '2.0'\n")
    if verb != "register":
        for recall in (0.4, 0.6):
            project.candidate(recall)
            if recall == 0.4 or verb == "rollback":
                assert project.promote().outcome == "promoted"
    told = words_of(project, verb) + (["--why", "slow"] if verb == "rollback" else [])
    monkeypatch.chdir(tmp_path)
    start = root.parent.rename(tmp_path / "start")
    case = Case(start, told, in_mlflow, whole_or_nothing=False, refused=verb == "rollback")
    kills, changes = survives(case, tmp_path)
    print(f"{verb}: {kills} kills of {changes} changes")


def test_opt_out(tmp_path):
    """A purge of a checkout, of DVC's cache and of a remote that is a folder."""
    root = tmp_path / "start/project"
    root.parent.mkdir()
    pictures_project.write(root, "opted", {"dvc.yaml": INGEST_AND_FILTER})
    shell(root, "dvc repro --quiet", CODE)
    record(root, "before", "before the letter came")
    (root / ".dvc/config.local").write_text("['remote \"there\"']\n    url = ../../remote\n")
    shell(root, "dvc push --quiet --run-cache -r there", CODE)
    forgotten = jpeg(4)
    rows = pq.read_table(root / "data/filtered/decisions").to_pylist()
    (key,) = (row["key"] for row in rows if "number 4 " in row["text"])
    (root / "keys.txt").write_text(f"{key}\n")
    shell(root, "align opt_out --keys keys.txt --reason letter && dvc repro --quiet", CODE)

    def state(root):
        places = ("data", "reports", ".dvc/cache", "../remote")
        holds = [place for place in places if any(forgotten in data for data in file_bytes(root / place).values())]
        kept = sorted(
            sum(jpeg(number) in data for data in file_bytes(root / "data/raw").values()) for number in range(9)
        )
        return {"holds": holds, "kept": kept, "data": digests(root / "data"), "reports": digests(root / "reports")}

    assert state(root)["holds"] == ["data", ".dvc/cache", "../remote"]
    words = [ALIGN, "opt_out", "--purge", "--yes"]
    case = Case(root.parent, words, state, whole_or_nothing=False, env=lambda root: environment(root, CODE))
    print("opt_out --purge: {} kills of {} changes".format(*survives(case, tmp_path)))


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.__name__)
def test_a_stage(case, tmp_path):
    (tmp_path / "start/project").mkdir(parents=True)
    kills, changes = survives(case(tmp_path / "start"), tmp_path)
    print(f"{case.__name__}: {kills} kills of {changes} changes")


#: Flips of each file, evenly spread.
NUM = int(os.environ.get("FLIPS", "4"))


def run(told):
    """Exit code, stdout and the last line of stderr of `align`, in this process."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = main(list(told))
    return code, said.getvalue(), (errors.getvalue().strip().splitlines() or [""])[-1]


def filter_ours(root):
    """The filter over what `align ingest` wrote, with its manifest."""
    told = ingest(root).words[1:]
    with contextlib.chdir(root / "project"):
        assert run(told)[0] == 0
        shutil.rmtree("reports")
    (root / "project/sets").mkdir()
    return Case(root, words("filter", "paths.evaluation=sets"), of("data/filtered", "reports/filter"))


def search(root):
    """Of an index."""
    case = index(root)
    with contextlib.chdir(root / "project"):
        assert run(case.words[1:])[0] == 0
    told = [*words("search", "paths.finetuned=model", "paths.shards=shards"), "a red heart", "--json"]
    return Case(root, told, of())


@pytest.mark.parametrize(
    ("case", "files"),
    [
        (filter_ours, "data/raw/0000[01].tar"),
        (filter_ours, "data/raw/0000[01].parquet"),
        (filter_ours, "data/raw/manifest.json"),
        (shard, "data/filtered/*.parquet"),
        (shard, "data/filtered/decisions/*.parquet"),
        (shard, "data/raw/*.tar"),
        (shard, "data/raw/*.parquet"),
        (shard, "reports/quality/verdict.json"),
        (package, "models/finetuned/config.json"),
        (package, "models/finetuned/model.safetensors"),
        (package, "models/finetuned/tokenizer/tokenizer.json"),
        (evaluate, "model/model.safetensors"),
        (evaluate, "suite.yaml"),
        (index, "model/*.*"),
        (index, "model/tokenizer/*.json"),
        (index, "raw/*.parquet"),
        (index, "shards/*/*.tar"),
        (search, "data/index/*.*"),
        (search, "model/*.*"),
        (search, "model/tokenizer/*.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_flipped_byte(case, files, tmp_path, monkeypatch):
    project, here = tmp_path / "start/project", tmp_path / "here/project"
    project.mkdir(parents=True)
    made = case(project.parent)
    inputs = sorted(path.relative_to(project) for path in project.glob(files) if path.is_file())
    assert inputs

    def outcome(changed=None, offset=0):
        """Exit code, what was made, and the last line, where a bit of a byte of a file has changed."""
        shutil.rmtree(here.parent, ignore_errors=True)
        shutil.copytree(project.parent, here.parent)
        if changed is not None:
            data = bytearray((here / changed).read_bytes())
            data[offset] ^= 0x10
            (here / changed).write_bytes(data)
        monkeypatch.chdir(here)
        code, said, error = run(made.words[1:])
        return code, (made.state(here), said if "search" in made.words else ""), error

    code, whole, error = outcome()
    assert code == 0, error
    num_named = 0
    for path in inputs:
        size = (project / path).stat().st_size
        for at in range(min(NUM, size)):
            offset = (2 * at + 1) * size // (2 * min(NUM, size))
            code, found, error = outcome(path, offset)
            if code == 0:
                assert found == whole, f"{path}, byte {offset}: nobody noticed"
            else:
                named = path.name in error or str(path.parent) in error or "made with another model" in error
                named = named or "about other data than data/filtered" in error
                assert code == 1 and named, f"{path}, byte {offset}: {error}"
                num_named += 1
    print(f"{case.__name__} {files}: {num_named} named")
