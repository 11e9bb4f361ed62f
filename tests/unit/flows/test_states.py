"""What DVC says of stages in a checkout and in worktrees, with real git and DVC."""

import shutil

import pytest
from dvc.lock import Lock  # type: ignore[import-untyped]  # DVC ships no types

from align.config.params import write_params
from align.services.dvc.repository import DvcError
from flows.checkout.worktree import worktree
from flows.dag import read_dag, select
from flows.run.context import RunContext
from flows.states import read_states
from tests.support import three_stages
from tests.support.dvc_projects import shell


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A project whose stages have all run once. As on main, git does not have its dvc.lock."""
    root = three_stages.write(tmp_path_factory.mktemp("states") / "project")
    shell(root, "dvc repro --quiet", {})
    return root


@pytest.fixture(name="copy")
def _copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy", symlinks=True)


def states(root, first=None):
    run = RunContext(root=root, checkout=root, chosen=select(read_dag(root), first=first))
    return list(read_states(run).values())


def test_after_a_run_nothing_is_stale(made):
    found = states(made)
    assert {one.state for one in found} == {"unchanged"} and not any(one.why for one in found)
    assert found[1].metrics == {"filter/num_pairs": 7} and (found[1].num_bytes or 0) > 5


def test_a_worktree_begins_with_the_results_of_the_checkout(made, tmp_path):
    with worktree(made, "HEAD", tmp_path / "same", {}) as path:
        assert {one.state for one in states(path)} == {"unchanged"}
        assert (path / "data/index/table").read_text() == "pairs\n"
        assert (path / "dvc.lock").read_bytes() == (made / "dvc.lock").read_bytes()
    with worktree(made, "HEAD", tmp_path / "other", {"filter.min_words": 4}) as path:
        ingest, filtered, index = states(path)
        assert ingest.state == "unchanged"
        assert (filtered.state, filtered.why) == ("stale", ("filter.min_words 3 -> 4",))
        assert (index.state, index.why) == ("stale", ("reads what filter makes again",))
        shell(path, "dvc repro --quiet", {})
        assert {one.state for one in states(path)} == {"unchanged"}
    with worktree(made, "HEAD", tmp_path / "missing", {}) as path:
        (path / "source.txt").unlink()
        assert states(path)[0].missing == ("source.txt",)


def test_why_a_stage_is_stale(copy):
    (copy / "source.txt").write_text("more pairs\n")
    write_params(copy / "params.yaml", {"filter.min_words": 4, "filter.max_words": 9})
    (copy / "dvc.yaml").write_text(three_stages.DVC_YAML.replace("cmd: sh stage.sh index", "cmd: sh ./stage.sh index"))
    ingest, filtered, index = states(copy)
    assert ingest.why == ("changed: source.txt",) and ingest.replaced == ()
    assert filtered.why == ("filter.min_words 3 -> 4, filter.max_words 20 -> 9", "reads what ingest makes again")
    assert index.why == ("changed command", "reads what filter makes again")
    (copy / "data/raw/table").write_text("mine\n")
    assert states(copy)[0].replaced == ("data/raw",)
    shutil.rmtree(copy / "data/raw")
    assert states(copy)[0].why == ("changed: source.txt", "missing: data/raw")
    (copy / "dvc.lock").unlink()
    assert states(copy)[0].why == ("it has not run here yet",)


def test_what_the_cache_has_lost_is_stale(copy):
    shutil.rmtree(copy / ".dvc/cache/files")
    ingest, _, index = states(copy)
    assert ingest.why == ("not in DVC's cache: data/raw, reports/ingest",)
    assert index.why == ("not in DVC's cache: data/index, reports/index", "reads what filter makes again")


def test_of_what_a_part_reads_nothing_else_has_to_be_there(copy):
    for lost in ("data/raw", "reports/ingest", ".dvc/cache/files"):  # as in a clone that has pulled what is read
        shutil.rmtree(copy / lost)
    (copy / "source.txt").unlink()
    ingest, filtered, _ = states(copy, first="index")
    assert ingest.state == "unchanged" and filtered.why == ("not in DVC's cache: data/filtered, reports/filter",)
    shutil.rmtree(copy / "data/filtered")
    shutil.rmtree(copy / "reports/filter")
    ingest, filtered, index = states(copy, first="index")
    assert (ingest.state, filtered.state) == ("unchanged", "unchanged")
    assert (index.state, index.missing) == ("stale", ("data/filtered",))


def test_a_missing_folder_that_was_made_anew_is_a_change(copy):
    (copy / "source.txt").write_text("more pairs\n")
    shell(copy, "dvc repro --quiet --single-item ingest", {})
    shutil.rmtree(copy / "data/raw")
    ingest, filtered, _ = states(copy, first="index")
    assert ingest.state == "unchanged"
    assert filtered.why == ("changed: data/raw",)


def test_while_dvc_works_there_one_line_says_so(made):
    """DVC's own lock, as `dvc repro` holds it."""
    with (
        Lock(str(made / ".dvc/tmp/lock"), friendly=True),
        pytest.raises(DvcError, match=f"^dvc status in {made}: Unable to acquire lock"),
    ):
        states(made)
