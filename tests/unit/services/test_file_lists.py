"""Lists of files: every line is used, or named in the error."""

from __future__ import annotations

import gzip
import io
import os
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.config.ingest import IngestConfig
from align.config.params import load_params
from align.errors import ConfigError, DataError
from align.services import file_lists
from align.services.store import open_files
from tests.support.downloads import config as download
from tests.unit.services.test_store import config, touch


def listed(root: Path, lines: str | bytes, begin: str | None = None, name: str = "x.paths") -> list[str]:
    (root / name).write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    return list(open_files(config(root), download()).list(f"{root}/{name}", (".warc", ".warc.gz"), begin))


def error_of(root: Path, lines: str | bytes, begin: str | None = None, name: str = "x.paths") -> str:
    with pytest.raises(DataError) as raised:
        listed(root, lines, begin, name)
    return str(raised.value).replace(f"{root}/", "")


def test_every_line_that_cannot_be_used_is_named_with_its_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.warc", "empty/x.md")
    lines = [
        "a.warc", "none.warc", "gs://b/x.warc", "hf://b/y.warc", "ftp://h/z.warc", "more.paths", "/no/such.warc",
        "https://h/dir/", "https://h/*.warc", "https://h/x.warc?sig=1", "https://me:secret@h/x.warc", "https://h:x/",
        "empty", "s3://b/fine.warc", "https://h/fine.warc", "a" * 5000, "x/**y",
    ]  # fmt: skip
    error = error_of(tmp_path, "\n".join(lines))
    assert error.startswith("x.paths: 14 of its 17 lines cannot be used. missing: none.warc, /no/such.warc, empty")
    for reason in (
        "gs:// is not supported; s3://, https:// and folders are: copy the files to one of these: gs://b/x.warc",
        "hf:// is not supported", "ftp:// is not supported",
        "a list in a list is not read: more.paths",
        "a web server lists no files; name each, for example in a .paths list: https://h/dir/, https://h/*.warc",
        "an address with ? or # has no file name; copy the file to a folder or s3://: https://h/x.warc?sig=1",
        "logins in addresses are not supported: https://h/x.warc",
        "not an address", "https://h:x/", "cannot be looked up (File name too long): aaaa", "x/**y",
        "set ingest.paths_root",
    ):  # fmt: skip
        assert reason in error, reason
    assert "fine.warc" not in error and "secret" not in error and len(error) < 3000


def test_the_first_ten_missing_files_are_named_and_all_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.warc")
    error = error_of(tmp_path, "a.warc\n" + "".join(f"{number}.warc\n" for number in range(25)))
    assert "25 of its 26 lines cannot be used. missing: 0.warc, " in error
    assert "9.warc and 15 more (relative lines begin at the folder of the list" in error
    assert "10.warc" not in error


def test_lines_end_in_any_way_and_are_read_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, "a.warc", "b c.warc", "d\u2028e.warc")
    lines = "\ufeff# all\r\n\r\na.warc \r\n\tb c.warc\rd\u2028e.warc\na.warc\n./a.warc\n"
    assert [file.rpartition("/")[2] for file in listed(tmp_path, lines)] == ["a.warc", "b c.warc", "d\u2028e.warc"]
    assert "x.paths: files that are named more than once: 2; each is read once" in capsys.readouterr().err


def test_an_empty_list_says_so(tmp_path: Path) -> None:
    assert "an empty list" in error_of(tmp_path, "\n# none\n")


@pytest.mark.parametrize(
    "damaged",
    [
        gzip.compress(b"a.warc\n")[:-9], gzip.compress(b"a.warc\n" * 99)[:12] + b"\xff" * 20, b"no gzip",
        gzip.compress("a.warc\n".encode("utf-16")),
    ],
)  # fmt: skip
def test_a_damaged_list_is_one_line(tmp_path: Path, damaged: bytes) -> None:
    assert "not a list of locations" in error_of(tmp_path, damaged, name="x.paths.gz")


def test_a_list_is_bounded_as_stored_and_as_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(65 << 20), 1)
    assert len(bomb) < 1 << 20
    assert "a list of more than 64 MiB" in error_of(tmp_path, bomb, name="x.paths.gz")
    (tmp_path / "y.paths.gz").touch()
    os.truncate(tmp_path / "y.paths.gz", 65 << 20)
    with pytest.raises(DataError, match="a list of more than 64 MiB"):
        open_files(config(tmp_path)).list(f"{tmp_path}/y.paths.gz", ())


@given(st.binary(), st.booleans())
def test_any_bytes_give_lines_that_can_be_used_or_are_named(data: bytes, packed: bool) -> None:
    name = "https://h/x.paths.gz" if packed else "x.paths"
    with suppress(DataError):
        for line in file_lists.lines_of(io.BytesIO(gzip.compress(data) if packed else data), name):
            with suppress(file_lists.UnusableLocationError):
                file_lists.require_usable(file_lists.absolute(line, name, None))
                file_lists.require_usable(f"https://{line}")


def test_relative_lines_begin_at_the_root_that_is_given(tmp_path: Path) -> None:
    touch(tmp_path, "crawl/a.warc", "here.warc")
    lines = f"crawl/a.warc\n{tmp_path}/here.warc\ns3://b/c.warc\n"
    for begin in ("https://h.test/x", "https://h.test/x/", "s3://commoncrawl", "s3://commoncrawl/"):
        found = listed(tmp_path, lines, begin)
        assert sorted(found) == sorted([f"{begin.rstrip('/')}/crawl/a.warc", f"{tmp_path}/here.warc", "s3://b/c.warc"])
    (tmp_path / "lists").mkdir()
    assert f"{tmp_path}/crawl/a.warc" in listed(tmp_path, "crawl/a.warc", str(tmp_path), "lists/x.paths")
    error = error_of(tmp_path, "../secret.warc\nb/../../c.warc\n", f"{tmp_path}/lists")
    assert "`..` leads out of ingest.paths_root: ../secret.warc, b/../../c.warc" in error
    assert "missing: none.warc. Correct" in error_of(tmp_path, "none.warc", f"{tmp_path}/crawl")


def test_a_list_on_a_server_names_no_file_of_this_machine() -> None:
    for location in ("https://h/x.paths", "s3://b/x.paths"):
        with pytest.raises(file_lists.UnusableLocationError, match="cannot name files of this machine"):
            file_lists.absolute("/etc/passwd", location, None)
    assert file_lists.absolute("a/b.warc", "https://h/dir/x.paths", None) == "https://h/dir/a/b.warc"
    assert file_lists.absolute("a.warc", "/x.paths", None) == "//a.warc"


@pytest.mark.parametrize(
    "location", ["gs://b/x.warc", "hf://b/x", "ftp://h/x", "file:///x.warc", "https://h/", "https://h/*"]
)
def test_an_archive_of_another_kind_is_refused_in_one_line(tmp_path: Path, location: str) -> None:
    with pytest.raises(DataError, match=r"is not supported; s3://, https:// and folders|a web server lists no files"):
        open_files(config(tmp_path), download()).list(location, (".warc",))


@pytest.mark.parametrize("root", ["gs://b", "ftp://h/x", "''"])
def test_a_root_is_a_folder_or_an_address_that_can_be_read(root: str) -> None:
    with pytest.raises(ConfigError, match=r"ingest\.paths_root"):
        load_params(overrides=[f"ingest.paths_root={root}"]).section(IngestConfig)
    for fine in ("null", "s3://commoncrawl/", "https://data.commoncrawl.org/", "some/folder"):
        load_params(overrides=[f"ingest.paths_root={fine}"]).section(IngestConfig)
