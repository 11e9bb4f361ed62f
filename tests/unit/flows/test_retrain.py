"""What retraining decides without a run: how old a champion is, and which commit has the list of files as they are."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from align.services.git import changes, git
from align.services.tracking.registry import PROMOTED, Version
from flows.checkout.source_change import SourceChange
from flows.retrain import _with_pins, age_warning
from tests.support import small_git
from tests.support.params import PARAMS_FILE

NOW = datetime(2026, 11, 27, tzinfo=UTC)
OLD, NEW = "# align pin 1 pictures\npictures/a.html\t1 x\n", "# align pin 1 pictures\npictures/a.html\t2 y\n"


@pytest.mark.parametrize(
    ("promoted", "days", "is_old"),
    [
        ("2026-08-01T00:00:00Z", 90.0, True),
        ("2026-11-01T00:00:00Z", 90.0, False),
        ("2026-11-01T00:00:00Z", 20.0, True),
        ("2026-08-01T00:00:00Z", None, False),
        (None, 90.0, False),
        ("yesterday", 90.0, False),
    ],
)
def test_a_champion_is_old_so_many_days_after_its_promotion(
    promoted: str | None, days: float | None, is_old: bool
) -> None:
    version = Version("align", 3, "run", {} if promoted is None else {PROMOTED: promoted})
    warning = age_warning(version, days, NOW)
    assert (warning is not None) == is_old
    assert warning is None or "version 3 of align, was promoted " in warning


@pytest.mark.parametrize("below", ["", "project/"])
def test_the_list_as_it_is_now_is_a_commit_and_the_checkout_stays(tmp_path: Path, below: str) -> None:
    repository = small_git.write(tmp_path / "repo", {"params.yaml": "x: 1\n"})
    root = repository / below
    root.mkdir(exist_ok=True)
    params = PARAMS_FILE.read_text("utf-8").replace("data/sample/archive.warc.gz", "lists/crawl.paths")
    (root / "params.yaml").write_text(params, "utf-8")
    (root / "lists").mkdir()
    (root / "lists/crawl.paths").write_text(OLD)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "-m", "pinned")
    head = git(root, "rev-parse", "HEAD")

    assert _with_pins(root, SourceChange(0.5, "")) is None
    commit = _with_pins(root, SourceChange(0.5, "", NEW))
    assert commit is not None
    assert git(root, "show", f"{commit}:./lists/crawl.paths") == NEW.strip()
    assert git(root, "diff", "--name-only", head, commit).splitlines() == [f"{below}lists/crawl.paths"]
    assert git(root, "rev-parse", f"{commit}^", "HEAD").split() == [head, head]
    assert (root / "lists/crawl.paths").read_text() == OLD and changes(root) == []
    assert [path.name for path in (repository / ".git").iterdir() if path.name.startswith("align-")] == []
