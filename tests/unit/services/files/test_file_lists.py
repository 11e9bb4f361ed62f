"""Lists of files: every line is used, or named in the error."""

import gzip
import io
import os
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.config.ingest import IngestConfig
from align.errors import ConfigError, DataError
from align.services.files import file_lists
from align.services.files.files import StoreFiles
from tests.support.downloads import config as download
from tests.support.local_store import config, touch
from tests.support.params import load_params


def listed(root, lines, begin=None, name="x.paths"):
    (root / name).write_bytes(lines if isinstance(lines, bytes) else lines.encode())
    return list(StoreFiles(config(root), download()).list(f"{root}/{name}", (".warc", ".warc.gz"), begin))


def error_of(root, lines, begin=None, name="x.paths"):
    with pytest.raises(DataError) as raised:
        listed(root, lines, begin, name)
    return str(raised.value).replace(f"{root}/", "")


def test_every_line_that_cannot_be_used_is_named_with_its_reason(tmp_path):
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
        "an address with ? or # has no file name; copy the file to a folder or s3://: https://h/x.warc?...",
        "logins in addresses are not supported: https://h/x.warc",
        "not an address", "https://h:x/", "cannot be looked up (File name too long): aaaa", "x/**y",
        "set ingest.paths_root",
    ):  # fmt: skip
        assert reason in error, reason
    assert "fine.warc" not in error and "secret" not in error and len(error) < 3000


def test_the_first_ten_missing_files_are_named_and_all_are_counted(tmp_path):
    touch(tmp_path, "a.warc")
    error = error_of(tmp_path, "a.warc\n" + "".join(f"{number}.warc\n" for number in range(25)))
    assert "25 of its 26 lines cannot be used. missing: 0.warc, " in error
    assert "9.warc and 15 more (relative lines begin at the folder of the list" in error
    assert "10.warc" not in error


def test_lines_end_in_any_way_and_are_read_once(tmp_path, capsys):
    touch(tmp_path, "a.warc", "b c.warc", "d\u2028e.warc")
    lines = "\ufeff# all\r\n\r\na.warc \r\n\tb c.warc\rd\u2028e.warc\na.warc\n./a.warc\n"
    assert [file.rpartition("/")[2] for file in listed(tmp_path, lines)] == ["a.warc", "b c.warc", "d\u2028e.warc"]
    assert "x.paths: files that are named more than once: 2; each is read once" in capsys.readouterr().err


def test_an_empty_list_says_so(tmp_path):
    assert "an empty list" in error_of(tmp_path, "\n# none\n")


@pytest.mark.parametrize("damaged", [
    gzip.compress(b"a.warc\n")[:-9], gzip.compress(b"a.warc\n" * 99)[:12] + b"\xff" * 20, b"no gzip",
    gzip.compress("a.warc\n".encode("utf-16")),
])  # fmt: skip
def test_a_damaged_list_is_one_line(tmp_path, damaged):
    assert "not a list of locations" in error_of(tmp_path, damaged, name="x.paths.gz")


def test_a_list_is_bounded_as_stored_and_as_unpacked(tmp_path):
    bomb = gzip.compress(bytes(65 << 20), 1)
    assert len(bomb) < 1 << 20
    assert "a list of more than 64 MiB" in error_of(tmp_path, bomb, name="x.paths.gz")
    (tmp_path / "y.paths.gz").touch()
    os.truncate(tmp_path / "y.paths.gz", 65 << 20)
    with pytest.raises(DataError, match="a list of more than 64 MiB"):
        StoreFiles(config(tmp_path)).list(f"{tmp_path}/y.paths.gz", ())


def test_a_list_of_endless_lines_is_read_as_a_stream(monkeypatch):
    """A few hundred kilobytes of gzip may hold 22 million lines."""
    monkeypatch.setattr(file_lists, "_MAX_LINES", 20_000)
    packed = io.BytesIO(gzip.compress(b"ab\n" * (21 << 20), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"x\.paths\.gz: a list of more than 20,000 lines; divide it"):
            file_lists.lines_of(packed, "x.paths.gz")
        assert tracemalloc.get_traced_memory()[1] < 3 << 20
    finally:
        tracemalloc.stop()


def test_a_list_has_at_most_a_million_lines():
    for lines in (b"a\n" * 1_000_000, b"a\r" * 999_999 + b"#"):
        assert len(file_lists.lines_of(io.BytesIO(lines), "x.paths")) >= 999_999
    with pytest.raises(DataError, match="more than 1,000,000 lines"):
        file_lists.lines_of(io.BytesIO(b"\n" * 1_000_001), "x.paths")


@pytest.mark.parametrize("scheme", ["https", "HTTPS", "gs", "s3"])
def test_what_follows_the_question_mark_of_an_address_is_not_shown(tmp_path, scheme):
    """An address that someone signed is a password."""
    signed = f"{scheme}://h/x.warc?X-Amz-Signature=secret"
    error = error_of(tmp_path, f"{signed}\nnone.warc?sig=secret\ngs://b/y?sig=secret\n", "https://data.test/")
    assert f"{scheme}://h/x.warc?..." in error or scheme == "s3"
    assert "none.warc?..." in error
    assert "secret" not in error
    if scheme != "s3":
        with pytest.raises(DataError) as raised:
            StoreFiles(config(tmp_path), download()).list(signed, (".warc",))
        assert str(raised.value).startswith(f"{scheme}://h/x.warc?...: ")
        assert "secret" not in str(raised.value)
    assert "what?.warc" in error_of(tmp_path, "what?.warc\n")  # a name of a file here
    with pytest.raises(DataError, match=r"what\?\.warc: no file"):
        StoreFiles(config(tmp_path)).list(f"{tmp_path}/what?.warc", (".warc",))


def test_a_list_from_the_web_chooses_no_bucket():
    """They would be read with the credentials of whoever runs this."""
    web = "https://h.test/x.paths"
    for root in (None, "https://h.test/", "/data", "s3://mine", "s3://mine/part"):
        for line in ("s3://victim/**", "s3://mine-too/x", "s3://mine/party/x", "s3://mine/part/../x", "s3://mine"):
            if (root, line) == ("s3://mine", "s3://mine/party/x"):
                assert file_lists.absolute(line, web, root) == line
            else:
                with pytest.raises(file_lists.UnusableLocationError, match=r"paths_root"):
                    file_lists.absolute(line, web, root)
    assert file_lists.absolute("s3://mine/part/x", web, "s3://mine/part/") == "s3://mine/part/x"
    assert file_lists.absolute("s3://any/x", "s3://mine/x.paths", None) == "s3://any/x"
    assert file_lists.absolute("https://other.test/x", web, "s3://mine") == "https://other.test/x"


def test_with_a_root_a_list_names_no_local_file_outside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (f"{tmp_path}/begin", "begin", "begin/", "https://h.test/", "s3://b"):
        for line in ("/etc/passwd", f"{tmp_path}/beginning/x", f"{tmp_path}/begin/../x", f"{tmp_path}/*/x"):
            with pytest.raises(file_lists.UnusableLocationError, match=r"outside ingest\.paths_root"):
                file_lists.absolute(line, "x.paths", root)
    for root in (f"{tmp_path}/begin", "begin"):
        assert file_lists.absolute(f"{tmp_path}/begin/x", "x.paths", root) == f"{tmp_path}/begin/x"
    assert file_lists.absolute("/etc/passwd", "x.paths", None) == "/etc/passwd"


@settings(derandomize=True)
@given(st.binary(), st.booleans())
def test_any_bytes_give_lines_that_can_be_used_or_are_named(data, packed):
    name = "https://h/x.paths.gz" if packed else "x.paths"
    with suppress(DataError):
        for line in file_lists.lines_of(io.BytesIO(gzip.compress(data) if packed else data), name):
            with suppress(file_lists.UnusableLocationError):
                file_lists.require_usable(file_lists.absolute(line, name, None))
                file_lists.require_usable(f"https://{line}")


def test_relative_lines_begin_at_the_root_that_is_given(tmp_path):
    touch(tmp_path, "crawl/a.warc", "here.warc")
    lines = "crawl/a.warc\ns3://b/c.warc\n"
    for begin in ("https://h.test/x", "https://h.test/x/", "s3://commoncrawl", "s3://commoncrawl/"):
        found = listed(tmp_path, lines, begin)
        assert sorted(found) == sorted([f"{begin.rstrip('/')}/crawl/a.warc", "s3://b/c.warc"])
    here = f"{tmp_path}/here.warc"
    assert listed(tmp_path, here, str(tmp_path)) == [here]
    (tmp_path / "lists").mkdir()
    assert f"{tmp_path}/crawl/a.warc" in listed(tmp_path, "crawl/a.warc", str(tmp_path), "lists/x.paths")
    error = error_of(tmp_path, "../secret.warc\nb/../../c.warc\n", f"{tmp_path}/lists")
    assert "`..` leads out of ingest.paths_root: ../secret.warc, b/../../c.warc" in error
    assert "missing: none.warc. Correct" in error_of(tmp_path, "none.warc", f"{tmp_path}/crawl")


def test_a_list_on_a_server_names_no_file_of_this_machine():
    for location in ("https://h/x.paths", "s3://b/x.paths"):
        with pytest.raises(file_lists.UnusableLocationError, match="cannot name files of this machine"):
            file_lists.absolute("/etc/passwd", location, None)
    assert file_lists.absolute("a/b.warc", "https://h/dir/x.paths", None) == "https://h/dir/a/b.warc"
    assert file_lists.absolute("a.warc", "/x.paths", None) == "//a.warc"


@pytest.mark.parametrize(
    "location", ["gs://b/x.warc", "hf://b/x", "ftp://h/x", "file:///x.warc", "https://h/", "https://h/*"]
)
def test_an_archive_of_another_kind_is_refused_in_one_line(tmp_path, location):
    with pytest.raises(DataError, match=r"is not supported; s3://, https:// and folders|a web server lists no files"):
        StoreFiles(config(tmp_path), download()).list(location, (".warc",))


@pytest.mark.parametrize("root", ["gs://b", "ftp://h/x", "''"])
def test_a_root_is_a_folder_or_an_address_that_can_be_read(root):
    with pytest.raises(ConfigError, match=r"ingest\.paths_root"):
        load_params(overrides=[f"ingest.paths_root={root}"]).section(IngestConfig)
    for fine in ("null", "s3://commoncrawl/", "https://data.commoncrawl.org/", "some/folder"):
        load_params(overrides=[f"ingest.paths_root={fine}"]).section(IngestConfig)
