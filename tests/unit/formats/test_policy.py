"""data/policy/opted_out.csv: what matches, and that the file is the same bytes for the same wishes."""

import json
from pathlib import Path

import pytest

from align.errors import DataError, FormatError, GateError
from align.formats.acceptances import read_acceptances, write_acceptances
from align.formats.drift_reference import DriftReference, read_reference, write_reference
from align.formats.policy import Entry, OptedOut, host_of, read_opted_out, write_opted_out
from align.formats.verdict import require_passed
from align.interfaces.expectations import Acceptance
from tests.support import ROOT
from tests.support.small_data import write_verdict

SHA = "ab" * 32
HEADER = "kind,value,reason,added\n"


def opted_out(*entries):
    return OptedOut(Entry(kind, value, "", "2026-01-02") for kind, value in entries)


@pytest.mark.parametrize(("url", "page", "image_id", "entry"), [
    ("https://a.org/1.jpg", None, None, ("url", "https://a.org/1.jpg")),
    ("https://b.org/1.jpg", "https://a.org/1.jpg", None, ("url", "https://a.org/1.jpg")),
    ("https://a.org/1.jpg?x", None, None, None),
    ("https://x.org/", None, SHA, ("image_id", SHA)),
    ("https://x.org/", None, "cd" * 32, None),
    ("https://gone.org/1.jpg", None, None, ("host", "gone.org")),
    ("https://IMG.gone.org:8080/1.jpg", None, None, ("host", "gone.org")),
    ("https://x.org/", "http://www.gone.org/page", None, ("host", "gone.org")),
    ("https://notgone.org/1.jpg", None, None, None),
    ("https://gone.org.evil.com/1.jpg", "https://org/", None, None),
    ("https://me:secret@A.org.:443/./b/../%31.jpg#top", None, None, ("url", "https://a.org/1.jpg")),
    ("http://www.a.org//1.jpg/?utm_source=x&", None, None, ("url", "https://a.org/1.jpg")),
    ("http://[::ffff:127.0.0.1]/1.jpg", None, None, ("host", "127.0.0.1")),
    ("https://left.org/1.jpg", None, None, ("host", "www.left.org")),
    ("https://img.left.org/1.jpg", None, None, None),
    ("https://x.org/", "http://gone.org./page", None, ("host", "gone.org")),
    ("http://\uff27one\u3002org/1.jpg", None, None, ("host", "gone.org")),
    ("http://xn--bcher-kva.example/1.jpg", None, None, ("host", "b\xfccher.example")),
    ("http://0x7f.1/1.jpg", None, None, ("host", "127.0.0.1")),
    ("http://[::1", "data:image/png;sha256=00", None, None),
    (None, None, None, None),
])  # fmt: skip
def test_what_an_entry_matches(url, page, image_id, entry):
    policy = opted_out(
        ("url", "https://a.org/1.jpg"), ("image_id", SHA), ("host", "gone.org"), ("host", "b\xfccher.example"),
        ("host", "127.0.0.1"), ("host", "www.left.org"),
    )  # fmt: skip
    assert policy.entry(url, page, image_id) == entry
    assert policy.matches(url, page, image_id) == (entry is not None)
    assert not OptedOut().matches(url, page, image_id)


def test_equal_wishes_are_equal_bytes_and_the_first_reason_stays(tmp_path):
    first = [Entry("url", "https://b/", 'said "no", thrice', "2026-01-02"), Entry("host", "a.org", "", "2026-01-02")]
    write_opted_out(tmp_path, OptedOut(first))
    before = (tmp_path / "opted_out.csv").read_bytes()
    assert before.decode() == HEADER + 'host,a.org,,2026-01-02\nurl,https://b/,"said ""no"", thrice",2026-01-02\n'
    known = read_opted_out(tmp_path)
    write_opted_out(tmp_path, OptedOut([*known.entries, Entry("url", "https://b/", "again", "2027-01-01")]))
    assert (tmp_path / "opted_out.csv").read_bytes() == before


def test_the_committed_files_are_as_they_would_be_written_and_an_absent_one_is_empty(tmp_path):
    ours = ROOT / "data/policy"
    write_opted_out(tmp_path, read_opted_out(ours))
    write_acceptances(read_acceptances(ours), tmp_path)
    for name in ("opted_out.csv", "accepted.json"):
        assert (tmp_path / name).read_bytes() == (ours / name).read_bytes()
    assert not read_opted_out(tmp_path / "absent")


@pytest.mark.parametrize(("text", "says"), [
    ("", "first line"),
    ("kind,value\n", "first line"),
    (HEADER + "url,https://a/,\n", "line 2: 3 columns"),
    (HEADER + "host,a.org,,2026-01-02\nkey,000000001,,2026-01-02\n", "line 3: unknown kind 'key'"),
    (HEADER + f"image_id,{SHA.upper()},,2026-01-02\n", "not a sha256"),
    (HEADER + "host,https://a.org/,,2026-01-02\n", "not a host name"),
    (HEADER + "host,A.org,,2026-01-02\n", "not a host name"),
    (HEADER + "url,,,2026-01-02\n", "empty"),
    (HEADER + f"host,a.org,{'x' * 5_000_000},2026-01-02\n", "line 2: field larger than"),
])  # fmt: skip
def test_a_bad_line_is_named(tmp_path, text, says):
    (tmp_path / "opted_out.csv").write_text(text)
    with pytest.raises(FormatError, match=says):
        read_opted_out(tmp_path)


def test_hosts():
    assert host_of("HTTPS://User@Example.ORG.:443/x") == "example.org"
    assert host_of("http://[2001:DB8::1]/x") == "2001:db8::1"
    assert host_of("http://[broken") == ""
    assert host_of("coco:1.jpg") == ""


ACCEPTANCE = Acceptance(
    expectation="keep-rate", data="a" * 64, observed="0.7", threshold="0.71 to 0.9", reason="few icons", by="Ada",
    on="2026-01-31",
)  # fmt: skip


def test_acceptances_are_read_as_they_were_written(tmp_path):
    assert read_acceptances(tmp_path) == ()
    write_acceptances([ACCEPTANCE], tmp_path)
    assert read_acceptances(tmp_path) == (ACCEPTANCE,)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "accepted.json").write_text('{"schema_version": 1, "accepted": [{"expectation": "b"}]}')
    with pytest.raises(FormatError, match=r"accepted\.json: accepted\.0\.data: "):
        read_acceptances(tmp_path)


REFERENCE = DriftReference(
    data="d", keep_rate=0.5, distributions={"language": {"en": 0.5, "de": 0.5}}, by="Ada", on="2026-01-31"
)


def test_a_reference_is_read_as_it_was_written(tmp_path):
    assert read_reference(tmp_path) is None
    write_reference(REFERENCE, tmp_path)
    first = (tmp_path / "reference.json").read_bytes()
    assert read_reference(tmp_path) == REFERENCE
    write_reference(REFERENCE, tmp_path)
    assert (tmp_path / "reference.json").read_bytes() == first


def test_a_broken_reference_is_one_clear_line(tmp_path):
    (tmp_path / "reference.json").write_text(json.dumps({"schema_version": 2, "reference": None}))
    with pytest.raises(FormatError, match=r"reference\.json: schema_version 2, but .* reads 1; .*--set-reference"):
        read_reference(tmp_path)


DATA, OTHER_DATA = "a" * 64, "b" * 64
WHERE = Path("data/x")


@pytest.mark.parametrize(("folder", "command"), [("quality", "validate"), ("quality_shards", "validate_shards")])
def test_no_verdict_and_one_about_other_data_are_refused(tmp_path, folder, command):
    with pytest.raises(DataError, match=f"run `align {command}` first"):
        require_passed(tmp_path / folder, DATA, WHERE)
    write_verdict(tmp_path / folder, passed=True, data=DATA)
    require_passed(tmp_path / folder, DATA, WHERE)
    with pytest.raises(DataError, match=f"about other data than data/x; run `align {command}` with the same paths"):
        require_passed(tmp_path / folder, OTHER_DATA, WHERE)


def test_a_failed_verdict_gives_its_reason(tmp_path):
    write_verdict(tmp_path / "quality", passed=False, data=DATA)
    with pytest.raises(GateError, match=r"the quality gate failed \(expect_this: observed 1, expected 2\); see report"):
        require_passed(tmp_path / "quality", DATA, WHERE)
    with pytest.raises(DataError, match="about other data than data/x"):
        require_passed(tmp_path / "quality", OTHER_DATA, WHERE)


@pytest.mark.parametrize("text", ["{", "{}", '{"schema_version": 1, "passed": 1, "failure": null, "data": "a"}'])
def test_a_broken_verdict_is_one_clear_line(tmp_path, text):
    (tmp_path / "verdict.json").write_text(text)
    with pytest.raises(FormatError, match=r"verdict\.json: .*; run `align validate` again"):
        require_passed(tmp_path, DATA, WHERE)
