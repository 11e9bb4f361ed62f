"""What a version was trained on, for others' tools and for the record: a Croissant card, and a summary of sources.

Both lie among the artifacts of the run, beside the model card. All numbers are read from the stages' reports.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from align.display.report import reported
from align.display.visible import markdown_table, plain_markdown
from align.formats.shards import MANIFEST, Manifest
from align.release.registration.results import PipelineOutputs

#: Their names among the artifacts.
CROISSANT, SOURCES = "croissant.json", "sources.md"
_CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
#: The terms of Croissant 1.0 that are used here; `cr:` and `sc:` are its two vocabularies.
_CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo",
    "rai": "http://mlcommons.org/croissant/RAI/",
    **{name: f"cr:{name}" for name in (
        "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
        "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references",
        "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField", "transform",
    )},
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
}  # fmt: skip
#: The members of a sample: a picture, its first text, and the JSON with all its texts and keys.
_MEMBERS = {
    "jpg": ("image/jpeg", "sc:ImageObject"), "txt": ("text/plain", "sc:Text"), "json": ("application/json", "sc:Text"),
}  # fmt: skip
#: Errors of an ingest, and reasons of the filter, that obey what somebody asked for.
_OBEYED = {
    "opted out": "take-downs (data/policy/opted_out.csv), while pictures were gathered",
    "reserved": "reservations of pages: noai, noimageai, noml, TDM Reservation Protocol, Content-Usage, Content-Signal",
    "X-Robots-Tag": "X-Robots-Tag of pictures' responses",
    "robots.txt": "robots.txt",
    "Content-Usage": "Content-Usage (IETF) of pictures' hosts",
    "Content-Signal": "Content-Signal of pictures' hosts",
    "training robots": "robots.txt for robots that gather for training (download.training_robots)",
    "opted_out": "take-downs, by the filter",
    "pair_licence": "no allowed licence (filter.licences)",
}


def croissant(name: str, manifest: Manifest, outputs: PipelineOutputs) -> str:
    """The card of data/shards, Croissant 1.0 as JSON-LD. Addresses of files are relative to that folder.

    Args:
        name: of the data set.
        manifest: of its shards; the digest is its version.
        outputs: whose reports say what it was made of.
    """
    licences = sorted(reported(outputs.reports / "ingest").get("licences", {}))
    images = sum(split.num_images for split in manifest.splits.values())
    pairs = sum(split.num_pairs for split in manifest.splits.values())
    objects = [
        {
            "@type": "cr:FileObject", "@id": one.path, "name": one.path, "contentUrl": one.path,
            "contentSize": f"{one.num_bytes} B", "encodingFormat": "application/x-tar",
            "sha256": one.sha256,
        }
        for one in manifest.tars.values()
    ]  # fmt: skip
    members = [
        {
            "@type": "cr:FileSet", "@id": kind, "name": kind, "encodingFormat": encoding, "includes": f"*.{kind}",
            "containedIn": [{"@id": path} for path in manifest.tars],
        }
        for kind, (encoding, _) in _MEMBERS.items()
    ]  # fmt: skip
    card = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _CONFORMS_TO,
        "name": name,
        "version": f"1.0.0+{manifest.digest[:12]}",
        "description": (
            f"{pairs:,} pairs of {images:,} pictures and their alt-texts, filtered as ALIGN's are (Jia et al. 2021), "
            f"pictures resized to {manifest.image_px} x {manifest.image_px} px. A sample is a picture, its first text, "
            f"and a JSON with all its texts. {SOURCES} says where they come from, {MANIFEST} which tars a split has."
        ),
        **({"license": licences} if licences else {}),
        "distribution": [*objects, *members],
        "recordSet": [_records(kind, data_type) for kind, (_, data_type) in _MEMBERS.items()],
    }  # fmt: skip
    return json.dumps(card, indent=1, ensure_ascii=False) + "\n"


def _records(kind: str, data_type: str) -> dict[str, Any]:
    """A record for each member of a kind: its name, which is that of its sample, and its content."""
    fields = {"file": ("sc:Text", "filename"), "content": (data_type, "content")}
    return {
        "@type": "cr:RecordSet", "@id": f"{kind}-files", "name": f"{kind}-files",
        "field": [
            {
                "@type": "cr:Field", "@id": f"{kind}-files/{name}", "name": name, "dataType": of,
                "source": {"fileSet": {"@id": kind}, "extract": {"fileProperty": what}},
            }
            for name, (of, what) in fields.items()
        ],
    }  # fmt: skip


def sources(name: str, manifest: Manifest, outputs: PipelineOutputs) -> str:
    """A summary in Markdown: counts, domains, licences, and the opt-outs that were obeyed."""
    return "\n\n".join(_sections(name, manifest, outputs)) + "\n"


def _sections(name: str, manifest: Manifest, outputs: PipelineOutputs) -> Iterator[str]:
    ingest, filtered = (reported(outputs.reports / stage) for stage in ("ingest", "filter"))
    yield f"# Sources of {plain_markdown(name)}\n\nData `{manifest.digest[:12]}`."
    counts = [[f"pictures, pairs of split {one}", f"{split.num_images:,}, {split.num_pairs:,}"]
              for one, split in manifest.splits.items()]  # fmt: skip
    if filtered:
        counts.insert(0, ["pairs that passed the filter", f"{filtered['num_kept']:,} of {filtered['num_pairs']:,}"])
    if ingest:
        counts.insert(0, ["pairs that the sources name", f"{ingest['num_pairs']:,}"])
    yield "## Counts\n\n" + markdown_table(["what", "number"], counts)
    obeyed = ingest.get("errors", {}) | {row["reason"]: row["num_first"] for row in filtered.get("funnel", ())}
    rows = [[what, f"{obeyed[code]:,}"] for code, what in _OBEYED.items() if obeyed.get(code)]
    yield "## Opt-outs that were obeyed\n\n" + (markdown_table(["what", "pairs"], rows) if rows else "None was found.")
    if hosts := ingest.get("hosts"):
        shown = {host: sum(of.values()) for host, of in hosts.items()}
        rows = [[host, f"{number:,}", f"{hosts[host].get('success', 0):,}"] for host, number in shown.items()]
        left = ingest["num_pairs"] - sum(shown.values())
        yield "## Domains\n\n" + markdown_table(["domain of the picture", "pairs", "with a picture"], rows)
        if left:
            yield f"All others: {left:,} pairs."
    licences = ingest.get("licences", {})
    yield "## Licences\n\nWhat pages state, which nobody has checked; a pair with a picture each.\n\n" + (
        markdown_table(["licence", "pairs"], [[one, f"{number:,}"] for one, number in licences.items()])
        if licences
        else "No page states one."
    )
