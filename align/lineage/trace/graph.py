"""What `align trace` found, as a graph: from sources and pages to the index, each link with what is known of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from align.lineage.trace.pair_history import PairHistory

Kind = Literal[
    "source", "page", "pair", "decision", "verdict", "shard", "run", "version", "alias", "index"
]  # fmt: skip
#: In the order of the chain, with the names that people read.
KINDS: Mapping[Kind, str] = {
    "source": "Source",
    "page": "Web page",
    "pair": "Pair",
    "decision": "Decision",
    "verdict": "Quality gate",
    "shard": "Shards",
    "run": "Training run",
    "version": "Model version",
    "alias": "Alias",
    "index": "Search index",
}
#: The state of a node; `gone`: this link of the chain is not on this machine, or not known.
State = Literal["", "good", "warn", "bad", "gone"]


@dataclass(frozen=True)
class Picture:
    """A picture that a page shows: JPEG bytes, and its text."""

    data: bytes
    caption: str


@dataclass(frozen=True)
class Table:
    """Numbers of a node, such as a funnel; `bar`: index of a column of shares, 0 to 1."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | int | float, ...], ...]
    bar: int | None = None


@dataclass(frozen=True)
class Node:
    """One link of the chain.

    Attributes:
        id: names it in the graph; holds foreign text.
        kind: which link it is.
        title: its name, in a few words.
        brief: what is most important of it, in a few words.
        facts: (label, value), in the order of reading.
        state: see `State`.
        missing: what is not on this machine and how to get it; one line each.
        tables: of the page alone.
        pictures: of the page alone.
    """

    id: str
    kind: Kind
    title: str
    brief: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    state: State = ""
    missing: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()


@dataclass
class Graph:
    """The chain around what was asked for.

    Attributes:
        asked: the words of the command.
        subject: what they name, such as `pair 000000012`.
        nodes: by id.
        edges: (id, id) from what was made earlier to what was made of it.
        answers: the main things that were found, as sentences.
        notes: one line for each source that could not be asked.
        subjects: ids of the nodes that were asked for.
        pairs: everything known of each pair that was asked for.
    """

    asked: str
    subject: str
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    pairs: list[PairHistory] = field(default_factory=list)

    def add(self, node: Node, *before: str) -> str:
        """Adds a node, once, and edges to it from those before it that exist; returns its id."""
        self.nodes.setdefault(node.id, node)
        for one in before:
            if one in self.nodes and (one, node.id) not in self.edges:
                self.edges.append((one, node.id))
        return node.id

    def of_kind(self, kind: Kind) -> list[Node]:
        """The nodes of one kind, in the order in which they were added."""
        return [node for node in self.nodes.values() if node.kind == kind]

    def ordered(self) -> list[Node]:
        """All nodes in the order of the chain."""
        return [node for kind in KINDS for node in self.of_kind(kind)]

    def before(self, node: Node) -> list[Node]:
        """What the node was made of."""
        return [self.nodes[one] for one, other in self.edges if other == node.id]

    def after(self, node: Node) -> list[Node]:
        """What was made of the node."""
        return [self.nodes[other] for one, other in self.edges if one == node.id]

    def as_json(self) -> dict[str, Any]:
        """For programs: without pictures."""
        return {
            "schema_version": 1,
            "asked": self.asked,
            "subject": self.subject,
            "pairs": self.pairs,
            "answers": self.answers,
            "notes": self.notes,
            "nodes": [_as_json(node) | {"is_subject": node.id in self.subjects} for node in self.ordered()],
            "edges": [{"from": one, "to": other} for one, other in self.edges],
        }


def missing(graph: Graph) -> list[str]:
    """Every link that is not on this machine, once, and how to get it."""
    return list(dict.fromkeys(line for node in graph.ordered() for line in node.missing))


def known(facts: Iterable[tuple[str, object]]) -> tuple[tuple[str, str], ...]:
    """The facts that have a value, as text."""
    return tuple((label, str(value)) for label, value in facts if value not in (None, ""))


def _as_json(node: Node) -> dict[str, Any]:
    values = {name.name: getattr(node, name.name) for name in dataclasses.fields(node) if name.name != "pictures"}
    tables = [dataclasses.asdict(table) for table in node.tables]
    facts: dict[str, str] = {}
    for label, value in node.facts:  # a label may stand twice: two people accepted something
        facts[label] = f"{facts[label]}; {value}" if label in facts else value
    return values | {"facts": facts, "missing": list(node.missing), "tables": tables}
