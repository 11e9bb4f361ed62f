"""Which versions of the data show what must be forgotten, and which of their objects nothing else needs.

Objects are shared between versions, so what goes is what a doomed version has and no clean one does: after a purge most
of a large dataset is the same in both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from align.errors import DataError
from align.lineage.data_versions import DataVersions, StageRun

#: Files of a report that show pictures: pages with small copies in them, and pictures.
_PAGE, _PICTURES = ".html", {".jpg", ".jpeg", ".png", ".webp"}
_SIGNS = (b"data:image/jpeg", b"data:image/webp", b"<figure")


@dataclass(frozen=True)
class Look:
    """How a version of an out is looked into.

    Attributes:
        patterns: of the files that are needed for it.
        shows: says whether a folder with these files shows what must be forgotten.
        ask_remotes: files that are not at hand are brought; else a version with such files counts as showing it.
    """

    patterns: tuple[str, ...]
    shows: Callable[[Path], bool]
    ask_remotes: bool = True


@dataclass
class Doomed:
    """What must go.

    Attributes:
        versions: (path of the out, md5) -> who knows of it, and why it goes.
        objects: their md5s, and those of report pages that may show a picture small.
        clean: md5s of all other versions' files; these stay.
        clean_versions: (path, md5) of the versions that were looked into and show nothing.
    """

    versions: dict[tuple[str, str], str] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    clean: set[str] = field(default_factory=set)
    clean_versions: set[tuple[str, str]] = field(default_factory=set)

    def to_remove(self, also_clean: Mapping[str, str] | None = None) -> set[str]:
        """The objects that nothing else needs; `also_clean` is a version that has come since (path -> md5)."""
        return self.objects - self.clean - set((also_clean or {}).values())


def survey(versions: DataVersions, looks: Mapping[str, Look], reports: str) -> Doomed:
    """Looks into every version of the outs that can show a picture.

    Args:
        versions: the history.
        looks: path of an out -> how it is looked into, in the order of the pipeline.
        reports: the folder of all reports.
    """
    runs = versions.runs()
    doomed = Doomed()
    known: dict[str, set[str]] = {}
    for path, look in looks.items():
        for run in runs:
            md5 = run.outs.get(path) or run.deps.get(path)
            if md5 and md5 not in known.setdefault(path, set()):
                known[path].add(md5)
                if why := _shows(versions, md5, look):
                    doomed.versions[path, md5] = f"{run.where}; {why}"
                else:
                    doomed.clean_versions.add((path, md5))
    gone = {md5 for _, md5 in doomed.versions}
    for md5 in gone:
        doomed.objects |= {md5, *(versions.files(md5) or {}).values()}
    pages: set[str] = set()
    clean: set[str] = set()
    for run in runs:
        dirty = not gone.isdisjoint(run.deps.values())  # not outs: the report on what was fetched shows nothing of it
        for path, md5 in run.outs.items():
            if md5 in gone:
                continue
            files = versions.files(md5) or {}
            shown = _pages(versions, files) if dirty and PurePosixPath(path).is_relative_to(reports) else set()
            pages |= shown
            clean |= {md5, *files.values()} - shown
    doomed.objects |= pages
    doomed.clean = clean - pages
    return doomed


def _shows(versions: DataVersions, md5: str, look: Look) -> str | None:
    files = versions.files(md5)
    if files is None:
        return None  # nothing of it is anywhere, as far as anybody answered: see `DataVersions.unreachable`
    needed = [one for path, one in files.items() if any(PurePosixPath(path).match(p) for p in look.patterns)]
    if not look.ask_remotes and not all(map(versions.has, needed)):
        return "not here, so nobody looked into it"
    folder = versions.lay_out(md5, *look.patterns)
    if folder is None:
        return "incomplete, so nobody could look into it"
    try:
        return "shows them" if look.shows(folder) else None
    except DataError as error:
        return f"unreadable: {error}"


def _pages(versions: DataVersions, files: Mapping[str, str]) -> set[str]:
    found = set()
    for path, md5 in files.items():
        suffix = PurePosixPath(path).suffix
        if suffix in _PICTURES or (suffix == _PAGE and _page_shows(versions.object(md5))):
            found.add(md5)
    return found


def _page_shows(page: Path | None) -> bool:
    return page is not None and any(sign in page.read_bytes() for sign in _SIGNS)


def pages_with_pictures(reports: Path) -> list[Path]:
    """The files under a folder of reports that show pictures; ingest's report has none."""
    return [
        path
        for path in sorted(reports.rglob("*"))
        if not path.is_relative_to(reports / "ingest")
        and (path.suffix in _PICTURES or (path.suffix == _PAGE and _page_shows(path)))
    ]


def stage_of(runs: list[StageRun], out: str) -> str | None:
    """The stage that makes an out, as the checkout's dvc.lock says."""
    return next((run.name for run in runs if run.where == "checkout" and out in run.outs), None)
