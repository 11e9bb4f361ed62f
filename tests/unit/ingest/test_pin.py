"""Lists of files with what each was when it was pinned."""

from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.config.ingest import IngestConfig
from align.errors import DataError
from align.ingest.pin import pin
from align.ingest.sources import Source
from align.services.files.files import StoreFiles
from tests.support.local_store import config as store
from tests.support.params import PARAMS_FILE, load_params
from tests.support.reading import read_all, rows_of, short, source_at
from tests.support.warc_records import page, picture, write_archive

RED = picture(3, 2)


def pinned(root: Path, source: str, location: object, name: str = "x.paths") -> Path:
    """The list, as the command writes it."""
    words = [f"ingest.source={source}", f"paths.runtime={root / 'runtime'}"]
    arguments = [word for override in words for word in ("--set", override)]
    out = root / name
    command = ["pin", str(location), "--out", str(out), "--params", str(PARAMS_FILE), *arguments]
    assert main(command) == 0
    return out


def of(source: Source) -> list[dict[str, Any]]:
    return rows_of(source)[0]


def archives(root: Path) -> Path:
    root.mkdir()
    for name in ("b", "a"):
        write_archive(root / f"{name}.warc.gz", [page("http://x/", f"<img src={name}.png alt='the text {name}'>")])
    (root / "notes.md").write_text("of people")
    return root


def test_a_pinned_folder_is_read_as_the_folder(tmp_path: Path) -> None:
    folder = archives(tmp_path / "crawl")
    out = pinned(tmp_path, "warc", folder)
    header, *lines = out.read_text().splitlines()
    assert header == f"# align pin 1 {folder}"
    status = (folder / "a.warc.gz").stat()
    assert lines[0] == f"crawl/a.warc.gz\t{status.st_size} {status.st_mtime_ns}"
    assert [line.partition("\t")[0] for line in lines] == ["crawl/a.warc.gz", "crawl/b.warc.gz"]
    direct, listed = source_at(folder, "source=warc"), source_at(out, "source=warc")
    assert listed.files == direct.files
    assert of(listed) == of(direct)
    before = out.read_bytes()
    assert pinned(tmp_path, "warc", folder).read_bytes() == before  # an own list may be replaced


def test_files_that_changed_are_named(tmp_path: Path) -> None:
    folder = archives(tmp_path / "crawl")
    out = pinned(tmp_path, "warc", folder)
    for number in range(12):
        write_archive(folder / f"{number:02d}.warc.gz", [page("http://x/", "<img src=x.png alt=x>")])
    assert len(source_at(out, "source=warc").files) == 2  # new ones are not in the list
    write_archive(folder / "a.warc.gz", [page("http://x/", "<img src=other.png alt='another text'>")])
    with pytest.raises(DataError) as raised:
        source_at(out, "source=warc")
    assert str(raised.value) == (
        f"{out}: 1 of its 2 files changed or disappeared since they were pinned: {folder}/a.warc.gz. "
        f"To take what is there now: align pin {folder} --out {out}"
    )
    pinned(tmp_path, "warc", folder)
    assert len(source_at(out, "source=warc").files) == 14
    for file in folder.glob("*.gz"):
        file.unlink()
    with pytest.raises(DataError, match=r"14 of its 14 files changed .*09\.warc\.gz and 4 more\. To take"):
        source_at(out, "source=warc")


def test_what_a_source_finds_by_itself_is_pinned_too(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    (folder / "images/a.png").write_bytes(RED)
    (folder / "page.html").write_text("<img src=images/a.png alt='a red square'>")
    (folder / "captions.csv").write_text("file,caption\na.png,a red square\n")
    for source, others in (("html", {"photos/captions.csv", "photos/images/a.png"}), ("folder", set())):
        direct = read_all(folder, source)
        out = pinned(tmp_path, source, folder)
        assert (
            short(read_all(out, source), "text", "bytes") == short(direct, "text", "bytes") == [("a red square", RED)]
        )
        marked = {line.split("\t")[0] for line in out.read_text().splitlines() if line.endswith("\tbeside")}
        assert marked == others
        (folder / "images/a.png").write_bytes(RED + b"more")
        with pytest.raises(DataError, match=r"1 of its 3 files changed .*images/a\.png"):
            source_at(out, f"source={source}")
        (folder / "images/a.png").write_bytes(RED)


def test_what_is_no_list_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = archives(tmp_path / "crawl")
    (tmp_path / "own.paths").write_text("crawl/a.warc.gz\n")
    (tmp_path / "folder.paths").mkdir()
    for name, says in (("own.paths", "is not a list that `align pin` made"), ("x.txt", "ends in .paths"),
                       ("folder.paths", "not a file")):  # fmt: skip
        with pytest.raises(AssertionError):
            pinned(tmp_path, "warc", folder, name)
        error = capsys.readouterr().err
        assert f"{name}: " in error and says in error and error.count("\n") == 1
    assert (tmp_path / "own.paths").read_text() == "crawl/a.warc.gz\n"
    for line in ("crawl/a.warc.gz", "crawl/a.warc.gz\t1\tnear", "crawl/a.warc.gz\t1\tbeside\tx"):
        (tmp_path / "x.paths").write_text(f"# align pin 1 crawl\n{line}\n")
        with pytest.raises(DataError, match="not as `align pin` wrote it"):
            source_at(tmp_path / "x.paths", "source=warc")
    (tmp_path / "x.paths").write_text("# align pin 1 crawl\ngs://b/x\t1 2\n")
    with pytest.raises(DataError, match="gs:// is not supported"):
        source_at(tmp_path / "x.paths", "source=warc")
    (tmp_path / "x.paths").write_text("# align pin 1 crawl\n")
    with pytest.raises(DataError, match="an empty list; run: align pin crawl --out"):
        source_at(tmp_path / "x.paths", "source=warc")


@pytest.mark.parametrize("name", ["crawl/a\tb.warc", "crawl/a\nb.warc", "crawl/ a.warc ", "#1.warc", " 1.warc"])
def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    folder = (tmp_path / name).parent
    folder.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    config = load_params(overrides=["ingest.source=warc"]).section(IngestConfig)
    with pytest.raises(DataError, match="no line of a list can hold this name"):
        pin(config, StoreFiles(store(tmp_path)), f"{folder}/*.warc*", tmp_path / "x.paths")
    assert not (tmp_path / "x.paths").exists()


def test_a_pinned_table_has_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "c.csv").write_text("file,caption\na.png,a red square\n")
    for source in ("folder", "url_table"):
        direct = read_all(tmp_path / "c.csv", source)
        out = pinned(tmp_path, source, tmp_path / "c.csv", f"{source}.paths")
        lines = [line.split("\t")[0] for line in out.read_text().splitlines()[1:]]
        assert lines == ["a.png", "c.csv"]
        assert (
            short(read_all(out, source), "text", "bytes") == short(direct, "text", "bytes") == [("a red square", RED)]
        )


def test_of_files_here_the_times_are_compared_so_a_copy_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = archives(tmp_path / "crawl")
    out = pinned(tmp_path, "warc", folder)
    said = capsys.readouterr().err
    assert "commit it" not in said
    assert (
        f"pin: 2 files of {folder} in {out}, with their times, which differ after every clone and every `dvc pull`: "
        f"the list holds in this folder only. For others set paths.archive: {folder}"
    ) in said
