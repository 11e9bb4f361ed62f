"""Rebuilds the committed sample from packages: ``python data/sample/build --packages DIR --out DIR``.

Two runs with the same package and library versions give the same bytes. The packages folder also keeps the rendered
pictures, so that a second run takes about a minute.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import archive
import emoji
import evaluation
import openclipart
from choose import choose
from items import Item
from packages import obtain
from pages import Entry, extra_pairs, pages
from render import EVALUATION_ENCODING, Encoding, encode_all, masters

PAIRS = 9800
"""Raw pairs in the archive: enough to train on, few enough for 40 MB."""
PLANTED_A_SET = 12


def main(arguments: Sequence[str] | None = None) -> None:
    """Obtains the packages if asked to, and builds the sample."""
    parser = argparse.ArgumentParser(prog="python data/sample/build", description=__doc__)
    parser.add_argument("--packages", type=Path, required=True, help="folder of the unpacked packages, and a cache")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the sample to")
    parser.add_argument("--obtain", action="store_true", help="first fetch missing packages by apt-get and npm")
    options = parser.parse_args(arguments)
    if options.obtain:
        obtain(options.packages)
    print(json.dumps(build(options.packages, options.out), indent=2))


def build(packages: Path, out: Path) -> dict[str, object]:
    """Writes archive, evaluation sets and the list of planted leaks; returns their numbers."""
    npm, cache = packages / "npm", packages / "rendered"
    items = [*openclipart.read(packages / "debian"), *emoji.read(npm)]
    looks = masters(items, cache)
    choice = choose(items, looks, PAIRS, extra_pairs(3 * PLANTED_A_SET))
    sets = evaluation.evaluation_sets(choice)
    leaks = evaluation.planted(sets, PLANTED_A_SET)
    locales = {locale: emoji.locale_texts(npm, locale) for locale in emoji.LOCALES}
    made, leaked = pages(choice.archive, locales, [item for _, item in leaks])

    entries: dict[str, Entry] = {entry.url: entry for page in made for entry in page.entries}
    wanted: dict[tuple[str, Encoding], Item] = {(e.item.picture, e.encoding): e.item for e in entries.values()}
    for chosen in sets:
        wanted |= {(s.item.picture, EVALUATION_ENCODING): s.item for s in chosen.samples}
    encoded = encode_all(wanted, cache)

    (out / "evaluation").mkdir(parents=True, exist_ok=True)
    images = {u: (e.encoding.content_type, encoded[e.item.picture, e.encoding]) for u, e in entries.items()}
    counts = archive.write(out / "archive.warc.gz", made, images, spare={entry.url for entry in leaked})
    described = [evaluation.write(out / "evaluation", chosen, encoded) for chosen in sets]
    listed = [
        {"url": entry.url, "set": name, "key": evaluation.Sample(item, "", ()).key}
        for (name, item), entry in zip(leaks, leaked, strict=True)
    ]
    (out / "planted.json").write_text(json.dumps({"schema_version": 1, "planted": listed}, indent=2) + "\n")
    return {
        "population": len(items),
        "pairs": sum(len(page.entries) for page in made),
        **counts,
        "evaluation": {d["name"]: {k: v for k, v in d.items() if k.startswith("num_")} for d in described},
    }


if __name__ == "__main__":
    main()
