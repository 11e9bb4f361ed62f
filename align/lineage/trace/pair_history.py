"""Looks up everything that is known of one pair: in data/raw, data/filtered and the policy.

Only reads. What a stage has not written yet is None.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import pyarrow.parquet as pq

from align.config.filter import FilterConfig
from align.filter.report import cuts_of
from align.filter.rules import RULES, conditions
from align.formats.filtered import DECISIONS, FACTS, IMAGES, find_pair
from align.formats.policy import read_opted_out
from align.lineage.versions.raw_pairs import RawRow


class RuleResult(TypedDict):
    """One rule applied to the pair.

    Attributes:
        rule: its reason code.
        what: what it drops, in words.
        drops_where: its condition, with the cut that decided on the pair; None if it was switched off.
        values: the pair's values of the condition's columns.
        verdict: `drops`, `passes`, `off`, or `unknown` before the filter ran.
    """

    rule: str
    what: str
    drops_where: str | None
    values: dict[str, Any]
    verdict: str


class PairHistory(TypedDict):
    """What data/raw, data/filtered and the policy say of one pair.

    Attributes:
        pair: its row of data/raw, and `raw_shard`.
        decision: its row of the filter's decisions, with the normalised text; None before the filter ran.
        rules: every rule, in the filter's order.
        cuts_line: where the cuts of the rules are not those of today's params.yaml, or not known; else None.
        facts: the values that rules looked at.
        opted_out: `kind` and `value` of the policy's entry that matches it, if one does.
    """

    pair: RawRow
    decision: dict[str, Any] | None
    rules: list[RuleResult]
    cuts_line: str | None
    facts: dict[str, Any]
    opted_out: dict[str, str] | None


def look_up(row: RawRow, config: FilterConfig, *, filtered: Path, report: Path, policy: Path) -> PairHistory:
    """What data/filtered and the policy say of one pair.

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
        "decision": decision,
        "rules": [rule_result(code, (used or today).get(code), facts, reasons) for code in RULES],
        "cuts_line": _cuts_line(today, used) if decision else None,
        "facts": facts,
        "opted_out": None if entry is None else {"kind": entry[0], "value": entry[1]},
    }


def _image(path: Path, image_id: str | None) -> dict[str, Any]:
    """The row of an image; empty if there is none, or no such file."""
    found = image_id is not None and path.is_file()
    rows = pq.read_table(path, filters=[("image_id", "==", image_id)]).to_pylist() if found else []
    return dict(rows[0]) if rows else {}


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
    }


def rule_values(values: Mapping[str, Any]) -> str:
    """The values that a rule looked at, in one line."""
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "none" if value is None else repr(value)
