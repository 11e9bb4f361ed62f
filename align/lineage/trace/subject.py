"""What the words of `align trace` name: a model version, a run, or pairs by key, address or picture.

`MODEL@ALIAS`, `MODEL/VERSION`, `RUN`, `KEY`, `URL`, `IMAGE_ID`; with a kind and a colon before it (`run:demo`) only
that is meant. Words that could mean more than one of these are refused, with the words that say which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from align.durable.files import sha256_file
from align.errors import DataError
from align.lineage.versions.at_revision import branch_at
from align.lineage.versions.raw_pairs import RawRow, find_pairs
from align.lineage.versions.registered import Registered
from align.services.git import git_if_any
from align.services.tracking.registry import Version
from align.services.tracking.tracked_run import TrackedRun
from align.services.tracking.tracker import REVISION, is_called

What = Literal["model", "run", "key", "url", "image"]
_NAMES: dict[What, str] = {
    "model": "model version", "run": "run", "key": "key", "url": "address of a picture or page", "image": "picture"
}  # fmt: skip
_HEX_DIGITS_OF_SHA256 = 64
#: Names as `register.model_name` allows them: MLflow's searches put them in quotes.
_VERSION = re.compile(r"(?P<model>[\w.\- ]+)/(?P<number>[0-9]{1,9})|(?P<name>[\w.\- ]+)@(?P<alias>[\w.\-]+)")


@dataclass(frozen=True)
class Run:
    """A run: one of these may be unknown.

    Attributes:
        branch: `run/NAME`; empty: git has none here.
        commit: of the branch, or the one that MLflow names; empty: none is recorded.
        tracked: the run in MLflow.
    """

    branch: str
    commit: str
    tracked: TrackedRun | None


@dataclass(frozen=True)
class Subject:
    """What is traced: one of these.

    Attributes:
        what: which kind it is.
        title: for people.
        version: of a model.
        run: a run.
        rows: pairs of data/raw.
    """

    what: What
    title: str
    version: Version | None = None
    run: Run | None = None
    rows: tuple[RawRow, ...] = ()


def of_version(version: Version) -> Subject:
    """A version of a model."""
    return Subject("model", f"{version.name} version {version.number}", version=version)


class Names:
    """Looks words up.

    Args:
        root: the checkout, whose git has branches of runs.
        raw: data/raw.
        registered: name of a model -> what MLflow knows of it.
        default_model: `register.model_name`.
    """

    def __init__(self, root: Path, raw: Path, registered: Callable[[str], Registered], default_model: str) -> None:
        self._root, self._raw, self._registered, self._default_model = root, raw, registered, default_model

    def find(self, words: str) -> Subject:
        """What the words name.

        Raises:
            DataError: nothing, or more than one thing.
        """
        prefix, _, rest = words.partition(":")
        exact = next((kind for kind in _NAMES if kind == prefix and rest), None)
        groups: tuple[tuple[What, ...], ...] = ((exact,),) if exact else _possible(words)
        value = rest if exact else words
        looks: dict[What, Callable[[str], Iterator[Subject]]] = {
            "model": self._models, "run": self._runs, "key": self._keys, "url": self._urls, "image": self._images
        }  # fmt: skip
        for kinds in groups:
            found = [subject for kind in kinds for subject in looks[kind](value)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{subject.title} (`{_exact(subject, value)}`)" for subject in found)
                raise DataError(f"'{words}' names more than one thing: {listed}; say which")
        asked = [kind for kinds in groups for kind in kinds]
        where = "" if {*asked} <= {"model", "run"} else f" in {self._raw}"
        if where and not any(self._raw.glob("*.parquet")):
            where += ", which is empty: run `align ingest` first"
        if "model" in asked and (problem := self._registered(self._default_model).problem):
            where += f"; {problem}"
        raise DataError(f"'{value}' names nothing here: no {', '.join(_NAMES[kind] for kind in asked)}{where}")

    def _models(self, value: str) -> Iterator[Subject]:
        match = _VERSION.fullmatch(value)
        if match is None:
            return
        known = self._registered(match["model"] or match["name"])
        number = int(match["number"]) if match["number"] else known.aliases.get(match["alias"])
        for version in known.versions:
            if version.number == number:
                yield of_version(version)

    def _runs(self, value: str) -> Iterator[Subject]:
        name = value.removeprefix("run/")
        tracked = self._registered(self._default_model).runs
        commit = git_if_any(self._root, "rev-parse", "--verify", "--quiet", f"refs/heads/run/{name}^{{commit}}")
        if commit is not None:  # a rerun with the same result has the same name in MLflow, and no branch of its own
            run = next((one for one in tracked if one.tags.get(REVISION) == commit.strip()), None)
            yield Subject("run", f"run {name}", run=Run(f"run/{name}", commit.strip(), run))
            return
        for run in tracked if value == name else ():
            if is_called(run, name):
                made = run.tags.get(REVISION, "")
                yield Subject("run", f"run {run.name}", run=Run(branch_at(self._root, made) if made else "", made, run))

    def _keys(self, value: str) -> Iterator[Subject]:
        yield from self._pairs("key", "key", value, f"pair {value}")

    def _urls(self, value: str) -> Iterator[Subject]:
        pictures = list(find_pairs(self._raw, "url", [value]))
        pages = [] if pictures else list(find_pairs(self._raw, "page_url", [value]))
        if rows := pictures or pages:
            yield Subject("url", f"{'picture' if pictures else 'page'} {value}", rows=tuple(rows))

    def _images(self, value: str) -> Iterator[Subject]:
        file = Path(value)
        sha256 = sha256_file(file) if len(value) != _HEX_DIGITS_OF_SHA256 and file.is_file() else value
        yield from self._pairs("image", "sha256", sha256, f"picture {sha256[:12]}")

    def _pairs(self, what: What, column: str, value: str, title: str) -> Iterator[Subject]:
        if rows := tuple(find_pairs(self._raw, column, [value])):
            yield Subject(what, title, rows=rows)


def _possible(words: str) -> tuple[tuple[What, ...], ...]:
    """What words of this form can be. If one of a group is found, later groups are not looked up."""
    if "://" in words:
        return (("url",),)
    if re.fullmatch(rf"[0-9a-f]{{{_HEX_DIGITS_OF_SHA256}}}", words):
        return (("image",),)
    names: tuple[What, ...] = ("model", "run", "key") if _VERSION.fullmatch(words) else ("run", "key")
    # an address may be relative; to look for one reads a whole column
    return (names, ("image",), ("url",)) if Path(words).is_file() else (names, ("url",))


def _exact(subject: Subject, value: str) -> str:
    """Words that name only this."""
    if subject.run is None:
        return f"{subject.what}:{value}"
    run = subject.run
    return f"run:{run.branch or (run.tracked.run_id if run.tracked else value)}"
