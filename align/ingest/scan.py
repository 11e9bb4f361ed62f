"""The scan of a source: each file is read once, into two tables (`align.ingest.sources.candidates`) and its counts.

    scanned/000012/    candidates.parquet, responses.parquet, counts.json

The scan of the last ingest is kept beside data/raw, so that the next one, which asks for pictures again, reads nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from align.display.console import say
from align.durable.files import link, replace_directory, temporary_name, write_text
from align.durable.steps import Step, Work
from align.durable.work import NEW
from align.errors import DataError
from align.formats.policy import OptedOut
from align.ingest.sources import Source
from align.ingest.sources.candidates import CANDIDATES, RESPONSES, num_cut
from align.ingest.sources.reading import damage_in
from align.interfaces.executor import Executor
from align.pairs.text_cuts import facts_of
from align.web.addresses import target_of

#: The step, and its folder in the work folder.
SCANNED = "scanned"
_COUNTS = "counts.json"
_ORDER = [("file_number", pa.int32()), ("row_number", pa.int64())]
_FACTS = [("num_words", pa.int32()), ("num_characters", pa.int32()), ("is_filename", pa.bool_())]
_HASHES = [("url_hash", pa.uint64()), ("host_hash", pa.uint64())]
_OPTED_OUT = ("opted_out", pa.bool_())  # of a response: the target of its redirect is
_TABLES = {
    "candidates": pa.schema([*CANDIDATES, *_ORDER, _OPTED_OUT, *_HASHES, *_FACTS]),
    "responses": pa.schema([*RESPONSES, *_ORDER, _OPTED_OUT]),
}
#: A count: the file was left out.
_QUARANTINED = "files_quarantined"
#: Damaged files that an error names.
_NAMED = 3
_PORT = re.compile(r":\d+$")
_KNOWN_HOSTS = 100_000


@dataclass(frozen=True)
class Scan:
    """How files are read. Can be pickled.

    Attributes:
        source: reads them.
        opted_out: asked for each pair, and at each hop of redirects within an archive.
        judges_texts: whether texts may decide what is fetched, so that their facts are needed.
    """

    source: Source
    opted_out: OptedOut
    judges_texts: bool

    def run(
        self, work: Work, executor: Executor, max_damaged_share: float, kept: Path
    ) -> tuple[dict[str, int], list[str]]:
        """Scans all files, or takes the scan that is finished or kept.

        Args:
            work: has the results.
            executor: scans the files.
            max_damaged_share: of the files; it judges what the scans say, and changes none.
            kept: where `keep_scan` has put the scan of the last ingest, if that had the same source and values.

        Returns:
            The counts of all files (those of `Source.scan`, `texts_cut`, ...), and the files that were left out, since
            reading them killed a worker process.

        Raises:
            DataError: too many files are damaged, or every file that was read killed its worker process.
        """
        files = {f"{number:06d}": (number, file) for number, file in enumerate(self.source.files)}
        if kept.is_dir() and not (work.folder / SCANNED).exists():
            say("ingest: the source and the values are those of the last ingest, so nothing is scanned again")
            new = temporary_name(work.folder / NEW)
            shutil.copytree(kept, new, copy_function=link)
            new.rename(work.folder / SCANNED)
        results = [f"{SCANNED}/{name}" for name in files]
        lacking = set(work.lacking(results))
        finished = [result for result in results if result not in lacking]
        work.fetch(finished)
        damage: list[str] = []

        def tell(counts: Iterable[str]) -> None:
            damage.extend(damage_in(counts))
            _require_few(damage, len(files), max_damaged_share)

        tell(one for result in finished for one in _counts_in(work.folder / result))
        work.run(Step(SCANNED, self._file, "ingest: files read", instead=_leave_out), files, executor, tell)
        counts, left_out = Counter[str](), []
        for result, file in zip(results, self.source.files, strict=True):
            of_file = _counts_in(work.folder / result)
            counts.update(of_file)
            if of_file.get(_QUARANTINED):
                left_out.append(file)
        return dict(sorted(counts.items())), left_out

    def _file(self, kept: Work, out: Path, numbered: tuple[int, str]) -> dict[str, int]:
        """Reads one file into its tables and counts."""
        del kept
        (file_number, file), counts, rows = numbered, Counter[str](), Counter[str]()
        with _tables(out) as writers:
            for batch in self.source.scan(file, counts):
                kind = "candidates" if "text" in batch.schema.names else "responses"
                size, start = len(batch), rows[kind]
                columns = [*batch.columns, pa.array([file_number] * size, pa.int32())]
                columns.append(pa.array(np.arange(start, start + size)))
                if kind == "candidates":
                    counts.update(num_cut(batch))
                    columns += self._of_candidates(batch)
                else:
                    columns.append(self._refused([(url, None, None) for url in batch["location"].to_pylist()]))
                rows[kind] += size
                writers[kind].write_batch(pa.record_batch(columns, schema=_TABLES[kind]))
        write_text(out / _COUNTS, json.dumps(counts) + "\n")
        return counts

    def _of_candidates(self, batch: pa.RecordBatch) -> list[pa.Array]:
        urls = batch["url"].to_pylist()
        named = zip(urls, batch["page_url"].to_pylist(), batch["stated_sha256"].to_pylist(), strict=True)
        together = [place or url for place, url in zip(batch["together"].to_pylist(), urls, strict=True)]
        columns = [self._refused(named), pa.array(hashes_of(together)), pa.array(map(host_hash, urls), pa.uint64())]
        texts = batch["text"].to_pylist() if self.judges_texts else ()
        facts = zip(*map(facts_of, texts), strict=True) if texts else [[None] * len(urls)] * len(_FACTS)
        return columns + [pa.array(values, kind) for values, (_, kind) in zip(facts, _FACTS, strict=True)]

    def _refused(self, pairs: Iterable[tuple[str | None, str | None, str | None]]) -> pa.Array:
        return pa.array([self.opted_out.matches(*pair) for pair in pairs], pa.bool_())


def _leave_out(kept: None, out: Path, numbered: tuple[int, str]) -> None:
    """Writes empty tables, and a count."""
    del kept
    say(
        f"ingest: warning: {numbered[1]}: left out: reading it killed a worker process twice, the second time with "
        "nothing beside it, most likely for its memory"
    )
    with _tables(out):
        pass
    write_text(out / _COUNTS, json.dumps({_QUARANTINED: 1}) + "\n")


@contextmanager
def _tables(out: Path) -> Iterator[dict[str, pq.ParquetWriter]]:
    with ExitStack() as stack:
        yield {
            kind: stack.enter_context(pq.ParquetWriter(out / f"{kind}.parquet", schema, compression="zstd"))
            for kind, schema in _TABLES.items()
        }


def _counts_in(scanned: Path) -> dict[str, int]:
    counts: dict[str, int] = json.loads((scanned / _COUNTS).read_bytes())
    return counts


def _require_few(damage: Sequence[str], num_files: int, share: float) -> None:
    """Raises DataError if more of the files are damaged than `ingest.max_damaged_share` allows."""
    if len(damage) <= share * num_files:
        return
    first = "; ".join(damage[:_NAMED]) + (f"; and {len(damage) - _NAMED:,} more" if len(damage) > _NAMED else "")
    enough = math.ceil(1e6 * len(damage) / num_files) / 1e6
    raise DataError(
        f"{first}; fetch it again, or set ingest.max_damaged_share (now {share:g}; {enough:g} allows {len(damage):,} "
        f"of {num_files:,} files) to take what can be read; no file is read again"
    )


def keep_scan(work: Work, kept: Path, left_out: Sequence[str]) -> None:
    """Keeps the scan of a finished ingest in place of the one before.

    Not if a file was left out: the next ingest tries that again.
    """
    if not kept.is_dir() and not left_out:
        with replace_directory(kept.parent, "ingest") as new:
            shutil.copytree(work.folder / SCANNED, new / kept.name, copy_function=link)


def hashes_of(urls: list[str]) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """A hash of each address: pairs of one address stay in one shard."""
    return np.frombuffer(b"".join(hashlib.md5(url.encode()).digest()[:8] for url in urls), "<u8")


def host_hash(url: str) -> int:
    """A hash of the host that is asked for an address: both schemes and all ports of a name have the same."""
    return _hash_of_host(re.split("[/?#]", url.partition("://")[2], maxsplit=1)[0])


@lru_cache(_KNOWN_HOSTS)
def _hash_of_host(netloc: str) -> int:
    try:
        host = bare(target_of(f"http://{netloc}/").host)
    except ValueError:  # nobody is asked
        host = ""
    return int.from_bytes(hashlib.blake2b(host.encode(), digest_size=8).digest(), "little")


def bare(host: str) -> str:
    """A host without its port."""
    return _PORT.sub("", host)
