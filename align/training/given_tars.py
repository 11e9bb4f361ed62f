"""Training on tars that others made, as they are: `--data SPEC[=WEIGHT]` of pretrain, finetune and fit_tokenizer.

The tars are read once. An index in `store.cache` says where their samples are; it is like data/shards, and its manifest
names the tars. It is found again by the tars' names, sizes and times (ETags in S3), and its digest is of their samples'
bytes. `shard.val_fraction` of the samples are held out by a hash of their keys, so a picture under two keys may be on
both sides. No rule keeps pictures of evaluation sets out.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

from braceexpand import braceexpand

from align.config import Params
from align.config.infrastructure import EngineConfig, StoreConfig
from align.config.recipe import ExtraShards
from align.config.shard import ShardConfig
from align.display.console import say, track
from align.durable.files import write_bytes, write_text
from align.durable.locks import locked
from align.durable.work import key_of, work_directory
from align.errors import ConfigError, DataError
from align.formats import shards as formats
from align.formats.json_file import read_if_exists
from align.formats.sample_texts import texts_in
from align.formats.shards import Manifest, Shard, Split, SplitName
from align.interfaces.executor import Task
from align.project import provenance
from align.services.executors.executors import LocalExecutor
from align.services.files.files import StoreFiles
from align.training.given_samples import given_samples
from align.training.plan import Work

#: Of given tars.
_SPLITS = formats.SPLITS[:2]


def given_data(params: Params, specs: Sequence[str], stage: str) -> list[tuple[Path, Manifest, float]]:
    """Indexes several sources, unless that is done: the folder of each index, its manifest and its weight.

    Raises:
        ConfigError: a weight is not above 0, or braces do not match.
        DataError: there is no such tar, or nothing in a source can be trained on.
    """
    found = []
    for written in specs:
        spec, weight = _parsed(written)
        folder = _index(params, spec)
        manifest = formats.read_manifest(folder, given=True)
        train, held_out = (manifest.splits[name].num_images if name in manifest.splits else 0 for name in _SPLITS)
        say(
            f"{stage}: {spec}: {train:,} pictures to train on, {held_out:,} held out by their keys; left out: "
            f"{_counted(manifest)}. Not gated: no rule, and no gate, has seen these pairs"
        )
        found.append((folder, manifest, weight))
    return found


def on_given(params: Params, work: Work, specs: Sequence[str]) -> Work:
    """Puts given tars, if there are any, in the place of data/shards. Raises as `given_data`.

    The first source has weight 1 and the validation split; the others come before the recipe's own `extra_shards`.
    """
    if not specs:
        return work
    recipe = work.recipe
    (main, _, unit), *others = given_data(params, specs, recipe.section)
    extra = [ExtraShards(path=folder, digest=one.digest, weight=weight / unit) for folder, one, weight in others]
    recipe = recipe.model_copy(update={"extra_shards": (*extra, *recipe.extra_shards)})
    return replace(work, recipe=recipe, inputs=replace(work.inputs, shards=main))


def given_texts(folder: Path, files: StoreFiles) -> Iterator[list[str]]:
    """The texts of each training picture of an index. Raises as `Files.open`."""
    for shard in formats.read_manifest(folder, given=True).splits["train"].shards:
        with files.open(str(shard.given)) as file:
            for _, _, offset, size in formats.read_offsets(folder / shard.offsets_path, shard.offsets_sha256).tolist():
                file.seek(offset)
                yield texts_in(file.read(size))


def _parsed(written: str) -> tuple[str, float]:
    spec, sign, end = written.rpartition("=")
    try:
        weight = float(end) if sign else 1.0
    except ValueError:  # part of a name
        return written, 1.0
    if not (0 < weight < math.inf):
        raise ConfigError(f"--data {written}: the weight {end} is not a number above 0")
    return spec or written, weight


def _tars_of(spec: str, files: StoreFiles) -> tuple[str, ...]:
    """The tars that a source names, in order of their names."""
    try:
        named = list(braceexpand(spec))
    except ValueError:
        raise ConfigError(f"--data {spec}: its braces do not match; write them as in {{00000..00331}}.tar") from None
    tars: set[str] = set()
    for name in named:
        tars |= {name} if name.endswith(".tar") and "*" not in name else {*files.list(name, (".tar",))}
    return tuple(sorted(tar if "://" in tar else str(Path(tar).absolute()) for tar in tars))


def _index(params: Params, spec: str) -> Path:
    """Makes an index unless it is there; returns its folder."""
    store, shard, engine = params.section(StoreConfig), params.section(ShardConfig), params.section(EngineConfig)
    files, val = StoreFiles(store), (shard.seed, shard.val_fraction)
    tars = _tars_of(spec, files)
    stamped = [*zip(tars, files.stamps(tars), strict=True)]
    key = key_of(stamped, val, provenance.digest("align.training.given_samples"))
    folder = store.cache.absolute() / formats.GIVEN / key[:16]
    with locked(folder.with_name(f".{folder.name}.wait"), f"the process that indexes {spec}", say):
        if not (folder / formats.MANIFEST).is_file():
            with work_directory(folder, "given", key) as part:
                task = Task(nullcontext, partial(_index_tar, part, files, val), lambda item: item[1])
                entries = LocalExecutor(engine.num_workers).map(task, [*enumerate(tars)])
                manifest = _manifest([*track(entries, what=f"{spec}: tars read", total=len(tars))], spec)
                write_text(part / formats.MANIFEST, manifest.model_dump_json(exclude_none=True) + "\n")
                shutil.rmtree(part / ".done")
    return folder


def _is_held_out(seed: int, share: float, key: str) -> bool:
    # "train" only makes this hash differ from others; another word would hold out other samples
    drawn = hashlib.sha256(f"{seed} train {key}".encode()).digest()[:8]
    return int.from_bytes(drawn) / 2.0**64 < share


def _index_tar(folder: Path, files: StoreFiles, val: tuple[int, float], _: None, item: tuple[int, str]) -> Manifest:
    """Reads a tar once, and writes where the samples of each split are; unless a run that was killed has done so."""
    (number, uri), left_out, digest = item, Counter[str](), hashlib.sha256()
    done = folder / f".done/{number:05d}.json"
    if (known := read_if_exists(Manifest, done, "remove it")) is not None:
        return known
    found: tuple[list[tuple[int, int, int, int]], ...] = ([], [])  # train, val
    num_pairs, splits = [0, 0], dict[SplitName, Split]()
    with files.open(uri) as file:
        for held_out, (picture, data), (place, text) in given_samples(file, partial(_is_held_out, *val), left_out):
            found[held_out].append((picture.offset, picture.size, place.offset, place.size))
            num_pairs[held_out] += len(texts_in(text))
            digest.update(data + text)
        num_bytes = file.seek(0, os.SEEK_END)
    for split, places, pairs in zip(_SPLITS, found, num_pairs, strict=True):
        index = formats.index_bytes(places)
        shard = Shard(
            path=f"{split}/{number:05d}.tar", sha256=digest.hexdigest(), num_bytes=num_bytes, num_images=len(places),
            num_pairs=pairs, offsets_sha256=hashlib.sha256(index).hexdigest(), given=uri,
        )  # fmt: skip
        splits[split] = Split.of([shard])
        (folder / split).mkdir(exist_ok=True)
        write_bytes(folder / shard.offsets_path, index)
    done.parent.mkdir(exist_ok=True)
    entry = Manifest(image_px=0, digest=digest.hexdigest(), splits=splits, left_out=dict(left_out))
    write_text(done, entry.model_dump_json(exclude_none=True))
    return entry


def _manifest(entries: Sequence[Manifest], spec: str) -> Manifest:
    """Of all tars. Raises DataError if there is nothing to train on."""
    digest, splits = hashlib.sha256(), dict[SplitName, Split]()
    for split in _SPLITS:
        if rows := [row for entry in entries for row in entry.splits[split].shards if row.num_images]:
            splits[split] = Split.of(rows)
        for row in rows:  # the split is part of what they are
            digest.update(f"{row.sha256} {row.offsets_sha256}\n".encode("ascii"))
    left_out = sum((Counter(entry.left_out) for entry in entries), Counter[str]())
    manifest = Manifest(image_px=0, digest=digest.hexdigest(), splits=splits, left_out=dict(left_out))
    if "train" not in splits:
        raise DataError(f"--data {spec}: nothing to train on in {len(entries):,} tars: {_counted(manifest)}")
    return manifest


def _counted(manifest: Manifest) -> str:
    return ", ".join(f"{why} {number:,}" for why, number in sorted((manifest.left_out or {}).items())) or "none"
