"""Writes the evaluation sets: a tar of images with their texts (webdataset layout), and a description of each.

There are three sets: ``concepts`` (retrieval over concepts that the archive lacks), ``vendor`` (retrieval over a style
that it lacks), ``classes`` (zero-shot and nearest-neighbour classification).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choose import Choice
from classes import CLASSES, TEMPLATES, class_of, labels_by_locale
from items import Item, rank, shuffled
from render import EVALUATION_ENCODING, Encoding

SCHEMA_VERSION = 1
_QUERIES_A_CLASS = 40


@dataclass(frozen=True)
class Sample:
    """One evaluation image. ``concept`` joins the images that count as correct for each other's texts."""

    item: Item
    concept: str
    texts: Sequence[str]
    label: str = ""
    split: str = "query"

    @property
    def key(self) -> str:
        """Unique within a set, without the characters at which webdataset splits names."""
        return re.sub(r"[^A-Za-z0-9_-]+", "_", self.item.key.replace("/", "__"))


@dataclass(frozen=True)
class EvaluationSet:
    """A named set, and the contents of its description."""

    name: str
    kind: str
    description: str
    samples: Sequence[Sample]
    more: Mapping[str, Any]


def evaluation_sets(choice: Choice) -> list[EvaluationSet]:
    """The three sets of a choice."""
    concepts = [
        *(Sample(i, code, texts_of(i)) for code, items in choice.concepts.items() for i in items),
        *_drawn(choice),
    ]
    vendor = [Sample(i, i.concept, texts_of(i)) for i in choice.vendor]
    return [
        EvaluationSet(
            "concepts",
            "retrieval",
            "Emoji concepts in four vendors' drawings, and openclipart drawings, held out of the archive by cluster.",
            concepts,
            {},
        ),
        EvaluationSet(
            "vendor",
            "retrieval",
            "Twemoji, a style held out of the archive, for concepts that the archive shows in other styles.",
            vendor,
            {},
        ),
        EvaluationSet(
            "classes",
            "classification",
            "Everyday classes of held-out emoji and drawings (query), and labelled Twemoji images for kNN (reference).",
            _classified(choice, concepts),
            {
                "classes": list(CLASSES),
                "templates": list(TEMPLATES),
                "labels_by_locale": labels_by_locale(),
            },
        ),
    ]


def texts_of(item: Item) -> list[str]:
    """Label, keywords, and the author's tags or the description: distinct, in this order."""
    texts = [item.label, ", ".join(item.tags)] if item.concept else [item.label]
    return list(dict.fromkeys(text for text in (*texts, *item.others) if text))


def write(folder: Path, chosen: EvaluationSet, images: Mapping[tuple[str, Encoding], bytes]) -> dict[str, Any]:
    """Writes ``NAME.tar`` and ``NAME.json``; returns the latter's content."""
    samples = sorted(chosen.samples, key=lambda sample: sample.key)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            _add(tar, f"{sample.key}.jpg", images[sample.item.picture, EVALUATION_ENCODING])
            _add(tar, f"{sample.key}.json", _json(_record(sample)))
    content = out.getvalue()
    concepts = {sample.concept for sample in samples}
    description = {
        "schema_version": SCHEMA_VERSION,
        "name": chosen.name,
        "kind": chosen.kind,
        "description": chosen.description,
        "num_images": len(samples),
        "num_texts": len({(sample.concept, text) for sample in samples for text in sample.texts}),
        "num_concepts": len(concepts),
        "sha256": hashlib.sha256(content).hexdigest(),
        **chosen.more,
    }
    if chosen.kind == "classification":
        for split in ("query", "reference"):
            description[f"num_{split}"] = sum(sample.split == split for sample in samples)
        queries = Counter(sample.label for sample in samples if sample.split == "query")
        description["majority_rate"] = round(max(queries.values()) / sum(queries.values()), 4)
    (folder / f"{chosen.name}.tar").write_bytes(content)
    (folder / f"{chosen.name}.json").write_bytes(_json(description, indent=2))
    return description


def _drawn(choice: Choice) -> list[Sample]:
    """The drawings as samples; a cluster counts as one concept, since its titles or pictures are the same."""
    return [
        Sample(item, f"openclipart-cluster-{number}", texts_of(item))
        for number, group in enumerate(sorted(choice.drawings, key=lambda g: g[0].key), 1)
        for item in _distinct(group)
    ]


def _distinct(group: Sequence[Item]) -> list[Item]:
    """One item per picture: links to one file are one image."""
    return list({item.picture: item for item in group}.values())


def _classified(choice: Choice, concepts: Sequence[Sample]) -> list[Sample]:
    flags = [Sample(i, i.concept, texts_of(i)) for i in choice.flags]
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted([*concepts, *flags], key=lambda s: rank("query", s.key)):
        by_class[class_of(sample.item)].append(sample)
    queries = [Sample(s.item, s.concept, s.texts, name) for name in CLASSES for s in by_class[name][:_QUERIES_A_CLASS]]
    references = [Sample(i, i.concept, texts_of(i), class_of(i), "reference") for i in choice.references]
    return [*queries, *references]


def planted(sets: Sequence[EvaluationSet], count: int) -> list[tuple[str, Item]]:
    """Chooses ``count`` images of each set, all different, to leak into the archive: (set's name, picture)."""
    taken: set[str] = set()
    leaks = []
    for chosen in sets:
        # Flags are too plain for a perceptual hash to recognise, and a planted leak must be easy to verify.
        queries = [
            s.item
            for s in chosen.samples
            if s.split == "query" and s.item.picture not in taken and s.item.subgroup != "country-flag"
        ]
        other = {s.item.picture for c in sets if c.name != chosen.name for s in c.samples}
        # Images that only this set has come first, so that each set's leaks can be told apart.
        order = sorted(shuffled(queries, "planted"), key=lambda i: i.picture in other)
        for item in order[:count]:
            taken.add(item.picture)
            leaks.append((chosen.name, item))
    return leaks


def _record(sample: Sample) -> dict[str, Any]:
    item = sample.item
    return {
        "key": sample.key,
        "concept": sample.concept,
        "texts": list(sample.texts),
        "class": sample.label,
        "vendor": item.source,
        "source_url": f"https://{item.source}.example/{item.name}",
        "split": sample.split,
    }


def _json(content: Any, indent: int | None = None) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=indent) + "\n").encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(content))
