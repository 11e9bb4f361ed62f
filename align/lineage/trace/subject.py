"""What the words of `align trace` name: a model version, a run, a shard, or pairs by key, address or picture.

`MODEL@ALIAS`, `MODEL/VERSION`, `RUN`, `SHARD`, `KEY`, `URL`, `IMAGE_ID`; with a kind and a colon before it (`run:demo`)
only that is meant. Words that could mean more than one of these are refused, with the words that say which is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from align.durable.files import sha256_file
from align.errors import DataError
from align.formats.shards import SPLITS, Manifest, Shard, SplitName, read_manifest
from align.lineage.runs.listing import is_id_of
from align.lineage.runs.run import Run
from align.lineage.trace.models import Models
from align.lineage.versions.raw_pairs import RawRow, find_pairs
from align.services.tracking.registry import Version

What = Literal["model", "run", "shard", "key", "url", "image"]
KINDS: tuple[What, ...] = ("model", "run", "shard", "key", "url", "image")
_HEX_DIGITS_OF_SHA256 = 64
#: Names as `register.model_name` allows them: MLflow's searches put them in quotes.
_VERSION = re.compile(r"(?P<model>[\w.\- ]+)/(?P<number>[0-9]{1,9})|(?P<name>[\w.\- ]+)@(?P<alias>[\w.\-]+)")


@dataclass(frozen=True)
class Subject:
    """What is traced: one of these.

    Attributes:
        what: which kind it is.
        title: for people.
        version: of a model.
        run: a run.
        shard: a tar of the checkout's data/shards, and its split.
        rows: pairs of data/raw.
    """

    what: What
    title: str
    version: Version | None = None
    run: Run | None = None
    shard: tuple[SplitName, Shard] | None = None
    rows: tuple[RawRow, ...] = ()


def of_version(version: Version) -> Subject:
    """A version of a model."""
    return Subject("model", f"{version.name} version {version.number}", version=version)


class Names:
    """Looks words up.

    Args:
        raw: data/raw.
        shards: data/shards.
        models: name of a model -> what MLflow knows of it.
        default_model: `register.model_name`.
        places: all runs that the checkout knows; called when they are needed.
    """

    def __init__(
        self,
        raw: Path,
        shards: Path,
        models: Callable[[str], Models],
        default_model: str,
        places: Callable[[], list[Run]],
    ) -> None:
        self._raw, self._shards, self._model = raw, shards, models
        self._default_model, self._places = default_model, places

    def find(self, words: str) -> Subject:
        """What the words name.

        Raises:
            DataError: nothing, or more than one thing.
        """
        prefix, colon, rest = words.partition(":")
        exact = colon and prefix in KINDS and rest
        groups, value = (((prefix,),), rest) if exact else (_possible(words), words)
        looks: dict[str, Callable[[str], Iterator[Subject]]] = {
            "model": self._models, "run": self._runs, "shard": self._tars, "key": self._keys, "url": self._urls,
            "image": self._images,
        }  # fmt: skip
        for kinds in groups:
            found = [subject for kind in kinds for subject in looks[kind](value)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{subject.title} (`{_exact(subject, value)}`)" for subject in found)
                raise DataError(f"'{words}' names more than one thing: {listed}; say which")
        raise DataError(self._unknown(value, [kind for kinds in groups for kind in kinds]))

    def _models(self, value: str) -> Iterator[Subject]:
        match = _VERSION.fullmatch(value)
        if match is None:
            return
        known = self._model(match["model"] or match["name"])
        number = int(match["number"]) if match["number"] else known.aliases.get(match["alias"])
        for version in known.versions:
            if version.number == number:
                yield of_version(version)

    def _runs(self, value: str) -> Iterator[Subject]:
        name = value.removeprefix("run/")
        found = [place for place in self._places() if name in (place.name, place.flow_run) or is_id_of(place, name)]
        recorded = [place for place in found if place.branch == f"run/{name}"][:1]  # later ones have the same result
        for place in recorded or (found if value == name else ()):
            yield Subject("run", f"run {place.name}", run=place)

    def _tars(self, value: str) -> Iterator[Subject]:
        try:
            manifest = read_manifest(self._shards)
        except DataError:
            return
        for split, shard in _all(manifest):
            if value == shard.path or Path(value).absolute() == (self._shards / shard.path).absolute():
                yield Subject("shard", f"shard {shard.path}", shard=(split, shard))

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

    def _unknown(self, value: str, kinds: Sequence[str]) -> str:
        known: list[str] = []
        why = ""
        if "model" in kinds:
            model = self._model(self._default_model)
            known += [f"{model.name}@{alias}" for alias in model.aliases]
            known += [f"{one.name}/{one.number}" for one in model.versions]
            why = f"; {model.problem}" if model.problem else ""
        if "run" in kinds:
            known += [place.name for place in self._places()]
        if "shard" in kinds and (self._shards / "manifest.json").is_file():
            known += [shard.path for _, shard in _all(read_manifest(self._shards))]
        words = {"model": "model version", "run": "run", "shard": f"shard of {self._shards}", "key": "key",
                 "url": "address of a picture or page", "image": "picture"}  # fmt: skip
        nothing = ", ".join(words[kind] for kind in kinds)
        where = f" in {self._raw}" if {"key", "url", "image"} & set(kinds) else ""
        if where and not any(self._raw.glob("*.parquet")):
            where += ", which is empty: run `align ingest` first"
        return f"'{value}' names nothing here: no {nothing}{where}{_near(value, known)}{why}"


def _possible(words: str) -> tuple[tuple[What, ...], ...]:
    """What words of this form can be. If one of a group is found, later groups are not looked up."""
    if "://" in words:
        return (("url",),)
    if re.fullmatch(rf"[0-9a-f]{{{_HEX_DIGITS_OF_SHA256}}}", words):
        return (("image",),)
    if words.endswith((".tar", ".jsonl")):
        return (("shard",),)
    names: tuple[What, ...] = ("model", "run", "key") if _VERSION.fullmatch(words) else ("run", "key")
    # an address may be relative; to look for one reads a whole column
    return (names, ("image",), ("url",)) if Path(words).is_file() else (names, ("url",))


def _near(value: str, known: Sequence[str]) -> str:
    near = get_close_matches(value, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _exact(subject: Subject, value: str) -> str:
    """Words that name only this."""
    if subject.run is None:
        return f"{subject.what}:{value}"
    run = subject.run
    return f"run:{run.branch or run.run_id}"


def _all(manifest: Manifest) -> Iterator[tuple[SplitName, Shard]]:
    for split in SPLITS:
        for shard in manifest.splits[split].shards if split in manifest.splits else ():
            yield split, shard
