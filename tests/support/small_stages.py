"""Each stage that reads and writes files, at its smallest: what it needs in a folder `project`, and its command."""

from align.formats.filtered import decisions_digest
from tests.support import ROOT, colour_index, small_data, small_filter, small_model, tiny_model
from tests.support.colours import square
from tests.support.kill_points import Case
from tests.support.killing import digests
from tests.support.params import PARAMS_FILE, sets
from tests.support.small_data import Pair
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


ALL = (ingest, filter_, shard, evaluate, index, package)
