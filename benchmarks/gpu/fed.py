"""A real run, fed by its loader: the sample's pictures as JPEGs of 346 px on disk, each shown once."""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import simplejpeg
from fastwarc.warc import ArchiveIterator, WarcRecordType

from align.errors import DataError
from align.formats.shards import Sample
from align.model.preprocess import decode
from align.training.loop import Monitoring
from align.training.run import run as train
from align.training.run_plan import TrainingInputs, make_plan
from benchmarks.gpu import texts
from benchmarks.gpu.journal import Journal, number
from benchmarks.gpu.scale import Scale
from tests.support import ROOT
from tests.support.shard_folder import write_shards

_PROFILE = "cc3m"
_QUALITY = 95
#: Different pictures; where a run needs more, they come again under other keys, and are decoded again.
_PICTURES = 320


def pictures(size_px: int, count: int) -> Iterator[bytes]:
    """Pictures of the sample's archive as `align shard` writes them: JPEG, square."""
    made = 0
    with (ROOT / "data/sample/archive.warc.gz").open("rb") as stream:
        for record in ArchiveIterator(stream, record_types=WarcRecordType.response):
            if made == count:
                return
            if not (record.http_content_type or "").startswith("image/"):
                continue
            try:
                pixels = decode(record.reader.read(), size_px)
            except DataError:
                continue
            made += 1
            yield simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=_QUALITY, colorsubsampling="444")


def run(scale: Scale, journal: Journal) -> None:
    """One row: what `align pretrain` reaches with its loader, and how long it waited for it."""
    batch_size, num_steps = scale.fed
    config, num_images, every = scale.model(_PROFILE), batch_size * num_steps, max(1, num_steps // 6)
    with tempfile.TemporaryDirectory(prefix="align-bench-gpu-") as name:
        folder = Path(name)
        files = list(pictures(config.resize_px, min(num_images, 16 if scale.stand_in else _PICTURES)))
        known = texts.words(scale, config.max_tokens).texts(num_images)
        samples = [
            Sample(f"{index:09d}", f"{index:064x}", file, (f"{index:09d}",), (text,))
            for index, (file, text) in enumerate(
                zip(itertools.islice(itertools.cycle(files), num_images), known, strict=True)
            )
        ]
        part = max(batch_size, num_images // 4)
        write_shards(
            folder / "shards", {"train": [samples[at : at + part] for at in range(0, num_images, part)]},
            image_px=config.resize_px,
        )  # fmt: skip
        texts.write(folder / "tokenizer", config.max_tokens)
        recipe = scale.recipe(
            _PROFILE, num_steps=num_steps, batch_size=batch_size, warmup_steps=1, log_every_steps=every,
            validate_every_steps=num_steps, checkpoint_every_steps=num_steps, num_threads=None,
        )  # fmt: skip
        notes = folder / "metrics.jsonl"
        plan = make_plan(
            recipe, config, TrainingInputs(folder / "shards", folder / "tokenizer"), folder / "checkpoints",
            monitoring=Monitoring(functools.partial(_keep, notes)),
        )  # fmt: skip
        train(plan)
        logged = [json.loads(line) for line in notes.read_text().splitlines()]
    # the first steps wait for what comes once in a run, and the last one for validation
    first, before_last, last = logged[0], logged[-2], logged[-1]
    spent, steps = before_last["at"] - first["at"], before_last["step"] - first["step"]
    journal.row(
        "fed", towers=scale.towers(_PROFILE), batch=f"{batch_size:,}", steps=f"{num_steps:,}",
        pairs_per_s=number(steps * batch_size / spent), waits=f"{100 * last['train/loader_wait_share']:.1f} %",
        gap=number(last["val/batch_norm_gap"]),
    )  # fmt: skip


def _keep(path: Path, metrics: dict[str, float], step: int) -> None:
    with path.open("a") as file:
        file.write(json.dumps(metrics | {"step": step, "at": time.monotonic()}) + "\n")
