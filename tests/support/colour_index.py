"""data/index of one-coloured pictures, and the data that it is made of: what search should find is plain to see."""

import json

import pyarrow as pa
import pyarrow.parquet as pq

from align.config.infrastructure import EngineConfig
from align.config.search import IndexConfig
from align.formats.raw import SCHEMA
from align.formats.shards import SPLITS, iter_samples
from align.search.index import IndexedData, IndexModel, index
from tests.support import colour_shards
from tests.support.colours import ColourEncoder
from tests.support.params import load_params

PAGE = "https://example.com/page"
RULES = {"text_too_short": "num_words < 3", "text_no_language": None}


def write_data(root, reports, pages=None):
    """Writes shards and their data/raw below a folder, and the filter's report; pairs are on PAGE unless `pages` names
    another by their key.
    """
    shards, raw = colour_shards.write(root / "shards"), root / "raw"
    samples = [sample for split in SPLITS for sample in iter_samples(shards, split)]
    write_raw(raw, [
        {
            "key": key, "url": f"https://example.com/{sample.key}.jpg", "caption": text, "image_key": sample.key,
            "sha256": sample.image_id, "page_url": (pages or {}).get(key, PAGE),
        }
        for sample in samples
        for key, text in zip(sample.keys, sample.texts, strict=True)
    ])  # fmt: skip
    return IndexedData(shards, raw, write_report(reports / "filter"))


def write_report(folder):
    """Writes what the filter's report says of its rules; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"reason": code, "drops_where": rule} for code, rule in RULES.items()]
    (folder / "report.json").write_text(json.dumps({"funnel": rows}))
    return folder


def write_raw(raw, rows, name="00000"):
    """Writes a table of data/raw, beside a tar that nobody needs."""
    raw.mkdir(parents=True, exist_ok=True)
    rows = [{"status": "success", "image_key": row["key"], **row} for row in sorted(rows, key=lambda row: row["key"])]
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), raw / f"{name}.parquet")
    (raw / f"{name}.tar").write_bytes(b"")


def build(root, *, encoder=None, model_digest="mine", pages=None, **values):
    """Writes data and `root/index`, with other values of section `index`; no queries unless they are named."""
    return index(
        IndexConfig.model_validate(load_params().values["index"] | {"queries": None} | values),
        text_weight=2.0,
        model=IndexModel(root / "no model", encoder or ColourEncoder(), model_digest),
        data=write_data(root, root / "reports", pages),
        engine=load_params().section(EngineConfig),
        out=root / "index",
        reports=root / "reports/index",
    )
