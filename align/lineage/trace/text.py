"""A trace as text for people: the pairs asked for, the answers, the chain from source to index, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from align.lineage.trace.graph import KINDS, Graph, Node, missing
from align.lineage.trace.pair_history import ModelUse, PairHistory

_WIDTH = 20


def text_lines(graph: Graph) -> Iterator[str]:
    """All lines."""
    for history in graph.pairs:
        yield from (*pair_lines(history), "")
    yield f"{graph.subject}: where it comes from, and where it went"
    yield from (f"  {answer}" for answer in graph.answers)
    for node in graph.ordered():
        yield ""
        yield from _lines(node, is_subject=node.id in graph.subjects)
    if lines := missing(graph):
        yield from ("", "not on this machine, or not known:")
        yield from (f"  {line}" for line in lines)


def _lines(node: Node, *, is_subject: bool) -> Iterator[str]:
    mark = ">" if is_subject else " "
    brief = f" ({node.brief})" if node.brief else ""
    yield f"{mark} {KINDS[node.kind].lower():<{_WIDTH}}  {node.title}{brief}"
    for label, value in node.facts:
        yield f"    {label:<{_WIDTH - 2}}  {value}"
    for line in node.missing:
        yield f"    {'MISSING':<{_WIDTH - 2}}  {line}"


def pair_lines(history: PairHistory) -> list[str]:
    """What is known of the pair; then every rule; then shards and models."""
    return [*_head(history), "", *_rule_lines(history), "", *_tail(history)]


def _head(history: PairHistory) -> Iterator[str]:
    pair, decision, facts = history["pair"], history["decision"], history["facts"]
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
    retry = ", a retry may succeed" if pair["retryable"] else ""
    yield f"  download   {pair['status']}{problem}{retry}"
    if pair["width"]:
        yield f"  size       {pair['width']} x {pair['height']} px"
    if pair["sha256"]:
        stored = "" if pair["image_key"] in (None, pair["key"]) else f", stored with pair {pair['image_key']}"
        yield f"  bytes      sha256 {pair['sha256']}{stored}"
    yield f"  raw shard  {pair['raw_shard']}"
    if facts.get("nsfw_score") is not None:
        yield f"  NSFW       {_value(facts['nsfw_score'])}"
    if facts.get("twin"):
        cosine = facts.get("twin_cosine")
        how = "equal bytes or hashes" if cosine is None else f"cosine {cosine:.4f}"
        yield f"  twin       test image {facts['twin']}, {how}"
    if history["opted_out"]:
        yield f"  take-down  opted out by {history['opted_out']['kind']} {history['opted_out']['value']}"


def _rule_lines(history: PairHistory) -> Iterator[str]:
    width = max(len(rule["rule"]) for rule in history["rules"])
    yield f"  {'rule':<{width}}  {'verdict':<11}  value; drops where"
    for rule in history["rules"]:
        verdict = "drops first" if rule["first"] else rule["verdict"]
        details = "; ".join(filter(None, [rule_values(rule["values"]), rule["drops_where"]]))
        yield f"  {rule['rule']:<{width}}  {verdict:<11}  {details}".rstrip()
    if history["cuts_line"]:
        yield f"  cuts       {history['cuts_line']}"


def _tail(history: PairHistory) -> Iterator[str]:
    position, decision = history["place"], history["decision"]
    if position:
        texts = f"{position['num_texts']} text{'s' if position['num_texts'] > 1 else ''}"
        yield f"  shard      {position['tar']}, sample {position['sample']} with {texts}; split {position['split']}"
    elif decision and decision["keep"]:
        yield "  shard      in none yet; `align shard` writes them"
    if history["models_line"]:
        yield f"  models     {history['models_line']}"
    yield from map(_model_line, history["models"])


def _model_line(model: ModelUse) -> str:
    if model["trained_on_it"] is None:
        verdict = "unknown whether it saw the pair"
    elif model["trained_on_it"]:
        verdict = "TRAINED on it"
    else:
        others = ", ".join(model["splits"] or ())
        verdict = f"not trained on it, saw it in split {others}" if others else "did not see it"
    aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
    return f"  models     {model['name']} version {model['version']}{aliases}: {verdict}; {model['why']}"


def rule_values(values: Mapping[str, Any]) -> str:
    """The values that a rule looked at, in one line."""
    return ", ".join(f"{name} = {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return repr(value) if isinstance(value, str) else str(value)
