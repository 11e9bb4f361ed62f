"""How much a source changed since a commit, without reading it."""

from pathlib import Path

import pytest

from align.errors import ConfigError, DataError
from align.services.git import git
from flows.checkout.source_change import look
from flows.tasks.child_process import run_supervised
from flows.tasks.run_context import RunContext, child_environment
from tests.support import small_git
from tests.support.params import PARAMS_FILE


def log(_line: str) -> None:
    return


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose dvc.lock says that `pictures/` had two files with 3,000 bytes."""
    folder = small_git.write(
        tmp_path / "repo",
        {"params.yaml": PARAMS_FILE.read_text("utf-8").replace("data/sample/archive.warc.gz", "pictures")},
    )
    (folder / "pictures").mkdir()
    for name, size in (("a.jpg", 1000), ("b.jpg", 2000)):
        (folder / "pictures" / name).write_bytes(bytes(size))
    dep = "{path: pictures, md5: x.dir, size: 3000, nfiles: 2}"
    (folder / "dvc.lock").write_text(f"schema: '2.0'\nstages: {{ingest: {{deps: [{dep}]}}}}\n")
    git(folder, "add", "--force", "dvc.lock", "params.yaml")
    git(folder, "commit", "--quiet", "-m", "run")
    return folder


def test_a_source_that_is_as_it_was(root: Path) -> None:
    change = look(root, "HEAD", log)
    assert (change.share, change.pins) == (0.0, None)
    assert change.text == "2 files and 3,000 bytes then, 2 files and 3,000 bytes now"


def test_the_larger_of_two_shares_counts(root: Path) -> None:
    (root / "pictures/c.jpg").write_bytes(bytes(10))
    assert look(root, "HEAD", log).share == pytest.approx(1 / 3)  # of the files; of the bytes it is 0.3 %
    (root / "pictures/c.jpg").write_bytes(bytes(3000))
    assert look(root, "HEAD", log).share == pytest.approx(1 / 2)
    for file in (root / "pictures").iterdir():
        file.unlink()
    assert look(root, "HEAD", log).share == 1.0


def test_another_source_is_all_of_it(root: Path) -> None:
    file = root / "params.yaml"
    file.write_text(file.read_text().replace("archive: pictures", "archive: others"))
    change = look(root, "HEAD", log)
    assert (change.share, change.text) == (1.0, "the source is another one: others, not pictures")


def test_what_cannot_be_told_is_an_error(root: Path) -> None:
    with pytest.raises(DataError, match=r"git show in .*: fatal: invalid object name 'nothing'"):
        look(root, "nothing", log)
    (root / "pictures").rename(root / "moved")
    with pytest.raises(DataError, match=r"pictures: no such file or folder"):
        look(root, "HEAD", log)
    (root / "moved").rename(root / "pictures")
    (root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    git(root, "commit", "--quiet", "-am", "other")
    with pytest.raises(DataError, match=r"dvc.lock of HEAD does not know pictures"):
        look(root, "HEAD", log)
    (root / "dvc.lock").write_text("{")
    git(root, "commit", "--quiet", "-am", "broken")
    with pytest.raises(DataError, match=r"dvc.lock of HEAD is no YAML mapping"):
        look(root, "HEAD", log)


def test_an_address_has_to_be_pinned(root: Path) -> None:
    file = root / "params.yaml"
    file.write_text(file.read_text().replace("archive: pictures", "archive: s3://bucket/crawl"))
    git(root, "commit", "--quiet", "-am", "address")
    with pytest.raises(ConfigError, match=r"s3://bucket/crawl is an address.*`align pin`"):
        look(root, "HEAD", log)


def test_of_a_pinned_list_each_file_is_compared(root: Path) -> None:
    file = root / "params.yaml"
    file.write_text(
        file.read_text().replace("archive: pictures", "archive: crawl.paths").replace("source: warc", "source: html")
    )
    for name in ("a.html", "b.html", "c.html"):
        (root / "pictures" / name).write_text("<p>x</p>" * 100)
    for picture in ("a.jpg", "b.jpg"):
        (root / "pictures" / picture).unlink()
    pin = ["align", "pin", "pictures", "--out", "crawl.paths"]
    run_supervised(pin, cwd=root, env=child_environment(RunContext(root=root, checkout=root)), log=log)
    git(root, "add", "crawl.paths")
    git(root, "commit", "--quiet", "-am", "pinned")
    assert look(root, "HEAD", log).share == 0.0

    (root / "pictures/a.html").write_text("<p>y</p>" * 100)  # of the same size
    change = look(root, "HEAD", log)
    assert change.share == pytest.approx(1 / 3)
    assert change.text == "of 3 files, 0 are gone and 1 are different; 0 are new"
    assert change.pins is not None and change.pins.startswith("# align pin 1 pictures\n")
    assert not [path.name for path in root.iterdir() if path.name.startswith(".crawl")]
    assert git(root, "status", "--porcelain", "crawl.paths") == ""
