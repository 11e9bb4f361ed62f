"""Pages and pictures of data/sample in an archive with the oddities of real ones, beside a clean archive."""

import json
from pathlib import Path
from typing import Any

import pytest

from align.cli import main
from align.formats.raw import raw_shards, read_table
from tests.support.odd_archives import ODDITIES, Archive, Stored, clean_archive, odd_archive, stored_responses
from tests.support.params import PARAMS_FILE
from tests.support.reading import rows_of, source_at

#: Every so many pages of the sample. All with a charset other than UTF-8 are taken.
_EVERY = 20


@pytest.fixture(scope="module")
def responses(sample: Path) -> list[Stored]:
    """Some pages of the sample and their pictures."""
    stored = stored_responses(sample / "archive.warc.gz")
    pages = [one for one in stored.values() if one.is_page]
    pages = [one for at, one in enumerate(pages) if at % _EVERY == 0 or "utf-8" not in one.content_type]
    chosen = {one.url for one in pages}
    candidates, _ = rows_of(source_at(sample / "archive.warc.gz"))
    pictures = dict.fromkeys(row["url"] for row in candidates if row["page_url"] in chosen and row["url"] in stored)
    assert len(pages) > 2 * len(ODDITIES)
    assert len(pictures) > 2 * len(ODDITIES)
    return [*pages, *(stored[url] for url in pictures if url not in chosen)]


def test_each_oddity_beside_a_clean_archive(
    tmp_path: Path, responses: list[Stored], capsys: pytest.CaptureFixture[str]
) -> None:
    clean = clean_archive(tmp_path / "archives/clean", responses)
    odd = odd_archive(tmp_path / "archives/odd", responses)
    assert _ingest(odd, tmp_path, "allow_damaged=false") == 1
    assert "cut off or damaged at byte" in capsys.readouterr().err
    pairs, report = {}, {}
    for archive in (clean, odd):
        assert _ingest(archive, tmp_path, "allow_damaged=true") == 0
        name = archive.folder.name
        pairs[name], report[name] = _pairs(tmp_path / name), _report(tmp_path / name)
    assert pairs["odd"] == pairs["clean"]
    assert sum(picture is not None for *_, picture in pairs["clean"]) > 0.9 * len(pairs["clean"]) > 100

    for archive in (clean, odd):
        of_archive = report[archive.folder.name]
        assert sum(of_archive["outcomes"].values()) + of_archive["num_other_records"] == archive.num_records
        assert of_archive["num_pages_coding_absent"] == archive.num_absent
        assert of_archive["num_pages_coding_unknown"] == archive.num_unknown
        assert of_archive["num_bytes_lost"] == archive.num_bytes_lost
    assert report["odd"]["outcomes"] == report["clean"]["outcomes"]
    assert report["odd"]["num_damaged_files"] == 2
    num_pages = sum(one.is_page for one in responses)
    assert report["odd"]["outcomes"] == {
        "page": num_pages, "image": len(responses) - num_pages, "redirect": 1, "error_status": 1, "other_type": 1,
    }  # fmt: skip


def _ingest(archive: Archive, root: Path, *overrides: str) -> int:
    root = root / archive.folder.name
    words = [f"ingest.{override}" for override in overrides] + [
        f"paths.archive={archive.folder}", f"paths.raw={root / 'raw'}", f"paths.reports={root / 'reports'}",
        f"paths.runtime={root / 'runtime'}", f"paths.policy={root / 'policy'}", "engine.num_workers=1",
        "ingest.images_from=archive",
    ]  # fmt: skip
    return main(["ingest", "--params", str(PARAMS_FILE), *(arg for word in words for arg in ("--set", word))])


def _pairs(root: Path) -> list[tuple[str | None, ...]]:
    """Address, caption, page and the picture's digest of every pair."""
    rows = [row for shard in raw_shards(root / "raw") for row in read_table(shard).to_pylist()]
    return sorted(
        ((row["url"], row["caption"], row["page_url"], row["sha256"]) for row in rows),
        key=lambda pair: tuple(value or "" for value in pair),
    )


def _report(root: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((root / "reports/ingest/report.json").read_bytes())
    return report
