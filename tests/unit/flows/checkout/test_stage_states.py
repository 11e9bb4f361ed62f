"""Which files `align plan` names for a stage whose code has changed."""

import pytest

from align.services.git import git
from flows.checkout.stage_states import changed_code
from tests.support import ROOT, small_git

RULES, PLOTS = "align/filter/rules.py", "align/search/report.py"


@pytest.fixture
def run(tmp_path):
    """A checkout after a run, whose dvc.lock is in the run's branch, as on any machine."""
    files = {name: (ROOT / name).read_text("utf-8") for name in (RULES, PLOTS)}
    root = small_git.write(tmp_path / "repo", files)
    git(root, "switch", "--quiet", "-c", "run/first")
    (root / "dvc.lock").write_text("stages: {filter: {params: {code.yaml: {filter: 0123456789abcdef}}}}\n")
    git(root, "add", "--force", "dvc.lock")
    git(root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "run first")
    git(root, "switch", "--quiet", "-")
    return root


def append(file, text):
    file.write_text(file.read_text("utf-8") + text, "utf-8")


def test_a_file_is_named_if_it_does_something_else_and_decides_the_stage(run):
    append(run / RULES, "# a comment\n")
    append(run / PLOTS, "EDITED = True\n")  # of another stage
    assert changed_code(run, "filter", "0123456789abcdef") == []
    append(run / RULES, "EDITED = True\n")
    assert changed_code(run, "filter", "0123456789abcdef") == [RULES]


def test_without_such_a_run_or_such_code_nothing_is_named(run, tmp_path):
    append(run / RULES, "EDITED = True\n")
    assert changed_code(run, "filter", "fedcba9876543210") == []
    assert changed_code(run, "filter", "") == []
    assert changed_code(tmp_path, "filter", "0123456789abcdef") == []  # the code is an installed package
