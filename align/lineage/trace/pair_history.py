"""Looks up everything that is known of one pair: in data/raw, data/filtered and the policy.

Only reads. What a stage has not written yet is None.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypedDict

import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.filter.report import cuts_of
from align.filter.rules import RULES, conditions
from align.formats.filtered import DECISIONS, FACTS, IMAGES, find_pair
from align.formats.policy import read_opted_out
from align.lineage.versions.raw_pairs import RawRow
from align.lineage.versions.who_saw import WhoSaw


class PairDecision(TypedDict):
    """The filter's decision; `text` is the normalised text."""

    keep: bool
    reason: str | None
    reasons: list[str]
    text: str


class RuleResult(TypedDict):
    """One rule applied to the pair.

    Attributes:
        rule: its reason code.
        what: what it drops, in words.
        drops_where: its condition, with the cut that decided on the pair; None if it was switched off.
        values: the pair's values of the condition's columns.
        verdict: `drops`, `passes`, `off`, or `unknown` before the filter ran.
        first: whether it is the first rule that drops the pair, the pair's `reason`.
    """

    rule: str
    what: str
    drops_where: str | None
    values: dict[str, Any]
    verdict: str
    first: bool


class ShardPosition(TypedDict):
    """Where data/shards has the pair: the tar of a split, the key of the sample, and that sample's number of texts."""

    split: str
    tar: str
    sample: str
    num_texts: int


class ModelUse(TypedDict):
    """What a registered model version saw of the pair.

    Attributes:
        name: of the registered model.
        version: its number.
        aliases: such as `champion`.
        trained_on_it: None if its data can no longer be read.
        splits: split -> number of pairs, where it saw the pair; None as above.
        why: where its data was read, or why it could not be.
    """

    name: str
    version: int
    aliases: list[str]
    trained_on_it: bool | None
    splits: dict[str, int] | None
    why: str


class PairHistory(TypedDict):
    """Everything known of one pair, as `align trace KEY --json` prints it.

    Attributes:
        pair: its row of data/raw, and `raw_shard`.
        decision: None before the filter ran.
        rules: every rule, in the filter's order.
        cuts_line: where the cuts of the rules are not those of today's params.yaml, or not known; else None.
        facts: the values that rules looked at.
        place: its position in data/shards; None if it is in none.
        opted_out: `kind` and `value` of the policy's entry that matches it, if one does.
        models: the registered versions.
        models_line: why `models` is empty; else None.
    """

    pair: RawRow
    decision: PairDecision | None
    rules: list[RuleResult]
    cuts_line: str | None
    facts: dict[str, Any]
    place: ShardPosition | None
    opted_out: dict[str, str] | None
    models: list[ModelUse]
    models_line: str | None


def look_up(row: RawRow, config: FilterConfig, *, filtered: Path, report: Path, policy: Path) -> PairHistory:
    """What data/filtered and the policy say of one pair; `place` and `models` are still empty.

    Args:
        row: of data/raw.
        config: section `filter` of today.
        filtered: data/filtered; may be absent.
        report: reports/filter, which has the cuts that made data/filtered; may be absent.
        policy: data/policy.
    """
    decision = find_pair(filtered, DECISIONS, row["key"])
    image_id = (decision or row).get("image_id") or row["sha256"]
    facts = row | _image(filtered / IMAGES, image_id) | (find_pair(filtered, FACTS, row["key"]) or {})
    reasons = decision["reasons"] if decision else None
    today, used = conditions(config), cuts_of(report) if decision else None
    entry = read_opted_out(policy).entry(row["url"], row["page_url"], image_id)
    return {
        "pair": row,
        "decision": None if decision is None else _decision(decision),
        "rules": [rule_result(code, (used or today).get(code), facts, reasons) for code in RULES],
        "cuts_line": _cuts_line(today, used) if decision else None,
        "facts": facts,
        "place": None,
        "opted_out": None if entry is None else {"kind": entry[0], "value": entry[1]},
        "models": [],
        "models_line": None,
    }


def of_models(saw: WhoSaw) -> list[ModelUse]:
    """The registered versions of a model, and whether each had the pair in its data."""
    return [
        {
            "name": one.version.name,
            "version": one.version.number,
            "aliases": list(one.aliases),
            "trained_on_it": one.trained,
            "splits": None if one.seen is None else dict(one.seen),
            "why": one.why,
        }
        for one in saw.models
        if one.version
    ]


def _image(path: Path, image_id: str | None) -> dict[str, Any]:
    """The row of an image; empty if there is none, or no such file."""
    if image_id is None or not path.is_file():
        return {}
    rows: list[dict[str, Any]] = pq.read_table(path, filters=[("image_id", "==", image_id)]).to_pylist()
    return rows[0] if rows else {}


def _decision(row: dict[str, Any]) -> PairDecision:
    return {"keep": row["keep"], "reason": row["reason"], "reasons": row["reasons"], "text": row["text"]}


def _cuts_line(today: dict[str, str | None], used: dict[str, str | None] | None) -> str | None:
    if used is None:
        return "of params.yaml; no report of the filter says which ones made data/filtered"
    changed = [f"{code}: {cut or 'off'}" for code, cut in today.items() if cut != used.get(code)]
    if not changed:
        return None
    return f"those that made data/filtered; params.yaml now has {', '.join(changed)}; `align filter` applies these"


def rule_result(code: str, condition: str | None, facts: dict[str, Any], reasons: list[str] | None) -> RuleResult:
    """A rule applied to a pair.

    Args:
        code: of the rule; a rule of another version may be unknown here, and then no words say what it drops.
        condition: under which it drops a pair; None: it was off.
        facts: of the pair, as far as they are known.
        reasons: codes of the rules that drop the pair; None before the filter ran.
    """
    names = re.findall(r"[a-z_]+", re.sub(r"'[^']*'", "", condition or ""))
    verdict = "unknown"
    if reasons is not None:
        verdict = "drops" if code in reasons else "passes" if condition else "off"
    return {
        "rule": code,
        "what": " ".join((RULES[code].__doc__ or "").split("\n\n")[0].split()) if code in RULES else "",
        "drops_where": condition,
        "values": {name: facts[name] for name in dict.fromkeys(names) if name in facts},
        "verdict": verdict,
        "first": bool(reasons) and reasons is not None and reasons[0] == code,
    }
