"""explain: everything known of one pair, from the page that it stood on to the models that were trained on it.

Reads what the stages left (data/raw, data/filtered, data/shards), data/policy, MLflow's registry, and through git and
DVC the data of models that were trained on another version of it. Nothing is written; what is not there is said to be
not there.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from align.config import Params
from align.config.filter import FilterConfig
from align.config.paths import PathsConfig
from align.config.register import RegisterConfig
from align.config.store import StoreConfig
from align.errors import DataError, ServiceError
from align.files import sha256_file, to_json
from align.filter.rules import RULES
from align.formats.policy import read_opted_out
from align.formats.raw import SCHEMA
from align.lineage.data_versions import DataVersions
from align.lineage.take_down import iter_rows, seen
from align.lineage.trained import trainings
from align.services.store import fetcher
from align.services.tracking import Tracker, is_there

Row = dict[str, Any]

_HEX_DIGITS_OF_SHA256 = 64


def find(raw: Path, column: str, value: str) -> list[Row]:
    """The rows of data/raw of which a column has this value, each with `raw_shard`, the shard that it lies in.

    Raises:
        DataError: there are no tables.
    """
    tables = sorted(raw.glob("*.parquet"))
    if not tables:
        raise DataError(f"{raw}: no NNNNN.parquet here; run `align ingest` first")
    if column == "key":  # a key begins with the name of its shard
        tables.sort(key=lambda path: not value.startswith(path.stem))
    found: list[Row] = []
    for path in tables:
        known = [name for name in SCHEMA.names if name in pq.read_schema(path).names]
        if column in known:
            rows = pq.read_table(path, columns=known, filters=[(column, "==", value)]).to_pylist()
            found += [dict.fromkeys(SCHEMA.names) | row | {"raw_shard": path.stem} for row in rows]
        if found and column == "key":
            break
    return found


def explain(config: FilterConfig, row: Row, *, filtered: Path, shards: Path, policy: Path, tar_of: Any = None) -> Row:
    """What the files say of one pair: `pair`, `decision`, `rules`, `facts`, `place`, `opted_out`.

    Args:
        config: section `filter`, for the cuts.
        row: of data/raw, from `find`.
        filtered: data/filtered; may be absent, as may shards.
        shards: data/shards.
        policy: data/policy.
        tar_of: see `take_down.iter_rows`.
    """
    decision = _row(filtered / "decisions.parquet", "key", row["key"])
    image_id = (decision or row).get("image_id") or row["sha256"]
    image = _row(filtered / "images.parquet", "image_id", image_id) or {}
    facts = _facts(row, image, filtered)
    reasons = decision["reasons"] if decision else None
    entry = read_opted_out(policy).entry(row["url"], row["page_url"], image_id)
    return {
        "pair": row,
        "decision": decision and {name: decision[name] for name in ("keep", "reason", "reasons", "text")},
        "rules": [_rule(code, config, facts, reasons) for code in RULES],
        "facts": facts,
        "place": _place(shards, image_id, row["key"], tar_of) if decision and decision["keep"] else None,
        "opted_out": None if entry is None else {"kind": entry[0], "value": entry[1]},
    }


def _row(path: Path, column: str, value: str | None) -> Row | None:
    if value is None or not path.is_file():
        return None
    rows: list[Row] = pq.read_table(path, filters=[(column, "==", value)]).to_pylist()
    return rows[0] if rows else None


def _facts(row: Row, image: Row, filtered: Path) -> Row:
    """The values that rules looked at, as the filter wrote them down; an older filter left those of images only."""
    return row | image | (_row(filtered / "facts.parquet", "key", row["key"]) or {})


def _rule(code: str, config: FilterConfig, facts: Row, reasons: list[str] | None) -> Row:
    """A rule's verdict, the values that its condition speaks of, and the condition, which has the cut in it."""
    condition = RULES[code](config)  # None: switched off
    words = re.findall(r"[a-z_]+", re.sub(r"'[^']*'", "", condition or ""))
    verdict = "unknown"
    if reasons is not None:
        verdict = "drops" if code in reasons else "passes" if condition else "off"
    return {
        "rule": code,
        "what": " ".join((RULES[code].__doc__ or "").split("\n\n")[0].split()),
        "drops_where": condition and re.sub(r"CAST\((\S+) AS DOUBLE\)", r"\1", condition),
        "values": {name: facts[name] for name in dict.fromkeys(words) if name in facts},
        "verdict": verdict,
        "first": bool(reasons) and reasons is not None and reasons[0] == code,
    }


def _place(shards: Path, image_id: str | None, key: str, tar_of: Any) -> Row | None:
    if not (shards / "manifest.json").is_file():
        return None
    for split, tar, sample in iter_rows(shards, tar_of):
        if sample["image_id"] == image_id and key in sample["keys"]:
            return {"split": split, "tar": tar, "sample": sample["key"], "num_texts": len(sample["texts"])}
    return None


def models_that_saw(params: Params, pair: Row) -> tuple[list[Row], str | None]:
    """The registered versions, and whether each had the pair in its data; a line in their place where nobody knows."""
    paths, store = params.section(PathsConfig), params.section(StoreConfig)
    image_id, text = pair["pair"]["sha256"], (pair["decision"] or {}).get("text")
    if not is_there():
        return [], "no MLflow here: neither MLFLOW_TRACKING_URI nor mlflow.db"
    if image_id is None:
        return [], "its picture was never there, so no model can have seen it"
    with tempfile.TemporaryDirectory(prefix="align-") as scratch:
        try:
            found = trainings(
                Tracker(), params.section(RegisterConfig).model_name, shards=paths.shards,
                out=paths.shards.as_posix(), versions=DataVersions(Path.cwd(), Path(scratch)),
                count=lambda folder: seen(folder, frozenset({image_id}), text=text, tar_of=fetcher(store)),
            )  # fmt: skip
        except ServiceError as error:
            return [], str(error)
    rows = [
        {
            "name": one.version.name, "version": one.version.number, "aliases": list(one.aliases),
            "trained_on_it": None if one.seen is None else one.seen.get("train", 0) > 0,
            "splits": None if one.seen is None else dict(one.seen), "why": one.why,
        }
        for one in found
    ]  # fmt: skip
    return rows, None if rows else "no version is registered"


def render(found: Row) -> str:
    """The same for people."""
    return "\n".join([*_head(found), "", *_rule_lines(found), "", *_tail(found)])


def _head(found: Row) -> Iterator[str]:
    pair, decision, facts = found["pair"], found["decision"], found["facts"]
    verdict = (
        "not yet filtered" if decision is None else "kept" if decision["keep"] else f"dropped: {decision['reason']}"
    )
    yield f"pair {pair['key']}: {verdict}"
    yield ""
    source = f" (from {pair['text_source']})" if pair["text_source"] else ""
    yield f"  text       {pair['caption']!r}{source}"
    if decision and decision["text"] != pair["caption"]:
        yield f"             {decision['text']!r}, normalised"
    yield f"  picture    {pair['url']}"
    yield f"  page       {pair['page_url'] or 'not recorded'}"
    problem = f": {pair['error_message']}" if pair["error_message"] else ""
    again = ", may pass" if pair["retryable"] else ""
    yield f"  download   {pair['status']}{problem}{again}"
    if pair["width"]:
        yield f"  size       {pair['width']} x {pair['height']} px"
    if pair["sha256"]:
        stored = "" if pair["image_key"] in (None, pair["key"]) else f", stored with pair {pair['image_key']}"
        yield f"  bytes      sha256 {pair['sha256']}{stored}"
    yield f"  raw shard  {pair['raw_shard']}"
    if facts.get("nsfw_score") is not None:
        yield f"  NSFW       {_shown(facts['nsfw_score'])}"
    if facts.get("twin"):
        cosine = facts.get("twin_cosine")
        how = "equal bytes or hashes" if cosine is None else f"cosine {cosine:.4f}"
        yield f"  twin       test image {facts['twin']}, {how}"
    if found["opted_out"]:
        yield f"  take-down  opted out by {found['opted_out']['kind']} {found['opted_out']['value']}"


def _rule_lines(found: Row) -> Iterator[str]:
    width = max(len(rule["rule"]) for rule in found["rules"])
    yield f"  {'rule':<{width}}  {'verdict':<11}  value; drops where"
    for rule in found["rules"]:
        verdict = "drops first" if rule["first"] else rule["verdict"]
        told = "; ".join(filter(None, [_values(rule["values"]), rule["drops_where"]]))
        yield f"  {rule['rule']:<{width}}  {verdict:<11}  {told}".rstrip()


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in values.items())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) else str(value)


def _tail(found: Row) -> Iterator[str]:
    place = found["place"]
    if place:
        texts = f"{place['num_texts']} text{'s' if place['num_texts'] > 1 else ''}"
        yield f"  shard      {place['tar']}, sample {place['sample']} with {texts}; split {place['split']}"
    elif found["decision"] and found["decision"]["keep"]:
        yield "  shard      in none yet; `align shard` writes them"
    if found["models_line"]:
        yield f"  models     {found['models_line']}"
    for model in found["models"]:
        if model["trained_on_it"] is None:
            verdict = "unknown whether it saw the pair"
        elif model["trained_on_it"]:
            verdict = "TRAINED on it"
        else:
            others = ", ".join(model["splits"])
            verdict = f"not trained on it, saw it in split {others}" if others else "did not see it"
        aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
        yield f"  models     {model['name']} version {model['version']}{aliases}: {verdict}; {model['why']}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own arguments."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("what", nargs="?", metavar="KEY", help="a pair's key; also a picture's file or its sha256")
    what.add_argument("--url", help="address of a picture, as in data/raw")
    parser.add_argument("--json", action="store_true", help="a list of everything, for programs")


def _wanted(args: argparse.Namespace) -> tuple[str, str]:
    if args.url:
        return "url", args.url
    if Path(args.what).is_file():
        return "sha256", sha256_file(Path(args.what))
    return ("sha256" if len(args.what) == _HEX_DIGITS_OF_SHA256 else "key"), args.what


def main(params: Params, args: argparse.Namespace) -> None:
    """`align explain`."""
    paths, config = params.section(PathsConfig), params.section(FilterConfig)
    column, value = _wanted(args)
    rows = find(paths.raw, column, value)
    if not rows:
        raise DataError(f"no pair with {column} {value} in {paths.raw}; `align search` and the reports print keys")
    print(*_output(params, paths, config, rows, as_json=args.json), sep="\n\n")


def _output(
    params: Params, paths: PathsConfig, config: FilterConfig, rows: Iterable[Row], *, as_json: bool
) -> Iterator[str]:
    everything = []
    for row in rows:
        found = explain(
            config, row, filtered=paths.filtered, shards=paths.shards, policy=paths.policy,
            tar_of=fetcher(params.section(StoreConfig)),
        )  # fmt: skip
        found["models"], found["models_line"] = models_that_saw(params, found)
        everything.append(found)
    if as_json:
        yield to_json(everything).rstrip("\n")
    else:
        yield from map(render, everything)
