"""`dvc push --all-branches` into the folder of a checkout, with the line that docs/operations.md says to type before.

Without the line, DVC writes what other branches have into /.align/remote.
"""

import re
import shutil
from pathlib import Path

from align.services.git import git
from tests.support import ROOT
from tests.support.dvc_projects import commit_all, make_repository, shell

DVC_YAML = "stages:\n  one:\n    cmd: cp value made\n    deps: [value]\n    outs: [made]\n"


def test_all_branches_are_pushed_into_the_checkout_s_own_folder(tmp_path: Path) -> None:
    root = make_repository(tmp_path / "project", {"dvc.yaml": DVC_YAML, "value": "1"}, "")
    for number in (1, 2):
        git(root, "switch", "--quiet", "-c", f"run/{number}")
        (root / "value").write_text(f"value of this test, {number}")
        shell(root, "dvc repro --quiet && git add -f dvc.lock", {})
        commit_all(root)
    [line] = re.findall(r"^    (dvc remote modify --local .*)$", (ROOT / "docs/operations.md").read_text(), re.M)
    shell(root, line, {})
    moved = tmp_path / "moved"
    root.rename(moved)  # the line holds for wherever the checkout is
    shell(moved, "dvc push --quiet --all-branches", {})
    assert len([path for path in (moved / ".align/remote/files").rglob("*") if path.is_file()]) == 2
    assert not root.exists()
    shutil.rmtree(moved / ".dvc/cache")
    shell(moved, "dvc fetch --quiet --all-branches && dvc checkout --quiet", {})
    assert (moved / "made").read_text() == "value of this test, 2"
