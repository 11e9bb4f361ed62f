"""What a restore refuses, and what becomes of branches: backups made by hand, also as nobody's program makes them."""

import hashlib
import json
import subprocess
from pathlib import Path

import psutil
import pytest

from align.config.store import StoreConfig
from align.errors import DataError
from align.git import git
from flows.backup.place import SCHEMA_VERSION, Place
from flows.backup.restore import restore
from flows.backup.save import BUNDLE, first_commits
from tests.support import small_git
from tests.support.params import load_params


@pytest.fixture(autouse=True)
def _no_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ALIGN_PREFECT_DATABASE_URL", "ALIGN_MLFLOW_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(name="first")
def _first(tmp_path: Path) -> Path:
    """The repository that is backed up."""
    root = small_git.write(
        tmp_path / "first", {"params.yaml": "a: 1\n", ".gitignore": "/.align/\n/.dvc/\n*.db\n/mlart*\n"}
    )
    git(root, "branch", "-M", "main")
    return root


@pytest.fixture(name="root")
def _root(first: Path) -> Path:
    """A fresh clone of it."""
    root = first.with_name("clone")
    git(first.parent, "clone", "--quiet", str(first), str(root))
    git(root, "config", "user.name", "test")
    git(root, "config", "user.email", "test@localhost")
    return root


def commit(root: Path, text: str) -> str:
    git(root, "commit", "--quiet", "--allow-empty", "-m", text)
    return git(root, "rev-parse", "HEAD")


def back_up(first: Path, files: dict[str, bytes] | None = None, hour: int = 0) -> Place:
    """A backup of the repository as it is now, with files of these names."""
    place = Place(str(first.with_name("place")), load_params().section(StoreConfig))
    place.claim("project")
    bundle = first.with_name("bundle")
    git(first, "bundle", "create", "--quiet", str(bundle), "--all", "HEAD")
    listed = {}
    for name, data in {BUNDLE: bundle.read_bytes(), **(files or {})}.items():
        sha256, file = hashlib.sha256(data).hexdigest(), first.with_name("file")
        file.write_bytes(data)
        place.put(file, sha256)
        listed[name] = [sha256, len(data)]
    manifest = {"schema_version": SCHEMA_VERSION, "project": "project", "first_commits": first_commits(first)}
    place.finish(
        f"20260101T{hour:02d}0000.0Z",
        manifest | {"head": git(first, "rev-parse", "HEAD"), "files": listed, "artifacts": ""},
    )
    return place


@pytest.mark.parametrize("name", ["../out", "data/../../out", "/tmp/align-out", ".git/hooks/post-checkout", "link/out"])
def test_a_file_of_a_foreign_backup_stays_in_the_checkout(first: Path, root: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / ".git/info/exclude").write_text("/link\n")
    before = {path for path in tmp_path.rglob("*") if ".align" not in path.parts}
    place = back_up(first, {name: b"x"})
    with pytest.raises(DataError, match=r"(outside|out) of the checkout"):
        restore(root, place, None, log=lambda line: None)
    made = {path.name for path in tmp_path.rglob("*") if path not in before and "place" not in path.parts}
    assert "out" not in made and "post-checkout" not in made and not Path("/tmp/align-out").exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (".dvc/cache/files/md5/ab/cd", "cache: exists"),
        ("mlartifacts/1/file", "mlartifacts: exists"),
        (".align/remote/files/md5/ab/cd", "remote: exists"),
        ("mlflow.db", "mlflow.db: has data"),
        (".align/prefect/prefect.db", "prefect.db: has data"),
        ("params.yaml", r"the checkout has changes \(M params.yaml\)"),
        ("notes.txt", r"the checkout has changes \(\?\? notes.txt\)"),
    ],
)
def test_what_is_there_is_never_overwritten(first: Path, root: Path, path: str, said: str) -> None:
    place = back_up(first, {path: b"from the backup"})
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text("mine")
    with pytest.raises(DataError, match=said):
        restore(root, place, None, log=lambda line: None)
    assert (root / path).read_text() == "mine"


def test_where_servers_run_nothing_is_restored(first: Path, root: Path) -> None:
    place = back_up(first, {"notes.txt": b"x"})
    with subprocess.Popen(["sleep", "60"], cwd=root) as process:
        service = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
        (root / ".align").mkdir()
        (root / ".align/services.json").write_text(json.dumps({"prefect": service}))
        with pytest.raises(DataError, match="servers of `make up` run here"):
            restore(root, place, None, log=lambda line: None)
        process.kill()
    assert not (root / "notes.txt").exists()
    restore(root, place, None, log=lambda line: None)


def test_a_checkout_with_a_run_is_not_fresh(first: Path, root: Path) -> None:
    place = back_up(first)
    git(root, "branch", "run/demo")
    with pytest.raises(DataError, match="branch run/demo exists"):
        restore(root, place, None, log=lambda line: None)


def test_one_that_was_interrupted_may_be_repeated_and_a_done_one_may_not(first: Path, root: Path) -> None:
    (root / ".dvc/cache").mkdir(parents=True)  # empty: nothing is lost
    place = back_up(first, {".dvc/cache/files/md5/ab/cd": b"object", "notes.txt": b"mine\n", "../out": b"x"})
    with pytest.raises(DataError, match="outside of the checkout"):
        restore(root, place, None, log=lambda line: None)
    place = back_up(first, {".dvc/cache/files/md5/ab/cd": b"object", "notes.txt": b"mine\n"}, hour=1)
    restore(root, place, None, log=lambda line: None)  # the newest, which is a whole one
    assert (root / "notes.txt").read_text() == "mine\n" and (root / ".align/project").read_text() == "project\n"
    assert (root / ".dvc/cache/files/md5/ab/cd").stat().st_mode & 0o777 == 0o444  # as DVC has them
    with pytest.raises(DataError, match="cache: exists"):
        restore(root, place, None, log=lambda line: None)


def test_which_backup(first: Path, root: Path, tmp_path: Path) -> None:
    empty = Place(str(tmp_path / "nothing"), load_params().section(StoreConfig))
    with pytest.raises(DataError, match="no backups there"):
        restore(root, empty, None, log=lambda line: None)
    empty.claim("project")
    with pytest.raises(DataError, match="no backup there was completed"):
        restore(root, empty, None, log=lambda line: None)
    place = back_up(first, {"notes.txt": b"the older one"})
    back_up(first, {"notes.txt": b"the newer one"}, hour=1)
    with pytest.raises(DataError, match="yesterday: no such backup; there are 20260101T"):
        restore(root, place, "yesterday", log=lambda line: None)
    assert restore(root, place, place.backups()[0], log=lambda line: None) == place.backups()[0]
    assert (root / "notes.txt").read_text() == "the older one"
    foreign = small_git.write(tmp_path / "foreign", {"params.yaml": "b: 2\n"})
    with pytest.raises(DataError, match="backups of another repository"):
        restore(foreign, place, None, log=lambda line: None)


@pytest.mark.parametrize("place_of_main", ["behind", "equal", "ahead", "diverged"])
def test_branches_come_back_and_none_loses_a_commit(first: Path, root: Path, place_of_main: str) -> None:
    git(first, "branch", "old")
    git(root, "branch", "old", "HEAD")
    theirs = commit(first, "theirs") if place_of_main in ("behind", "diverged") else git(first, "rev-parse", "HEAD")
    mine = commit(root, "mine") if place_of_main in ("ahead", "diverged") else git(root, "rev-parse", "HEAD")
    git(first, "branch", "-f", "old", theirs)
    feature = git(root, "commit-tree", "HEAD^{tree}", "-p", "HEAD", "-m", "feature")
    git(root, "branch", "feature", feature)
    changed = git(first, "commit-tree", "HEAD^{tree}", "-p", theirs, "-m", "changed")
    git(first, "branch", "feature", changed)
    git(first, "tag", "v1", theirs)
    git(first, "branch", "run/demo", theirs)
    said: list[str] = []
    restore(root, back_up(first), None, log=said.append)
    refs = dict(
        line.split() for line in git(root, "for-each-ref", "--format=%(refname:short) %(objectname)").splitlines()
    )
    assert refs["v1"] == refs["run/demo"] == refs["old"] == theirs
    assert refs["main"] == {"behind": theirs, "equal": mine, "ahead": mine, "diverged": mine}[place_of_main]
    assert git(root, "rev-parse", "HEAD") == refs["main"] and git(root, "status", "--porcelain") == ""
    assert (refs["feature"], refs["backup/feature"]) == (feature, changed)
    assert refs.get("backup/main") == (theirs if place_of_main == "diverged" else None)
    assert not [name for name in refs if "align-restore" in name]
    moved = [line for line in said if "has other commits here" in line]
    assert len(moved) == 1 + (place_of_main == "diverged")
    assert any("at another commit" in line for line in said) == (place_of_main in ("ahead", "diverged"))
