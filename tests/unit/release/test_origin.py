"""The tags that say where a model comes from."""

from pathlib import Path

from align.formats.policy import Entry, OptedOut, write_opted_out
from align.release.origin import read_origin


def test_the_policy_that_data_obeyed_is_named_by_its_contents(tmp_path: Path) -> None:
    def digest(name: str, *hosts: str) -> str | None:
        (tmp_path / name).mkdir(exist_ok=True)
        write_opted_out(tmp_path / name, OptedOut(Entry("host", host, "", "2026-01-02") for host in hosts))
        return read_origin("0123abc", [], tmp_path / name).tags().get("align.policy_digest")

    assert digest("one", "a.org") == digest("other", "a.org") != digest("third", "b.org")
    assert "align.policy_digest" not in read_origin("0123abc", [], tmp_path / "absent").tags()
