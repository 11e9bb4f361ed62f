"""One flipped byte in each kind of file that a command reads: it is found and named, or what is made stays the same.

Not here: figures of reports (evaluation's metrics, the filter's cuts) and pictures of an evaluation set that somebody
gave, which have no digest but DVC's; SQLite's databases, which have no checksums; and the shards' manifest, which
`align validate_shards` compares.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from tests.support import small_stages
from tests.support.kill_points import Case
from tests.support.small_stages import of, words

pytestmark = pytest.mark.full
#: Flips of each file, evenly spread.
NUM = int(os.environ.get("FLIPS", "4"))


def run(told: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and the last line of stderr of `align`, in this process."""
    said, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        code = main(list(told))
    return code, said.getvalue(), (errors.getvalue().strip().splitlines() or [""])[-1]


def filter_ours(root: Path) -> Case:
    """The filter over what `align ingest` wrote, with its manifest."""
    told = small_stages.ingest(root).words[1:]
    with contextlib.chdir(root / "project"):
        assert run(told)[0] == 0
        shutil.rmtree("reports")
    (root / "project/sets").mkdir()
    return Case(root, words("filter", "paths.evaluation=sets"), of("data/filtered", "reports/filter"))


def search(root: Path) -> Case:
    """Of an index."""
    case = small_stages.index(root)
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
        (small_stages.shard, "data/filtered/*.parquet"),
        (small_stages.shard, "data/raw/*.tar"),
        (small_stages.shard, "data/raw/*.parquet"),
        (small_stages.shard, "reports/quality/verdict.json"),
        (small_stages.package, "models/finetuned/config.json"),
        (small_stages.package, "models/finetuned/model.safetensors"),
        (small_stages.package, "models/finetuned/tokenizer/tokenizer.json"),
        (small_stages.evaluate, "model/model.safetensors"),
        (small_stages.evaluate, "suite.yaml"),
        (small_stages.index, "model/*.*"),
        (small_stages.index, "model/tokenizer/*.json"),
        (small_stages.index, "raw/*.parquet"),
        (small_stages.index, "shards/*/*.tar"),
        (search, "data/index/*.*"),
        (search, "model/*.*"),
        (search, "model/tokenizer/*.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_flipped_byte(
    case: Callable[[Path], Case], files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, here = tmp_path / "start/project", tmp_path / "here/project"
    project.mkdir(parents=True)
    made = case(project.parent)
    inputs = sorted(path.relative_to(project) for path in project.glob(files) if path.is_file())
    assert inputs

    def outcome(changed: Path | None = None, offset: int = 0) -> tuple[int, Any, str]:
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
                assert code == 1 and named, f"{path}, byte {offset}: {error}"
                num_named += 1
    print(f"{case.__name__} {files}: {num_named} named")
