"""One process that fuzzes one target with atheris (libFuzzer), guided by the coverage of our own code.

`plain` mutates the bytes of the corpus. `structured` lets hypothesis build the input from the mutated bytes, so that
most inputs are of the right shape. A find is saved, and the process continues; if it dies, the parent saves the input.
"""

import hashlib
import json
import mmap
import os
import struct
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.judge import HANG_S, judged, limit_memory
from tests.fuzz.mutate import mutator
from tests.fuzz.structured import STRATEGIES
from tests.fuzz.targets import TARGETS

HERE = Path(__file__).parent
CORPUS, FINDS = HERE / "corpus", HERE / "finds"
_MAX_BYTES = 1 << 16


class Job(NamedTuple):
    """One target fuzzed in one way, and the folder of what it has reached so far."""

    target: str
    mode: str
    folder: Path

    @property
    def current(self):
        """The input that is being judged."""
        return self.folder / "current"

    @property
    def counter(self):
        """Executions so far, as eight bytes."""
        return self.folder / "executions"

    @property
    def known(self):
        """A line for each find of this run."""
        return self.folder / "finds.jsonl"

    def finds(self):
        """signature -> file, message."""
        lines = self.known.read_text().splitlines() if self.known.exists() else []
        return {entry["signature"]: entry for entry in map(json.loads, lines)}

    def save(self, find, data):
        """Saves an input under tests/fuzz/finds, unless this run has one of the same signature."""
        if find.signature in self.finds():
            return
        FINDS.mkdir(exist_ok=True)
        file = FINDS / f"{self.target}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        with self.known.open("a") as known:
            known.write(json.dumps({"signature": find.signature, "file": str(file), "message": find.message}) + "\n")


def fuzz(job, seconds):
    """Does not return: libFuzzer ends the process, with 0 when the time is over."""
    import atheris

    limit = tempfile.mkdtemp(dir=job.folder)
    with atheris.instrument_imports(include=["align", "flows"], enable_loader_override=False):
        run = TARGETS[job.target](Path(limit))
    job.counter.touch()
    os.truncate(job.counter, 8)
    with job.counter.open("r+b") as file:
        executions = mmap.mmap(file.fileno(), 8)
    current = os.open(job.current, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def one(data):
        os.pwrite(current, data, 0)
        os.ftruncate(current, len(data))
        struct.pack_into("<Q", executions, 0, struct.unpack_from("<Q", executions)[0] + 1)
        find = judged(run, data)
        if find is not None:
            job.save(find, data)

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-max_len={_MAX_BYTES}", f"-timeout={HANG_S}", "-rss_limit_mb=0",
        "-verbosity=0", "-print_final_stats=0", "-close_fd_mask=1", f"-artifact_prefix={job.folder}/",
    ]  # fmt: skip
    reached = job.folder / "reached"
    reached.mkdir(exist_ok=True)
    options = {}
    entry = one
    if job.mode == "structured":
        entry = _structured(job.target, one)
    else:
        # looked up at each call: Fuzz() replaces it
        options["custom_mutator"] = mutator(lambda data, size: atheris.Mutate(data, size))
        corpus = CORPUS / job.target
        arguments += [str(reached), *([str(corpus)] if corpus.is_dir() else [])]
    limit_memory()
    atheris.Setup(arguments, entry, **options)
    atheris.Fuzz()


def _structured(target, one):
    from hypothesis import HealthCheck, given, settings

    @settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(STRATEGIES[target])
    def test(data):
        one(data)

    return vars(test)["hypothesis"].fuzz_one_input


if __name__ == "__main__":
    fuzz(Job(sys.argv[1], sys.argv[2], Path(sys.argv[3])), int(sys.argv[4]))
