"""The tags that say where a model comes from."""

import hashlib
from pathlib import Path

import pytest

from align.formats.policy import OPTED_OUT, Entry, OptedOut, write_opted_out
from align.release.registration.origin import read_origin


def test_the_policy_that_data_obeyed_is_named_by_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def digest(name: str, *hosts: str, filtered: bool = True) -> str | None:
        (tmp_path / name).mkdir(exist_ok=True)
        write_opted_out(tmp_path / name, OptedOut(Entry("host", host, "", "2026-01-02") for host in hosts))
        if filtered:
            read = hashlib.md5((tmp_path / name / OPTED_OUT).read_bytes()).hexdigest()
            (tmp_path / "dvc.lock").write_text(f"stages: {{filter: {{deps: [{{md5: {read}}}]}}}}")
        return read_origin("0123abc", [], tmp_path / name).tags().get("align.policy_digest")

    first = digest("one", "a.org")
    assert first is not None and first == digest("other", "a.org") != digest("third", "b.org")
    assert digest("one", "a.org", "c.org", filtered=False) is None  # a take-down that this data has not seen
    assert "align.policy_digest" not in read_origin("0123abc", [], tmp_path / "absent").tags()
